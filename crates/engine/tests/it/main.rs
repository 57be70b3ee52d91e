//! The engine against goldens of an independent implementation, and against itself: the equivalences of a batch.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may fail")]

mod dequantised_files;
mod forward_goldens;
mod forward_invariance;
mod grammars;
mod quantised_quality;
mod serving;
mod vectors;
