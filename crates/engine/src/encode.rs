//! Token sequences in, one vector each out: embeddings and rerankers' scores. No sampling and no cache that outlives a
//! step.
//!
//! Invariant: a sequence's vector depends on its own tokens alone, bit for bit, whatever is computed beside it and on
//! however many threads. Sequences stand one after the other in a step, without padding.

mod bert;
mod decoder;
mod engine;

pub use bert::Encoder;
pub use decoder::{DecoderVectors, VectorHead};
pub use engine::{EncoderEngine, EncoderEngineConfig};

use mintage_model::TokenId;

use crate::forward::ForwardError;

/// A model that turns token sequences into vectors.
pub trait Encode: Send {
    /// What it takes and gives.
    fn shape(&self) -> EncodeShape;

    /// Computes the vector of each sequence into `vectors`, (sequences, width) row-major; what was there is gone.
    ///
    /// # Errors
    /// [`ForwardError::Batch`] where a sequence is empty, too long or has a token past the vocabulary; nothing was
    /// computed then.
    fn encode(
        &mut self,
        sequences: &[&[TokenId]],
        vectors: &mut Vec<f32>,
    ) -> Result<(), ForwardError>;
}

/// What a model takes and gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EncodeShape {
    /// Token ids are below this.
    pub vocab_size: usize,
    /// Tokens of the longest sequence.
    pub max_tokens: usize,
    /// Elements of a vector.
    pub width: usize,
}

impl EncodeShape {
    /// Refuses what would index outside of a table.
    fn check(&self, sequences: &[&[TokenId]]) -> Result<(), ForwardError> {
        for (index, tokens) in sequences.iter().enumerate() {
            let fail = |message| Err(ForwardError::Batch { sequence: index, message });
            if tokens.is_empty() {
                return fail("no tokens".to_owned());
            }
            if tokens.len() > self.max_tokens {
                let (limit, given) = (self.max_tokens, tokens.len());
                return fail(format!("the model takes {limit} tokens, {given} given"));
            }
            if let Some(token) = tokens.iter().find(|t| **t as usize >= self.vocab_size) {
                let limit = self.vocab_size;
                return fail(format!("token {token} is not below the vocabulary's {limit}"));
            }
        }
        Ok(())
    }
}

/// Brings a vector to length 1; one without a length stays 0.
fn normalise(vector: &mut [f32]) {
    let squares: f64 = vector.iter().map(|v| f64::from(*v) * f64::from(*v)).sum();
    let scale = (1.0 / squares.sqrt().max(1e-12)) as f32;
    vector.iter_mut().for_each(|v| *v *= scale);
}
