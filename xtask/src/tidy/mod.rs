//! `cargo xtask tidy`: the house rules that a program can keep. Each rule is a file; each finding names a place and
//! says what to do.

mod architecture;
mod dependencies;
mod edges;
mod rust_files;
mod text;

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

use crate::command::Step;

/// One breach of a rule.
pub(crate) struct Finding {
    place: String,
    message: String,
}

impl Finding {
    fn new(place: impl Into<String>, message: impl Into<String>) -> Self {
        Self { place: place.into(), message: message.into() }
    }
}

/// Checks every rule and prints every finding.
pub(crate) fn run(root: &Path) -> Result<()> {
    let files = tracked_files(root)?;
    let mut findings = Vec::new();
    findings.extend(edges::check(root)?);
    findings.extend(architecture::check(root)?);
    findings.extend(rust_files::check(root, &files)?);
    findings.extend(text::check(root, &files)?);
    findings.extend(dependencies::check(root)?);
    for finding in &findings {
        eprintln!("{}: {}", finding.place, finding.message);
    }
    if !findings.is_empty() {
        bail!("tidy found {} breach(es) of the house rules", findings.len());
    }
    eprintln!("tidy: {} files, nothing to say", files.len());
    Ok(())
}

/// Paths, relative to the root, of the files git tracks or would track.
fn tracked_files(root: &Path) -> Result<Vec<PathBuf>> {
    let list = Step::new(root, "git", &["ls-files", "--cached", "--others", "--exclude-standard"])
        .output()?;
    Ok(list.lines().map(PathBuf::from).filter(|path| root.join(path).is_file()).collect())
}
