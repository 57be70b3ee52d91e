//! The model crate from outside: real files, hostile files, goldens.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]
#![allow(clippy::cast_possible_truncation, reason = "sizes of test data")]

mod folders;
mod gguf_bytes;
mod goldens;
mod hostile;
mod properties;
mod real_files;
