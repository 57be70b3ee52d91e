//! Names that users and repositories give, parsed into types that are safe to use as one path component.
//!
//! Not the catalogue: a parsed name need not exist.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Characters of the longest name.
const NAME_CHARS: usize = 128;
/// Characters of the longest file name.
const FILE_NAME_CHARS: usize = 200;
/// Characters of the longest repository path.
const REPO_PATH_CHARS: usize = 400;

/// Why a name was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{given}` {reason}")]
pub struct InvalidName {
    given: String,
    reason: &'static str,
}

impl InvalidName {
    fn new(given: &str, reason: &'static str) -> Self {
        Self { given: given.chars().take(FILE_NAME_CHARS).collect(), reason }
    }
}

/// A model's name: `^[a-z0-9][a-z0-9._-]{0,127}$`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ModelName(String);

/// The name of one file, a single path component: `^[A-Za-z0-9_][A-Za-z0-9._+-]{0,199}$`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct FileName(String);

macro_rules! text_name {
    ($name:ident) => {
        impl $name {
            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidName;

            fn try_from(text: String) -> Result<Self, InvalidName> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.0
            }
        }
    };
}
text_name!(ModelName);
text_name!(FileName);

impl FromStr for ModelName {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let lower = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit();
        let first = text.bytes().next().is_some_and(lower);
        if !first || !text.bytes().all(|c| lower(c) || b"._-".contains(&c)) {
            return Err(InvalidName::new(
                text,
                "is not a model name: lowercase letters, digits, `.`, `_` and `-`, beginning with a letter or digit",
            ));
        }
        if text.len() > NAME_CHARS {
            return Err(InvalidName::new(text, "is longer than 128 characters"));
        }
        Ok(Self(text.to_owned()))
    }
}

impl ModelName {
    /// The nearest valid name to some text, for models that nobody has named yet: `Foo Bar.GGUF` → `foo-bar`.
    ///
    /// # Errors
    /// Where nothing usable is left.
    pub fn derive(text: &str) -> Result<Self, InvalidName> {
        let stem = text.strip_suffix(".gguf").or(text.strip_suffix(".GGUF")).unwrap_or(text);
        let name: String = stem
            .chars()
            .take(NAME_CHARS)
            .map(|c| c.to_ascii_lowercase())
            .map(|c| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '-' })
            .collect();
        name.trim_matches(['.', '-', '_']).parse()
    }
}

impl FromStr for FileName {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let first = text.bytes().next().is_some_and(|c| c.is_ascii_alphanumeric() || c == b'_');
        if !first || !text.bytes().all(|c| c.is_ascii_alphanumeric() || b"._+-".contains(&c)) {
            return Err(InvalidName::new(
                text,
                "is not a plain file name: letters, digits, `.`, `_`, `+` and `-`",
            ));
        }
        if text.len() > FILE_NAME_CHARS {
            return Err(InvalidName::new(text, "is longer than 200 characters"));
        }
        Ok(Self(text.to_owned()))
    }
}

/// A model repository of the Hugging Face protocol: `hf:OWNER/REPO[:FILE][@REVISION]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HuggingFaceRef {
    /// `OWNER/REPO`.
    pub repo: String,
    /// Path of a file inside, where one was named.
    pub file: Option<String>,
    /// Branch, tag or commit; `main` where none was named.
    pub revision: String,
}

impl FromStr for HuggingFaceRef {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let rest = text.strip_prefix("hf:").unwrap_or(text);
        let (rest, revision) = rest.rsplit_once('@').unwrap_or((rest, "main"));
        let (repo, file) = match rest.split_once(':') {
            Some((repo, file)) => (repo, Some(file)),
            None => (rest, None),
        };
        let valid = repo.split('/').count() == 2
            && is_repo_path(repo)
            && is_repo_path(revision)
            && file.is_none_or(is_repo_path);
        if !valid {
            return Err(InvalidName::new(
                text,
                "is not a repository; write `hf:OWNER/REPO`, `hf:OWNER/REPO:FILE` or `hf:OWNER/REPO:FILE@REVISION`",
            ));
        }
        Ok(Self {
            repo: repo.to_owned(),
            file: file.map(str::to_owned),
            revision: revision.to_owned(),
        })
    }
}

impl fmt::Display for HuggingFaceRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "hf:{}", self.repo)?;
        if let Some(file) = &self.file {
            write!(f, ":{file}")?;
        }
        if self.revision != "main" {
            write!(f, "@{}", self.revision)?;
        }
        Ok(())
    }
}

/// Whether text is a relative path of plain components: it goes into a URL as it is, and never to the disk.
pub(crate) fn is_repo_path(text: &str) -> bool {
    text.len() <= REPO_PATH_CHARS && text.split('/').all(|part| part.parse::<FileName>().is_ok())
}

/// What the user may write where a model is expected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ModelRef {
    /// A name or alias of the catalogue, or of a stored model.
    Name(String),
    /// A file or folder on this machine, used where it is.
    Path(PathBuf),
    /// A repository.
    HuggingFace(HuggingFaceRef),
}

impl FromStr for ModelRef {
    type Err = InvalidName;

    /// `hf:…` is a repository; what has a path separator, or ends in `.gguf`, or starts with `.` is a path; the rest
    /// are names.
    fn from_str(text: &str) -> Result<Self, InvalidName> {
        if text.is_empty() {
            return Err(InvalidName::new(text, "is empty"));
        }
        if text.starts_with("hf:") {
            return Ok(Self::HuggingFace(text.parse()?));
        }
        let separated = text.contains(['/', std::path::MAIN_SEPARATOR]);
        if separated || text.starts_with('.') || text.to_ascii_lowercase().ends_with(".gguf") {
            return Ok(Self::Path(PathBuf::from(text)));
        }
        Ok(Self::Name(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_single_harmless_path_components() {
        for good in ["qwen2.5-coder-0.5b-instruct-q4_k_m", "a", "0.5b"] {
            assert!(good.parse::<ModelName>().is_ok(), "{good}");
        }
        let long = "a".repeat(129);
        for bad in ["", ".", "..", "../x", "a/b", "a\\b", "A", "a b", "a\0", "-a", "é", &long] {
            assert!(bad.parse::<ModelName>().is_err(), "{bad:?}");
        }
        for bad in ["", ".", "..", ".hidden", "a/b", "a\\b", "C:x", "a\nb", "-rf"] {
            assert!(bad.parse::<FileName>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn names_are_derived() {
        let derive = |text: &str| ModelName::derive(text).map(String::from);
        assert_eq!(derive("Qwen2.5-7B Q8_0.gguf"), Ok("qwen2.5-7b-q8_0".to_owned()));
        assert_eq!(derive("../../etc"), Ok("etc".to_owned()));
        assert!(derive("../..").is_err());
    }

    #[test]
    fn references_parse() {
        let check = |text: &str, expected: Option<(&str, Option<&str>, &str)>| {
            let parsed = text.parse::<HuggingFaceRef>().ok();
            let parsed =
                parsed.as_ref().map(|r| (r.repo.as_str(), r.file.as_deref(), r.revision.as_str()));
            assert_eq!(parsed, expected, "{text}");
        };
        check("hf:Qwen/Qwen2-0.5B", Some(("Qwen/Qwen2-0.5B", None, "main")));
        check("hf:a/b:x.gguf", Some(("a/b", Some("x.gguf"), "main")));
        check("hf:a/b:sub/x.gguf@v1.0", Some(("a/b", Some("sub/x.gguf"), "v1.0")));
        check("hf:a/b@0123abc", Some(("a/b", None, "0123abc")));
        for bad in [
            "hf:a",
            "hf:a/b/c",
            "hf:a/b:../x",
            "hf:../b",
            "hf:a/b@../..",
            "hf:a/b:/etc/x",
            "hf:a/b?x=1",
        ] {
            check(bad, None);
        }
        assert_eq!("x.gguf".parse(), Ok(ModelRef::Path("x.gguf".into())));
        assert_eq!("./x".parse(), Ok(ModelRef::Path("./x".into())));
        assert_eq!("smollm2:135m".parse(), Ok(ModelRef::Name("smollm2:135m".into())));
    }
}
