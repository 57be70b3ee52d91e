//! How well a model predicts a text, and how far two computations of one model lie apart on it. Not a judge of answers.
//!
//! The method is that of llama.cpp's perplexity tool, so that figures compare: windows of `context` tokens that do not
//! overlap, each computed from an empty cache; the tokens of the second half of a window are scored, each given all
//! tokens before it in the window.

use mintage_kernels::{PAGE_TOKENS, log_sum_exp};
use mintage_model::TokenId;

use crate::forward::{Batch, BatchSequence, Forward, ForwardError, LogitsBuffer, LogitsFor};

/// Rows of logits held at once: bounds memory (78 MB at a vocabulary of 152,000).
const ROWS_PER_STEP: usize = 128;

/// Windows over the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PerplexityOptions {
    /// Tokens of a window; at least 4.
    pub context: usize,
    /// Put before the text and in place of each window's first token, for models whose vocabulary asks for it.
    pub bos: Option<TokenId>,
}

impl Default for PerplexityOptions {
    fn default() -> Self {
        Self { context: 512, bos: None }
    }
}

/// How far a run is, after each window.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PerplexityProgress {
    /// Windows done.
    pub done_windows: usize,
    /// Windows in all.
    pub total_windows: usize,
    /// Perplexity of the tokens scored so far; for [`kl_divergence`] the mean divergence so far, in nats.
    pub so_far: f64,
}

/// The result of [`perplexity`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PerplexityReport {
    /// exp of the mean negative log-probability.
    pub perplexity: f64,
    /// One standard error of `perplexity`.
    pub standard_error: f64,
    /// Tokens scored.
    pub scored_tokens: usize,
    /// Windows computed.
    pub windows: usize,
}

/// The result of [`kl_divergence`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DivergenceReport {
    /// Mean of KL(reference ‖ candidate) over the scored tokens, in nats.
    pub mean_nats: f64,
    /// The largest of them.
    pub max_nats: f64,
    /// Share of tokens where both find the same token likeliest, 0 to 1.
    pub same_top: f64,
    /// Tokens compared.
    pub scored_tokens: usize,
}

/// Why a text could not be scored.
#[derive(Debug, thiserror::Error)]
pub enum PerplexityError {
    /// The text is too short to say anything.
    #[error("the text has {tokens} tokens, at least {needed} are needed: two windows")]
    TextTooShort {
        /// Tokens of the text.
        tokens: usize,
        /// Tokens needed.
        needed: usize,
    },
    /// The window is out of range.
    #[error(
        "`context` is {context}, allowed are 4 to {limit}: what the model and its KV cache hold"
    )]
    Context {
        /// The value given.
        context: usize,
        /// The limit.
        limit: usize,
    },
    /// The reference and the candidate are not the same model.
    #[error("the two models have vocabularies of {reference} and {candidate} tokens")]
    VocabularyMismatch {
        /// Tokens the reference knows.
        reference: usize,
        /// Tokens the candidate knows.
        candidate: usize,
    },
    /// The model failed.
    #[error(transparent)]
    Forward(#[from] ForwardError),
}

/// Scores `tokens`, which hold no BOS of their own. Uses all pages of `forward` as it likes.
///
/// # Errors
/// [`PerplexityError`]: a text below two windows, a window that does not fit, a token outside of the vocabulary.
pub fn perplexity(
    forward: &mut dyn Forward,
    tokens: &[TokenId],
    options: &PerplexityOptions,
    progress: &mut dyn FnMut(PerplexityProgress),
) -> Result<PerplexityReport, PerplexityError> {
    let windows = Windows::new(forward, tokens, options)?;
    let mut logits = LogitsBuffer::new();
    let (mut sum, mut sum_of_squares, mut count) = (0.0, 0.0, 0usize);
    for index in 0..windows.count {
        let window = windows.window(index);
        for chunk in windows.chunks() {
            windows.step(forward, &window, &chunk, &mut logits)?;
            for row in 0..logits.rows() {
                let values = logits.row(row);
                let target = window[chunk.target_of(row)] as usize;
                let surprise = f64::from(log_sum_exp(values)) - f64::from(values[target]);
                sum += surprise;
                sum_of_squares += surprise * surprise;
                count += 1;
            }
        }
        progress(PerplexityProgress {
            done_windows: index + 1,
            total_windows: windows.count,
            so_far: (sum / count as f64).exp(),
        });
    }
    let mean = sum / count as f64;
    let variance = (sum_of_squares / count as f64 - mean * mean).max(0.0);
    Ok(PerplexityReport {
        perplexity: mean.exp(),
        standard_error: (variance / (count as f64 - 1.0)).sqrt() * mean.exp(),
        scored_tokens: count,
        windows: windows.count,
    })
}

/// Compares two computations of one model over the tokens that [`perplexity`] would score.
///
/// # Errors
/// As [`perplexity`], and [`PerplexityError::VocabularyMismatch`].
pub fn kl_divergence(
    reference: &mut dyn Forward,
    candidate: &mut dyn Forward,
    tokens: &[TokenId],
    options: &PerplexityOptions,
    progress: &mut dyn FnMut(PerplexityProgress),
) -> Result<DivergenceReport, PerplexityError> {
    let vocabularies = (reference.config().vocab_size, candidate.config().vocab_size);
    if vocabularies.0 != vocabularies.1 {
        let (reference, candidate) = vocabularies;
        return Err(PerplexityError::VocabularyMismatch { reference, candidate });
    }
    let windows = Windows::new(reference, tokens, options)?;
    Windows::new(candidate, tokens, options)?;
    let (mut expected, mut found) = (LogitsBuffer::new(), LogitsBuffer::new());
    let (mut sum, mut max, mut same, mut count) = (0.0, 0.0f64, 0usize, 0usize);
    for index in 0..windows.count {
        let window = windows.window(index);
        for chunk in windows.chunks() {
            windows.step(reference, &window, &chunk, &mut expected)?;
            windows.step(candidate, &window, &chunk, &mut found)?;
            for row in 0..expected.rows() {
                let (p, q) = (expected.row(row), found.row(row));
                let divergence = divergence_nats(p, q);
                sum += divergence;
                max = max.max(divergence);
                same += usize::from(mintage_kernels::argmax(p) == mintage_kernels::argmax(q));
                count += 1;
            }
        }
        progress(PerplexityProgress {
            done_windows: index + 1,
            total_windows: windows.count,
            so_far: sum / count as f64,
        });
    }
    Ok(DivergenceReport {
        mean_nats: sum / count as f64,
        max_nats: max,
        same_top: same as f64 / count as f64,
        scored_tokens: count,
    })
}

/// KL(p ‖ q) of the distributions of two rows of logits.
fn divergence_nats(p: &[f32], q: &[f32]) -> f64 {
    let (p_total, q_total) = (f64::from(log_sum_exp(p)), f64::from(log_sum_exp(q)));
    let terms = p.iter().zip(q).map(|(p, q)| {
        let (p, q) = (f64::from(*p) - p_total, f64::from(*q) - q_total);
        p.exp() * (p - q)
    });
    terms.sum()
}

/// Non-overlapping windows of a text.
struct Windows {
    /// BOS, where wanted, and the text.
    tokens: Vec<TokenId>,
    bos: Option<TokenId>,
    context: usize,
    count: usize,
    block_table: Vec<u32>,
}

/// Positions `start..end` of a window, computed in one step.
struct Chunk {
    start: usize,
    end: usize,
    scored: bool,
}

impl Chunk {
    /// Position of the token that row `row` of the logits predicts.
    fn target_of(&self, row: usize) -> usize {
        self.start + row + 1
    }
}

impl Windows {
    fn new(
        forward: &dyn Forward,
        text: &[TokenId],
        options: &PerplexityOptions,
    ) -> Result<Self, PerplexityError> {
        let context = options.context;
        let limit =
            forward.pages().saturating_mul(PAGE_TOKENS).min(forward.config().context_length);
        if !(4..=limit).contains(&context) {
            return Err(PerplexityError::Context { context, limit });
        }
        let tokens: Vec<TokenId> = options.bos.into_iter().chain(text.iter().copied()).collect();
        if tokens.len() < 2 * context {
            let needed = 2 * context;
            return Err(PerplexityError::TextTooShort { tokens: tokens.len(), needed });
        }
        let count = tokens.len() / context;
        let block_table = (0..).take(context.div_ceil(PAGE_TOKENS)).collect();
        Ok(Self { tokens, bos: options.bos, context, count, block_table })
    }

    fn window(&self, index: usize) -> Vec<TokenId> {
        let mut window = self.tokens[index * self.context..(index + 1) * self.context].to_vec();
        if let Some(bos) = self.bos {
            window[0] = bos;
        }
        window
    }

    /// The first half at once, then the scored part in pieces. The last token predicts nothing and is left out.
    fn chunks(&self) -> impl Iterator<Item = Chunk> + use<> {
        let (first, last) = (self.context / 2, self.context - 1);
        let unscored = Chunk { start: 0, end: first, scored: false };
        std::iter::once(unscored).chain((first..last).step_by(ROWS_PER_STEP).map(move |start| {
            Chunk { start, end: (start + ROWS_PER_STEP).min(last), scored: true }
        }))
    }

    fn step(
        &self,
        forward: &mut dyn Forward,
        window: &[TokenId],
        chunk: &Chunk,
        logits: &mut LogitsBuffer,
    ) -> Result<(), ForwardError> {
        let sequence = BatchSequence {
            tokens: &window[chunk.start..chunk.end],
            first_position: chunk.start,
            block_table: &self.block_table,
            logits_for: if chunk.scored { LogitsFor::All } else { LogitsFor::None },
        };
        forward.step(&Batch { sequences: &[sequence] }, logits)
    }
}
