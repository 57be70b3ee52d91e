//! The measurements behind `mintage bench`: products alone, an engine alone, and any server under load.

pub(crate) mod engine;
pub(crate) mod kernels;
pub(crate) mod robustness;
pub(crate) mod serve;
pub(crate) mod speculation;
