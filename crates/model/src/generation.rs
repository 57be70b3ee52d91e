//! What a model's publisher recommends for generation: ids that end a turn, and sampling defaults.

use serde_json::Value;

use crate::config_json::JsonKeys;
use crate::error::{ModelError, shortened};
use crate::generate::TokenId;
use crate::gguf::GgufMetadata;

/// Ids that may end a turn; published models have one to four.
const MAX_END_IDS: usize = 64;
/// Control tokens that end a turn where the file only names one of them. Files converted from base models often name
/// `<|endoftext|>` although the chat template closes turns with `<|im_end|>`.
const END_OF_TURN_TOKENS: [&str; 6] =
    ["<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "</s>"];
/// Number of the type "control" in `tokenizer.ggml.token_type`.
const CONTROL_TOKEN: u64 = 3;

/// Recommendations of the publisher.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GenerationDefaults {
    /// Begins a text, where the model has such a token.
    pub bos: Option<TokenId>,
    /// All ids that end a turn, ascending.
    pub eos: Vec<TokenId>,
    /// Recommended temperature.
    pub temperature: Option<f32>,
    /// Recommended top-k.
    pub top_k: Option<u32>,
    /// Recommended top-p.
    pub top_p: Option<f32>,
    /// Recommended min-p.
    pub min_p: Option<f32>,
    /// Recommended repetition penalty.
    pub repetition_penalty: Option<f32>,
}

impl GenerationDefaults {
    /// Sorts, and refuses ids outside the vocabulary.
    fn checked(mut self, vocab_size: usize) -> Result<Self, ModelError> {
        self.eos.sort_unstable();
        self.eos.dedup();
        for (name, id) in
            self.eos.iter().map(|id| ("eos", id)).chain(self.bos.iter().map(|id| ("bos", id)))
        {
            if *id as usize >= vocab_size {
                return Err(ModelError::OutOfRange {
                    key: format!("{name}_token_id"),
                    expected: format!("below the vocabulary's size, {vocab_size}"),
                    given: id.to_string(),
                });
            }
        }
        Ok(self)
    }
}

fn token_id(key: &str, n: u64) -> Result<TokenId, ModelError> {
    TokenId::try_from(n).map_err(|_| ModelError::OutOfRange {
        key: key.to_owned(),
        expected: "a token id".to_owned(),
        given: n.to_string(),
    })
}

/// From the metadata of a GGUF file.
pub(crate) fn from_gguf(
    metadata: &GgufMetadata<'_>,
    vocab_size: usize,
) -> Result<GenerationDefaults, ModelError> {
    let id = |name: &str| {
        let key = format!("tokenizer.ggml.{name}_token_id");
        metadata.unsigned(&key)?.map(|n| token_id(&key, n)).transpose()
    };
    let mut eos = Vec::new();
    for name in ["eos", "eot", "eom"] {
        eos.extend(id(name)?);
    }
    let tokens = metadata.array("tokenizer.ggml.tokens")?;
    let types = metadata.array("tokenizer.ggml.token_type")?;
    if let (Some(tokens), Some(types)) = (tokens, types) {
        let ends = tokens.iter().zip(types.iter()).zip(0..).filter(|((token, kind), _)| {
            kind.as_unsigned() == Some(CONTROL_TOKEN)
                && token.as_str().is_some_and(|text| END_OF_TURN_TOKENS.contains(&text))
        });
        eos.extend(ends.map(|(_, id): (_, TokenId)| id).take(MAX_END_IDS));
    }
    let float = |name: &str| metadata.float(&format!("general.sampling.{name}"));
    let top_k = metadata.get("general.sampling.top_k").and_then(|value| value.as_unsigned());
    GenerationDefaults {
        bos: id("bos")?,
        eos,
        temperature: float("temp")?,
        top_k: top_k.and_then(|k| u32::try_from(k).ok()),
        top_p: float("top_p")?,
        min_p: float("min_p")?,
        repetition_penalty: float("penalty_repeat")?,
    }
    .checked(vocab_size)
}

/// From `config.json` and, where the folder has one, `generation_config.json`.
pub(crate) fn from_json(
    config: &Value,
    generation: Option<&Value>,
    vocab_size: usize,
) -> Result<GenerationDefaults, ModelError> {
    let config = JsonKeys::new(config)?;
    let generation = generation.map(JsonKeys::new).transpose()?;
    let mut eos = token_ids(&config, "eos_token_id")?;
    let Some(generation) = generation else {
        let bos = token_ids(&config, "bos_token_id")?.first().copied();
        return GenerationDefaults { bos, eos, ..Default::default() }.checked(vocab_size);
    };
    eos.extend(token_ids(&generation, "eos_token_id")?);
    let bos = [token_ids(&generation, "bos_token_id")?, token_ids(&config, "bos_token_id")?];
    GenerationDefaults {
        bos: bos.concat().first().copied(),
        eos,
        temperature: generation.ranged("temperature", 0.0, 1e3)?,
        top_k: generation.unsigned("top_k")?.and_then(|k| u32::try_from(k).ok()),
        top_p: generation.ranged("top_p", 0.0, 1.0)?,
        min_p: generation.ranged("min_p", 0.0, 1.0)?,
        repetition_penalty: generation.ranged("repetition_penalty", 0.0, 1e3)?,
    }
    .checked(vocab_size)
}

/// One id or a list of them.
fn token_ids(keys: &JsonKeys<'_>, key: &str) -> Result<Vec<TokenId>, ModelError> {
    let wrong = || ModelError::WrongType {
        key: keys.key(key),
        expected: format!("a token id or a list of at most {MAX_END_IDS}"),
        given: keys.get(key).map(|value| shortened(&value.to_string())).unwrap_or_default(),
    };
    match keys.get(key) {
        None => Ok(Vec::new()),
        Some(Value::Array(list)) if list.len() <= MAX_END_IDS => {
            list.iter().map(|id| token_id(key, id.as_u64().ok_or_else(wrong)?)).collect()
        }
        Some(Value::Array(_)) => Err(wrong()),
        Some(_) => keys.unsigned(key)?.map(|n| token_id(key, n)).transpose().map(Vec::from_iter),
    }
}
