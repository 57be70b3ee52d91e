//! One page of attention in plain Rust: the reference for the SIMD versions, and the way of odd head sizes.

use super::cache::PAGE_TOKENS;
use super::tile::{Page, SUM_LANES, Tile};
use crate::vexp::exp2;

/// Adds the page to the segment's state of each pair from `page.first_pair` on.
pub(super) fn page(tile: &mut Tile, page: &Page<'_>) {
    let keys = PAGE_TOKENS * tile.dim;
    let wide = tile.wide.get_mut(0, keys);
    for (d, column) in wide.chunks_exact_mut(PAGE_TOKENS).enumerate() {
        column.iter_mut().enumerate().for_each(|(slot, to)| *to = page.block.key(slot, d));
    }
    for pair in page.first_pair..tile.pairs {
        scores(tile, pair);
        probabilities(tile, pair, tile.visible(pair, page.start));
    }
    let dim = tile.dim;
    for (slot, row) in tile.wide.get_mut(0, keys).chunks_exact_mut(dim).enumerate() {
        row.iter_mut().enumerate().for_each(|(d, to)| *to = page.block.value(slot, d, dim));
    }
    for pair in page.first_pair..tile.pairs {
        accumulate(tile, pair, tile.visible(pair, page.start));
    }
}

fn scores(tile: &mut Tile, pair: usize) {
    let q = tile.q.get(pair * tile.dim, tile.dim);
    let keys = tile.wide.get(0, PAGE_TOKENS * tile.dim);
    let p = tile.p.get_mut(pair * PAGE_TOKENS, PAGE_TOKENS);
    p.fill(0.0);
    for (q, keys) in q.iter().zip(keys.chunks_exact(PAGE_TOKENS)) {
        for (p, k) in p.iter_mut().zip(keys) {
            *p += q * k;
        }
    }
}

/// Scores → probabilities relative to the running maximum; what was summed so far follows when the maximum moves.
fn probabilities(tile: &mut Tile, pair: usize, visible: usize) {
    let p = tile.p.get_mut(pair * PAGE_TOKENS, PAGE_TOKENS);
    let sum = tile.sum.get_mut(pair * SUM_LANES, SUM_LANES);
    let max = &mut tile.max.get_mut(pair, 1)[0];
    let highest = p[..visible].iter().fold(*max, |a, &b| if b > a { b } else { a });
    if highest > *max {
        let factor = exp2(*max - highest);
        *max = highest;
        sum.iter_mut().for_each(|s| *s *= factor);
        tile.acc.get_mut(pair * tile.dim, tile.dim).iter_mut().for_each(|a| *a *= factor);
    }
    for p in &mut p[..visible] {
        *p = exp2(*p - *max);
    }
    p[visible..].fill(0.0);
    for (i, p) in p.iter().enumerate() {
        sum[i % SUM_LANES] += p;
    }
}

fn accumulate(tile: &mut Tile, pair: usize, visible: usize) {
    let p = tile.p.get(pair * PAGE_TOKENS, visible);
    let values = tile.wide.get(0, visible * tile.dim);
    let acc = tile.acc.get_mut(pair * tile.dim, tile.dim);
    for (p, values) in p.iter().zip(values.chunks_exact(tile.dim)) {
        for (acc, v) in acc.iter_mut().zip(values) {
            *acc += p * v;
        }
    }
}
