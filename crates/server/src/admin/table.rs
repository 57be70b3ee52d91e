//! The table of routes: what can be asked for, by whom, and what it takes. Router, OpenAPI document and tests read it.
//!
//! Not here: what routes do. Invariant: a request whose names or types differ from its entry never reaches the handler.

use mintage_ledger::directory::Action;

use super::call::{Call, Reply};
use super::{
    invoices, keys, limits, members, money, openai, organisations, prices, projects, usage,
    webhooks,
};
use crate::error::ApiError;

/// What a value must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Text,
    /// From 0 on.
    Integer,
    Flag,
    /// In a query: the name repeated, with or without `[]`.
    Texts,
    /// Exact decimal text, such as `"12.50"`.
    Amount,
    Object,
    /// A list of objects.
    Rules,
    Choice(&'static [&'static str]),
    Choices(&'static [&'static str]),
}

/// A parameter of a query or a field of a body.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Field {
    pub(crate) name: &'static str,
    pub(crate) kind: Kind,
    pub(crate) is_required: bool,
    pub(crate) about: &'static str,
}

pub(crate) const fn must(name: &'static str, kind: Kind, about: &'static str) -> Field {
    Field { name, kind, is_required: true, about }
}

pub(crate) const fn may(name: &'static str, kind: Kind, about: &'static str) -> Field {
    Field { name, kind, is_required: false, about }
}

/// Who may call a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Audience {
    /// Members whose role allows this, within their organisation; the operator in all of them.
    Role(Action),
    /// The operator of the installation.
    Operator,
}

pub(crate) type Handler = fn(&Call<'_>) -> Result<Reply, ApiError>;

/// One thing that can be asked for.
#[derive(Clone, Copy)]
pub(crate) struct Route {
    pub(crate) method: &'static str,
    /// With `{names}` for what varies.
    pub(crate) path: &'static str,
    pub(crate) audience: Audience,
    pub(crate) about: &'static str,
    pub(crate) query: &'static [Field],
    pub(crate) body: &'static [Field],
    pub(crate) run: Handler,
}

/// An entry without query and body; `with` them added below.
pub(crate) const fn route(
    method: &'static str,
    path: &'static str,
    audience: Audience,
    run: Handler,
    about: &'static str,
) -> Route {
    Route { method, path, audience, about, query: &[], body: &[], run }
}

impl Route {
    pub(crate) const fn query(self, query: &'static [Field]) -> Self {
        Self { query, ..self }
    }

    pub(crate) const fn body(self, body: &'static [Field]) -> Self {
        Self { body, ..self }
    }
}

/// All of them, by resource.
pub(crate) const ROUTES: &[&[Route]] = &[
    organisations::ROUTES,
    projects::ROUTES,
    members::ROUTES,
    keys::ROUTES,
    limits::ROUTES,
    money::ROUTES,
    usage::ROUTES,
    prices::ROUTES,
    invoices::ROUTES,
    webhooks::ROUTES,
    openai::usage::ROUTES,
    openai::projects::ROUTES,
    openai::project_keys::ROUTES,
    openai::users::ROUTES,
    openai::admin_keys::ROUTES,
];

/// What stands for the names in a route's path.
pub(crate) type Names = Vec<(&'static str, String)>;

/// The values of a route's names, if the path is one of this route.
pub(crate) fn match_path(pattern: &'static str, path: &str) -> Option<Names> {
    let mut names = Names::new();
    let mut given = path.split('/');
    for expected in pattern.split('/') {
        let part = given.next()?;
        match expected.strip_prefix('{').and_then(|name| name.strip_suffix('}')) {
            Some(name) => names.push((name, decoded(part)?)),
            None if expected == part => {}
            None => return None,
        }
    }
    given.next().is_none().then_some(names)
}

/// A part of a path with its percent signs resolved; empty ones and other than UTF-8 name nothing.
fn decoded(part: &str) -> Option<String> {
    let mut out = Vec::with_capacity(part.len());
    let mut bytes = part.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            out.push(byte);
            continue;
        }
        let mut digit = || char::from(bytes.next()?).to_digit(16);
        out.push(u8::try_from(digit()? << 4 | digit()?).ok()?);
    }
    String::from_utf8(out).ok().filter(|text| !text.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_match_as_a_whole() {
        let check = |pattern, path, expected: Option<&[&str]>| {
            let names = match_path(pattern, path);
            let values: Option<Vec<&str>> =
                names.as_ref().map(|names| names.iter().map(|(_, v)| v.as_str()).collect());
            assert_eq!(values.as_deref(), expected, "{pattern} {path}");
        };
        check("/a/{x}", "/a/b", Some(&["b"]));
        check("/a/{x}/c", "/a/b%2Fc%20/c", Some(&["b/c "]));
        check("/a/{x}", "/a/", None);
        check("/a/{x}", "/a/b/", None);
        check("/a/{x}", "/a", None);
        check("/a/{x}", "/a/%", None);
        check("/a/{x}", "/a/%ff", None);
        check("/a", "/a", Some(&[]));
    }

    #[test]
    fn no_route_stands_in_anothers_way() {
        let all: Vec<&Route> = ROUTES.iter().copied().flatten().collect();
        for (i, route) in all.iter().enumerate() {
            let reached = all.iter().position(|other| {
                other.method == route.method && match_path(other.path, route.path).is_some()
            });
            assert_eq!(reached, Some(i), "{} {}", route.method, route.path);
            assert!(route.body.is_empty() || route.method != "GET", "{}", route.path);
        }
    }
}
