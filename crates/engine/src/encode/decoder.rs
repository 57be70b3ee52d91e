//! Vectors and scores of decoders: the last token's hidden state behind the final norm (Qwen3-Embedding), or how much more
//! likely "yes" is than "no" after it (Qwen3-Reranker).
//!
//! The pages of the decoder's cache serve one step after the other; nothing is kept between sequences.

use mintage_kernels::PAGE_TOKENS;
use mintage_model::TokenId;

use super::{Encode, EncodeShape, normalise};
use crate::forward::{Batch, BatchSequence, Decoder, Forward, ForwardError, LogitsFor};

/// Tokens of one step: more is hardly faster and needs more memory.
const STEP_TOKENS: usize = 512;

/// What comes of the last token's hidden state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VectorHead {
    /// The state itself, of length 1.
    Hidden,
    /// The probability of `yes` among these two, as the only element.
    YesNo {
        /// The token that says that a document fits.
        yes: TokenId,
        /// The token that says that it does not.
        no: TokenId,
    },
}

/// A decoder that makes vectors.
pub struct DecoderVectors {
    decoder: Decoder,
    max_tokens: usize,
    /// Rows of the output matrix for "yes" and "no", where that is the head.
    yes_no: Option<[Vec<f32>; 2]>,
    /// (sequences of a step, hidden)
    hidden: Vec<f32>,
}

/// The part of one sequence that a step computes.
struct Chunk {
    sequence: usize,
    start: usize,
    end: usize,
    block_table: Vec<u32>,
}

impl DecoderVectors {
    /// Takes a decoder for itself. `max_tokens` bounds a sequence beside the decoder's context and the size of its cache.
    ///
    /// # Errors
    /// [`ForwardError::Option`] where a token of the head is past the vocabulary.
    pub fn new(
        decoder: Decoder,
        head: VectorHead,
        max_tokens: usize,
    ) -> Result<Self, ForwardError> {
        let config = decoder.config();
        let yes_no = match head {
            VectorHead::Hidden => None,
            VectorHead::YesNo { yes, no } => {
                let vocab_size = config.vocab_size;
                if let Some(id) = [yes, no].into_iter().find(|id| *id as usize >= vocab_size) {
                    let message = format!("token {id} is not below the vocabulary's {vocab_size}");
                    return Err(ForwardError::Option { option: "head", message });
                }
                Some([yes, no].map(|id| decoder.output_row(id as usize)))
            }
        };
        let cache = decoder.pages().saturating_mul(PAGE_TOKENS);
        let max_tokens = max_tokens.min(config.context_length).min(cache);
        Ok(Self { decoder, max_tokens, yes_no, hidden: Vec::new() })
    }

    /// The next step: whole sequences as long as there is room, or a part of one that is longer than a step.
    fn next_step(&self, sequences: &[&[TokenId]], from: (usize, usize)) -> Vec<Chunk> {
        let (mut sequence, mut start) = from;
        let (mut tokens, mut pages) = (0, 0);
        let mut chunks: Vec<Chunk> = Vec::new();
        while let Some(all) = sequences.get(sequence) {
            let needed = all.len().div_ceil(PAGE_TOKENS);
            let length = (all.len() - start).min(STEP_TOKENS);
            let full = tokens + length > STEP_TOKENS || pages + needed > self.decoder.pages();
            // A part whose sequence goes on has the cache for itself: its keys stay for the next step.
            let alone = start > 0 || start + length < all.len();
            if !chunks.is_empty() && (full || alone) {
                break;
            }
            let block_table = (pages as u32..(pages + needed) as u32).collect();
            chunks.push(Chunk { sequence, start, end: start + length, block_table });
            (tokens, pages) = (tokens + length, pages + needed);
            if alone {
                break;
            }
            (sequence, start) = (sequence + 1, 0);
        }
        chunks
    }

    /// Writes what the head makes of a hidden state.
    fn finish(&self, hidden: &[f32], vector: &mut [f32]) {
        match &self.yes_no {
            None => {
                vector.copy_from_slice(hidden);
                normalise(vector);
            }
            Some(rows) => {
                let [yes, no] = [&rows[0], &rows[1]].map(|row| {
                    row.iter().zip(hidden).map(|(w, x)| f64::from(*w) * f64::from(*x)).sum::<f64>()
                });
                vector[0] = (1.0 / (1.0 + (no - yes).exp())) as f32;
            }
        }
    }
}

impl Encode for DecoderVectors {
    fn shape(&self) -> EncodeShape {
        let config = self.decoder.config();
        let width = if self.yes_no.is_some() { 1 } else { config.hidden_size };
        EncodeShape { vocab_size: config.vocab_size, max_tokens: self.max_tokens, width }
    }

    fn encode(
        &mut self,
        sequences: &[&[TokenId]],
        vectors: &mut Vec<f32>,
    ) -> Result<(), ForwardError> {
        let shape = self.shape();
        shape.check(sequences)?;
        let hidden_size = self.decoder.config().hidden_size;
        vectors.clear();
        vectors.resize(sequences.len() * shape.width, 0.0);
        let mut from = (0, 0);
        while from.0 < sequences.len() {
            let chunks = self.next_step(sequences, from);
            let batch: Vec<BatchSequence<'_>> = chunks
                .iter()
                .map(|chunk| BatchSequence {
                    tokens: &sequences[chunk.sequence][chunk.start..chunk.end],
                    first_position: chunk.start,
                    block_table: &chunk.block_table,
                    logits_for: if chunk.end == sequences[chunk.sequence].len() {
                        LogitsFor::Last
                    } else {
                        LogitsFor::None
                    },
                })
                .collect();
            let mut hidden = std::mem::take(&mut self.hidden);
            self.decoder.hidden_step(&Batch { sequences: &batch }, &mut hidden)?;
            let ended = chunks.iter().filter(|c| c.end == sequences[c.sequence].len());
            for (chunk, hidden) in ended.zip(hidden.chunks_exact(hidden_size)) {
                let vector = &mut vectors[chunk.sequence * shape.width..][..shape.width];
                self.finish(hidden, vector);
            }
            self.hidden = hidden;
            if let Some(last) = chunks.last() {
                let ended = last.end == sequences[last.sequence].len();
                from = if ended { (last.sequence + 1, 0) } else { (last.sequence, last.end) };
            }
        }
        Ok(())
    }
}
