//! Rotary position embedding (Su et al. 2021): turns pairs of dimensions by an angle that grows with the position.
//!
//! Knows no frequencies and no scaling (YaRN, llama3): the caller brings the cosines and sines of one position.

/// Rotates each head of one token, pairing dimension `i` with `i + head_dim / 2` (the "NeoX" layout: Qwen, Hugging Face).
///
/// `x`: (heads × `head_dim`); `cos`, `sin`: at least `head_dim / 2`.
pub fn rope_halves(x: &mut [f32], head_dim: usize, cos: &[f32], sin: &[f32]) {
    let half = head_dim / 2;
    if half == 0 {
        return;
    }
    for head in x.chunks_exact_mut(head_dim) {
        let (first, second) = head.split_at_mut(half);
        for (((a, b), &c), &s) in first.iter_mut().zip(second).zip(cos).zip(sin) {
            (*a, *b) = (*a * c - *b * s, *b * c + *a * s);
        }
    }
}

/// Rotates each head of one token, pairing dimension `2i` with `2i + 1` (the paper's layout; Llama as GGUF permutes it).
///
/// `x`: (heads × `head_dim`); `cos`, `sin`: at least `head_dim / 2`.
pub fn rope_pairs(x: &mut [f32], head_dim: usize, cos: &[f32], sin: &[f32]) {
    if head_dim < 2 {
        return;
    }
    for head in x.chunks_exact_mut(head_dim) {
        for ((pair, &c), &s) in head.chunks_exact_mut(2).zip(cos).zip(sin) {
            let (a, b) = (pair[0], pair[1]);
            pair[0] = a * c - b * s;
            pair[1] = b * c + a * s;
        }
    }
}
