//! A settled request's usage, as the client sees it: the very numbers of the record.

use mintage_ledger::Amount;
use serde::{Serialize, Serializer};
use serde_json::value::RawValue;

use crate::openai::wire::{CompletionDetails, PromptDetails, UsageBody};
use crate::till::Settled;

/// Money as a JSON number with all its decimals: no float on the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cost(pub(super) Amount);

impl Serialize for Cost {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        RawValue::from_string(self.0.to_string())
            .map_err(serde::ser::Error::custom)?
            .serialize(serializer)
    }
}

/// `with_cost` where the request asked for it.
pub(super) fn body(settled: &Settled, with_cost: bool) -> UsageBody {
    let count = |tokens: u64| u32::try_from(tokens).unwrap_or(u32::MAX);
    let usage = &settled.usage;
    UsageBody {
        prompt_tokens: count(usage.prompt()),
        completion_tokens: count(usage.completion()),
        total_tokens: count(usage.total()),
        prompt_tokens_details: PromptDetails { cached_tokens: count(usage.cached_input) },
        completion_tokens_details: (usage.thinking > 0)
            .then(|| CompletionDetails { reasoning_tokens: count(usage.thinking) }),
        cost: settled.cost.filter(|_| with_cost).map(|(amount, _)| Cost(amount)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn money_is_written_exactly() {
        for text in ["0", "12.5", "0.000000000001", "9223372.036854775807"] {
            let amount: Amount = text.parse().unwrap();
            assert_eq!(serde_json::to_string(&Cost(amount)).unwrap(), text);
        }
    }
}
