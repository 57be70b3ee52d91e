//! Running other programs: each is printed before it runs, and its failure names it.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};

/// The folder of the workspace's `Cargo.toml`.
pub(crate) fn workspace_root() -> Result<PathBuf> {
    let manifest = env!("CARGO_MANIFEST_DIR");
    Path::new(manifest).parent().map(Path::to_path_buf).context("xtask lies in the workspace")
}

/// A command whose line is shown when it runs.
pub(crate) struct Step {
    command: Command,
    line: String,
}

impl Step {
    /// `program` with `arguments`, run in `folder`.
    pub(crate) fn new<A: AsRef<str>>(folder: &Path, program: &str, arguments: &[A]) -> Self {
        let mut command = Command::new(program);
        command.current_dir(folder).stdin(Stdio::null());
        let mut line = program.to_owned();
        for argument in arguments {
            command.arg(argument.as_ref());
            line.push(' ');
            line.push_str(argument.as_ref());
        }
        Self { command, line }
    }

    /// A cargo command that builds once and is then done with: nothing is kept for a next, slightly different build,
    /// and no line numbers but those of panics. Half of the disk that the tests would need goes into those two.
    pub(crate) fn cargo<A: AsRef<str>>(folder: &Path, arguments: &[A]) -> Self {
        Self::new(folder, "cargo", arguments)
            .env("CARGO_INCREMENTAL", "0")
            .env("CARGO_PROFILE_DEV_DEBUG", "0")
    }

    /// Sets an environment variable.
    pub(crate) fn env(mut self, name: &str, value: impl AsRef<std::ffi::OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    /// Runs to the end; an exit code other than 0 is an error.
    pub(crate) fn run(mut self) -> Result<()> {
        eprintln!("\n$ {}", self.line);
        let started = Instant::now();
        let status = self
            .command
            .status()
            .with_context(|| format!("`{}` could not be started", self.line))?;
        eprintln!("({:.1} s)", started.elapsed().as_secs_f64());
        if !status.success() {
            bail!("`{}` failed: {status}", self.line);
        }
        Ok(())
    }

    /// Runs quietly and returns what it printed on standard output.
    pub(crate) fn output(mut self) -> Result<String> {
        let output = self
            .command
            .stderr(Stdio::piped())
            .output()
            .with_context(|| format!("`{}` could not be started", self.line))?;
        if !output.status.success() {
            bail!(
                "`{}` failed: {}\n{}",
                self.line,
                output.status,
                String::from_utf8_lossy(&output.stderr)
            );
        }
        String::from_utf8(output.stdout)
            .with_context(|| format!("`{}` printed something that is not UTF-8", self.line))
    }

    /// Whether it can be run and exits with 0; what it prints is thrown away.
    pub(crate) fn succeeds(mut self) -> bool {
        self.command
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|status| status.success())
    }
}
