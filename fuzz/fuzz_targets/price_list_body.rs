//! What must hold of any bytes as a price list: read or refused; what is read reads back, and is never rated above what
//! it would hold. The fuzz target runs it, and a test of the ledger over lists that it mutates itself.

use mintage_ledger::TokenUsage;
use mintage_ledger::price::{Bounds, Charge, PriceDocument, PriceVersion};

/// Whether it is a price list. Panics where what must hold does not.
pub(super) fn check(data: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(data) else { return false };
    let _ = PriceDocument::from_json(text);
    let Ok(document) = PriceDocument::from_toml(text) else { return false };
    let json = document.to_json().to_string();
    assert_eq!(PriceDocument::from_json(&json).as_ref(), Ok(&document));
    let names: Vec<String> = document.models.iter().map(|model| model.name.clone()).collect();
    let version = PriceVersion::new(document);
    let usage = TokenUsage {
        input: 1000,
        cached_input: 10,
        output: 7,
        thinking: 3,
        ..TokenUsage::default()
    };
    let bounds = Bounds {
        prompt_tokens: usage.prompt(),
        output_tokens: usage.completion(),
        explicit_cache: false,
        thinking: true,
        batch: false,
    };
    for (name, at_ms) in names.iter().zip([0, 1_800_000_000_000, u64::MAX].into_iter().cycle()) {
        let charge = Charge::Tokens { usage, batch: false };
        let ceiling = version.ceiling(name, at_ms, &bounds, 500);
        let free = ceiling.as_ref().map_or(0, |ceiling| ceiling.free_tokens);
        if let (Ok(ceiling), Ok(rated)) = (ceiling, version.rate(name, at_ms, &charge, free)) {
            assert!(rated.total <= ceiling.amount);
        }
    }
    true
}
