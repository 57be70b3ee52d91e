//! An opened model: one GGUF file, its split siblings, or a folder of safetensors with `config.json`.
//!
//! Tensors stay in the mapped files; nothing here copies or converts them.
//! Invariant: a [`ModelFile`] exists only if its header, configuration and every tensor's name and shape were checked,
//! so an engine that gets one has nothing left to refuse but its size.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::config_gguf;
use crate::config_json;
use crate::container::StoredTensor;
use crate::decoder::{DType, DecoderConfig, DecoderWeights};
use crate::error::ModelError;
use crate::generation::{self, GenerationDefaults};
use crate::gguf::{self, GgufHeader, GgufMetadata};
use crate::mmap::FileBytes;
use crate::safetensors;
use crate::weights::{
    GGUF_NAMES, HEADLESS_NAMES, OutputHead, SAFETENSORS_NAMES, TensorNames, decoder_weights,
};

/// Files one model may be split into.
pub(crate) const MAX_PARTS: usize = 1000;
/// Bytes of a text file that is handed on; a `tokenizer.json` has 7 to 30 million.
pub(crate) const MAX_TEXT_BYTES: u64 = 1 << 27;
/// Bytes of a JSON file that is parsed here; the index of 65,536 tensors has about 6 million.
pub(crate) const MAX_JSON_BYTES: u64 = 1 << 24;
/// GGUF's tensor of rope divisors.
const ROPE_FACTORS: &str = "rope_freqs.weight";

/// A model, opened and checked.
#[derive(Debug)]
pub struct ModelFile {
    name: Option<String>,
    parts: Vec<Part>,
    /// Tensor name to (part, position in the part).
    index: HashMap<String, (usize, usize)>,
    container: Container,
    config: DecoderConfig,
    head: OutputHead,
    generation: GenerationDefaults,
}

/// One mapped file and what its header lists.
#[derive(Debug)]
struct Part {
    path: PathBuf,
    bytes: FileBytes,
    tensors: Vec<StoredTensor>,
}

#[derive(Debug)]
enum Container {
    /// The metadata is that of the first part.
    Gguf(GgufHeader),
    Folder {
        /// `None` where the files are held in memory.
        path: Option<PathBuf>,
        config: Value,
    },
}

/// A stored tensor, borrowed from its file.
#[derive(Clone, Copy, Debug)]
pub struct TensorInfo<'a> {
    /// As the container names it.
    pub name: &'a str,
    /// Element or block type.
    pub dtype: DType,
    /// Outermost dimension first; the last one is contiguous.
    pub shape: &'a [usize],
    /// All its bytes.
    pub data: &'a [u8],
}

/// The files beside safetensors that describe text, by their published names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TextFile {
    /// `tokenizer.json`
    Tokenizer,
    /// `tokenizer_config.json`
    TokenizerConfig,
    /// `special_tokens_map.json`
    SpecialTokensMap,
    /// `chat_template.jinja`
    ChatTemplate,
    /// `generation_config.json`
    GenerationConfig,
    /// `modules.json`, which makes a folder one of `sentence-transformers`
    Modules,
    /// `config_sentence_transformers.json`
    SentenceTransformers,
    /// `1_LogitScore/config.json`, of a reranker of `sentence-transformers`: the tokens whose logits are compared
    LogitScore,
}

impl TextFile {
    /// The published name.
    #[must_use]
    pub fn file_name(self) -> &'static str {
        match self {
            Self::Tokenizer => "tokenizer.json",
            Self::TokenizerConfig => "tokenizer_config.json",
            Self::SpecialTokensMap => "special_tokens_map.json",
            Self::ChatTemplate => "chat_template.jinja",
            Self::GenerationConfig => "generation_config.json",
            Self::Modules => "modules.json",
            Self::SentenceTransformers => "config_sentence_transformers.json",
            Self::LogitScore => "1_LogitScore/config.json",
        }
    }
}

impl ModelFile {
    /// Opens a `.gguf` file (any part of a split one), a `.safetensors` file beside its `config.json`, or the folder
    /// that holds either.
    ///
    /// # Errors
    /// [`ModelError`] names the file, the key or tensor, and what to do.
    pub fn open(path: &Path) -> Result<Self, ModelError> {
        let about = std::fs::metadata(path)
            .map_err(|source| ModelError::Io { path: path.to_owned(), source })?;
        if about.is_dir() {
            return open_folder(path);
        }
        refuse_pickle_name(path)?;
        if path.extension().is_some_and(|extension| extension == "safetensors") {
            return open_folder(path.parent().unwrap_or(Path::new(".")));
        }
        open_gguf(path)
    }

    /// A GGUF model held in memory: the parts of a split one in order, or the one file.
    ///
    /// # Errors
    /// As [`ModelFile::open`].
    pub fn from_gguf_bytes(parts: Vec<Vec<u8>>) -> Result<Self, ModelError> {
        let parts = parts
            .into_iter()
            .enumerate()
            .map(|(at, bytes)| (PathBuf::from(format!("part {}", at + 1)), FileBytes::Held(bytes)));
        assemble_gguf(parts.collect(), None)
    }

    /// A safetensors model held in memory.
    ///
    /// # Errors
    /// As [`ModelFile::open`].
    pub fn from_safetensors_bytes(
        config_json: &str,
        generation_config_json: Option<&str>,
        shards: Vec<Vec<u8>>,
    ) -> Result<Self, ModelError> {
        let config = parse_json(config_json).map_err(|fault| fault.in_file("config.json"))?;
        let generation = generation_config_json
            .map(parse_json)
            .transpose()
            .map_err(|fault| fault.in_file("generation_config.json"))?;
        let shards = shards.into_iter().enumerate().map(|(at, bytes)| {
            (PathBuf::from(format!("shard {}", at + 1)), FileBytes::Held(bytes))
        });
        assemble_safetensors(config, generation.as_ref(), shards.collect(), None)
    }

    /// The shape of the decoder.
    #[must_use]
    pub fn config(&self) -> &DecoderConfig {
        &self.config
    }

    /// The weights, borrowed from the mapped files.
    ///
    /// # Errors
    /// None after a successful [`ModelFile::open`], which has done the same once.
    pub fn weights(&self) -> Result<DecoderWeights<'_>, ModelError> {
        let names = self.tensor_names();
        decoder_weights(&self.config, names, self.head, self.tensors(), |name| self.tensor(name))
    }

    /// The name that its publisher gave it, or the folder's.
    #[must_use]
    pub fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    /// Ids that end a turn, sampling defaults.
    #[must_use]
    pub fn generation(&self) -> &GenerationDefaults {
        &self.generation
    }

    /// The key-value pairs of a GGUF model; `None` for safetensors.
    #[must_use]
    pub fn metadata(&self) -> Option<GgufMetadata<'_>> {
        match (&self.container, self.parts.first()) {
            (Container::Gguf(header), Some(part)) => {
                Some(GgufMetadata::new(&header.entries, &header.index, part.bytes.bytes()))
            }
            _ => None,
        }
    }

    /// `config.json` of a safetensors model; `None` for GGUF.
    #[must_use]
    pub fn config_json(&self) -> Option<&Value> {
        match &self.container {
            Container::Gguf(_) => None,
            Container::Folder { config, .. } => Some(config),
        }
    }

    /// Reads a text file from the folder of a safetensors model; `None` where there is none, and for GGUF.
    ///
    /// # Errors
    /// [`ModelError::Io`], [`ModelError::TooLarge`] above 128 MiB, [`ModelError::Malformed`] where it is not UTF-8.
    pub fn text_file(&self, file: TextFile) -> Result<Option<String>, ModelError> {
        match &self.container {
            Container::Folder { path: Some(folder), .. } => {
                for path in places(folder, file.file_name()) {
                    if let Some(text) = read_text(&path, MAX_TEXT_BYTES)? {
                        return Ok(Some(text));
                    }
                }
                Ok(None)
            }
            _ => Ok(None),
        }
    }

    /// The version of the GGUF format; `None` for safetensors.
    #[must_use]
    pub fn gguf_version(&self) -> Option<u32> {
        match &self.container {
            Container::Gguf(header) => Some(header.version),
            Container::Folder { .. } => None,
        }
    }

    /// The files it consists of.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        self.parts.iter().map(|part| part.path.as_path())
    }

    /// Every stored tensor, in the order of the files.
    pub fn tensors(&self) -> impl Iterator<Item = TensorInfo<'_>> {
        self.parts.iter().flat_map(|part| part.tensors.iter().map(|tensor| part.view(tensor)))
    }

    /// One stored tensor.
    #[must_use]
    pub fn tensor(&self, name: &str) -> Option<TensorInfo<'_>> {
        let &(part, at) = self.index.get(name)?;
        let part = self.parts.get(part)?;
        Some(part.view(part.tensors.get(at)?))
    }

    /// Gives the memory of the pages read so far back to the system, once the engine has repacked the weights. Reading
    /// a tensor again stays correct and reads the file.
    pub fn release(&self) {
        for part in &self.parts {
            part.bytes.release();
        }
    }

    fn tensor_names(&self) -> &'static TensorNames {
        match self.container {
            Container::Gguf(_) => &GGUF_NAMES,
            Container::Folder { .. } if self.index.contains_key(HEADLESS_NAMES.token_embedding) => {
                &HEADLESS_NAMES
            }
            Container::Folder { .. } => &SAFETENSORS_NAMES,
        }
    }
}

impl Part {
    fn view<'a>(&'a self, tensor: &'a StoredTensor) -> TensorInfo<'a> {
        // `check_tensors` has found the range inside the file.
        let end = tensor.offset.saturating_add(tensor.bytes);
        let data = self.bytes.bytes().get(tensor.offset..end).unwrap_or_default();
        TensorInfo { name: &tensor.name, dtype: tensor.dtype, shape: &tensor.shape, data }
    }
}

fn refuse_pickle_name(path: &Path) -> Result<(), ModelError> {
    let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
    if ["bin", "pt", "pth", "pkl", "pickle", "ckpt"].contains(&extension) {
        return Err(ModelError::Pickle { file: path.display().to_string() });
    }
    Ok(())
}

/// `-00001-of-00003.gguf` at the end of a name: (what comes before, number from 1, count).
fn split_name(name: &str) -> Option<(&str, usize, usize)> {
    let stem = name.strip_suffix(".gguf")?;
    let (stem, count) = stem.rsplit_once("-of-")?;
    let (prefix, number) = stem.rsplit_once('-')?;
    let digits = |text: &str| {
        let five = text.len() == 5 && text.bytes().all(|byte| byte.is_ascii_digit());
        five.then(|| text.parse().ok()).flatten()
    };
    Some((prefix, digits(number)?, digits(count)?))
}

fn open_gguf(path: &Path) -> Result<ModelFile, ModelError> {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let paths = match split_name(name) {
        Some((prefix, _, count)) if count > 1 => {
            if count > MAX_PARTS {
                let what = format!("the number of parts of `{}`", path.display());
                return Err(ModelError::too_large(what, MAX_PARTS as u64, count as u64));
            }
            let sibling = |no| path.with_file_name(format!("{prefix}-{no:05}-of-{count:05}.gguf"));
            (1..=count).map(sibling).collect()
        }
        _ => vec![path.to_owned()],
    };
    let parts = paths
        .into_iter()
        .map(|path| FileBytes::map(&path).map(|bytes| (path, bytes)))
        .collect::<Result<Vec<_>, _>>()?;
    let stem = path.file_stem().and_then(|stem| stem.to_str()).map(str::to_owned);
    assemble_gguf(parts, stem)
}

fn assemble_gguf(
    files: Vec<(PathBuf, FileBytes)>,
    stem: Option<String>,
) -> Result<ModelFile, ModelError> {
    let mut parts = Vec::new();
    let mut headers = Vec::new();
    for (path, bytes) in files {
        refuse_pickle_bytes(&path, bytes.bytes())?;
        let mut header = gguf::parse(bytes.bytes()).map_err(|fault| fault.in_file(&path))?;
        let tensors = std::mem::take(&mut header.tensors);
        parts.push(Part { path, bytes, tensors });
        headers.push(header);
    }
    check_split(&headers, &parts)?;
    let index = index_tensors(&parts)?;
    let (Some(header), Some(first)) = (headers.into_iter().next(), parts.first()) else {
        return Err(ModelError::NotAModel { found: "no file was given".to_owned() });
    };
    let metadata = GgufMetadata::new(&header.entries, &header.index, first.bytes.bytes());
    let read = || {
        let find = |name: &str| {
            let &(part, at) = index.get(name)?;
            let part: &Part = parts.get(part)?;
            Some(part.view(part.tensors.get(at)?))
        };
        let rows = find(GGUF_NAMES.token_embedding).map(|tensor| match tensor.shape {
            [rows, _] => *rows,
            _ => 1,
        });
        let factors = find(ROPE_FACTORS).map(rope_factors).transpose()?;
        let missing =
            || ModelError::MissingTensor { tensor: GGUF_NAMES.token_embedding.to_owned() };
        let config = match rows {
            Some(rows) => config_gguf::decoder_config(metadata, rows, factors)?,
            // An unknown architecture is the better message where both are wrong.
            None => {
                config_gguf::family(&metadata)?;
                return Err(missing());
            }
        };
        let generation = generation::from_gguf(&metadata, config.vocab_size)?;
        let name = metadata.string("general.name")?.map(str::to_owned);
        Ok((config, generation, name))
    };
    let (config, generation, name) = read().map_err(|fault| fault.in_file(&first.path))?;
    let container = Container::Gguf(header);
    let (head, name) = (OutputHead::AsStored, name.or(stem));
    finish(ModelFile { name, parts, index, container, config, head, generation })
}

fn finish(model: ModelFile) -> Result<ModelFile, ModelError> {
    if let Err(fault) = model.weights() {
        let path = model.parts.first().map(|part| part.path.clone()).unwrap_or_default();
        return Err(fault.in_file(path));
    }
    Ok(model)
}

fn refuse_pickle_bytes(path: &Path, bytes: &[u8]) -> Result<(), ModelError> {
    // PyTorch's zip archive, and the bare pickle protocols 2 to 5.
    if matches!(bytes, [b'P', b'K', 3, 4, ..] | [0x80, 2..=5, ..]) {
        return Err(ModelError::Pickle { file: path.display().to_string() });
    }
    Ok(())
}

/// Checks that the parts are those of one split model, each in its place.
fn check_split(headers: &[GgufHeader], parts: &[Part]) -> Result<(), ModelError> {
    let total = parts.iter().map(|part| part.tensors.len()).sum::<usize>();
    let keys: [(&str, bool); 3] =
        [("split.count", true), ("split.no", true), ("split.tensors.count", false)];
    for (key, is_place) in keys {
        for (at, (header, part)) in headers.iter().zip(parts).enumerate() {
            let metadata = GgufMetadata::new(&header.entries, &header.index, part.bytes.bytes());
            let given = metadata.unsigned(key).map_err(|fault| fault.in_file(&part.path))?;
            let (expected, absent) = match key {
                // Files that were never split may say 0.
                "split.count" => (parts.len() as u64, 1),
                "split.no" => (at as u64, 0),
                _ => (total as u64, total as u64),
            };
            let given = given.unwrap_or(absent);
            let unsplit = parts.len() == 1 && given == 0;
            if given == expected || unsplit {
                continue;
            }
            let reason = if is_place {
                "as its place among the given files says; keep the published names, which end in \
                 -00001-of-0000N.gguf"
            } else {
                "the number of tensors in all parts; download them again"
            };
            let fault = ModelError::OutOfRange {
                key: key.to_owned(),
                expected: format!("{expected}, {reason}"),
                given: given.to_string(),
            };
            return Err(fault.in_file(&part.path));
        }
    }
    Ok(())
}

fn index_tensors(parts: &[Part]) -> Result<HashMap<String, (usize, usize)>, ModelError> {
    let mut index = HashMap::new();
    for (number, part) in parts.iter().enumerate() {
        for (at, tensor) in part.tensors.iter().enumerate() {
            if index.insert(tensor.name.clone(), (number, at)).is_some() {
                let what = format!("the tensor `{}`", tensor.name);
                return Err(ModelError::malformed(what, "occurs in two files").in_file(&part.path));
            }
        }
    }
    Ok(index)
}

fn rope_factors(tensor: TensorInfo<'_>) -> Result<Vec<f32>, ModelError> {
    if tensor.dtype != DType::F32 || tensor.shape.len() != 1 {
        let given = format!("{} {:?}", tensor.dtype, tensor.shape);
        let what = format!("the tensor `{ROPE_FACTORS}`");
        return Err(ModelError::unsupported(what, given, "F32 with one dimension"));
    }
    let (elements, _) = tensor.data.as_chunks::<4>();
    // A head is at most `MAX_HEAD_DIM` wide; the exact length is checked against it.
    let limit = crate::checks::MAX_HEAD_DIM;
    if elements.len() as u64 > limit {
        let what = format!("the length of `{ROPE_FACTORS}`");
        return Err(ModelError::too_large(what, limit, elements.len() as u64));
    }
    Ok(elements.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect())
}

/// Where a file beside a model may stand: under its published name and, if that has a subfolder, under the name that a
/// store without subfolders gives it.
pub(crate) fn places(folder: &Path, name: &str) -> Vec<PathBuf> {
    let flat = name.contains('/').then(|| folder.join(name.replace('/', "_")));
    std::iter::once(folder.join(name)).chain(flat).collect()
}

/// Parses JSON.
pub(crate) fn parse_json(text: &str) -> Result<Value, ModelError> {
    serde_json::from_str(text).map_err(|error| ModelError::json(&error))
}

/// Reads a text file with a limit; `None` where there is none.
pub(crate) fn read_text(path: &Path, limit: u64) -> Result<Option<String>, ModelError> {
    let io = |source| ModelError::Io { path: path.to_owned(), source };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io(error)),
    };
    let mut bytes = Vec::new();
    file.take(limit.saturating_add(1)).read_to_end(&mut bytes).map_err(io)?;
    if bytes.len() as u64 > limit {
        let size = std::fs::metadata(path).map_or(bytes.len() as u64, |about| about.len());
        return Err(ModelError::too_large("its size", limit, size).in_file(path));
    }
    String::from_utf8(bytes)
        .map(Some)
        .map_err(|_| ModelError::malformed("its text", "is not UTF-8").in_file(path))
}

/// Parses a JSON file; `None` where there is none.
pub(crate) fn read_json(path: &Path) -> Result<Option<Value>, ModelError> {
    let text = read_text(path, MAX_JSON_BYTES)?;
    text.map(|text| parse_json(&text)).transpose().map_err(|fault| fault.in_file(path))
}

fn open_folder(folder: &Path) -> Result<ModelFile, ModelError> {
    let Some(config) = read_json(&folder.join("config.json"))? else {
        return open_gguf(&only_gguf(folder)?);
    };
    let generation = read_json(&folder.join(TextFile::GenerationConfig.file_name()))?;
    let index_path = folder.join("model.safetensors.index.json");
    let (names, weight_map) = match read_json(&index_path)? {
        Some(index) => shard_names(&index).map_err(|fault| fault.in_file(&index_path))?,
        None => (vec!["model.safetensors".to_owned()], HashMap::new()),
    };
    let mut shards = Vec::new();
    for name in names {
        let path = folder.join(&name);
        match FileBytes::map(&path) {
            Ok(bytes) => shards.push((path, bytes)),
            Err(error) => return Err(explain_missing(folder, error)),
        }
    }
    let model = assemble_safetensors(config, generation.as_ref(), shards, Some(folder.to_owned()))?;
    for (tensor, shard) in weight_map {
        let place = model.index.get(&tensor).and_then(|&(part, _)| model.parts.get(part));
        if place.and_then(|part| part.path.file_name()).is_none_or(|name| name != shard.as_str()) {
            let what = format!("the tensor `{tensor}`");
            let fault = ModelError::malformed(what, format!("is not in `{shard}`"));
            return Err(fault.in_file(index_path));
        }
    }
    Ok(model)
}

/// Where weights are missing, a pickle beside the place explains why.
fn explain_missing(folder: &Path, error: ModelError) -> ModelError {
    let missing = matches!(&error, ModelError::Io { source, .. }
        if source.kind() == std::io::ErrorKind::NotFound);
    let pickles = ["pytorch_model.bin", "pytorch_model.bin.index.json", "consolidated.00.pth"];
    match pickles.iter().find(|name| folder.join(name).exists()) {
        Some(name) if missing => {
            ModelError::Pickle { file: folder.join(name).display().to_string() }
        }
        _ => error,
    }
}

/// The GGUF file of a folder without `config.json`, or the first part of the only split one.
fn only_gguf(folder: &Path) -> Result<PathBuf, ModelError> {
    let io = |source| ModelError::Io { path: folder.to_owned(), source };
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(io)? {
        let path = entry.map_err(io)?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if name.ends_with(".gguf") && split_name(name).is_none_or(|(_, number, _)| number == 1) {
            found.push(path);
        }
    }
    found.sort();
    match found.as_slice() {
        [one] => Ok(one.clone()),
        [] => Err(ModelError::NotAModel {
            found: format!("`{}` has neither config.json nor a .gguf file", folder.display()),
        }),
        [first, ..] => Err(ModelError::NotAModel {
            found: format!(
                "`{}` has {} models: name one of them, for example `{}`",
                folder.display(),
                found.len(),
                first.display()
            ),
        }),
    }
}

type Shards = (Vec<String>, HashMap<String, String>);

/// The shards of `model.safetensors.index.json`, in order, and the shard of each tensor.
fn shard_names(index: &Value) -> Result<Shards, ModelError> {
    let wrong = |key: &str, expected: &str| ModelError::WrongType {
        key: key.to_owned(),
        expected: expected.to_owned(),
        given: "something else".to_owned(),
    };
    let map = index
        .get("weight_map")
        .and_then(Value::as_object)
        .ok_or_else(|| wrong("weight_map", "an object from tensor to file name"))?;
    let mut names = Vec::new();
    let mut weight_map = HashMap::new();
    for (tensor, shard) in map {
        let shard = shard.as_str().ok_or_else(|| wrong("weight_map", "file names"))?;
        // A plain name only: nothing from a file may reach outside its folder.
        let plain = shard.ends_with(".safetensors")
            && !shard.starts_with('.')
            && shard.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
        if !plain {
            let key = format!("weight_map.{tensor}");
            return Err(ModelError::OutOfRange {
                key,
                expected: "the name of a .safetensors file in the same folder".to_owned(),
                given: shard.chars().take(80).collect(),
            });
        }
        weight_map.insert(tensor.clone(), shard.to_owned());
        names.push(shard.to_owned());
    }
    names.sort();
    names.dedup();
    if names.len() > MAX_PARTS {
        let given = names.len() as u64;
        return Err(ModelError::too_large("the number of shards", MAX_PARTS as u64, given));
    }
    Ok((names, weight_map))
}

fn assemble_safetensors(
    config: Value,
    generation: Option<&Value>,
    files: Vec<(PathBuf, FileBytes)>,
    folder: Option<PathBuf>,
) -> Result<ModelFile, ModelError> {
    let place = |name: &str| folder.as_ref().map_or(PathBuf::from(name), |path| path.join(name));
    let (decoder, head) = config_json::decoder_config(&config)
        .map_err(|fault| fault.in_file(place("config.json")))?;
    let defaults = generation::from_json(&config, generation, decoder.vocab_size)
        .map_err(|fault| fault.in_file(place("generation_config.json")))?;
    let mut parts = Vec::new();
    for (path, bytes) in files {
        let tensors = safetensors::parse(bytes.bytes()).map_err(|fault| fault.in_file(&path))?;
        parts.push(Part { path, bytes, tensors });
    }
    let index = index_tensors(&parts)?;
    // Nothing reads the logits of a model that was saved without a head.
    let headless = index.contains_key(HEADLESS_NAMES.token_embedding)
        && !index.contains_key(HEADLESS_NAMES.output);
    let head = if headless { OutputHead::Tied } else { head };
    finish(ModelFile {
        name: folder.as_ref().and_then(|path| Some(path.file_name()?.to_str()?.to_owned())),
        index,
        parts,
        container: Container::Folder { path: folder, config },
        config: decoder,
        head,
        generation: defaults,
    })
}
