//! The text side of a model: tokenizer, chat template and the tokens that end a turn, from whichever container.
//!
//! Not the weights. Invariant: ids that come out are below [`Tokenizer::vocab_size`].

use std::sync::Arc;

use serde_json::Value as Json;

use crate::TokenId;
use crate::chat::{ChatOptions, ChatTemplate, TemplateError};
use crate::error::ModelError;
use crate::gguf::GgufMetadata;
use crate::model_file::{ModelFile, TextFile};
use crate::thinking::ThinkingTokens;
use crate::tokenizer::{GgufVocabulary, SpecialTokens, TokenKind, Tokenizer, TokenizerError};

/// Control tokens that end a turn in the chat formats of Qwen, Llama 3 and SmolLM.
const END_OF_TURN: [&str; 5] =
    ["<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "<|endoftext|>"];

/// Texts of the tokens that a model which fills in the middle knows, by family: before the text before, before the text
/// after, before the answer. Qwen Coder and StarCoder 2's names, StarCoder's, DeepSeek Coder's, Codestral's kin.
const INFILL: [[&str; 3]; 4] = [
    ["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"],
    ["<fim_prefix>", "<fim_suffix>", "<fim_middle>"],
    ["<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"],
    ["<|fim_begin|>", "<|fim_hole|>", "<|fim_end|>"],
];
/// Tokens with which such a model says that the middle is over.
const INFILL_END: [&str; 6] =
    ["<|fim_pad|>", "<|file_sep|>", "<|repo_name|>", "<fim_pad>", "<file_sep>", "<repo_name>"];

/// Why a model's text side does not load. The model file's fault.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TextModelError {
    /// The file cannot be read.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The vocabulary does not load.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// The template does not compile.
    #[error(transparent)]
    Template(#[from] TemplateError),
}

/// Why a conversation has no prompt.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ChatError {
    /// A base model.
    #[error("the model has no chat template: it completes text, use `/v1/completions`")]
    NoTemplate,
    /// The template does not render these messages.
    #[error(transparent)]
    Template(#[from] TemplateError),
}

/// Tokenizer, template and turn ends of one model.
#[derive(Debug)]
pub struct TextModel {
    tokenizer: Tokenizer,
    template: Option<ChatTemplate>,
    end_of_turn_ids: Arc<[TokenId]>,
    /// Before the text before, before the text after, before what is to be filled in.
    infill: Option<[TokenId; 3]>,
    infill_end_ids: Vec<TokenId>,
}

impl TextModel {
    /// Reads the text side of an opened model.
    ///
    /// # Errors
    /// [`TextModelError`] names what is missing, damaged or not supported.
    pub fn from_model_file(file: &ModelFile) -> Result<Self, TextModelError> {
        let (tokenizer, template) = match file.metadata() {
            Some(metadata) => {
                let template = metadata.string("tokenizer.chat_template")?.map(str::to_owned);
                (gguf_tokenizer(metadata)?, template)
            }
            None => folder_text(file)?,
        };
        Self::new(tokenizer, template.as_deref(), &file.generation().eos)
    }

    /// Joins the parts. `eos_ids` are the ids that the model file itself names as ends.
    ///
    /// # Errors
    /// [`TextModelError::Template`] where the template does not compile.
    pub fn new(
        tokenizer: Tokenizer,
        template: Option<&str>,
        eos_ids: &[TokenId],
    ) -> Result<Self, TextModelError> {
        let template = template.map(|source| ChatTemplate::new(source, &tokenizer)).transpose()?;
        let known = END_OF_TURN.iter().filter_map(|text| tokenizer.added_token(text));
        let control = known.filter(|id| tokenizer.token_kind(*id) == Some(TokenKind::Control));
        let mut ids: Vec<TokenId> =
            eos_ids.iter().copied().chain(tokenizer.eos()).chain(control).collect();
        ids.sort_unstable();
        ids.dedup();
        let infill = INFILL.iter().find_map(|[before, after, middle]| {
            let id = |text| tokenizer.added_token(text);
            Some([id(before)?, id(after)?, id(middle)?])
        });
        let ends = INFILL_END.iter().filter_map(|text| tokenizer.added_token(text));
        let infill_end_ids = ends.collect();
        Ok(Self { tokenizer, template, end_of_turn_ids: ids.into(), infill, infill_end_ids })
    }

    /// The vocabulary.
    #[must_use]
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// The vocabulary alone.
    #[must_use]
    pub fn into_tokenizer(self) -> Tokenizer {
        self.tokenizer
    }

    /// The chat template; `None` for a base model.
    #[must_use]
    pub fn template(&self) -> Option<&ChatTemplate> {
        self.template.as_ref()
    }

    /// Ids that end an answer, ascending.
    #[must_use]
    pub fn end_of_turn_ids(&self) -> &Arc<[TokenId]> {
        &self.end_of_turn_ids
    }

    /// The tokens around what the model thinks; `None` where it has none.
    #[must_use]
    pub fn thinking_tokens(&self) -> Option<ThinkingTokens> {
        ThinkingTokens::of(&self.tokenizer)
    }

    /// The prompt of a conversation. Control tokens come from the template only, never from messages or tools.
    ///
    /// # Errors
    /// [`ChatError`]
    pub fn encode_chat(
        &self,
        messages: &[Json],
        tools: Option<&[Json]>,
        options: &ChatOptions,
    ) -> Result<Vec<TokenId>, ChatError> {
        let template = self.template.as_ref().ok_or(ChatError::NoTemplate)?;
        Ok(template.render(messages, tools, options)?.encode(&self.tokenizer))
    }

    /// The prompt of what is missing between a text, tokenised as [`TextModel::encode_completion`] does, and another;
    /// `None` where the model was not made for that.
    #[must_use]
    pub fn encode_infill(&self, before: &[TokenId], after: &str) -> Option<Vec<TokenId>> {
        let [begin, behind, middle] = self.infill?;
        let bos = self.tokenizer.leading_bos().filter(|bos| before.first() == Some(bos));
        let before = before.get(usize::from(bos.is_some())..).unwrap_or(before);
        let after = self.tokenizer.encode(after, SpecialTokens::Allow);
        let mut ids: Vec<TokenId> = bos.into_iter().collect();
        ids.push(begin);
        ids.extend_from_slice(before);
        ids.push(behind);
        ids.extend(after);
        ids.push(middle);
        Some(ids)
    }

    /// Ids that end what is filled in, besides those that end an answer.
    #[must_use]
    pub fn infill_end_ids(&self) -> &[TokenId] {
        &self.infill_end_ids
    }

    /// The prompt of a text to complete: with the begin-of-sequence token where the model was trained with one.
    #[must_use]
    pub fn encode_completion(&self, text: &str, special: SpecialTokens) -> Vec<TokenId> {
        let mut ids = self.tokenizer.encode(text, special);
        if let Some(bos) = self.tokenizer.leading_bos()
            && ids.first() != Some(&bos)
        {
            ids.insert(0, bos);
        }
        ids
    }
}

fn gguf_tokenizer(metadata: GgufMetadata<'_>) -> Result<Tokenizer, TextModelError> {
    let required = |key, what| {
        Ok::<_, ModelError>(metadata.string(key)?.ok_or(TokenizerError::Missing { what }))
    };
    let strings = |key| {
        let array = metadata.array(key)?;
        Ok::<_, ModelError>(
            array
                .map(|a| a.iter().filter_map(|v| v.as_str()).collect::<Vec<_>>())
                .unwrap_or_default(),
        )
    };
    let integer =
        |value: crate::gguf::GgufValue<'_>| value.as_unsigned().and_then(|n| i32::try_from(n).ok());
    let types = metadata.array("tokenizer.ggml.token_type")?;
    let token_types: Vec<i32> =
        types.map(|a| a.iter().map(|v| integer(v).unwrap_or(0)).collect()).unwrap_or_default();
    let id = |key| {
        let id = metadata.unsigned(key)?;
        // An id that does not fit is past every vocabulary, and is refused as such.
        Ok::<_, ModelError>(id.map(|id| TokenId::try_from(id).unwrap_or(TokenId::MAX)))
    };
    Ok(Tokenizer::from_gguf(&GgufVocabulary {
        model: required("tokenizer.ggml.model", "`tokenizer.ggml.model`")??,
        pre: required("tokenizer.ggml.pre", "`tokenizer.ggml.pre`")??,
        tokens: &strings("tokenizer.ggml.tokens")?,
        token_types: &token_types,
        merges: &strings("tokenizer.ggml.merges")?,
        bos_token_id: id("tokenizer.ggml.bos_token_id")?,
        eos_token_id: id("tokenizer.ggml.eos_token_id")?,
        add_bos_token: metadata.boolean("tokenizer.ggml.add_bos_token")?,
        add_eos_token: metadata.boolean("tokenizer.ggml.add_eos_token")?,
    })?)
}

fn folder_text(file: &ModelFile) -> Result<(Tokenizer, Option<String>), TextModelError> {
    let missing = TokenizerError::Missing { what: "`tokenizer.json` beside the weights" };
    let tokenizer = file.text_file(TextFile::Tokenizer)?.ok_or(missing)?;
    let config = file.text_file(TextFile::TokenizerConfig)?;
    let template = match file.text_file(TextFile::ChatTemplate)? {
        Some(template) => Some(template),
        None => config.as_deref().and_then(configured_template),
    };
    Ok((Tokenizer::from_json(&tokenizer, config.as_deref())?, template))
}

/// `chat_template` of `tokenizer_config.json`: a string, or a list of named ones of which `default` counts.
fn configured_template(config: &str) -> Option<String> {
    let config: Json = serde_json::from_str(config).ok()?;
    let template = config.get("chat_template")?;
    let named = || {
        let default = template
            .as_array()?
            .iter()
            .find(|t| t.get("name").and_then(Json::as_str) == Some("default"))?;
        default.get("template")?.as_str()
    };
    template.as_str().or_else(named).map(str::to_owned)
}
