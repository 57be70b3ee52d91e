//! Rules on every text file: nothing that belongs to one machine, no trailing blanks, no conflict marks.

use std::path::{Path, PathBuf};

use anyhow::Result;

use super::Finding;

/// Larger files are data.
const MAX_BYTES: u64 = 1024 * 1024;

/// Folders of data made by others, kept byte for byte.
const VERBATIM: [&str; 4] = ["LICENSE", "Cargo.lock", "goldens/", "tests/texts/"];

/// Paths that exist on somebody's machine only. Written apart, so that this file keeps its own rule.
const MACHINE_PATHS: [&str; 4] =
    [concat!("/home", "/"), concat!("/root", "/"), concat!("/tmp", "/"), concat!("/work", "/")];

pub(super) fn check(root: &Path, files: &[PathBuf]) -> Result<Vec<Finding>> {
    let mut findings = Vec::new();
    for path in files {
        let name = path.display().to_string();
        let full = root.join(path);
        if VERBATIM.iter().any(|verbatim| name.contains(verbatim))
            || std::fs::metadata(&full)?.len() > MAX_BYTES
        {
            continue;
        }
        let Ok(text) = String::from_utf8(std::fs::read(&full)?) else { continue };
        for (number, line) in text.lines().enumerate() {
            for message in breaches(&name, line) {
                findings.push(Finding::new(format!("{name}:{}", number + 1), message));
            }
        }
    }
    Ok(findings)
}

fn breaches(name: &str, line: &str) -> Vec<String> {
    let mut messages = Vec::new();
    if let Some(path) = MACHINE_PATHS.iter().find(|path| line.contains(*path)) {
        messages.push(format!("`{path}…` is a path of one machine"));
    }
    if line.starts_with("<<<<<<< ") || line.starts_with(">>>>>>> ") {
        messages.push("a mark of an unresolved merge".to_owned());
    }
    let keeps_blanks = name.ends_with(".md") || name.ends_with(".snap");
    if !keeps_blanks && line.ends_with([' ', '\t']) {
        messages.push("blanks at the end of the line".to_owned());
    }
    messages
}

#[cfg(test)]
mod tests {
    use super::{MACHINE_PATHS, breaches};

    #[test]
    fn breaches_are_found() {
        assert!(breaches("a.rs", "let x = 1;").is_empty());
        assert_eq!(breaches("a.rs", &format!("open(\"{}x\")", MACHINE_PATHS[2])).len(), 1);
        assert_eq!(breaches("a.rs", "let x = 1; ").len(), 1);
        assert!(breaches("a.md", "a line break  ").is_empty());
        assert_eq!(breaches("a.rs", "<<<<<<< HEAD").len(), 1);
    }
}
