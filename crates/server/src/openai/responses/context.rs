//! What went before a response: those it continues, and items it refers to, out of the store.
//!
//! Invariant: a conversation is read within bounds of its length and bytes, and only out of the asking project's store.

use serde_json::Value;

use crate::error::ApiError;
use crate::fields::shortened;
use crate::openai::responses::items::{Given, Item, MAX_ITEMS, item, response_of};
use crate::openai::responses::wire::{ResponseBody, Status};
use crate::storage::{AnswerKind, AnswerRecord, Storage, StorageError};

/// Responses of one conversation.
const MAX_TURNS: usize = 1024;
/// Of one conversation as it is kept.
const MAX_BYTES: usize = 32 << 20;

/// A response as it is kept.
pub(super) struct Kept {
    pub(super) record: AnswerRecord,
    pub(super) body: ResponseBody,
}

impl Kept {
    /// Blocks.
    pub(super) fn find(storage: &Storage, project: &str, id: &str) -> Result<Self, StorageError> {
        let record = storage.answer(project, AnswerKind::Response, id)?;
        let body = serde_json::from_str(&record.document).map_err(|e| damaged(&e))?;
        Ok(Self { record, body })
    }

    pub(super) fn input(&self) -> Result<Vec<Value>, StorageError> {
        serde_json::from_str(&self.record.input).map_err(|e| damaged(&e))
    }

    fn output(&self) -> Result<Vec<Value>, StorageError> {
        let items = self.body.output.iter().map(serde_json::to_value);
        items.collect::<Result<_, _>>().map_err(|e| damaged(&e))
    }
}

fn damaged(error: &serde_json::Error) -> StorageError {
    StorageError::Damaged(format!("a response: {error}"))
}

fn internal(error: &StorageError) -> ApiError {
    ApiError::internal(error.to_string())
}

/// All items before a response, oldest first, as they are listed. Blocks.
///
/// # Errors
/// One of the conversation is not kept (any more), or did not end well.
pub(super) fn before(
    storage: Option<&Storage>,
    project: &str,
    previous: Option<&str>,
) -> Result<Vec<Value>, ApiError> {
    let mut turns = Vec::new();
    let (mut bytes, mut next) = (0, previous.map(str::to_owned));
    while let Some(id) = next {
        let kept = storage.ok_or(StorageError::NotFound);
        let kept = kept.and_then(|storage| Kept::find(storage, project, &id));
        let kept = kept.map_err(|error| match error {
            StorageError::NotFound => refuse(
                "previous_response_not_found",
                format!("Previous response with id '{}' not found.", shortened(&id)),
            ),
            error => internal(&error),
        })?;
        if !matches!(kept.body.status, Status::Completed | Status::Incomplete) {
            let message = format!(
                "`previous_response_id`: the response `{}` has not ended well, so nothing can follow it.",
                shortened(&id)
            );
            return Err(refuse("previous_response_not_complete", message));
        }
        bytes += kept.record.input.len() + kept.record.document.len();
        if turns.len() >= MAX_TURNS || bytes > MAX_BYTES {
            let message = format!(
                "`previous_response_id`: a conversation has at most {MAX_TURNS} responses and {MAX_BYTES} bytes."
            );
            return Err(refuse("conversation_too_long", message));
        }
        next = kept.body.previous_response_id.clone();
        turns.push(kept);
    }
    let mut all = Vec::new();
    for kept in turns.into_iter().rev() {
        all.extend(kept.input().map_err(|error| internal(&error))?);
        all.extend(kept.output().map_err(|error| internal(&error))?);
    }
    Ok(all)
}

fn refuse(code: &'static str, message: String) -> ApiError {
    ApiError::field("previous_response_id", code, message)
}

/// Items as they are listed, to items.
pub(super) fn read(listed: Vec<Value>) -> Result<Vec<Item>, ApiError> {
    let mut items = Vec::with_capacity(listed.len());
    for value in listed {
        match item(value, "input") {
            Ok(Given::Item(item)) => items.push(item),
            _ => return Err(ApiError::internal("a kept response holds no item")),
        }
    }
    Ok(items)
}

pub(super) fn has_references(given: &[Given]) -> bool {
    given.iter().any(|given| matches!(given, Given::Reference { .. }))
}

/// What was given, with references resolved. Blocks where there are any.
pub(super) fn resolve(
    storage: Option<&Storage>,
    project: &str,
    given: Vec<Given>,
) -> Result<Vec<Item>, ApiError> {
    let mut items = Vec::with_capacity(given.len());
    // A reference reads a response: no request has it read the same twice.
    let mut known: Vec<(String, Vec<Value>)> = Vec::new();
    for given in given {
        let (id, path) = match given {
            Given::Item(item) => {
                items.push(item);
                continue;
            }
            Given::Reference { id, path } => (id, path),
        };
        let unknown = || {
            let message = format!("`{path}.id`: there is no item `{}`.", shortened(&id));
            ApiError::field(format!("{path}.id"), "item_not_found", message)
        };
        let response = response_of(&id).ok_or_else(unknown)?;
        if !known.iter().any(|(known, _)| *known == response) {
            if known.len() >= MAX_TURNS {
                let message = format!("`{path}`: items of {MAX_TURNS} responses are referred to.");
                return Err(ApiError::field(path.as_str(), "invalid_value", message));
            }
            let storage = storage.ok_or_else(unknown)?;
            let kept = Kept::find(storage, project, &response).map_err(|error| match error {
                StorageError::NotFound => unknown(),
                error => internal(&error),
            })?;
            let mut all = kept.input().map_err(|error| internal(&error))?;
            all.extend(kept.output().map_err(|error| internal(&error))?);
            known.push((response.clone(), all));
        }
        let listed = known.iter().find(|(known, _)| *known == response);
        let found = listed.and_then(|(_, all)| all.iter().find(|item| item["id"] == id.as_str()));
        items.extend(read(vec![found.ok_or_else(unknown)?.clone()])?);
        if items.len() > MAX_ITEMS {
            return Err(unknown());
        }
    }
    Ok(items)
}
