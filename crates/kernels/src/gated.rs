//! The gated half of a feed-forward layer (SwiGLU, Shazeer 2020) in one piece: two products, their activation, and the
//! result made ready for the next product.
//!
//! Per 32 outputs, which are two strips of either matrix and one block of the next product's activations, so that neither
//! product is ever whole in memory: what a tile wrote is read again from the second-level cache. Invariant: the same bits
//! as [`crate::matmul_each`], [`crate::silu_mul`] and [`Activations::prepare`] one after the other.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::activations::{self, Parts};
use crate::elementwise::silu_mul_span;
use crate::layout::STRIP_ROWS;
use crate::matmul::{Output, Strips, check_activations, chunk_strips, strips_of};
use crate::native::BLOCK;
use crate::{ActivationKind, Activations, Isa, PackedMatrix, Pool};

/// Strips that make a block of the result.
const BLOCK_STRIPS: usize = BLOCK / STRIP_ROWS;

/// The threads' room for one block of both products; reused.
#[derive(Debug, Default)]
pub struct GatedScratch {
    /// (2, rows, 32) a thread
    threads: Vec<Mutex<Vec<[f32; BLOCK]>>>,
}

/// What all threads share.
struct Call<'a> {
    a: &'a Activations,
    matrices: [(&'a PackedMatrix, Strips); 2],
    to: Parts<'a>,
    broken: Vec<usize>,
    isa: Isa,
}

/// to: (a.rows, gate.rows), prepared as `kind` = silu(a × gateᵀ) ⊙ (a × upᵀ). What was in `to` is gone.
///
/// # Panics
/// If `a` was not prepared as the matrices want it, or the sizes do not fit: errors of the caller, never of a file.
pub fn matmul_gated(
    pool: &Pool,
    a: &Activations,
    [gate, up]: [&PackedMatrix; 2],
    kind: ActivationKind,
    scratch: &mut GatedScratch,
    to: &mut Activations,
) {
    check_activations(gate, a);
    check_activations(up, a);
    assert!(gate.rows() == up.rows(), "{} gates for {} outputs", gate.rows(), up.rows());
    to.reserve(a.rows(), gate.rows(), kind);
    let call = Call {
        a,
        matrices: [gate, up].map(|w| (w, strips_of(w.isa()))),
        to: to.parts(),
        broken: a.broken_rows(),
        isa: Isa::best(),
    };
    let blocks = gate.rows().div_ceil(BLOCK);
    let strips = gate.strips() + up.strips();
    let size = chunk_strips(strips, pool.threads(), a.rows() * a.cols()).div_ceil(2 * BLOCK_STRIPS);
    scratch.threads.resize_with(pool.threads().max(scratch.threads.len()), Mutex::default);
    let next = AtomicUsize::new(0);
    pool.run(&|thread| {
        let mut room = scratch.threads[thread].lock().unwrap_or_else(PoisonError::into_inner);
        if room.len() < 2 * a.rows() {
            room.resize(2 * a.rows(), [0.0; BLOCK]);
        }
        loop {
            let start = next.fetch_add(size, Ordering::Relaxed);
            for block in start..blocks.min(start.saturating_add(size)) {
                call.block(block, &mut room);
            }
            if start >= blocks {
                return;
            }
        }
    });
    let has_broken = call.to.has_broken();
    to.set_broken(has_broken);
}

impl Call<'_> {
    /// Block `block` of all rows; `room`: (2, rows).
    fn block(&self, block: usize, room: &mut [[f32; BLOCK]]) {
        let rows = self.a.rows();
        let (gates, ups) = room[..2 * rows].split_at_mut(rows);
        let first_row = block * BLOCK;
        for ((w, strips), to) in self.matrices.iter().zip([&mut *gates, &mut *ups]) {
            if w.rows() - first_row < BLOCK || w.cols() == 0 {
                // What the strips do not write.
                to.as_flattened_mut().fill(0.0);
            }
            let out = Output::new(to.as_flattened_mut(), BLOCK, first_row);
            let first = block * BLOCK_STRIPS;
            if w.cols() > 0 {
                strips(w, self.a, &out, first..w.strips().min(first + BLOCK_STRIPS));
            }
            if w.format().is_quantised() {
                self.broken.iter().for_each(|&row| to[row].fill(f32::NAN));
            }
        }
        for index in 0..activations::group_count(rows) {
            let group = activations::group(rows, index);
            let (gates, ups) = (&mut gates[group.clone()], &ups[group]);
            silu_mul_span(self.isa, gates.as_flattened_mut(), ups.as_flattened());
            // SAFETY: each block is visited once, by one thread.
            unsafe { self.to.fill(self.isa, index, block, gates) }
        }
    }
}

#[cfg(test)]
mod tests;
