//! The model crate from outside: real files, hostile files, goldens.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod real_files;
