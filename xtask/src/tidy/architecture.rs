//! `ARCHITECTURE.md` stays short, and each path it names exists.

use std::path::Path;

use anyhow::{Context, Result};

use super::Finding;

const MAX_LINES: usize = 250;

/// Documents whose backticked paths are followed.
const DOCUMENTS: [&str; 5] =
    ["ARCHITECTURE.md", "README.md", "README.zh-CN.md", "CONTRIBUTING.md", "docs/performance.md"];

/// A backticked word that begins so is a path of this repository.
const PATH_STARTS: [&str; 7] =
    ["crates/", "xtask/", "docs/", "tests/", "fuzz/", ".ci/", "console/"];

pub(super) fn check(root: &Path) -> Result<Vec<Finding>> {
    let mut findings = Vec::new();
    for document in DOCUMENTS {
        let path = root.join(document);
        if !path.exists() && document.starts_with("docs/") {
            continue;
        }
        let text = std::fs::read_to_string(&path).with_context(|| document.to_owned())?;
        let lines = text.lines().count();
        if document == "ARCHITECTURE.md" && lines > MAX_LINES {
            findings.push(Finding::new(document, format!("{lines} lines; at most {MAX_LINES}")));
        }
        findings.extend(missing_paths(root, document, &text));
    }
    Ok(findings)
}

fn missing_paths(root: &Path, document: &str, text: &str) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (number, line) in text.lines().enumerate() {
        for word in line.split('`').skip(1).step_by(2) {
            let is_path = PATH_STARTS.iter().any(|start| word.starts_with(start));
            let is_pattern = word.contains(['*', '<', '{', ' ', '…']);
            if is_path && !is_pattern && !root.join(word).exists() {
                let place = format!("{document}:{}", number + 1);
                findings.push(Finding::new(place, format!("`{word}` does not exist")));
            }
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::missing_paths;

    #[test]
    fn a_path_that_does_not_exist_is_found() {
        let root = crate::command::workspace_root().unwrap();
        let text = "see `crates/model/src/lib.rs`, `crates/nowhere/src/lib.rs` and `cargo xtask`";
        let findings = missing_paths(&root, "X.md", text);
        assert_eq!(findings.len(), 1);
        assert!(findings[0].message.contains("nowhere"));
    }
}
