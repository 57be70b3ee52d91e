//! Embeddings: texts or tokens in, a vector each out, shortened where the model was trained for it.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use mintage_model::{Purpose, TokenId, VectorTask};
use serde_json::value::RawValue;

use super::job::{Asked, Work};
use super::{MAX_ELEMENTS, MAX_INPUTS, Sequences, Vector, VectorJob, too_long};
use crate::app::App;
use crate::error::ApiError;
use crate::served::{VectorModel, VectorTarget};
use crate::upstream::{VectorAsk, VectorRelay};

/// Of a number in JSON and what stands between two: on average they take less. A vector has length 1, so of the widest
/// models they are the longest: 12.4 at 1,024 numbers, 12.9 at 8,192.
const NUMBER_BYTES: usize = 13;
/// What a dialect puts around a vector, at most.
const ENTRY_BYTES: usize = 64;

/// What a vector is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Input {
    Text(String),
    /// As they stand: the model's marks are the caller's business.
    Tokens(Vec<TokenId>),
}

/// What the texts are for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum Texts {
    /// Texts as they stand.
    #[default]
    Plain,
    /// Texts that will be searched for.
    Documents,
    /// Texts that others are searched by, with what is looked for where the request says so; that went through
    /// [`super::check_instruction`].
    Queries { instruction: Option<String> },
}

/// The room of an answer that is not given where it is longer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Room {
    pub(crate) bytes: usize,
    pub(crate) as_base64: bool,
}

impl Room {
    /// How many vectors fit.
    fn vectors(self, width: usize) -> usize {
        let vector = if self.as_base64 {
            width.saturating_mul(4).div_ceil(3).saturating_mul(4)
        } else {
            width.saturating_mul(NUMBER_BYTES)
        };
        self.bytes / vector.saturating_add(ENTRY_BYTES)
    }
}

/// A request for embeddings, whatever its dialect.
#[derive(Clone, Debug, Default)]
pub(crate) struct EmbedRequest {
    pub(crate) model: String,
    pub(crate) inputs: Vec<Input>,
    /// What the dialect calls them, for refusals.
    pub(crate) inputs_field: &'static str,
    pub(crate) texts: Texts,
    /// What the dialect calls that.
    pub(crate) texts_field: &'static str,
    /// Elements of a vector; `None`: as many as the model makes.
    pub(crate) dimensions: Option<u32>,
    pub(crate) dimensions_field: &'static str,
    /// What does not fit is cut at its end to so many tokens, or to the model's limit; `None`: it is refused.
    pub(crate) cut_to: Option<u32>,
    /// By which field that is asked for; empty where it is the dialect's habit.
    pub(crate) cut_field: &'static str,
    /// What to do about an input that is too long.
    pub(crate) advice: &'static str,
    /// Of the answer, where it has to be kept: what would not fit is refused before it is computed.
    pub(crate) room: Option<Room>,
}

impl EmbedRequest {
    /// On a text thread: finds who answers and makes it ready.
    pub(crate) fn prepare(
        self,
        app: &App,
        protocol: &'static str,
        id_prefix: &str,
    ) -> Result<VectorJob, ApiError> {
        VectorJob::new(app, Arc::new(self), protocol, id_prefix)
    }

    fn on_own(&self, model: &Arc<VectorModel>) -> Result<Work, ApiError> {
        let shortening = self.shortening(model)?;
        self.check_count(shortening.width)?;
        let mut sequences = Sequences::new(self.inputs_field);
        for (index, input) in self.inputs.iter().enumerate() {
            sequences.push(self.sequence(model, index, input)?)?;
        }
        Ok(Work::Own { model: Arc::clone(model), sequences: sequences.all, shortening })
    }

    /// `width`: elements of a vector, at least.
    fn check_count(&self, width: usize) -> Result<(), ApiError> {
        let (field, count) = (self.inputs_field, self.inputs.len());
        if count > MAX_INPUTS || count.saturating_mul(width) > MAX_ELEMENTS {
            let most = MAX_INPUTS.min(MAX_ELEMENTS / width.max(1));
            let message = format!("`{field}` holds at most {most} inputs, not {count}.");
            return Err(ApiError::field(field, "invalid_value", message));
        }
        let Some(room) = self.room else { return Ok(()) };
        let most = room.vectors(width);
        if count > most {
            let bytes = room.bytes;
            let message = format!(
                "`{field}` holds at most {most} inputs here, not {count}: a vector has {width} numbers, and an answer of \
                 a task or in a batch at most {bytes} bytes."
            );
            return Err(ApiError::field(field, "answer_too_long", message));
        }
        Ok(())
    }

    fn shortening(&self, model: &VectorModel) -> Result<Shortening, ApiError> {
        let width = model.width;
        let Some(asked) = self.dimensions else { return Ok(Shortening { width, shortens: false }) };
        let asked = usize::try_from(asked).unwrap_or(usize::MAX);
        let refuse = |what: String| {
            let field = self.dimensions_field;
            Err(ApiError::field(field, "invalid_value", format!("`{field}` {what}, not {asked}.")))
        };
        match asked {
            asked if asked == width => Ok(Shortening { width, shortens: false }),
            0 => refuse("must be at least 1".to_owned()),
            asked if asked > width => refuse(format!("is at most {width} for this model")),
            _ if !model.text.can_shorten() => refuse(format!(
                "must be {width}: this model was not trained so that a part of a vector is a vector"
            )),
            asked => Ok(Shortening { width: asked, shortens: true }),
        }
    }

    fn sequence(
        &self,
        model: &VectorModel,
        index: usize,
        input: &Input,
    ) -> Result<Vec<TokenId>, ApiError> {
        let field = format!("{}[{index}]", self.inputs_field);
        let info = model.engine.info();
        let longest = info.context_length as usize;
        let limit = self.cut_to.map_or(longest, |asked| longest.min(asked as usize));
        match input {
            Input::Text(text) => {
                let found = model.text.encode(text, self.purpose());
                let sequence = match self.cut_to {
                    Some(_) => found.cut(limit).map(|(ids, _)| ids),
                    None => found.whole(limit),
                };
                sequence.map_err(|found| too_long(&field, found, self.advice))
            }
            Input::Tokens(ids) => {
                if let Some(id) = ids.iter().find(|id| **id >= info.vocab_size) {
                    let message = format!(
                        "`{field}` holds the token {id}, but the model's vocabulary has {}.",
                        info.vocab_size
                    );
                    return Err(ApiError::field(field, "invalid_value", message));
                }
                if ids.len() > limit && self.cut_to.is_none() {
                    let found = mintage_model::TooLong { tokens: ids.len(), limit };
                    return Err(too_long(&field, found, self.advice));
                }
                Ok(ids.iter().copied().take(limit).collect())
            }
        }
    }

    fn purpose(&self) -> Purpose<'_> {
        match &self.texts {
            Texts::Plain => Purpose::Plain,
            Texts::Documents => Purpose::Document,
            Texts::Queries { instruction } => {
                Purpose::Query { instruction: instruction.as_deref() }
            }
        }
    }
}

impl Asked for EmbedRequest {
    fn model(&self) -> &str {
        &self.model
    }

    fn work(&self, target: &VectorTarget) -> Result<Work, ApiError> {
        if target.task() != VectorTask::Embed {
            let message = format!(
                "The model `{}` scores documents and makes no embeddings; ask it through `/v1/rerank`.",
                target.name()
            );
            return Err(ApiError::field("model", "unsupported_model", message));
        }
        match target {
            VectorTarget::Own(model) => self.on_own(model),
            VectorTarget::Remote(remote) => {
                self.check_count(self.dimensions.map_or(1, |asked| asked as usize))?;
                let ask = VectorAsk::embed(&remote.config, self)?;
                Ok(Work::Remote(VectorRelay::new(Arc::clone(remote), ask)?))
            }
        }
    }
}

/// How long vectors are in the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shortening {
    width: usize,
    shortens: bool,
}

impl Shortening {
    /// As they come.
    pub(super) const NONE: Self = Self { width: 0, shortens: false };

    /// The first elements, brought to length 1 again.
    pub(super) fn apply(self, vector: &Vector) -> Vector {
        if !self.shortens {
            return Arc::clone(vector);
        }
        let first = vector.get(..self.width).unwrap_or(vector);
        let squares: f64 = first.iter().map(|v| f64::from(*v) * f64::from(*v)).sum();
        let scale = (1.0 / squares.sqrt().max(1e-12)) as f32;
        first.iter().map(|v| v * scale).collect()
    }
}

/// A vector as JSON: an array of numbers, or a string of little-endian 32-bit floats in base64.
pub(crate) fn vector_json(vector: &Vector, as_base64: bool) -> Result<Box<RawValue>, ApiError> {
    let text = if as_base64 {
        let bytes: Vec<u8> = vector.iter().flat_map(|value| value.to_le_bytes()).collect();
        format!("\"{}\"", BASE64.encode(bytes))
    } else {
        crate::respond::json_text(&vector.as_ref())?
    };
    RawValue::from_string(text).map_err(|e| ApiError::internal(format!("an embedding: {e}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_vectors_have_length_one_again() {
        let vector: Vector = [0.6, 0.0, 0.8].into();
        let check = |width, shortens, expected: &str, packed: &str| {
            let vector = Shortening { width, shortens }.apply(&vector);
            assert_eq!(vector_json(&vector, false).unwrap().get(), expected);
            assert_eq!(vector_json(&vector, true).unwrap().get(), packed);
        };
        check(3, false, "[0.6,0.0,0.8]", "\"mpkZPwAAAADNzEw/\"");
        check(2, true, "[1.0,0.0]", "\"AACAPwAAAAA=\"");
        check(1, true, "[1.0]", "\"AACAPw==\"");
    }
}
