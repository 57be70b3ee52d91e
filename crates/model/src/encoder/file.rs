//! A folder with an encoder: `config.json`, `model.safetensors`, `tokenizer.json`, and what `sentence-transformers` writes
//! beside them (`modules.json`, `sentence_bert_config.json`, `1_Pooling/config.json`).
//!
//! In a store without subfolders the last of them is called `1_Pooling_config.json`. What would change the arithmetic and
//! is not known here is refused, never left out.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::{
    EncoderConfig, EncoderLayerWeights, EncoderWeights, LayerNormView, LinearView, Pooling,
    WordPiece,
};
use crate::checks::{MAX_CONTEXT, MAX_HIDDEN, MAX_INTERMEDIATE, MAX_LAYERS, MAX_VOCAB};
use crate::config_json::JsonKeys;
use crate::container::StoredTensor;
use crate::decoder::TensorView;
use crate::error::ModelError;
use crate::mmap::FileBytes;
use crate::model_file::{MAX_JSON_BYTES, MAX_TEXT_BYTES, TextFile, places, read_json, read_text};
use crate::safetensors;
use crate::text_model::TextModelError;
use crate::tokenizer::TokenizerError;

/// The `model_type` of `config.json`.
const FAMILY: &str = "bert";
/// Beginnings of the names of tensors that vectors do not need: the heads of BERT's own training.
const UNUSED_TENSORS: [&str; 2] = ["pooler.", "cls."];
/// Kinds of modules that are known, by the last part of their names.
const MODULES: [&str; 3] = ["Transformer", "Pooling", "Normalize"];
/// Epsilon of BERT's layer norms unless the file says otherwise.
const DEFAULT_LAYER_NORM_EPS: f32 = 1e-12;

/// An encoder, opened and checked.
#[derive(Debug)]
pub struct EncoderFile {
    folder: PathBuf,
    bytes: FileBytes,
    tensors: Vec<StoredTensor>,
    /// Name, without its prefix, to position in `tensors`.
    index: HashMap<String, usize>,
    config: EncoderConfig,
    can_shorten: bool,
}

impl EncoderFile {
    /// Whether a path leads to a folder with an encoder, by the family that its `config.json` names.
    ///
    /// # Errors
    /// Where `config.json` is there and cannot be read.
    pub fn is_at(path: &Path) -> Result<bool, ModelError> {
        let other_file =
            path.is_file() && path.extension().is_none_or(|extension| extension != "safetensors");
        if other_file {
            return Ok(false);
        }
        let config = read_json(&folder_of(path).join("config.json"))?;
        Ok(config.is_some_and(|c| c.get("model_type").and_then(Value::as_str) == Some(FAMILY)))
    }

    /// Opens the folder, or the `.safetensors` file inside it.
    ///
    /// # Errors
    /// [`ModelError`] names the file, the key or tensor, and what to do.
    pub fn open(path: &Path) -> Result<Self, ModelError> {
        let folder = folder_of(path);
        let place = folder.join("config.json");
        let config = read_json(&place)?.ok_or_else(|| ModelError::NotAModel {
            found: format!("`{}` has no config.json", folder.display()),
        })?;
        let beside = Beside::read(folder)?;
        let can_shorten = ["matryoshka_dimensions", "is_matryoshka"]
            .iter()
            .any(|key| config.get(*key).is_some_and(|value| *value != false && !value.is_null()));
        let config = encoder_config(&config, &beside).map_err(|fault| fault.in_file(&place))?;
        let weights = folder.join("model.safetensors");
        let bytes = FileBytes::map(&weights)?;
        let tensors = safetensors::parse(bytes.bytes()).map_err(|fault| fault.in_file(&weights))?;
        let index = tensors
            .iter()
            .enumerate()
            .map(|(at, tensor)| {
                let name = tensor.name.strip_prefix("bert.").unwrap_or(&tensor.name);
                (name.to_owned(), at)
            })
            .collect();
        let file = Self { folder: folder.to_owned(), bytes, tensors, index, config, can_shorten };
        file.weights().map_err(|fault| fault.in_file(weights))?;
        Ok(file)
    }

    /// The shape of the encoder.
    #[must_use]
    pub fn config(&self) -> &EncoderConfig {
        &self.config
    }

    /// Whether it was trained so that the first elements of a vector are a shorter vector (Kusupati et al. 2022).
    #[must_use]
    pub fn can_shorten(&self) -> bool {
        self.can_shorten
    }

    pub(crate) fn stored(&self) -> &[StoredTensor] {
        &self.tensors
    }

    /// The weights, borrowed from the mapped file.
    ///
    /// # Errors
    /// None after a successful [`EncoderFile::open`], which has done the same once.
    pub fn weights(&self) -> Result<EncoderWeights<'_>, ModelError> {
        let mut lookup = Lookup { file: self, used: HashSet::new() };
        let config = &self.config;
        let hidden = config.hidden_size;
        let weights = EncoderWeights {
            words: lookup.matrix("embeddings.word_embeddings", config.vocab_size, hidden)?,
            positions: lookup.matrix(
                "embeddings.position_embeddings",
                config.max_positions,
                hidden,
            )?,
            token_types: lookup.matrix(
                "embeddings.token_type_embeddings",
                config.token_types,
                hidden,
            )?,
            embedding_norm: lookup.norm("embeddings.LayerNorm", hidden)?,
            layers: (0..config.num_layers)
                .map(|layer| lookup.layer(layer, config))
                .collect::<Result<_, _>>()?,
        };
        let unknown = self.index.iter().find(|(name, at)| {
            !lookup.used.contains(*at)
                && !UNUSED_TENSORS.iter().any(|start| name.starts_with(start))
        });
        match unknown {
            Some((name, _)) => {
                Err(ModelError::UnknownTensor { tensor: name.clone(), family: FAMILY })
            }
            None => Ok(weights),
        }
    }

    /// `config_sentence_transformers.json`, which has the model's prompts; `None` where there is none.
    ///
    /// # Errors
    /// [`ModelError::Io`], [`ModelError::TooLarge`], [`ModelError::Malformed`].
    pub fn sentence_transformers(&self) -> Result<Option<String>, ModelError> {
        let name = TextFile::SentenceTransformers.file_name();
        read_text(&self.folder.join(name), MAX_JSON_BYTES)
    }

    /// The vocabulary.
    ///
    /// # Errors
    /// [`TextModelError`] names what is missing, damaged or not supported.
    pub fn tokenizer(&self) -> Result<WordPiece, TextModelError> {
        let text = read_text(&self.folder.join("tokenizer.json"), MAX_TEXT_BYTES)?
            .ok_or(TokenizerError::Missing { what: "`tokenizer.json` beside the weights" })?;
        let tokenizer = WordPiece::from_json(&text)?;
        if tokenizer.vocab_size() > self.config.vocab_size {
            let (id, vocab_size) = (tokenizer.vocab_size() as u64 - 1, self.config.vocab_size);
            return Err(TokenizerError::IdOutOfRange { what: "last token", id, vocab_size }.into());
        }
        Ok(tokenizer)
    }

    /// Gives the memory of the pages read so far back to the system, once an engine has repacked the weights.
    pub fn release(&self) {
        self.bytes.release();
    }
}

fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if path.is_file() => parent,
        _ => path,
    }
}

/// What `sentence-transformers` writes beside the model.
struct Beside {
    /// Tokens of the longest text.
    max_tokens: Option<u64>,
    pooling: Pooling,
}

impl Beside {
    fn read(folder: &Path) -> Result<Self, ModelError> {
        if let Some(modules) = read_json(&folder.join("modules.json"))? {
            check_modules(&modules).map_err(|fault| fault.in_file(folder.join("modules.json")))?;
        }
        let bert = read_json(&folder.join("sentence_bert_config.json"))?;
        let max_tokens = bert.and_then(|config| config.get("max_seq_length")?.as_u64());
        let mut pooling = Pooling::Mean;
        for path in places(folder, "1_Pooling/config.json") {
            if let Some(config) = read_json(&path)? {
                pooling = read_pooling(&config).map_err(|fault| fault.in_file(path))?;
                break;
            }
        }
        Ok(Self { max_tokens, pooling })
    }
}

/// Every module must be one whose arithmetic is here.
fn check_modules(modules: &Value) -> Result<(), ModelError> {
    for module in modules.as_array().into_iter().flatten() {
        let kind = module.get("type").and_then(Value::as_str).unwrap_or_default();
        if !MODULES.contains(&kind.rsplit('.').next().unwrap_or_default()) {
            return Err(ModelError::unsupported("a module's `type`", kind, MODULES.join(", ")));
        }
    }
    Ok(())
}

/// Both spellings: a flag for each way, and since version 5 of `sentence-transformers` its name.
fn read_pooling(config: &Value) -> Result<Pooling, ModelError> {
    let ways = [
        ("mean", "pooling_mode_mean_tokens", Pooling::Mean),
        ("cls", "pooling_mode_cls_token", Pooling::First),
    ];
    let named = config.get("pooling_mode").and_then(Value::as_str);
    let flags: Vec<&str> = config
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(key, value)| {
            key.starts_with("pooling_mode_") && value.as_bool().unwrap_or_default()
        })
        .map(|(key, _)| key.as_str())
        .collect();
    let found = ways.into_iter().find(|(name, flag, _)| match named {
        Some(named) => named == *name,
        None => flags == [*flag],
    });
    found.map(|(.., pooling)| pooling).ok_or_else(|| {
        let given = named.map_or_else(|| flags.join(", "), str::to_owned);
        ModelError::unsupported("the pooling", given, "mean, cls")
    })
}

fn encoder_config(config: &Value, beside: &Beside) -> Result<EncoderConfig, ModelError> {
    let keys = JsonKeys::new(config)?;
    if keys.get("auto_map").is_some() {
        return Err(ModelError::RemoteCode { key: "auto_map".to_owned() });
    }
    let choices: [(&str, &[&str]); 3] = [
        ("model_type", &[FAMILY]),
        ("hidden_act", &["gelu"]),
        ("position_embedding_type", &["absolute"]),
    ];
    for (key, supported) in choices {
        if keys.string(key)?.is_some_and(|given| !supported.contains(&given)) {
            return keys.refuse(key, &supported.join(", "));
        }
    }
    for key in ["is_decoder", "add_cross_attention"] {
        if keys.boolean(key)? == Some(true) {
            return keys.refuse(key, "false");
        }
    }
    if keys.get("quantization_config").is_some() {
        return keys.refuse("quantization_config", "safetensors in F32, F16 or BF16");
    }
    let hidden_size = keys.required("hidden_size", MAX_HIDDEN)?;
    let num_heads = keys.required("num_attention_heads", MAX_HIDDEN)?;
    if !hidden_size.is_multiple_of(num_heads) {
        return Err(ModelError::OutOfRange {
            key: keys.key("num_attention_heads"),
            expected: format!("a divisor of the width {hidden_size}"),
            given: num_heads.to_string(),
        });
    }
    let max_positions = keys.required("max_position_embeddings", MAX_CONTEXT)?;
    let max_tokens = beside.max_tokens.and_then(|tokens| usize::try_from(tokens).ok());
    Ok(EncoderConfig {
        vocab_size: keys.required("vocab_size", MAX_VOCAB)?,
        hidden_size,
        intermediate_size: keys.required("intermediate_size", MAX_INTERMEDIATE)?,
        num_layers: keys.required("num_hidden_layers", MAX_LAYERS)?,
        num_heads,
        max_positions,
        token_types: keys.required("type_vocab_size", MAX_VOCAB)?,
        layer_norm_eps: keys.ranged("layer_norm_eps", 0.0, 1.0)?.unwrap_or(DEFAULT_LAYER_NORM_EPS),
        pooling: beside.pooling,
        // The marks at both ends need a place.
        max_tokens: max_tokens
            .map_or(max_positions, |tokens| tokens.clamp(2, max_positions.max(2))),
    })
}

/// Finds tensors by name and remembers which ones were asked for.
struct Lookup<'a> {
    file: &'a EncoderFile,
    used: HashSet<usize>,
}

impl<'a> Lookup<'a> {
    fn find(&mut self, name: &str, rows: usize, cols: usize) -> Result<TensorView<'a>, ModelError> {
        let missing = || ModelError::MissingTensor { tensor: name.to_owned() };
        let &at = self.file.index.get(name).ok_or_else(missing)?;
        let tensor = self.file.tensors.get(at).ok_or_else(missing)?;
        let fits = match tensor.shape.as_slice() {
            [n] => rows == 1 && *n == cols,
            [n, m] => *n == rows && *m == cols,
            _ => false,
        };
        if !fits {
            return Err(ModelError::WrongShape {
                tensor: name.to_owned(),
                expected: if rows == 1 { format!("[{cols}]") } else { format!("[{rows}, {cols}]") },
                given: format!("{:?}", tensor.shape),
            });
        }
        self.used.insert(at);
        // `check_tensors` has found the range inside the file.
        let end = tensor.offset.saturating_add(tensor.bytes);
        let data = self.file.bytes.bytes().get(tensor.offset..end).unwrap_or_default();
        Ok(TensorView { dtype: tensor.dtype, rows, cols, data })
    }

    fn matrix(
        &mut self,
        name: &str,
        rows: usize,
        cols: usize,
    ) -> Result<TensorView<'a>, ModelError> {
        self.find(&format!("{name}.weight"), rows, cols)
    }

    fn linear(
        &mut self,
        name: &str,
        rows: usize,
        cols: usize,
    ) -> Result<LinearView<'a>, ModelError> {
        Ok(LinearView {
            weight: self.matrix(name, rows, cols)?,
            bias: self.find(&format!("{name}.bias"), 1, rows)?,
        })
    }

    fn norm(&mut self, name: &str, cols: usize) -> Result<LayerNormView<'a>, ModelError> {
        Ok(LayerNormView {
            weight: self.find(&format!("{name}.weight"), 1, cols)?,
            bias: self.find(&format!("{name}.bias"), 1, cols)?,
        })
    }

    fn layer(
        &mut self,
        layer: usize,
        config: &EncoderConfig,
    ) -> Result<EncoderLayerWeights<'a>, ModelError> {
        let name = |part: &str| format!("encoder.layer.{layer}.{part}");
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        Ok(EncoderLayerWeights {
            q: self.linear(&name("attention.self.query"), hidden, hidden)?,
            k: self.linear(&name("attention.self.key"), hidden, hidden)?,
            v: self.linear(&name("attention.self.value"), hidden, hidden)?,
            attention_output: self.linear(&name("attention.output.dense"), hidden, hidden)?,
            attention_norm: self.norm(&name("attention.output.LayerNorm"), hidden)?,
            up: self.linear(&name("intermediate.dense"), inner, hidden)?,
            down: self.linear(&name("output.dense"), hidden, inner)?,
            output_norm: self.norm(&name("output.LayerNorm"), hidden)?,
        })
    }
}
