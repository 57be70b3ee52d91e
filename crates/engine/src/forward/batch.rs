//! What one step computes and where its logits go. Data only: who is in the batch is the scheduler's business.
//!
//! Invariant: the rows of [`LogitsBuffer`] stand in the order of the batch's sequences, and within one in the order of
//! its tokens.

use mintage_model::TokenId;

/// One step: any mix of prompt chunks and single new tokens.
#[derive(Clone, Copy, Debug)]
pub struct Batch<'a> {
    /// The sequences; no two write the same slot of the same page.
    pub sequences: &'a [BatchSequence<'a>],
}

impl Batch<'_> {
    /// Tokens of all sequences.
    #[must_use]
    pub fn tokens(&self) -> usize {
        self.sequences.iter().map(|sequence| sequence.tokens.len()).sum()
    }

    /// Rows of logits all sequences ask for.
    #[must_use]
    pub fn logits_rows(&self) -> usize {
        self.sequences.iter().map(BatchSequence::logits_rows).sum()
    }
}

/// The next tokens of one sequence.
#[derive(Clone, Copy, Debug)]
pub struct BatchSequence<'a> {
    /// The tokens to compute, at least one.
    pub tokens: &'a [TokenId],
    /// Position of `tokens[0]`; all earlier positions are in the cache already.
    pub first_position: usize,
    /// Pages of the KV cache, in order of position; covers every position up to the last token's.
    pub block_table: &'a [u32],
    /// Which tokens' logits are wanted.
    pub logits_for: LogitsFor,
}

impl BatchSequence<'_> {
    /// Rows of logits this sequence asks for.
    #[must_use]
    pub fn logits_rows(&self) -> usize {
        match self.logits_for {
            LogitsFor::None => 0,
            LogitsFor::Last => self.tokens.len().min(1),
            LogitsFor::Tail(n) => n.min(self.tokens.len()),
            LogitsFor::All => self.tokens.len(),
        }
    }
}

/// Which tokens of a sequence get a row of logits. Rows that nobody asks for are not multiplied with the output matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogitsFor {
    /// None: a chunk of a prompt that is not its end.
    None,
    /// The last token's.
    Last,
    /// The last `n` tokens'.
    Tail(usize),
    /// Every token's.
    All,
}

/// Rows of logits, allocated once and reused by every step.
#[derive(Clone, Debug, Default)]
pub struct LogitsBuffer {
    /// (rows, vocab); longer than that where an earlier step had more rows.
    values: Vec<f32>,
    rows: usize,
    vocab_size: usize,
}

impl LogitsBuffer {
    /// An empty buffer.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes room for `rows` rows and returns them, (rows, vocab), with unspecified content.
    pub fn resize(&mut self, rows: usize, vocab_size: usize) -> &mut [f32] {
        let len = rows * vocab_size;
        if self.values.len() < len {
            self.values.resize(len, 0.0);
        }
        self.rows = rows;
        self.vocab_size = vocab_size;
        &mut self.values[..len]
    }

    /// Rows of the last step.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Row `index`, `vocab_size` long. `index` is below [`Self::rows`].
    #[must_use]
    pub fn row(&self, index: usize) -> &[f32] {
        &self.values[index * self.vocab_size..(index + 1) * self.vocab_size]
    }

    /// Row `index`, to be changed in place by a sampler. `index` is below [`Self::rows`].
    pub fn row_mut(&mut self, index: usize) -> &mut [f32] {
        &mut self.values[index * self.vocab_size..(index + 1) * self.vocab_size]
    }
}
