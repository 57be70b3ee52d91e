//! The real binary: what a user types, and what then happens.
//!
//! Tests that need a model take it from the folder that `MINTAGE_TEST_MODELS` names, and skip without it.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test's helpers fail the test"
)]

mod administration;
mod chatting;
mod ledger;
mod messages;
mod models;
mod prices;
mod serving;

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// A data folder of its own, and a command that sees nothing of the developer's environment.
pub(crate) struct Home(tempfile::TempDir);

impl Home {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }

    pub(crate) fn mintage(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_mintage"));
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("MINTAGE_") {
                command.env_remove(&name);
            }
        }
        command
            .args(arguments)
            .current_dir(self.path())
            .env("MINTAGE_DATA_DIR", self.path().join("data"))
            // Nobody listens on the discard port: no test reaches a real hub.
            .env("HF_ENDPOINT", "http://127.0.0.1:9")
            .env_remove("HF_TOKEN")
            .stdin(Stdio::null());
        command
    }

    /// Runs to the end: status, standard output, standard error.
    pub(crate) fn run(&self, arguments: &[&str]) -> (i32, String, String) {
        finished(&self.mintage(arguments).output().unwrap())
    }

    /// Both outputs and the status as one text, without what differs between machines.
    pub(crate) fn transcript(&self, arguments: &[&str]) -> String {
        let (status, out, err) = self.run(arguments);
        let text = format!("status {status}\n{out}{err}");
        text.replace(&self.path().display().to_string(), "HOME")
    }
}

pub(crate) fn finished(output: &Output) -> (i32, String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().unwrap_or(-1), text(&output.stdout), text(&output.stderr))
}

/// The smallest test model, or `None` and a word about it.
pub(crate) fn small_model() -> Option<PathBuf> {
    let Some(folder) = std::env::var_os("MINTAGE_TEST_MODELS") else {
        eprintln!("skipped: MINTAGE_TEST_MODELS is not set");
        return None;
    };
    Some(PathBuf::from(folder).join("smollm2-135m-instruct-q4_1.gguf"))
}
