//! Adding up the usage of a request's choices, as the client sees it.
//!
//! A prompt that `n` choices share is counted once, with what its first choice found in the cache; sampled tokens are
//! counted for each choice. The counts are the engine's own.

use mintage_model::Usage;

use crate::openai::wire::{PromptDetails, UsageBody};

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct UsageSum {
    n: u32,
    prompt_tokens: u32,
    cached_tokens: u32,
    completion_tokens: u32,
}

impl UsageSum {
    /// For requests of `n` choices for each prompt.
    pub(super) fn new(n: u32) -> Self {
        Self { n: n.max(1), ..Self::default() }
    }

    /// A choice ended.
    pub(super) fn add(&mut self, index: u32, usage: Usage) {
        if index.is_multiple_of(self.n) {
            self.prompt_tokens = self.prompt_tokens.saturating_add(usage.prompt_tokens);
            self.cached_tokens = self.cached_tokens.saturating_add(usage.cached_tokens);
        }
        self.completion_tokens = self.completion_tokens.saturating_add(usage.output_tokens);
    }

    pub(super) fn body(&self) -> UsageBody {
        UsageBody {
            prompt_tokens: self.prompt_tokens,
            completion_tokens: self.completion_tokens,
            total_tokens: self.prompt_tokens.saturating_add(self.completion_tokens),
            prompt_tokens_details: PromptDetails { cached_tokens: self.cached_tokens },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shared_prompt_counts_once() {
        let usage = |cached_tokens, output_tokens| Usage {
            prompt_tokens: 10,
            cached_tokens,
            output_tokens,
        };
        // Two prompts, two choices each, ending in any order.
        let mut sum = UsageSum::new(2);
        for (index, usage) in
            [(1, usage(9, 1)), (0, usage(4, 2)), (3, usage(9, 3)), (2, usage(0, 4))]
        {
            sum.add(index, usage);
        }
        let body = sum.body();
        assert_eq!((body.prompt_tokens, body.completion_tokens, body.total_tokens), (20, 10, 30));
        assert_eq!(body.prompt_tokens_details.cached_tokens, 4);
    }
}
