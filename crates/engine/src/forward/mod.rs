//! The forward pass: a batch of tokens in, logits out, keys and values in a paged cache between steps. It is not the
//! scheduler: it holds no request and decides nothing about pages.
//!
//! Invariant: the logits of a token depend only on its sequence's tokens up to it. Not on the other sequences of the
//! batch, not on how the sequence was cut into steps, not on the number of threads: bit for bit.

mod batch;
mod decoder;
mod load;
mod rope;

pub use batch::{Batch, BatchSequence, LogitsBuffer, LogitsFor};
pub use decoder::{Decoder, DecoderOptions, KvSize, MAX_STEP_TOKENS};
pub use load::{LoadProgress, WeightStorage};
pub(crate) use load::{check_shape, dequantize, format_of, model_error};

use mintage_model::{DecoderConfig, ModelError};

/// A model that computes one step at a time over pages of its own KV cache.
pub trait Forward: Send {
    /// Shape of the model.
    fn config(&self) -> &DecoderConfig;

    /// Pages of the KV cache; block tables hold numbers below this.
    fn pages(&self) -> usize;

    /// Computes `batch`: writes the keys and values of its tokens into their pages and the logits asked for into
    /// `logits`.
    ///
    /// # Errors
    /// [`ForwardError::Batch`] where the batch breaks its contract; nothing was computed then.
    fn step(&mut self, batch: &Batch<'_>, logits: &mut LogitsBuffer) -> Result<(), ForwardError>;

    /// From now on logits are wanted of the first `tokens` tokens of the vocabulary only, at least one. A model may go on
    /// to give more: rows of logits are as long as they are.
    fn limit_logits(&mut self, tokens: usize) {
        let _ = tokens;
    }

    /// Copies the first `slots` tokens of page `from` to page `to`, in all layers.
    fn copy_page(&mut self, from: u32, to: u32, slots: usize);
}

/// Why a model does not load or a step does not run.
#[derive(Debug, thiserror::Error)]
pub enum ForwardError {
    /// The caller's fault: the batch breaks its contract.
    #[error("sequence {sequence} of the batch: {message}")]
    Batch {
        /// Index in [`Batch::sequences`].
        sequence: usize,
        /// The limit and the value given.
        message: String,
    },
    /// The file's fault: it does not describe a decoder.
    #[error(transparent)]
    File(#[from] ModelError),
    /// The file's fault: its tensors do not fit its own description.
    #[error("the model's `{tensor}`: {message}")]
    Model {
        /// The tensor by its field in `DecoderWeights`, with the layer where it has one.
        tensor: String,
        /// What was expected and what was found.
        message: String,
    },
    /// The caller's fault: an option is out of range.
    #[error("`{option}`: {message}")]
    Option {
        /// The field of [`DecoderOptions`].
        option: &'static str,
        /// The limit and the value given.
        message: String,
    },
}
