//! `mintage org|project|member|key|balance|topup|limit|budget|webhook`: tenants and their money, on the data folder or on a
//! running server.

pub(crate) mod key;
pub(crate) mod limit;
pub(crate) mod member;
pub(crate) mod money;
pub(crate) mod org;
pub(crate) mod project;
pub(crate) mod webhook;
