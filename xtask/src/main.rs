//! `cargo xtask`: what a developer runs. See `cargo xtask --help`.

fn main() {}
