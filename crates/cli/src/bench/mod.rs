//! `mintage bench`: what this machine and this server can do.

pub(crate) mod serve;
