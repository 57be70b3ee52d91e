//! `cargo xtask ci`: every check and every test, on a machine that may never have seen the project.
//!
//! The order is cheap before dear; the test runner comes last, so that the output ends with its own summary.

use std::path::Path;

use anyhow::Result;

use crate::command::Step;
use crate::{setup, tidy};

/// What to leave out.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Only the checks that run nothing of the product: format, clippy, tidy, documentation.
    #[arg(long)]
    checks_only: bool,
}

/// Runs all of it; the first failure ends it.
pub(crate) fn run(root: &Path, options: &Options) -> Result<()> {
    checks(root)?;
    if options.checks_only {
        return Ok(());
    }
    let ready = setup::run(root)?;
    conformance(root, &ready)?;
    tests(root, &ready)
}

fn checks(root: &Path) -> Result<()> {
    if Step::new(root, "cargo", &["fmt", "--version"]).succeeds() {
        Step::new(root, "cargo", &["fmt", "--all", "--check"]).run()?;
    } else {
        eprintln!(
            "rustfmt is not installed: `rustup component add rustfmt`; the format is not checked"
        );
    }
    tidy::run(root)?;
    if Step::new(root, "cargo", &["clippy", "--version"]).succeeds() {
        let arguments =
            ["clippy", "--locked", "--workspace", "--all-targets", "--", "-D", "warnings"];
        Step::new(root, "cargo", &arguments).run()?;
    } else {
        eprintln!(
            "clippy is not installed: `rustup component add clippy`; its lints are not checked"
        );
    }
    let arguments = ["doc", "--locked", "--workspace", "--no-deps", "--document-private-items"];
    Step::new(root, "cargo", &arguments)
        .env("RUSTDOCFLAGS", "-D warnings -A rustdoc::private-intra-doc-links")
        .run()
}

/// The vendors' own clients against the real binary with a real model.
fn conformance(root: &Path, ready: &setup::Ready) -> Result<()> {
    let arguments = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/python"];
    ready.environment(Step::new(root, &ready.python, &arguments)).run()
}

fn tests(root: &Path, ready: &setup::Ready) -> Result<()> {
    ready
        .environment(Step::new(root, "cargo", &["test", "--locked", "--workspace", "--doc"]))
        .run()?;
    let nextest = Step::new(root, "cargo", &["nextest", "--version"]).succeeds();
    let arguments: &[&str] = if nextest {
        &["nextest", "run", "--locked", "--workspace", "--all-targets", "--profile", "ci"]
    } else {
        &["test", "--locked", "--workspace", "--lib", "--bins", "--tests", "--examples"]
    };
    ready.environment(Step::new(root, "cargo", arguments)).run()
}
