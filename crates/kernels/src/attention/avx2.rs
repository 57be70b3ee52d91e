//! One page of attention with AVX2, FMA and F16C: 8 lanes, up to 6 pairs in registers; head sizes that are multiples of 8.

use super::cache::{Block, PAGE_TOKENS};
use super::tile::{Page, SUM_LANES, Tile};
use crate::vexp::avx2::exp2;
use std::arch::x86_64::*;

/// Lanes of a register.
const LANES: usize = 8;
/// Pairs that one pass of the product keeps in registers: 6 × 2 sums, two of B and one of A are 15 of 16.
const ROWS: usize = 6;

/// Bytes of a cache line.
const LINE: usize = 64;

/// Whether this version takes heads of `dim` dimensions.
pub(super) fn takes(dim: usize) -> bool {
    dim.is_multiple_of(LANES)
}

/// Adds the page to the segment's state of each pair from `page.first_pair` on.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn page(tile: &mut Tile, page: &Page<'_>) {
    assert!(takes(tile.dim), "{} dimensions", tile.dim);
    let keys = PAGE_TOKENS * tile.dim;
    // While the keys are at work the values are asked for, and then the next page.
    let values = page.block.values(tile.dim);
    match page.block {
        Block::F32(block) => {
            scores(tile, page.first_pair, &block[..keys], values);
            probabilities(tile, page);
            accumulate(tile, page, &block[keys..], page.next);
        }
        Block::F16(block) if tile.pairs - page.first_pair <= ROWS => {
            scores(tile, page.first_pair, &block[..keys], values);
            probabilities(tile, page);
            accumulate(tile, page, &block[keys..], page.next);
        }
        // Only caches of another level hold these.
        Block::Words(_) => super::scalar::page(tile, page),
        Block::F16(block) => {
            // Several passes over the page: it is widened once, into the first-level cache.
            let mut wide = std::mem::take(&mut tile.wide);
            let buffer = wide.get_mut(0, keys);
            widen(&block[..keys], buffer);
            scores(tile, page.first_pair, buffer, values);
            probabilities(tile, page);
            widen(&block[keys..], buffer);
            accumulate(tile, page, buffer, page.next);
            tile.wide = wide;
        }
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
fn widen(from: &[u16], to: &mut [f32]) {
    for (from, to) in from.chunks_exact(LANES).zip(to.chunks_exact_mut(LANES)) {
        // SAFETY: 8 elements each.
        unsafe { _mm256_storeu_ps(to.as_mut_ptr(), load(from.as_ptr())) }
    }
}

/// 8 elements of `f32` or binary16.
///
/// # Safety
/// They lie behind `from`; `T` is `f32` or `u16`.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn load<T>(from: *const T) -> __m256 {
    // SAFETY: the contract.
    unsafe {
        if size_of::<T>() == 2 {
            _mm256_cvtph_ps(_mm_loadu_si128(from.cast()))
        } else {
            _mm256_loadu_ps(from.cast())
        }
    }
}

/// Operands of C (+)= A · B: A and C row-major with a row a pair, B with 8 lanes a register. Strides in elements.
struct Product<T> {
    a: *const f32,
    a_stride: usize,
    b: *const T,
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
/// A holds `R` × depth, B depth × 8 `V`, C `R` × 8 `V` elements at their strides.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn block<T, const R: usize, const V: usize, const FRESH: bool>(m: &Product<T>) {
    // SAFETY: all accesses lie in what the contract names.
    unsafe {
        let mut sums = [[_mm256_setzero_ps(); V]; R];
        if !FRESH {
            for (r, row) in sums.iter_mut().enumerate() {
                for (v, sum) in row.iter_mut().enumerate() {
                    *sum = _mm256_loadu_ps(m.c.add(r * m.c_stride + v * LANES));
                }
            }
        }
        for k in 0..m.depth {
            // A hint, which never faults.
            _mm_prefetch::<_MM_HINT_T0>(m.ahead.wrapping_add(k * m.ahead_stride).cast());
            let mut b = [_mm256_setzero_ps(); V];
            for (v, b) in b.iter_mut().enumerate() {
                *b = load(m.b.add(k * m.b_stride + v * LANES));
            }
            for (r, row) in sums.iter_mut().enumerate() {
                let a = _mm256_set1_ps(*m.a.add(r * m.a_stride + k));
                for (sum, b) in row.iter_mut().zip(b) {
                    *sum = _mm256_fmadd_ps(a, b, *sum);
                }
            }
        }
        for (r, row) in sums.iter().enumerate() {
            for (v, sum) in row.iter().enumerate() {
                _mm256_storeu_ps(m.c.add(r * m.c_stride + v * LANES), *sum);
            }
        }
    }
}

/// [`block`] for `rows` in 1..=[`ROWS`].
///
/// # Safety
/// As [`block`].
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn rows<T, const V: usize, const FRESH: bool>(rows: usize, m: &Product<T>) {
    // SAFETY: the contract.
    unsafe {
        match rows {
            1 => block::<T, 1, V, FRESH>(m),
            2 => block::<T, 2, V, FRESH>(m),
            3 => block::<T, 3, V, FRESH>(m),
            4 => block::<T, 4, V, FRESH>(m),
            5 => block::<T, 5, V, FRESH>(m),
            _ => block::<T, 6, V, FRESH>(m),
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
#[target_feature(enable = "avx2,fma,f16c")]
fn scores<T>(tile: &mut Tile, first_pair: usize, keys: &[T], ahead: *const u8) {
    let dim = tile.dim;
    assert!(keys.len() >= dim * PAGE_TOKENS, "{} elements of K", keys.len());
    for run in runs(first_pair, tile.pairs) {
        let a = tile.q.get(run.start * dim, run.len() * dim).as_ptr();
        let c = tile.p.get_mut(run.start * PAGE_TOKENS, run.len() * PAGE_TOKENS).as_mut_ptr();
        for start in (0..PAGE_TOKENS).step_by(2 * LANES) {
            // SAFETY: 2 × 8 lanes from `start` on lie inside a page's tokens, and the slices above have the sizes of the
            // contract; T is a block's.
            unsafe {
                let product = Product {
                    a,
                    a_stride: dim,
                    b: keys.as_ptr().add(start),
                    b_stride: PAGE_TOKENS,
                    c: c.add(start),
                    c_stride: PAGE_TOKENS,
                    depth: dim,
                    ahead,
                    ahead_stride: if run.start == first_pair && start == 0 { LINE } else { 0 },
                };
                rows::<T, 2, true>(run.len(), &product);
            }
        }
    }
}

/// Scores → probabilities relative to the running maximum; what was summed so far follows when the maximum moves.
#[target_feature(enable = "avx2,fma,f16c")]
fn probabilities(tile: &mut Tile, page: &Page<'_>) {
    const PARTS: usize = PAGE_TOKENS / LANES;
    for pair in page.first_pair..tile.pairs {
        let visible = tile.visible(pair, page.start);
        let p = tile.p.get_mut(pair * PAGE_TOKENS, PAGE_TOKENS);
        p[visible..].fill(f32::NEG_INFINITY);
        let sum = tile.sum.get_mut(pair * SUM_LANES, SUM_LANES);
        let max = &mut tile.max.get_mut(pair, 1)[0];
        // SAFETY: `p` has 4 × 8 elements, `sum` 2 × 8, and each chunk of `acc` 8.
        unsafe {
            let mut parts = [_mm256_setzero_ps(); PARTS];
            for (i, part) in parts.iter_mut().enumerate() {
                *part = _mm256_loadu_ps(p.as_ptr().add(i * LANES));
            }
            let mut sums =
                [_mm256_loadu_ps(sum.as_ptr()), _mm256_loadu_ps(sum.as_ptr().add(LANES))];
            let all =
                _mm256_max_ps(_mm256_max_ps(parts[0], parts[1]), _mm256_max_ps(parts[2], parts[3]));
            if _mm256_movemask_ps(_mm256_cmp_ps::<_CMP_GT_OQ>(all, _mm256_set1_ps(*max))) != 0 {
                let highest = reduce_max(all);
                let factor = exp2(_mm256_set1_ps(*max - highest));
                *max = highest;
                sums = sums.map(|sum| _mm256_mul_ps(sum, factor));
                for acc in tile.acc.get_mut(pair * tile.dim, tile.dim).chunks_exact_mut(LANES) {
                    _mm256_storeu_ps(
                        acc.as_mut_ptr(),
                        _mm256_mul_ps(_mm256_loadu_ps(acc.as_ptr()), factor),
                    );
                }
            }
            for (i, part) in parts.iter_mut().enumerate() {
                *part = exp2(_mm256_sub_ps(*part, _mm256_set1_ps(*max)));
                _mm256_storeu_ps(p.as_mut_ptr().add(i * LANES), *part);
            }
            for (i, total) in sums.into_iter().enumerate() {
                let total = _mm256_add_ps(total, _mm256_add_ps(parts[i], parts[i + 2]));
                _mm256_storeu_ps(sum.as_mut_ptr().add(i * LANES), total);
            }
        }
    }
}

#[inline]
#[target_feature(enable = "avx2")]
fn reduce_max(v: __m256) -> f32 {
    let four = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
    let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)))
}

/// `acc += p · V` over the tokens that a run's last pair sees; those beyond what an earlier pair sees weigh 0 in it.
#[target_feature(enable = "avx2,fma,f16c")]
fn accumulate<T>(tile: &mut Tile, page: &Page<'_>, values: &[T], ahead: *const u8) {
    let dim = tile.dim;
    assert!(values.len() >= dim * PAGE_TOKENS, "{} elements of V", values.len());
    for run in runs(page.first_pair, tile.pairs) {
        let depth = tile.visible(run.end - 1, page.start);
        let a = tile.p.get(run.start * PAGE_TOKENS, run.len() * PAGE_TOKENS).as_ptr();
        let c = tile.acc.get_mut(run.start * dim, run.len() * dim).as_mut_ptr();
        for start in (0..dim).step_by(2 * LANES) {
            // SAFETY: `start < dim`, so the columns from there on lie inside; T is a block's.
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
                    rows::<T, 2, false>(run.len(), &product);
                } else {
                    rows::<T, 1, false>(run.len(), &product);
                }
            }
        }
    }
}
