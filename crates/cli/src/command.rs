//! One module a subcommand: its arguments and what it does.

pub(crate) mod completions;
pub(crate) mod keys;
pub(crate) mod list;
pub(crate) mod pull;
pub(crate) mod rm;
pub(crate) mod show;
