//! Rules on Rust source: module headers, function length, where `unsafe` and silenced lints may stand.
//!
//! `xtask/tidy-exceptions.toml` lists what does not keep a rule yet, each with its size. The list may only shrink: an
//! entry that is no longer needed, or whose number is larger than it has to be, is itself a finding.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use syn::spanned::Spanned;
use syn::visit::Visit;

use super::Finding;

/// A function fits a screen.
const MAX_FUNCTION_LINES: usize = 70;

/// Where `unsafe` may stand; each block there says why it is sound (clippy's `undocumented_unsafe_blocks`).
const UNSAFE_PLACES: [&str; 2] = ["crates/kernels/", "crates/model/src/mmap.rs"];

/// Lints that keep the house rules: silencing one is an exception, and exceptions are listed.
const GUARDED_LINTS: [&str; 6] = [
    "unwrap_used",
    "expect_used",
    "panic",
    "too_many_lines",
    "undocumented_unsafe_blocks",
    "unsafe_code",
];

/// Code that nobody's request reaches: a panic there is a failed test.
const NOT_SHIPPED: [&str; 2] = ["/tests/", "/examples/"];

const EXCEPTIONS: &str = "xtask/tidy-exceptions.toml";

#[derive(serde::Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct Exceptions {
    /// `path::function` → its lines.
    #[serde(default)]
    long_functions: BTreeMap<String, usize>,
    /// `path` → how many guarded lints it silences.
    #[serde(default)]
    silenced_lints: BTreeMap<String, usize>,
}

pub(super) fn check(root: &Path, files: &[PathBuf]) -> Result<Vec<Finding>> {
    let text = std::fs::read_to_string(root.join(EXCEPTIONS)).context(EXCEPTIONS)?;
    let exceptions: Exceptions = toml::from_str(&text).context(EXCEPTIONS)?;
    let mut found = Found::default();
    for path in
        files.iter().filter(|path| path.extension().is_some_and(|extension| extension == "rs"))
    {
        let name = path.display().to_string();
        if name.starts_with("fuzz/") {
            continue;
        }
        let text = std::fs::read_to_string(root.join(path)).with_context(|| name.clone())?;
        found.read(&name, &text)?;
    }
    Ok(found.findings(&exceptions))
}

/// What the source holds, before exceptions are taken into account.
#[derive(Default)]
struct Found {
    findings: Vec<Finding>,
    long_functions: BTreeMap<String, usize>,
    silenced_lints: BTreeMap<String, usize>,
}

impl Found {
    fn read(&mut self, name: &str, text: &str) -> Result<()> {
        if !text.trim_start().starts_with("//!") {
            self.findings.push(Finding::new(
                name,
                "begin with `//!`: what this module is, what it is not, its invariant",
            ));
        }
        let source = syn::parse_file(text).with_context(|| name.to_owned())?;
        let mut visitor = Visitor::default();
        visitor.visit_file(&source);
        for (function, lines) in visitor.functions {
            if lines > MAX_FUNCTION_LINES {
                self.long_functions.insert(format!("{name}::{function}"), lines);
            }
        }
        if let Some(line) = visitor.first_unsafe
            && !UNSAFE_PLACES.iter().any(|place| name.starts_with(place))
        {
            let message = format!("`unsafe` stands only in {}", UNSAFE_PLACES.join(" and "));
            self.findings.push(Finding::new(format!("{name}:{line}"), message));
        }
        let may_be_unsafe = UNSAFE_PLACES.iter().any(|place| name.starts_with(place));
        visitor.silenced.retain(|lint| !(may_be_unsafe && *lint == "unsafe_code"));
        let ships = !NOT_SHIPPED.iter().any(|part| name.contains(part));
        if ships && !visitor.silenced.is_empty() {
            self.silenced_lints.insert(name.to_owned(), visitor.silenced.len());
        }
        Ok(())
    }

    fn findings(mut self, exceptions: &Exceptions) -> Vec<Finding> {
        let long = compare(
            "lines of one function",
            MAX_FUNCTION_LINES,
            &self.long_functions,
            &exceptions.long_functions,
        );
        self.findings.extend(long);
        self.findings.extend(compare(
            "silenced guarded lints",
            0,
            &self.silenced_lints,
            &exceptions.silenced_lints,
        ));
        self.findings
    }
}

/// An exception must be needed, and must be no larger than it has to be.
fn compare(
    what: &str,
    limit: usize,
    found: &BTreeMap<String, usize>,
    listed: &BTreeMap<String, usize>,
) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (place, &count) in found {
        match listed.get(place) {
            None => findings.push(Finding::new(place, format!("{count} {what}; at most {limit}"))),
            Some(&listed) if count > listed => {
                findings.push(Finding::new(
                    place,
                    format!("{count} {what}; {EXCEPTIONS} says {listed}, and may only shrink"),
                ));
            }
            Some(&listed) if count < listed => {
                findings.push(Finding::new(
                    place,
                    format!("{count} {what}; lower the {listed} in {EXCEPTIONS}"),
                ));
            }
            Some(_) => {}
        }
    }
    for place in listed.keys().filter(|place| !found.contains_key(*place)) {
        findings.push(Finding::new(
            EXCEPTIONS,
            format!("`{place}` needs no exception any more: remove it"),
        ));
    }
    findings
}

#[derive(Default)]
struct Visitor {
    functions: Vec<(String, usize)>,
    first_unsafe: Option<usize>,
    silenced: Vec<&'static str>,
}

impl Visitor {
    fn function(&mut self, name: &syn::Ident, block: &syn::Block) {
        let span = block.span();
        self.functions.push((name.to_string(), span.end().line - span.start().line + 1));
    }

    fn mark_unsafe(&mut self, span: proc_macro2::Span) {
        self.first_unsafe.get_or_insert(span.start().line);
    }
}

impl<'ast> Visit<'ast> for Visitor {
    fn visit_item_fn(&mut self, item: &'ast syn::ItemFn) {
        self.function(&item.sig.ident, &item.block);
        if let syn::Safety::Unsafe(token) = item.sig.safety {
            self.mark_unsafe(token.span);
        }
        syn::visit::visit_item_fn(self, item);
    }

    fn visit_impl_item_fn(&mut self, item: &'ast syn::ImplItemFn) {
        self.function(&item.sig.ident, &item.block);
        syn::visit::visit_impl_item_fn(self, item);
    }

    fn visit_attribute(&mut self, attribute: &'ast syn::Attribute) {
        let silences = attribute.path().is_ident("allow") || attribute.path().is_ident("expect");
        if let (true, syn::Meta::List(list)) = (silences, &attribute.meta) {
            for tree in list.tokens.clone() {
                if let proc_macro2::TokenTree::Ident(identifier) = tree {
                    self.silenced.extend(GUARDED_LINTS.iter().find(|lint| identifier == **lint));
                }
            }
        }
    }

    fn visit_expr_unsafe(&mut self, item: &'ast syn::ExprUnsafe) {
        self.mark_unsafe(item.unsafe_token.span);
        syn::visit::visit_expr_unsafe(self, item);
    }

    fn visit_item_impl(&mut self, item: &'ast syn::ItemImpl) {
        if let Some(token) = item.unsafety {
            self.mark_unsafe(token.span);
        }
        syn::visit::visit_item_impl(self, item);
    }
}

#[cfg(test)]
mod tests {
    use super::{Exceptions, Found, MAX_FUNCTION_LINES};

    fn check(text: &str, exceptions: &str, expected: &[&str]) {
        let mut found = Found::default();
        found.read("crates/engine/src/x.rs", text).unwrap();
        let exceptions: Exceptions = toml::from_str(exceptions).unwrap();
        let messages: Vec<String> =
            found.findings(&exceptions).into_iter().map(|finding| finding.message).collect();
        assert_eq!(messages.len(), expected.len(), "{messages:?}");
        for (message, part) in messages.iter().zip(expected) {
            assert!(message.contains(part), "{message:?} does not contain {part:?}");
        }
    }

    #[test]
    fn rules_find_what_they_should() {
        let long = format!("//! X.\nfn f() {{\n{}}}\n", "g();\n".repeat(MAX_FUNCTION_LINES));
        check("//! X.\nfn f() {}\n", "", &[]);
        check("fn f() {}\n", "", &["begin with"]);
        check(&long, "", &["72 lines of one function"]);
        check(&long, "[long_functions]\n\"crates/engine/src/x.rs::f\" = 72\n", &[]);
        check(&long, "[long_functions]\n\"crates/engine/src/x.rs::f\" = 80\n", &["lower the 80"]);
        check(
            "//! X.\n",
            "[long_functions]\n\"crates/engine/src/x.rs::f\" = 72\n",
            &["needs no exception"],
        );
        check("//! X.\nfn f() { unsafe { g() } }\n", "", &["`unsafe` stands only in"]);
        check(
            "//! X.\n#[allow(clippy::unwrap_used)]\nfn f() {}\n",
            "",
            &["1 silenced guarded lints"],
        );
    }
}
