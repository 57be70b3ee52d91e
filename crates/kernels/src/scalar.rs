//! The reference product: plain Rust, any machine, the definition of every rounding (see `matmul`).

use std::ops::Range;

use crate::activations::{self, ActivationBlock, LEVELS, join_scales, nonzero_scale};
use crate::dequant::dequantize_row;
use crate::layout::{self, STRIP_ROWS};
use crate::matmul::Output;
use crate::native::{self, BLOCK, ScaleKind};
use crate::{Activations, PackedMatrix};

/// Columns that a chain of floating-point products sums before it joins the total: shorter chains lose less.
pub(crate) const FLOAT_CHAIN: usize = 64;

/// One row of a block: signed weights and scales.
struct WeightBlock {
    values: [i32; BLOCK],
    scale: [f32; 2],
    min: [f32; 2],
}

/// Computes the outputs of `strips` for all activation rows.
pub(crate) fn strips(w: &PackedMatrix, a: &Activations, out: &Output, strips: Range<usize>) {
    let first = strips.start * STRIP_ROWS;
    for row in first..(strips.end * STRIP_ROWS).min(w.rows()) {
        if w.format().is_quantised() {
            quantised_row(w, a, out, row)
        } else {
            float_row(w, a, out, row)
        }
    }
}

fn quantised_row(w: &PackedMatrix, a: &Activations, out: &Output, row: usize) {
    let kind = ScaleKind::of(w.format());
    let (strip, lane) = (w.strip(row / STRIP_ROWS), row % STRIP_ROWS);
    let blocks: Vec<WeightBlock> = (0..w.cols() / BLOCK)
        .map(|index| {
            let codes = layout::get_codes(w.format(), w.code_block(strip, index), lane);
            let raw = w.raw_scales(strip, index, lane);
            let (first, last) = (kind.resolve(&raw, 0), kind.resolve(&raw, 1));
            WeightBlock {
                values: codes.map(|code| native::code_value(w.format(), code)),
                scale: [first.0, last.0].map(nonzero_scale),
                min: [first.1, last.1],
            }
        })
        .collect();
    for index in 0..activations::group_count(a.rows()) {
        let rows = activations::group(a.rows(), index);
        let Some(group) = a.int8_group(index) else { return };
        for slot in 0..rows.len() {
            let mut sum = 0.0;
            for (weights, activations) in blocks.iter().zip(group.chunks_exact(rows.len())) {
                sum = block_product(kind, weights, &activations[slot], sum);
            }
            // SAFETY: `row` belongs to a strip of this call, `rows` to the activations.
            unsafe { *out.at(rows.start + slot, row) = sum };
        }
    }
}

/// The one definition of a term's roundings.
fn block_product(kind: ScaleKind, w: &WeightBlock, a: &ActivationBlock, sum: f32) -> f32 {
    let dot =
        |columns: Range<usize>| -> i32 { columns.map(|c| w.values[c] * i32::from(a.q[c])).sum() };
    let half_sum = |columns: Range<usize>| -> i32 { columns.map(|c| i32::from(a.q[c])).sum() };
    let scale = |half: usize| join_scales(w.scale[half] * LEVELS[a.level as usize % 2], a.exponent);
    if kind.is_halved() {
        let mut sum = (dot(0..16) as f32).mul_add(scale(0), sum);
        sum = (dot(16..32) as f32).mul_add(scale(1), sum);
        if kind.has_min() {
            sum = w.min[0].mul_add(a.scale() * half_sum(0..16) as f32, sum);
            sum = w.min[1].mul_add(a.scale() * half_sum(16..32) as f32, sum);
        }
        return sum;
    }
    let sum = (dot(0..32) as f32).mul_add(scale(0), sum);
    if kind.has_min() { w.min[0].mul_add(a.scaled_sum, sum) } else { sum }
}

fn float_row(w: &PackedMatrix, a: &Activations, out: &Output, row: usize) {
    let (strip, lane, size) =
        (w.strip(row / STRIP_ROWS), row % STRIP_ROWS, w.format().block_bytes());
    let mut weights = vec![0.0; w.cols()];
    for (column, value) in weights.iter_mut().enumerate() {
        let element = &strip[size * (STRIP_ROWS * column + lane)..][..size];
        // One element of a floating-point format always has the right size.
        let _ = dequantize_row(w.format(), element, std::slice::from_mut(value));
    }
    for index in 0..activations::group_count(a.rows()) {
        let rows = activations::group(a.rows(), index);
        let Some(group) = a.float_group(index) else { return };
        for slot in 0..rows.len() {
            let mut sum = 0.0;
            let columns = weights.chunks(FLOAT_CHAIN).zip(group.chunks(FLOAT_CHAIN * rows.len()));
            for (weights, activations) in columns {
                let chain = weights
                    .iter()
                    .zip(activations.chunks_exact(rows.len()))
                    .fold(0.0_f32, |chain, (&w, a)| w.mul_add(a[slot], chain));
                sum += chain;
            }
            // SAFETY: `row` belongs to a strip of this call, `rows` to the activations.
            unsafe { *out.at(rows.start + slot, row) = sum };
        }
    }
}
