//! Licences and known-bad versions of everything in `Cargo.lock`, from `cargo metadata` alone, so that the check needs
//! no tool and no network. Where `cargo-deny` is installed `deny.toml` lets it check the same and the advisories.

use std::path::Path;

use anyhow::{Context, Result};

use super::Finding;
use crate::command::Step;

/// Licences that an Apache-2.0 product may carry without further conditions.
const LICENCES: [&str; 13] = [
    "MIT",
    "MIT-0",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "ISC",
    "Zlib",
    "Unicode-3.0",
    "Unlicense",
    "0BSD",
    "BSL-1.0",
    "CDLA-Permissive-2.0",
];

/// Lowest versions without a known vulnerability that matters here (RustSec, to August 2026).
const FLOORS: [(&str, [u64; 3]); 11] = [
    ("ammonia", [4, 1, 4]),
    ("bytes", [1, 11, 1]),
    ("h2", [0, 4, 16]),
    ("lz4_flex", [0, 11, 6]),
    ("memmap2", [0, 9, 11]),
    ("quick-xml", [0, 41, 0]),
    ("quinn-proto", [0, 11, 15]),
    ("rustls-webpki", [0, 103, 13]),
    ("tar", [0, 4, 45]),
    ("time", [0, 3, 47]),
    ("zip", [2, 3, 0]),
];

pub(super) fn check(root: &Path) -> Result<Vec<Finding>> {
    let text =
        Step::new(root, "cargo", &["metadata", "--locked", "--format-version", "1"]).output()?;
    let metadata: serde_json::Value = serde_json::from_str(&text)?;
    let packages = metadata["packages"].as_array().context("cargo metadata lists no packages")?;
    let mut findings = Vec::new();
    for package in packages {
        let name = package["name"].as_str().unwrap_or_default();
        let version = package["version"].as_str().unwrap_or_default();
        let place = format!("{name} {version}");
        let licence = package["license"].as_str().unwrap_or("none stated");
        if !acceptable(licence) {
            findings.push(Finding::new(
                &place,
                format!("its licence `{licence}` is not on the list of accepted ones"),
            ));
        }
        if let Some((_, floor)) = FLOORS.iter().find(|(floored, _)| *floored == name)
            && parse_version(version) < *floor
        {
            let [major, minor, patch] = floor;
            findings.push(Finding::new(
                &place,
                format!("versions below {major}.{minor}.{patch} have a known vulnerability"),
            ));
        }
    }
    Ok(findings)
}

/// Whether an SPDX expression can be satisfied with accepted licences: every part of each `AND`, one part of each `OR`.
fn acceptable(expression: &str) -> bool {
    let expression = expression.replace('/', " OR ");
    split_outside_parentheses(&expression, " AND ").iter().all(|part| {
        split_outside_parentheses(part, " OR ").iter().any(|part| {
            let part = part.trim();
            match part.strip_prefix('(').and_then(|inner| inner.strip_suffix(')')) {
                Some(inner) => acceptable(inner),
                None => LICENCES.contains(&part),
            }
        })
    })
}

fn split_outside_parentheses<'a>(text: &'a str, separator: &str) -> Vec<&'a str> {
    let mut parts = Vec::new();
    let (mut depth, mut start) = (0_usize, 0);
    for (index, character) in text.char_indices() {
        match character {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            _ if depth == 0 && index >= start && text[index..].starts_with(separator) => {
                parts.push(&text[start..index]);
                start = index + separator.len();
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    parts
}

fn parse_version(text: &str) -> [u64; 3] {
    let core = text.split(['-', '+']).next().unwrap_or_default();
    let mut numbers = core.split('.').map(|number| number.parse().unwrap_or(0));
    std::array::from_fn(|_| numbers.next().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::{acceptable, parse_version};

    #[test]
    fn licences_are_judged() {
        for (expression, expected) in [
            ("MIT", true),
            ("MIT OR Apache-2.0", true),
            ("GPL-3.0 OR MIT", true),
            ("GPL-3.0", false),
            ("MIT AND GPL-3.0", false),
            ("(MIT OR Apache-2.0) AND Unicode-3.0", true),
            ("(MIT OR Apache-2.0) AND GPL-2.0", false),
            ("MIT/Apache-2.0", true),
            ("none stated", false),
        ] {
            assert_eq!(acceptable(expression), expected, "{expression}");
        }
    }

    #[test]
    fn versions_compare_as_numbers() {
        assert!(parse_version("0.9.2") < parse_version("0.9.11"));
        assert_eq!(parse_version("1.2.3-rc.1+x"), [1, 2, 3]);
    }
}
