//! The Hugging Face hub protocol: `/api/models/…/revision/…` lists a repository, `/…/resolve/…` delivers a file.
//!
//! Any endpoint that speaks it will do (mirrors, a private hub). Downloads go on where they broke off; a file's
//! announced size and digest are compared before the first byte.

use std::io::Read;
use std::rc::Rc;
use std::time::Duration;

use serde::Deserialize;
use ureq::http::HeaderMap;

use crate::digest::Digest;
use crate::error::{HubError, SourceError};
use crate::http::{Answer, Http, HttpError};
use crate::names::{FileName, HuggingFaceRef, is_repo_path};
use crate::partial::Partial;
use crate::progress::{Progress, PullEvent};
use crate::source::{FileSpec, Source};

/// Attempts in a row that bring no new byte.
const ATTEMPTS_MAX: u32 = 5;
/// Wait before the second attempt; doubles with each further one.
const RETRY_WAIT: Duration = Duration::from_millis(500);
/// Longest wait a server may ask for.
const RETRY_WAIT_MAX: Duration = Duration::from_secs(30);
/// Bytes read at a time.
const READ_BYTES: usize = 256 * 1024;
/// Bytes of the largest repository listing.
const LISTING_BYTES_MAX: u64 = 16 << 20;
/// How a text's vector is made of its tokens', or a pair's score of its logits, in repositories of `sentence-transformers`.
const IN_FOLDERS: [&str; 2] = ["1_Pooling/config.json", "1_LogitScore/config.json"];
/// Files of the largest model.
const FILES_MAX: usize = 512;

/// One file of a repository.
pub(crate) struct HuggingFace {
    pub(crate) http: Rc<Http>,
    pub(crate) repo: String,
    pub(crate) revision: String,
    pub(crate) file: String,
}

/// Why one attempt ended early.
enum Broken {
    /// Worth another attempt.
    Retry { message: String, wait: Option<Duration> },
    /// Another attempt would end the same way.
    Fatal(SourceError),
}

impl From<SourceError> for Broken {
    fn from(error: SourceError) -> Self {
        Self::Fatal(error)
    }
}

impl From<std::io::Error> for Broken {
    fn from(error: std::io::Error) -> Self {
        Self::Fatal(error.into())
    }
}

impl Source for HuggingFace {
    fn describe(&self) -> String {
        format!("{}, repository {}", self.http.host(), self.repo)
    }

    fn fetch(
        &self,
        file: &FileSpec,
        partial: &mut Partial,
        progress: &dyn Progress,
    ) -> Result<(), SourceError> {
        if partial.len() > file.bytes {
            partial.clear()?;
        }
        let mut furthest = partial.len();
        let mut attempts = 0;
        while partial.len() < file.bytes {
            match self.attempt(file, partial, progress) {
                Ok(()) => {}
                Err(Broken::Fatal(error)) => return Err(error),
                Err(Broken::Retry { message, wait }) => {
                    if partial.len() > furthest {
                        furthest = partial.len();
                        attempts = 0;
                    }
                    attempts += 1;
                    if attempts >= ATTEMPTS_MAX {
                        return Err(SourceError::Interrupted { at: furthest, attempts, message });
                    }
                    std::thread::sleep(wait.unwrap_or(RETRY_WAIT * 2_u32.pow(attempts - 1)));
                }
            }
        }
        Ok(())
    }
}

impl HuggingFace {
    /// One request: ends with the file whole, or broken.
    fn attempt(
        &self,
        file: &FileSpec,
        partial: &mut Partial,
        progress: &dyn Progress,
    ) -> Result<(), Broken> {
        let path = format!("/{}/resolve/{}/{}", self.repo, self.revision, self.file);
        // Bytes that a digest pins may come from anywhere; others must be of one version.
        let etag = partial.state().etag.clone().filter(|_| file.sha256.is_none());
        if file.sha256.is_none() && etag.is_none() {
            partial.clear()?;
        }
        let answer = self
            .http
            .get(&path, partial.len(), etag.as_deref())
            .map_err(|error| broken(error, &self.http.host()))?;
        compare_announced(file, &answer)?;
        self.begin(file, partial, &answer)?;
        progress.event(PullEvent::Started {
            file: file.name.as_str(),
            bytes: Some(file.bytes),
            at: partial.len(),
        });
        copy_body(answer, file, partial, progress)
    }

    /// Brings the partial file to where the body begins, or says why there is no body to use.
    fn begin(&self, file: &FileSpec, partial: &mut Partial, answer: &Answer) -> Result<(), Broken> {
        match answer.status {
            200 => {
                partial.clear()?;
                let mut state = partial.state().clone();
                state.etag = header(&answer.headers, "etag")
                    .filter(|etag| !etag.starts_with("W/"))
                    .map(str::to_owned);
                partial.set_state(state)?;
                Ok(())
            }
            206 if range_start(&answer.headers) == Some(partial.len()) => Ok(()),
            206 => Err(self.protocol("the range it sent is not the one asked for").into()),
            416 => {
                partial.clear()?;
                Err(Broken::Retry { message: "the range was refused".to_owned(), wait: None })
            }
            status => Err(failed_status(
                status,
                answer,
                &self.http.host(),
                &format!("{}/{} at {}", self.repo, self.file, self.revision),
            )),
        }
        .and_then(|()| {
            // A body longer than the file is refused before it is read.
            let announced = answer.body.content_length();
            match announced.map(|bytes| bytes.saturating_add(partial.len())) {
                Some(total) if total != file.bytes => Err(wrong_size(file, total).into()),
                _ => Ok(()),
            }
        })
    }

    fn protocol(&self, message: &str) -> SourceError {
        SourceError::Protocol { host: self.http.host(), message: message.to_owned() }
    }
}

/// The endpoint states size and digest of large files beside the redirect: a mismatch costs no download.
fn compare_announced(file: &FileSpec, answer: &Answer) -> Result<(), SourceError> {
    let headers = &answer.first_headers;
    let size = header(headers, "x-linked-size").and_then(|text| text.parse::<u64>().ok());
    if let Some(size) = size.filter(|size| *size != file.bytes) {
        return Err(wrong_size(file, size));
    }
    let digest = header(headers, "x-linked-etag")
        .and_then(|text| text.trim_matches('"').parse::<Digest>().ok());
    match (file.sha256, digest) {
        (Some(expected), Some(got)) if expected != got => {
            Err(SourceError::WrongBytes { expected: expected.to_string(), got: got.to_string() })
        }
        _ => Ok(()),
    }
}

fn wrong_size(file: &FileSpec, got: u64) -> SourceError {
    SourceError::WrongBytes {
        expected: format!("{} bytes", file.bytes),
        got: format!("{got} bytes"),
    }
}

fn copy_body(
    answer: Answer,
    file: &FileSpec,
    partial: &mut Partial,
    progress: &dyn Progress,
) -> Result<(), Broken> {
    let missing = file.bytes.saturating_sub(partial.len());
    // One more than is missing, to notice a body without an announced length that does not end.
    let mut body = answer.body.into_reader().take(missing + 1);
    let mut buffer = vec![0; READ_BYTES];
    loop {
        let read = match body.read(&mut buffer) {
            Ok(read) => read,
            Err(error) => return Err(Broken::Retry { message: error.to_string(), wait: None }),
        };
        if read == 0 {
            break;
        }
        if partial.len() + read as u64 > file.bytes {
            return Err(wrong_size(file, partial.len() + read as u64).into());
        }
        partial.append(&buffer[..read])?;
        progress.event(PullEvent::At { at: partial.len() });
    }
    if partial.len() < file.bytes {
        let message = format!("the body ended after {} of {} bytes", partial.len(), file.bytes);
        return Err(Broken::Retry { message, wait: None });
    }
    Ok(())
}

fn broken(error: HttpError, host: &str) -> Broken {
    match error {
        HttpError::Connect { host, message } => {
            Broken::Fatal(SourceError::Unreachable { host, message })
        }
        HttpError::Transfer { message } => Broken::Retry { message, wait: None },
        HttpError::Protocol { message } => {
            Broken::Fatal(SourceError::Protocol { host: host.to_owned(), message })
        }
    }
}

/// What a status other than success means for the next attempt.
fn failed_status(status: u16, answer: &Answer, host: &str, what: &str) -> Broken {
    let (host, what) = (host.to_owned(), what.to_owned());
    match status {
        401 | 403 => Broken::Fatal(SourceError::Refused {
            host,
            what,
            status,
            advice: "if the repository is private or gated, set `HF_TOKEN` to a token that may read it",
        }),
        404 | 410 => Broken::Fatal(SourceError::NotFound { what }),
        408 | 425 | 429 | 500..=599 => Broken::Retry {
            message: format!("HTTP {status}"),
            wait: header(&answer.headers, "retry-after")
                .and_then(|text| text.parse().ok())
                .map(|seconds| Duration::from_secs(seconds).min(RETRY_WAIT_MAX)),
        },
        _ => Broken::Fatal(SourceError::Protocol {
            host,
            message: format!("HTTP {status} for {what}"),
        }),
    }
}

fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

/// The first byte of `Content-Range: bytes 5-9/10`.
fn range_start(headers: &HeaderMap) -> Option<u64> {
    let range = header(headers, "content-range")?.strip_prefix("bytes ")?;
    range.split_once('-')?.0.parse().ok()
}

/// What a repository holds at one revision.
#[derive(Debug, Deserialize)]
pub(crate) struct Repository {
    /// The commit, so that all files come from one.
    pub(crate) sha: String,
    #[serde(default)]
    pub(crate) tags: Vec<String>,
    #[serde(default)]
    siblings: Vec<Sibling>,
}

#[derive(Clone, Debug, Deserialize)]
struct Sibling {
    rfilename: String,
    size: Option<u64>,
    lfs: Option<LargeFile>,
}

#[derive(Clone, Debug, Deserialize)]
struct LargeFile {
    sha256: String,
    size: u64,
}

/// One file of the model chosen: where it is in the repository and what is known of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RepositoryFile {
    pub(crate) path: String,
    pub(crate) spec: FileSpec,
}

/// A model within a repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Choice {
    /// The file to open; `None` for a safetensors folder.
    pub(crate) entry: Option<FileName>,
    pub(crate) files: Vec<RepositoryFile>,
}

impl Repository {
    /// Asks the endpoint.
    pub(crate) fn read(http: &Http, reference: &HuggingFaceRef) -> Result<Self, SourceError> {
        let path =
            format!("/api/models/{}/revision/{}?blobs=true", reference.repo, reference.revision);
        let host = http.host();
        let mut wait = RETRY_WAIT;
        for attempt in 1.. {
            let outcome =
                http.get(&path, 0, None).map_err(|error| broken(error, &host)).and_then(|answer| {
                    match answer.status {
                        200 => Self::parse(answer, &host),
                        status => {
                            Err(failed_status(status, &answer, &host, &reference.to_string()))
                        }
                    }
                });
            match outcome {
                Ok(repository) => return Ok(repository),
                Err(Broken::Fatal(error)) => return Err(error),
                Err(Broken::Retry { message, .. }) if attempt == ATTEMPTS_MAX => {
                    return Err(SourceError::Protocol { host, message });
                }
                Err(Broken::Retry { wait: asked, .. }) => std::thread::sleep(asked.unwrap_or(wait)),
            }
            wait *= 2;
        }
        Err(SourceError::Protocol { host, message: "no attempt was made".to_owned() })
    }

    fn parse(answer: Answer, host: &str) -> Result<Self, Broken> {
        let mut text = Vec::new();
        let read = answer.body.into_reader().take(LISTING_BYTES_MAX).read_to_end(&mut text);
        if let Err(error) = read {
            return Err(Broken::Retry { message: error.to_string(), wait: None });
        }
        let fail = |message: String| SourceError::Protocol { host: host.to_owned(), message };
        let repository: Self = serde_json::from_slice(&text)
            .map_err(|error| fail(format!("the listing does not parse: {error}")))?;
        if !is_repo_path(&repository.sha) {
            return Err(fail("the listing names no usable commit".to_owned()).into());
        }
        Ok(repository)
    }

    /// The licence its tags name.
    pub(crate) fn licence(&self) -> Option<String> {
        self.tags.iter().find_map(|tag| tag.strip_prefix("license:")).map(str::to_owned)
    }

    /// Which files make up the model that is meant.
    pub(crate) fn choose(&self, reference: &HuggingFaceRef) -> Result<Choice, HubError> {
        let invalid =
            |reason: String| HubError::InvalidReference { given: reference.to_string(), reason };
        if let Some(file) = &reference.file {
            if !file.to_lowercase().ends_with(".gguf") {
                return Err(invalid("only `.gguf` files can be named; leave the file out to get a safetensors model".to_owned()));
            }
            if !self.siblings.iter().any(|s| s.rfilename == *file) {
                let what = format!("file `{file}` in {}", reference.repo);
                return Err(SourceError::NotFound { what }.into());
            }
            return self.gguf(file).map_err(invalid);
        }
        if let Some(choice) = self.safetensors().map_err(invalid)? {
            return Ok(choice);
        }
        let models = self.first_shards();
        let usual: Vec<_> =
            models.iter().copied().filter(|name| name.to_lowercase().contains("q4_k_m")).collect();
        match (models.as_slice(), usual.as_slice()) {
            ([], _) => Err(invalid(
                "the repository holds no `.gguf` file and no safetensors model".to_owned(),
            )),
            ([only], _) | (_, [only]) => self.gguf(only).map_err(invalid),
            _ => Err(HubError::Ambiguous {
                repo: reference.repo.clone(),
                files: models.iter().take(40).map(|name| (*name).to_owned()).collect(),
            }),
        }
    }

    /// GGUF files, of a split model only the first; projectors of vision models are no models of their own.
    fn first_shards(&self) -> Vec<&str> {
        let names = self.siblings.iter().map(|s| s.rfilename.as_str());
        names
            .filter(|name| name.to_lowercase().ends_with(".gguf") && !name.contains("mmproj"))
            .filter(|name| shard(name).is_none_or(|(_, index, _)| index == 1))
            .collect()
    }

    /// A GGUF file and, if it is split, its other parts.
    fn gguf(&self, first: &str) -> Result<Choice, String> {
        let mut paths = vec![first.to_owned()];
        if let Some((stem, 1, count)) = shard(first) {
            if count > FILES_MAX {
                return Err(format!("it has {count} parts; the limit is {FILES_MAX}"));
            }
            paths.extend((2..=count).map(|n| format!("{stem}-{n:05}-of-{count:05}.gguf")));
        }
        let files = paths.iter().map(|path| self.file(path)).collect::<Result<Vec<_>, _>>()?;
        Ok(Choice { entry: files.first().map(|file| file.spec.name.clone()), files })
    }

    /// `model.safetensors` or its shards with the small files beside them; `None` where there are none.
    fn safetensors(&self) -> Result<Option<Choice>, String> {
        const SMALL: [&str; 9] = [
            "config.json",
            "generation_config.json",
            "tokenizer.json",
            "tokenizer_config.json",
            "chat_template.jinja",
            "model.safetensors.index.json",
            // What makes an embedding model of it.
            "modules.json",
            "sentence_bert_config.json",
            "config_sentence_transformers.json",
        ];
        let names = || self.siblings.iter().map(|s| s.rfilename.as_str());
        let weights = |name: &str| {
            name.starts_with("model") && name.ends_with(".safetensors") && !name.contains('/')
        };
        if !names().any(weights) || !names().any(|name| name == "config.json") {
            return Ok(None);
        }
        let small = |name: &&str| SMALL.contains(name) || IN_FOLDERS.contains(name);
        let wanted: Vec<&str> = names().filter(|name| weights(name) || small(name)).collect();
        if wanted.len() > FILES_MAX {
            return Err(format!("it has {} files; the limit is {FILES_MAX}", wanted.len()));
        }
        let files = wanted.into_iter().map(|path| self.file(path)).collect::<Result<_, _>>()?;
        Ok(Some(Choice { entry: None, files }))
    }

    fn file(&self, path: &str) -> Result<RepositoryFile, String> {
        let sibling = self.siblings.iter().find(|s| s.rfilename == path);
        let sibling = sibling.ok_or_else(|| format!("`{path}` is missing in the repository"))?;
        if !is_repo_path(path) {
            return Err(format!("`{path}` is not a plain path"));
        }
        // The store has no folders, and there are other `config.json`.
        let flat = IN_FOLDERS.contains(&path).then(|| path.replace('/', "_"));
        let name = flat.as_deref().or_else(|| path.rsplit('/').next()).unwrap_or(path);
        let name = name.parse::<FileName>().map_err(|error| error.to_string())?;
        let large = sibling.lfs.as_ref();
        let bytes = large.map(|l| l.size).or(sibling.size);
        let bytes =
            bytes.ok_or_else(|| format!("the listing does not say how large `{path}` is"))?;
        let sha256 = match large {
            Some(large) => Some(
                large
                    .sha256
                    .parse()
                    .map_err(|_| format!("the listing's digest of `{path}` is not a SHA-256"))?,
            ),
            None => None,
        };
        Ok(RepositoryFile { path: path.to_owned(), spec: FileSpec { name, bytes, sha256 } })
    }
}

/// `stem-00002-of-00003.gguf` → (`stem`, 2, 3).
fn shard(name: &str) -> Option<(&str, usize, usize)> {
    let rest = name.strip_suffix(".gguf")?;
    let (rest, count) = rest.rsplit_once("-of-")?;
    let (stem, index) = rest.rsplit_once('-')?;
    let five = |text: &str| {
        (text.len() == 5 && text.bytes().all(|c| c.is_ascii_digit())).then(|| text.parse().ok())?
    };
    Some((stem, five(index)?, five(count)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn repository(names: &[&str]) -> Repository {
        let siblings = names
            .iter()
            .map(|name| Sibling { rfilename: (*name).to_owned(), size: Some(1), lfs: None })
            .collect();
        Repository { sha: "0123abc".to_owned(), tags: Vec::new(), siblings }
    }

    #[track_caller]
    fn check(names: &[&str], reference: &str, expected: Result<&[&str], &str>) {
        let choice = repository(names).choose(&reference.parse().unwrap());
        match (choice, expected) {
            (Ok(choice), Ok(expected)) => {
                let paths: Vec<_> = choice.files.iter().map(|f| f.path.as_str()).collect();
                assert_eq!(paths, expected);
            }
            (Err(error), Err(needle)) => {
                let error = error.to_string();
                assert!(error.contains(needle), "{error}");
            }
            (choice, _) => panic!("{choice:?}"),
        }
    }

    #[test]
    fn the_model_that_is_meant_is_chosen() {
        check(&["README.md", "x.gguf"], "hf:a/b", Ok(&["x.gguf"]));
        check(&["x-q4_k_m.gguf", "x-q8_0.gguf"], "hf:a/b", Ok(&["x-q4_k_m.gguf"]));
        check(&["x-q4_k_m.gguf", "x-q8_0.gguf"], "hf:a/b:x-q8_0.gguf", Ok(&["x-q8_0.gguf"]));
        check(&["x-q5_0.gguf", "x-q8_0.gguf"], "hf:a/b", Err("x-q5_0.gguf, x-q8_0.gguf"));
        check(&["x.gguf", "mmproj-x.gguf"], "hf:a/b", Ok(&["x.gguf"]));
        check(&["README.md"], "hf:a/b", Err("no `.gguf` file"));
        check(&["x.gguf"], "hf:a/b:y.gguf", Err("not found"));
        check(&["x.bin"], "hf:a/b:x.bin", Err("only `.gguf`"));
        check(
            &["q/x-00001-of-00002.gguf", "q/x-00002-of-00002.gguf"],
            "hf:a/b",
            Ok(&["q/x-00001-of-00002.gguf", "q/x-00002-of-00002.gguf"]),
        );
        check(&["x-00001-of-00002.gguf"], "hf:a/b", Err("missing"));
        check(&["x-00001-of-99999.gguf"], "hf:a/b", Err("limit is 512"));
        check(&["../x.gguf"], "hf:a/b", Err("plain path"));
        check(
            &[
                "config.json",
                "model.safetensors",
                "tokenizer.json",
                "pytorch_model.bin",
                "evil/../x",
            ],
            "hf:a/b",
            Ok(&["config.json", "model.safetensors", "tokenizer.json"]),
        );
        let embedding =
            ["1_Pooling/config.json", "config.json", "model.safetensors", "modules.json"];
        check(&embedding, "hf:a/b", Ok(&embedding));
        let pooling = repository(&embedding).choose(&"hf:a/b".parse().unwrap()).unwrap();
        assert_eq!(pooling.files[0].spec.name.as_str(), "1_Pooling_config.json");
        let reranker = ["1_LogitScore/config.json", "config.json", "model.safetensors"];
        let score = repository(&reranker).choose(&"hf:a/b".parse().unwrap()).unwrap();
        assert_eq!(score.files[0].spec.name.as_str(), "1_LogitScore_config.json");
    }

    #[test]
    fn ranges_parse() {
        let check = |text: &'static str, expected| {
            let mut headers = HeaderMap::new();
            headers.insert("content-range", ureq::http::HeaderValue::from_static(text));
            assert_eq!(range_start(&headers), expected, "{text}");
        };
        check("bytes 5-9/10", Some(5));
        check("bytes */10", None);
        check("5-9/10", None);
    }
}
