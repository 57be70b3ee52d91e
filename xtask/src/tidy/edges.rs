//! Which crate may depend on which: the table of `ARCHITECTURE.md`, kept.

use std::path::Path;

use anyhow::{Context, Result};

use super::Finding;

/// Crate, and the crates of the workspace it may use.
const ALLOWED: [(&str, &[&str]); 12] = [
    ("kernels", &[]),
    ("model", &[]),
    ("ledger", &[]),
    ("label", &[]),
    ("engine", &["kernels", "model"]),
    ("train", &["kernels", "model"]),
    ("hub", &["model"]),
    ("cluster", &["model"]),
    ("studio", &["model"]),
    ("server", &["model", "ledger", "label", "hub", "cluster", "studio"]),
    (
        "cli",
        &[
            "kernels", "model", "engine", "train", "ledger", "label", "hub", "cluster", "studio",
            "server",
        ],
    ),
    ("xtask", &[]),
];

/// `train` may test itself against the engine.
const ALLOWED_IN_TESTS: [(&str, &str); 1] = [("train", "engine")];

pub(super) fn check(root: &Path) -> Result<Vec<Finding>> {
    let mut findings = Vec::new();
    for entry in std::fs::read_dir(root.join("crates"))? {
        let folder = entry?.path();
        let Some(name) = folder.file_name().and_then(|name| name.to_str()) else { continue };
        let path = folder.join("Cargo.toml");
        let place = format!("crates/{name}/Cargo.toml");
        let text = std::fs::read_to_string(&path).with_context(|| place.clone())?;
        let manifest: toml::Table = toml::from_str(&text).with_context(|| place.clone())?;
        let expected = format!("mintage-{name}");
        if manifest.get("package").and_then(|package| package.get("name")?.as_str())
            != Some(&expected)
        {
            findings.push(Finding::new(
                &place,
                format!("the package of this folder is called `{expected}`"),
            ));
        }
        findings.extend(edges_of(name, &place, &manifest));
    }
    Ok(findings)
}

fn edges_of(name: &str, place: &str, manifest: &toml::Table) -> Vec<Finding> {
    let Some((_, allowed)) = ALLOWED.iter().find(|(crate_name, _)| *crate_name == name) else {
        return vec![Finding::new(
            place,
            "this crate is not in the table of edges; add it there and in ARCHITECTURE.md",
        )];
    };
    let mut findings = Vec::new();
    for section in ["dependencies", "dev-dependencies", "build-dependencies"] {
        let Some(table) = manifest.get(section).and_then(toml::Value::as_table) else { continue };
        for used in table.keys().filter_map(|key| key.strip_prefix("mintage-")) {
            let in_tests =
                section == "dev-dependencies" && ALLOWED_IN_TESTS.contains(&(name, used));
            if !allowed.contains(&used) && !in_tests {
                findings.push(Finding::new(
                    place,
                    format!("`{name}` may not depend on `{used}` ([{section}])"),
                ));
            }
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::edges_of;

    #[test]
    fn a_forbidden_edge_is_found() {
        let manifest =
            toml::from_str("[dependencies]\nmintage-kernels = {}\nmintage-model = {}\n").unwrap();
        assert_eq!(edges_of("engine", "x", &manifest).len(), 0);
        assert_eq!(edges_of("server", "x", &manifest).len(), 1);
        assert_eq!(edges_of("kernels", "x", &manifest).len(), 2);
        assert_eq!(edges_of("novel", "x", &manifest).len(), 1);
    }
}
