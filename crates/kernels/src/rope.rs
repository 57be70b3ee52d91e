//! Rotary position embedding (Su et al. 2021): turns pairs of dimensions by an angle that grows with the position.
//!
//! Knows no frequencies and no scaling (YaRN, llama3): the caller brings the cosines and sines of one position.

use crate::isa::{Isa, compiled_per_isa, multiply_add};

/// Rotates each head of one token, pairing dimension `i` with `i + head_dim / 2` (the "NeoX" layout: Qwen, Hugging Face).
///
/// `x`: (heads × `head_dim`); `cos`, `sin`: at least `head_dim / 2`.
pub fn rope_halves(x: &mut [f32], head_dim: usize, cos: &[f32], sin: &[f32]) {
    halves(Isa::best(), x, head_dim, cos, sin);
}

/// Rotates each head of one token, pairing dimension `2i` with `2i + 1` (the paper's layout; Llama as GGUF permutes it).
///
/// `x`: (heads × `head_dim`); `cos`, `sin`: at least `head_dim / 2`.
pub fn rope_pairs(x: &mut [f32], head_dim: usize, cos: &[f32], sin: &[f32]) {
    pairs(Isa::best(), x, head_dim, cos, sin);
}

compiled_per_isa! {
    fn halves(x: &mut [f32], head_dim: usize, cos: &[f32], sin: &[f32]) = halves_body
}

compiled_per_isa! {
    fn pairs(x: &mut [f32], head_dim: usize, cos: &[f32], sin: &[f32]) = pairs_body
}

#[inline(always)]
fn halves_body<const FUSED: bool>(x: &mut [f32], head_dim: usize, cos: &[f32], sin: &[f32]) {
    let half = head_dim / 2;
    if half == 0 {
        return;
    }
    for head in x.chunks_exact_mut(head_dim) {
        let (first, second) = head.split_at_mut(half);
        for (((a, b), &c), &s) in first.iter_mut().zip(second).zip(cos).zip(sin) {
            let (x, y) = (*a, *b);
            *a = multiply_add::<FUSED>(x, c, -(y * s));
            *b = multiply_add::<FUSED>(y, c, x * s);
        }
    }
}

#[inline(always)]
fn pairs_body<const FUSED: bool>(x: &mut [f32], head_dim: usize, cos: &[f32], sin: &[f32]) {
    if head_dim < 2 {
        return;
    }
    for head in x.chunks_exact_mut(head_dim) {
        for ((pair, &c), &s) in head.chunks_exact_mut(2).zip(cos).zip(sin) {
            let (x, y) = (pair[0], pair[1]);
            pair[0] = multiply_add::<FUSED>(x, c, -(y * s));
            pair[1] = multiply_add::<FUSED>(y, c, x * s);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(isa: Isa, head_dim: usize, heads: usize, interleaved: bool) {
        if !isa.available() {
            eprintln!("skipped: {isa:?} is not available");
            return;
        }
        let half = head_dim / 2;
        let angles: Vec<f64> =
            (0..half).map(|i| 17.0 * 10_000f64.powf(-(i as f64) / half as f64)).collect();
        let cos: Vec<f32> = angles.iter().map(|a| a.cos() as f32).collect();
        let sin: Vec<f32> = angles.iter().map(|a| a.sin() as f32).collect();
        let x: Vec<f32> = (0..heads * head_dim).map(|i| (i % 23) as f32 * 0.1 - 1.0).collect();
        let mut got = x.clone();
        let rotate = if interleaved { pairs } else { halves };
        rotate(isa, &mut got, head_dim, &cos, &sin);
        for head in 0..heads {
            for (i, angle) in angles.iter().enumerate() {
                let (a, b) = if interleaved { (2 * i, 2 * i + 1) } else { (i, i + half) };
                let at = |values: &[f32], d: usize| f64::from(values[head * head_dim + d]);
                let (real, imaginary) = (at(&x, a), at(&x, b));
                let want = (
                    real * angle.cos() - imaginary * angle.sin(),
                    real * angle.sin() + imaginary * angle.cos(),
                );
                let error = (at(&got, a) - want.0).abs().max((at(&got, b) - want.1).abs());
                assert!(error < 5e-7, "{isa:?} {head_dim} {head} {i} {interleaved}: {error:e}");
            }
        }
    }

    #[test]
    fn rotates_by_the_angle() {
        for isa in Isa::ALL {
            for head_dim in [2, 6, 40, 64, 80, 128] {
                for heads in [1, 3] {
                    check(isa, head_dim, heads, false);
                    check(isa, head_dim, heads, true);
                }
            }
        }
    }
}
