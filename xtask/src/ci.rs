//! `cargo xtask ci`: every check and every test, on a machine that may never have seen the project.
//!
//! The order is cheap before dear; the test runner comes last, so that the output ends with its own summary.

use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::command::Step;
use crate::{setup, tidy};

/// What a first run fills: builds, models, Python packages and the tests' own files.
const LEAST_DISK_GIB: u64 = 11;

/// What to leave out.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Only the checks that run nothing of the product: format, clippy, tidy, documentation.
    #[arg(long)]
    checks_only: bool,
}

/// Runs all of it; the first failure ends it.
pub(crate) fn run(root: &Path, options: &Options) -> Result<()> {
    if !options.checks_only {
        disk_space(root)?;
    }
    checks(root)?;
    if options.checks_only {
        return Ok(());
    }
    let ready = setup::run(root)?;
    conformance(root, &ready)?;
    tests(root, &ready)
}

/// Says how much room there is, and stops at once where a build would stop later, halfway through and less clearly.
fn disk_space(root: &Path) -> Result<()> {
    let target = setup::target_folder(root)?;
    std::fs::create_dir_all(&target)?;
    let text = Step::new(&target, "df", &["-Pk", "."]).output()?;
    let kib: Option<u64> =
        text.lines().nth(1).and_then(|l| l.split_whitespace().nth(3)?.parse().ok());
    let gib = kib.with_context(|| format!("df printed no free space:\n{text}"))? >> 20;
    eprintln!("{gib} GiB of disk are free");
    if gib < LEAST_DISK_GIB && !target.join("debug/deps").exists() {
        bail!(
            "a first run needs {LEAST_DISK_GIB} GiB of free disk for builds, models and Python packages, \
             and {gib} are there: make room, or set CARGO_TARGET_DIR to another disk"
        );
    }
    Ok(())
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
        Step::cargo(root, &arguments).run()?;
    } else {
        eprintln!(
            "clippy is not installed: `rustup component add clippy`; its lints are not checked"
        );
    }
    let arguments = ["doc", "--locked", "--workspace", "--no-deps", "--document-private-items"];
    Step::cargo(root, &arguments)
        .env("RUSTDOCFLAGS", "-D warnings -A rustdoc::private-intra-doc-links")
        .run()
}

/// The vendors' own clients against the real binary with a real model.
fn conformance(root: &Path, ready: &setup::Ready) -> Result<()> {
    let arguments = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/python"];
    ready.environment(Step::new(root, &ready.python, &arguments)).run()
}

fn tests(root: &Path, ready: &setup::Ready) -> Result<()> {
    ready.environment(Step::cargo(root, &["test", "--locked", "--workspace", "--doc"])).run()?;
    let nextest = Step::new(root, "cargo", &["nextest", "--version"]).succeeds();
    let arguments: &[&str] = if nextest {
        &["nextest", "run", "--locked", "--workspace", "--all-targets", "--profile", "ci"]
    } else {
        &["test", "--locked", "--workspace", "--lib", "--bins", "--tests", "--examples"]
    };
    ready.environment(Step::cargo(root, arguments)).run()
}
