//! The measurements behind `mintage bench`: an engine alone, and any server under load.

pub(crate) mod engine;
pub(crate) mod serve;
pub(crate) mod speculation;
