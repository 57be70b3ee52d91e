//! `mintage bench`: what this machine, this model and this server can do.

pub(crate) mod engine;
pub(crate) mod serve;
