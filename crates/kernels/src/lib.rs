//! Arithmetic on slices: quantised blocks, matmul, attention, norm, rope, sampling maths.
//!
//! Each kernel has a scalar reference beside its SIMD versions; the version is chosen once, at run time. The order of
//! additions for one output row never depends on the number of rows, the tile or the thread count.
#![allow(
    unsafe_code,
    reason = "the only numeric unsafe of the project; each block says why it is sound"
)]
