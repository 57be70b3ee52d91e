//! One page of attention with AVX-512: 16 lanes, up to 8 pairs in registers; head sizes that are multiples of 16.
//!
//! A cache of 16 bits holds words, of which a lane multiplies two a cycle where f32 has one. For scores, queries are
//! rounded to 12 bits and a sign by a step of their own, keys to 13 (heads of 64) by a step a token. For the weighted sum,
//! values have 13 bits and a sign and a step a token; a page's probabilities times these steps are rounded to 13 bits by a
//! step of their own, and join the sum in f32 page by page. The sums of words are exact.

use super::cache::{Block, PAGE_TOKENS, STEPS_LEN, VALUE_MOST, word_limits};
use super::tile::{Page, SUM_LANES, Tile};
use crate::vexp::avx512::exp2;
use std::arch::x86_64::*;

/// Lanes of a register.
const LANES: usize = 16;
/// Pairs that one pass of the product keeps in registers: 8 × 2 sums, two of B, and some to spare.
const ROWS: usize = 8;

/// Bytes of a cache line.
const LINE: usize = 64;

/// Whether this version takes heads of `dim` dimensions.
pub(super) fn takes(dim: usize) -> bool {
    dim.is_multiple_of(LANES)
}

/// Adds the page to the segment's state of each pair from `page.first_pair` on.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
pub(super) fn page(tile: &mut Tile, page: &Page<'_>) {
    assert!(takes(tile.dim), "{} dimensions", tile.dim);
    let keys = PAGE_TOKENS * tile.dim;
    // While the keys are at work the values are asked for, and then the next page.
    let values = page.block.values(tile.dim);
    match page.block {
        Block::F32(block) => {
            scores(tile, page.first_pair, &block[..keys], values);
            probabilities(tile, page, None);
            accumulate(tile, page, &block[keys..], page.next);
        }
        Block::Words(block) => {
            let (steps_words, values_words) = block.split_at(STEPS_LEN + keys);
            let (key_steps, steps) = block.split_at(STEPS_LEN / 2);
            word_scores(tile, page.first_pair, (key_steps, &steps_words[STEPS_LEN..]), values);
            probabilities(tile, page, Some(&steps[..STEPS_LEN / 2]));
            accumulate_words(tile, page, values_words, page.next);
        }
        // Only caches of other levels hold these.
        Block::F16(_) => super::scalar::page(tile, page),
    }
}

/// Operands of C (+)= A · B: A and C row-major with a row a pair, B with 16 lanes a register. Strides in elements.
struct Product {
    a: *const f32,
    a_stride: usize,
    b: *const f32,
    b_stride: usize,
    c: *mut f32,
    c_stride: usize,
    depth: usize,
    /// One line of memory from here on is asked for at each step of the depth,
    ahead: *const u8,
    /// each this many bytes further.
    ahead_stride: usize,
}

/// `R` rows × `V` registers. Each sum runs over the depth in order, whatever `R` and `V`.
///
/// # Safety
/// A holds `R` × depth, B depth × 16 `V`, C `R` × 16 `V` elements at their strides.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn block<const R: usize, const V: usize, const FRESH: bool>(m: &Product) {
    // SAFETY: all accesses lie in what the contract names.
    unsafe {
        let mut sums = [[_mm512_setzero_ps(); V]; R];
        if !FRESH {
            for (r, row) in sums.iter_mut().enumerate() {
                for (v, sum) in row.iter_mut().enumerate() {
                    *sum = _mm512_loadu_ps(m.c.add(r * m.c_stride + v * LANES));
                }
            }
        }
        for k in 0..m.depth {
            // A hint, which never faults.
            _mm_prefetch::<_MM_HINT_T0>(m.ahead.wrapping_add(k * m.ahead_stride).cast());
            let mut b = [_mm512_setzero_ps(); V];
            for (v, b) in b.iter_mut().enumerate() {
                *b = _mm512_loadu_ps(m.b.add(k * m.b_stride + v * LANES));
            }
            for (r, row) in sums.iter_mut().enumerate() {
                let a = _mm512_set1_ps(*m.a.add(r * m.a_stride + k));
                for (sum, b) in row.iter_mut().zip(b) {
                    *sum = _mm512_fmadd_ps(a, b, *sum);
                }
            }
        }
        for (r, row) in sums.iter().enumerate() {
            for (v, sum) in row.iter().enumerate() {
                _mm512_storeu_ps(m.c.add(r * m.c_stride + v * LANES), *sum);
            }
        }
    }
}

/// [`block`] for `rows` in 1..=[`ROWS`].
///
/// # Safety
/// As [`block`].
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn rows<const V: usize, const FRESH: bool>(rows: usize, m: &Product) {
    // SAFETY: the contract.
    unsafe {
        match rows {
            1 => block::<1, V, FRESH>(m),
            2 => block::<2, V, FRESH>(m),
            3 => block::<3, V, FRESH>(m),
            4 => block::<4, V, FRESH>(m),
            5 => block::<5, V, FRESH>(m),
            6 => block::<6, V, FRESH>(m),
            7 => block::<7, V, FRESH>(m),
            _ => block::<8, V, FRESH>(m),
        }
    }
}

/// Runs of at most [`ROWS`] pairs, as even as they come.
fn runs(first: usize, end: usize) -> impl Iterator<Item = std::ops::Range<usize>> {
    let count = (end - first).div_ceil(ROWS);
    (0..count)
        .map(move |i| first + (end - first) * i / count..first + (end - first) * (i + 1) / count)
}

/// `p = q · K`; `keys`: (dim × [`PAGE_TOKENS`]).
#[target_feature(enable = "avx512f")]
fn scores(tile: &mut Tile, first_pair: usize, keys: &[f32], ahead: *const u8) {
    let dim = tile.dim;
    assert!(keys.len() >= dim * PAGE_TOKENS, "{} elements of K", keys.len());
    for run in runs(first_pair, tile.pairs) {
        let product = Product {
            a: tile.q.get(run.start * dim, run.len() * dim).as_ptr(),
            a_stride: dim,
            b: keys.as_ptr(),
            b_stride: PAGE_TOKENS,
            c: tile.p.get_mut(run.start * PAGE_TOKENS, run.len() * PAGE_TOKENS).as_mut_ptr(),
            c_stride: PAGE_TOKENS,
            depth: dim,
            ahead,
            ahead_stride: if run.start == first_pair { LINE } else { 0 },
        };
        // SAFETY: the slices above have the sizes of the contract (2 × 16 lanes are a page's tokens).
        unsafe { rows::<2, true>(run.len(), &product) }
    }
}

/// Values → words of at most `most`; returns their step, which is NaN if one of them is: it carries that into the scores.
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) fn row_words(from: &[f32], most: i16, to: &mut [u16]) -> f32 {
    let most = f32::from(most);
    // The bits of magnitudes are ordered as they are, and NaN is above them all.
    let mut largest = _mm512_setzero_si512();
    for from in from.chunks_exact(LANES) {
        // SAFETY: 16 elements.
        let from = _mm512_abs_ps(unsafe { _mm512_loadu_ps(from.as_ptr()) });
        largest = _mm512_max_epu32(largest, _mm512_castps_si512(from));
    }
    let largest = f32::from_bits(_mm512_reduce_max_epu32(largest));
    let inverse = _mm512_set1_ps(if largest > 0.0 { most / largest } else { 0.0 });
    for (from, to) in from.chunks_exact(LANES).zip(to.chunks_exact_mut(LANES)) {
        // SAFETY: 16 elements each.
        unsafe {
            let words = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(from.as_ptr()), inverse));
            _mm256_storeu_si256(to.as_mut_ptr().cast(), _mm512_cvtepi32_epi16(words));
        }
    }
    largest / most
}

/// A tile's queries → words, each pair by a step of its own.
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) fn query_words(tile: &mut Tile) {
    let dim = tile.dim;
    assert!(takes(dim), "{dim} dimensions");
    let most = word_limits(dim).0;
    let queries = tile.q.get(0, tile.pairs * dim).chunks_exact(dim);
    let words = tile.q_words.get_mut(0, tile.pairs * dim).chunks_exact_mut(dim);
    for ((q, words), step) in queries.zip(words).zip(tile.q_steps.get_mut(0, tile.pairs)) {
        *step = row_words(q, most, words);
    }
}

/// `p = q · K` in words; `keys`: their steps and words, as the cache has them.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn word_scores(tile: &mut Tile, first_pair: usize, keys: (&[u16], &[u16]), ahead: *const u8) {
    for run in runs(first_pair, tile.pairs) {
        let stride = if run.start == first_pair { LINE } else { 0 };
        match run.len() {
            1 => word_run::<1>(tile, run.start, keys, ahead, stride),
            2 => word_run::<2>(tile, run.start, keys, ahead, stride),
            3 => word_run::<3>(tile, run.start, keys, ahead, stride),
            4 => word_run::<4>(tile, run.start, keys, ahead, stride),
            5 => word_run::<5>(tile, run.start, keys, ahead, stride),
            6 => word_run::<6>(tile, run.start, keys, ahead, stride),
            7 => word_run::<7>(tile, run.start, keys, ahead, stride),
            _ => word_run::<8>(tile, run.start, keys, ahead, stride),
        }
    }
}

/// The scores of `R` pairs from `first` on.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
#[inline]
fn word_run<const R: usize>(
    tile: &mut Tile,
    first: usize,
    (steps, keys): (&[u16], &[u16]),
    ahead: *const u8,
    ahead_stride: usize,
) {
    let dim = tile.dim;
    let queries = tile.q_words.get(first * dim, R * dim);
    let (steps, keys) = (&steps[..2 * PAGE_TOKENS], &keys[..dim * PAGE_TOKENS]);
    let mut sums = [[_mm512_setzero_si512(); 2]; R];
    for k in 0..dim / 2 {
        for line in 2 * k..2 * k + 2 {
            // A hint, which never faults.
            _mm_prefetch::<_MM_HINT_T0>(ahead.wrapping_add(line * ahead_stride).cast());
        }
        // SAFETY: `2 · k` is below `dim`: 64 words of K and two of each query begin there.
        unsafe {
            let at = keys.as_ptr().add(2 * k * PAGE_TOKENS);
            let keys = [0, 2 * LANES].map(|lanes| _mm512_loadu_si512(at.add(lanes).cast()));
            for (r, sums) in sums.iter_mut().enumerate() {
                let two = queries.as_ptr().add(r * dim + 2 * k).cast::<i32>().read_unaligned();
                for (sum, keys) in sums.iter_mut().zip(keys) {
                    *sum = _mm512_dpwssd_epi32(*sum, keys, _mm512_set1_epi32(two));
                }
            }
        }
    }
    let steps = steps.as_ptr().cast::<f32>();
    for (r, sums) in sums.iter().enumerate() {
        let step = _mm512_set1_ps(tile.q_steps.get(first + r, 1)[0]);
        let p = tile.p.get_mut((first + r) * PAGE_TOKENS, PAGE_TOKENS);
        for (lanes, &sum) in [0, LANES].into_iter().zip(sums) {
            // SAFETY: 32 steps and 32 scores.
            unsafe {
                let steps = _mm512_mul_ps(_mm512_loadu_ps(steps.add(lanes)), step);
                let score = _mm512_mul_ps(_mm512_cvtepi32_ps(sum), steps);
                _mm512_storeu_ps(p.as_mut_ptr().add(lanes), score);
            }
        }
    }
}

/// Scores → probabilities relative to the running maximum; what was summed so far follows when the maximum moves.
/// `value_steps`: the steps of the page's values, where these are words; then the probabilities become words too.
#[target_feature(enable = "avx512f,avx512bw")]
fn probabilities(tile: &mut Tile, page: &Page<'_>, value_steps: Option<&[u16]>) {
    for pair in page.first_pair..tile.pairs {
        let seen = u32::MAX >> (PAGE_TOKENS - tile.visible(pair, page.start));
        let p = tile.p.get_mut(pair * PAGE_TOKENS, PAGE_TOKENS);
        let sum = tile.sum.get_mut(pair * SUM_LANES, SUM_LANES);
        let max = &mut tile.max.get_mut(pair, 1)[0];
        let none = _mm512_set1_ps(f32::NEG_INFINITY);
        // SAFETY: `p` has 32 elements, `sum` 16, and each chunk of `acc` 16.
        unsafe {
            let low = _mm512_mask_loadu_ps(none, seen as u16, p.as_ptr());
            let high = _mm512_mask_loadu_ps(none, (seen >> 16) as u16, p.as_ptr().add(LANES));
            let both = _mm512_max_ps(low, high);
            let mut total = _mm512_loadu_ps(sum.as_ptr());
            if _mm512_cmp_ps_mask::<_CMP_GT_OQ>(both, _mm512_set1_ps(*max)) != 0 {
                let highest = _mm512_reduce_max_ps(both);
                let factor = exp2(_mm512_set1_ps(*max - highest));
                *max = highest;
                total = _mm512_mul_ps(total, factor);
                for acc in tile.acc.get_mut(pair * tile.dim, tile.dim).chunks_exact_mut(LANES) {
                    _mm512_storeu_ps(
                        acc.as_mut_ptr(),
                        _mm512_mul_ps(_mm512_loadu_ps(acc.as_ptr()), factor),
                    );
                }
            }
            let low = exp2(_mm512_sub_ps(low, _mm512_set1_ps(*max)));
            let high = exp2(_mm512_sub_ps(high, _mm512_set1_ps(*max)));
            _mm512_storeu_ps(p.as_mut_ptr(), low);
            _mm512_storeu_ps(p.as_mut_ptr().add(LANES), high);
            _mm512_storeu_ps(sum.as_mut_ptr(), _mm512_add_ps(total, _mm512_add_ps(low, high)));
            if let Some(steps) = value_steps {
                let words = tile.p_words.get_mut(pair * PAGE_TOKENS, PAGE_TOKENS);
                tile.p_steps.get_mut(pair, 1)[0] = weight_words([low, high], seen, steps, words);
            }
        }
    }
}

/// Probabilities times the steps of their values → words; returns their step, NaN if a value that is seen has one that is.
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
fn weight_words(p: [__m512; 2], seen: u32, steps: &[u16], to: &mut [u16]) -> f32 {
    let (steps, to) = (&steps[..2 * PAGE_TOKENS], &mut to[..PAGE_TOKENS]);
    let steps = steps.as_ptr().cast::<f32>();
    // SAFETY: 32 steps. What was left in slots that are not seen may be no number.
    let [low, high] = [(p[0], 0, seen), (p[1], LANES, seen >> 16)].map(|(p, at, seen)| unsafe {
        _mm512_maskz_mul_ps(seen as u16, p, _mm512_loadu_ps(steps.add(at)))
    });
    // None is negative, so their bits are ordered as they are, and NaN is above them all.
    let both = _mm512_max_epu32(_mm512_castps_si512(low), _mm512_castps_si512(high));
    let largest = f32::from_bits(_mm512_reduce_max_epu32(both));
    let most = f32::from(VALUE_MOST);
    let inverse = _mm512_set1_ps(if largest > 0.0 { most / largest } else { 0.0 });
    for (weights, to) in [low, high].into_iter().zip(to.chunks_exact_mut(LANES)) {
        let words = _mm512_cvtps_epi32(_mm512_mul_ps(weights, inverse));
        // SAFETY: 16 words.
        unsafe { _mm256_storeu_si256(to.as_mut_ptr().cast(), _mm512_cvtepi32_epi16(words)) };
    }
    largest / most
}

/// `acc += p · V` in words; `values` as the cache has them. Tokens that a pair does not see weigh 0 in it.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn accumulate_words(tile: &mut Tile, page: &Page<'_>, values: &[u16], ahead: *const u8) {
    for run in runs(page.first_pair, tile.pairs) {
        let work = WordSums {
            first: run.start,
            two_tokens: tile.visible(run.end - 1, page.start).div_ceil(2),
            values: &values[..PAGE_TOKENS * tile.dim],
            ahead,
            ahead_stride: if run.start == page.first_pair { LINE } else { 0 },
        };
        match run.len() {
            1 => word_sums::<1>(tile, &work),
            2 => word_sums::<2>(tile, &work),
            3 => word_sums::<3>(tile, &work),
            4 => word_sums::<4>(tile, &work),
            5 => word_sums::<5>(tile, &work),
            6 => word_sums::<6>(tile, &work),
            7 => word_sums::<7>(tile, &work),
            _ => word_sums::<8>(tile, &work),
        }
    }
}

/// One run of [`accumulate_words`].
struct WordSums<'a> {
    /// The first pair.
    first: usize,
    /// Pairs of tokens up to the last that is seen.
    two_tokens: usize,
    values: &'a [u16],
    ahead: *const u8,
    ahead_stride: usize,
}

/// The weighted sums of `R` pairs, 32 dimensions at a time.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
#[inline]
fn word_sums<const R: usize>(tile: &mut Tile, work: &WordSums<'_>) {
    let (dim, first) = (tile.dim, work.first);
    let weights = tile.p_words.get(first * PAGE_TOKENS, R * PAGE_TOKENS);
    let steps: [f32; R] = std::array::from_fn(|r| tile.p_steps.get(first + r, 1)[0]);
    for start in (0..dim).step_by(2 * LANES) {
        // The second 16 of the last dimensions may not exist: then the first are computed twice.
        let lanes = [start, if start + LANES < dim { start + LANES } else { start }];
        let mut sums = [[_mm512_setzero_si512(); 2]; R];
        for k in 0..work.two_tokens {
            let line = start / LANES * (PAGE_TOKENS / 2) + 2 * k;
            for line in [line, line + 1] {
                // A hint, which never faults.
                _mm_prefetch::<_MM_HINT_T0>(
                    work.ahead.wrapping_add(line * work.ahead_stride).cast(),
                );
            }
            // SAFETY: `k` is below 16: 2 · dim words of V and two of each pair begin there.
            unsafe {
                let at = work.values.as_ptr().add(2 * k * dim);
                let values = lanes.map(|lane| _mm512_loadu_si512(at.add(2 * lane).cast()));
                for (r, sums) in sums.iter_mut().enumerate() {
                    let two = weights.as_ptr().add(r * PAGE_TOKENS + 2 * k).cast::<i32>();
                    let two = _mm512_set1_epi32(two.read_unaligned());
                    for (sum, values) in sums.iter_mut().zip(values) {
                        *sum = _mm512_dpwssd_epi32(*sum, values, two);
                    }
                }
            }
        }
        for (r, sums) in sums.iter().enumerate() {
            let step = _mm512_set1_ps(steps[r]);
            let acc = tile.acc.get_mut((first + r) * dim, dim).as_mut_ptr();
            for (&sum, lane) in sums.iter().zip(lanes).take((dim - start).div_ceil(LANES).min(2)) {
                // SAFETY: 16 dimensions from `lane` on.
                unsafe {
                    let old = _mm512_loadu_ps(acc.add(lane));
                    let sum = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), step, old);
                    _mm512_storeu_ps(acc.add(lane), sum);
                }
            }
        }
    }
}

/// `acc += p · V` over the tokens that a run's last pair sees; those beyond what an earlier pair sees weigh 0 in it.
#[target_feature(enable = "avx512f")]
fn accumulate(tile: &mut Tile, page: &Page<'_>, values: &[f32], ahead: *const u8) {
    let dim = tile.dim;
    assert!(values.len() >= dim * PAGE_TOKENS, "{} elements of V", values.len());
    for run in runs(page.first_pair, tile.pairs) {
        let depth = tile.visible(run.end - 1, page.start);
        let a = tile.p.get(run.start * PAGE_TOKENS, run.len() * PAGE_TOKENS).as_ptr();
        let c = tile.acc.get_mut(run.start * dim, run.len() * dim).as_mut_ptr();
        for start in (0..dim).step_by(2 * LANES) {
            // SAFETY: `start < dim`, so the columns from there on lie inside.
            unsafe {
                let product = Product {
                    a,
                    a_stride: PAGE_TOKENS,
                    b: values.as_ptr().add(start),
                    b_stride: dim,
                    c: c.add(start),
                    c_stride: dim,
                    depth,
                    ahead: ahead.wrapping_add(start / (2 * LANES) * PAGE_TOKENS * LINE),
                    ahead_stride: if run.start == page.first_pair { LINE } else { 0 },
                };
                if dim - start >= 2 * LANES {
                    rows::<2, false>(run.len(), &product);
                } else {
                    rows::<1, false>(run.len(), &product);
                }
            }
        }
    }
}
