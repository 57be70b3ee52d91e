//! A price list of one line, and requests made from it.

use std::path::Path;
use std::sync::Arc;

use mintage_ledger::{
    Admission, Amount, Ask, Currency, Hold, Ledger, Outcome, Payer, Quote, Rating, RequestFacts,
    TokenUsage,
};

/// Each token costs this, in pico.
pub(crate) const PICO_PER_TOKEN: i128 = 1_000_000;

/// One price for every token; free quota pays first.
pub(crate) struct FlatPrice;

impl FlatPrice {
    fn price(tokens: u64, free: u64) -> Quote {
        let free_tokens = tokens.min(free);
        let amount = Amount::from_pico(i128::from(tokens - free_tokens) * PICO_PER_TOKEN);
        Quote { amount, free_tokens }
    }
}

impl Rating for FlatPrice {
    fn version(&self) -> Arc<str> {
        "flat-1".into()
    }

    fn currency(&self) -> Currency {
        Currency::CNY
    }

    fn quote(&self, ask: &Ask, free_left: u64) -> Option<Quote> {
        let most = ask.prompt_tokens + ask.max_output_tokens * u64::from(ask.n);
        Some(Self::price(most, free_left))
    }

    fn rate(&self, _ask: &Ask, usage: &TokenUsage, free_reserved: u64) -> Option<Quote> {
        Some(Self::price(usage.total(), free_reserved))
    }
}

pub(crate) fn admission(id: &str, org: &str, prompt: u64, output: u64) -> Admission {
    let payer = Payer { org: org.into(), project: "p".into(), key: "k".into() };
    Admission {
        facts: RequestFacts {
            id: id.into(),
            payer,
            model: "m".into(),
            protocol: "openai.chat".into(),
            arrival_ms: 1,
            ..RequestFacts::default()
        },
        ask: Ask {
            prompt_tokens: prompt,
            max_output_tokens: output,
            n: 1,
            admitted_ms: 1,
            ..Ask::default()
        },
        rating: Arc::new(FlatPrice),
    }
}

pub(crate) fn admit(ledger: &Ledger, id: &str, prompt: u64, output: u64) -> Hold {
    ledger.admit(admission(id, "acme", prompt, output), |_| Ok::<(), ()>(())).unwrap()
}

pub(crate) fn usage(input: u64, output: u64) -> TokenUsage {
    TokenUsage { input, output, ..TokenUsage::default() }
}

pub(crate) fn ended() -> Outcome {
    Outcome { first_token_ms: 2, end_ms: 3, finish: "stop".into(), ..Outcome::default() }
}

pub(crate) fn tokens(count: u64) -> Amount {
    Amount::from_pico(i128::from(count) * PICO_PER_TOKEN)
}

/// A ledger where `acme` can pay for `count` tokens.
pub(crate) fn funded(folder: &Path, count: u64) -> Ledger {
    let ledger = Ledger::open(folder).unwrap();
    ledger.topup("t1", "acme", Currency::CNY, tokens(count)).unwrap().wait().unwrap();
    ledger
}
