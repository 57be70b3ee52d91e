//! Arithmetic on slices: quantised blocks, matmul, attention, norm, rope, sampling maths.
//!
//! Each kernel has a scalar reference beside its SIMD versions; the version is chosen once, at run time. The order of
//! additions for one output row never depends on the number of rows, the tile or the thread count.
#![allow(
    unsafe_code,
    reason = "the only numeric unsafe of the project; each block says why it is sound"
)]

mod error;
mod format;
mod half;
mod memory;

mod activations;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
pub mod bench;
mod dequant;
mod gated;
mod layout;
mod matmul;
mod matrix;
mod native;
#[cfg(target_arch = "x86_64")]
mod peak;
#[cfg(target_arch = "x86_64")]
mod quantise_avx512;
mod quantised;
mod scalar;
pub mod synthetic;

mod aligned;
pub mod attention;
pub mod elementwise;
mod full_attention;
mod gelu;
pub mod isa;
pub mod norm;
pub mod pool;
pub mod reduce;
pub mod rope;
mod vexp;

pub use activations::{ActivationKind, Activations};
pub use dequant::dequantize_row;
pub use error::KernelError;
pub use format::Format;
pub use gated::{GatedScratch, matmul_gated};
pub use layout::STRIP_ROWS;
pub use matmul::{matmul, matmul_each, matmul_first};
pub use matrix::PackedMatrix;

pub use attention::{AttentionSequence, KvCache, KvFormat, PAGE_TOKENS, attention};
pub use elementwise::{add_assign, add_bias, add_bias_rows, silu_mul};
pub use full_attention::FullAttention;
pub use gelu::gelu_bias;
pub use isa::Isa;
pub use norm::{add_layer_norm, rms_norm};
pub use pool::{Pool, available_threads};
pub use reduce::{argmax, log_sum_exp, max, softmax, top_k};
pub use rope::{rope_halves, rope_pairs};
