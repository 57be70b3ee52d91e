//! `POST /tokenize`, `POST /detokenize` and `GET /tokenizer_info`, as vLLM has them: what a text or a chat is to a model,
//! and back.
//!
//! Nothing is computed and nothing is billed. Invariant: a chat has exactly the tokens that its answer would be billed
//! for, because both are made by the same code.

use std::sync::Arc;

use axum::extract::{Query, Request, State};
use axum::response::Response;
use mintage_model::{SpecialTokens, TokenId};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::app::App;
use crate::chat::{self, ChatRequest};
use crate::error::{self, ApiError};
use crate::fields::{Fields, Null, wrong_type, wrong_value};
use crate::job::{Incoming, find_model};
use crate::openai::chat_request::take_thinking;
use crate::openai::messages::{take_messages, take_tools};
use crate::openai::options::token_id;
use crate::openai::qwen::take_partial;
use crate::served::{ModelSet, ServedModel};

#[derive(Serialize)]
struct Tokenized {
    count: usize,
    max_model_len: u32,
    tokens: Vec<TokenId>,
    token_strs: Option<Vec<String>>,
}

#[derive(Serialize)]
struct Detokenized {
    prompt: String,
}

/// What evaluation programs ask of a tokeniser that they do not have themselves.
#[derive(Serialize)]
struct TokenizerInfo {
    tokenizer_class: &'static str,
    model_max_length: u32,
    bos_token: Option<String>,
    eos_token: Option<String>,
    pad_token: Option<String>,
    chat_template: Option<String>,
}

#[derive(Deserialize)]
struct Asked {
    model: Option<String>,
}

/// Tells of a model's tokeniser: its special tokens and its template.
pub(crate) async fn tokenizer_info(
    State(app): State<Arc<App>>,
    request: Request,
) -> Result<Response, ApiError> {
    let asked = Query::<Asked>::try_from_uri(request.uri()).map_err(|_| {
        ApiError::field("model", "invalid_value", "`model` must be given once, as a string.")
    })?;
    let model = named(&app.models, asked.model.as_deref())?;
    let tokenizer = model.text.tokenizer();
    let text = |id: TokenId| tokenizer.decode(&[id], false);
    Ok(error::json(TokenizerInfo {
        tokenizer_class: "PreTrainedTokenizerFast",
        model_max_length: model.engine.info().context_length,
        bos_token: tokenizer.bos().map(text),
        eos_token: tokenizer.eos().map(text),
        pad_token: None,
        chat_template: model.text.template().map(|template| template.source().to_owned()),
    }))
}

/// Text or messages to tokens.
pub(crate) async fn tokenize(
    State(app): State<Arc<App>>,
    request: Request,
) -> Result<Response, ApiError> {
    let incoming = Incoming::read(&app, request).await?;
    let (shared, body) = (Arc::clone(&app), incoming.body.clone());
    let work = move || tokenized(&shared.models, &body);
    Ok(error::json(app.on_text_thread(incoming.body.len(), work).await?))
}

/// Tokens to text.
pub(crate) async fn detokenize(
    State(app): State<Arc<App>>,
    request: Request,
) -> Result<Response, ApiError> {
    let incoming = Incoming::read(&app, request).await?;
    let (shared, body) = (Arc::clone(&app), incoming.body.clone());
    let work = move || detokenized(&shared.models, &body);
    Ok(error::json(app.on_text_thread(incoming.body.len(), work).await?))
}

/// The model that is named; where none is and only one is served, that one.
fn take_model(fields: &mut Fields, models: &ModelSet) -> Result<Arc<ServedModel>, ApiError> {
    match fields.take("model", Null::Absent) {
        Some(Value::String(name)) => named(models, Some(&name)),
        Some(other) => Err(wrong_type("model", "a string", &other)),
        None => named(models, None),
    }
}

fn named(models: &ModelSet, name: Option<&str>) -> Result<Arc<ServedModel>, ApiError> {
    match (name, models.all()) {
        (Some(name), _) => find_model(models, name),
        (None, [only]) => Ok(Arc::clone(only)),
        (None, _) => {
            let message = "`model` is missing, and several models are served.";
            Err(ApiError::field("model", "missing_required_parameter", message))
        }
    }
}

fn tokenized(models: &ModelSet, body: &[u8]) -> Result<Tokenized, ApiError> {
    let mut fields = Fields::parse(body)?;
    let model = take_model(&mut fields, models)?;
    let wants_texts = fields.bool("return_token_strs", Null::Absent)?.unwrap_or(false);
    let tokens = match fields.string("prompt", Null::Absent)? {
        Some(prompt) => {
            let with_begin = fields.bool("add_special_tokens", Null::Absent)?.unwrap_or(true);
            fields.finish()?;
            if with_begin {
                model.text.encode_completion(&prompt, SpecialTokens::Allow)
            } else {
                model.text.tokenizer().encode(&prompt, SpecialTokens::Allow)
            }
        }
        None => chat_tokens(&model, fields)?,
    };
    let name = |id: &TokenId| {
        let bytes = model.text.tokenizer().token_bytes(*id).unwrap_or(&[]);
        String::from_utf8_lossy(bytes).into_owned()
    };
    Ok(Tokenized {
        count: tokens.len(),
        max_model_len: model.engine.info().context_length,
        token_strs: wants_texts.then(|| tokens.iter().map(name).collect()),
        tokens,
    })
}

fn chat_tokens(model: &Arc<ServedModel>, mut fields: Fields) -> Result<Vec<TokenId>, ApiError> {
    let partial = take_partial(&mut fields)?;
    let continued = fields.bool("continue_final_message", Null::Absent)?.unwrap_or(false);
    let continues_last = partial || continued;
    let messages = take_messages(&mut fields)?;
    let mut request =
        ChatRequest { continues_last, ..ChatRequest::new(model.name.clone(), messages) };
    take_tools(&mut fields, &mut request)?;
    request.reasoning.enabled = take_thinking(&mut fields)?;
    // The template decides on special tokens, and ends with the opening of an answer unless one is continued.
    for (field, only) in [("add_special_tokens", false), ("add_generation_prompt", !continues_last)]
    {
        if fields.bool(field, Null::Absent)?.is_some_and(|given| given != only) {
            return Err(wrong_value(field, &format!("`{only}` here"), &Value::Bool(!only)));
        }
    }
    fields.finish()?;
    chat::tokens(&model.text, &request).map(|tokens| tokens.to_vec())
}

fn detokenized(models: &ModelSet, body: &[u8]) -> Result<Detokenized, ApiError> {
    let mut fields = Fields::parse(body)?;
    let model = take_model(&mut fields, models)?;
    let tokens = match fields.required("tokens")? {
        Value::Array(values) => values,
        other => return Err(wrong_type("tokens", "an array of token ids", &other)),
    };
    fields.finish()?;
    let ids = tokens.iter().enumerate();
    let ids = ids.map(|(i, value)| token_id(&format!("tokens[{i}]"), value));
    let ids = ids.collect::<Result<Vec<TokenId>, _>>()?;
    let vocab_size = model.engine.info().vocab_size;
    if let Some((i, id)) = ids.iter().enumerate().find(|(_, id)| **id >= vocab_size) {
        let name = format!("tokens[{i}]");
        let message = format!("`{name}` must be below {vocab_size}, not {id}.");
        return Err(ApiError::field(name, "invalid_value", message));
    }
    Ok(Detokenized { prompt: model.text.tokenizer().decode(&ids, false) })
}
