//! From a price list to an invoice, through the ledger: what was admitted, settled, posted and invoiced is one sum.

use std::sync::Arc;

use mintage_ledger::invoice::{self, KeptInvoiceError, Month};
use mintage_ledger::price::{KeptError, KeptPrices, PriceDocument, RequestKind, WhatIf};
use mintage_ledger::{
    Admission, Amount, Ask, Currency, Ledger, Outcome, Payer, RequestFacts, Together, TokenUsage,
    UsageFilter,
};

const REFERENCE: &str = include_str!("../../../../prices.toml");
/// 2026-11-01 in Shanghai.
const NOVEMBER_MS: u64 = 1_793_462_400_000;
const DAY_MS: u64 = 86_400_000;
const PLAIN: RequestKind = RequestKind { explicit_cache: false, thinking: true };

fn list(text: &str) -> PriceDocument {
    PriceDocument::from_toml(text).unwrap()
}

fn month(text: &str) -> Month {
    Month::parse(text, 480).unwrap()
}

/// A ledger with the reference list in force, money and free quota for `acme`.
fn opened(folder: &std::path::Path) -> (Ledger, KeptPrices) {
    let ledger = Ledger::open(folder).unwrap();
    let prices = KeptPrices::open(&ledger).unwrap();
    prices.import(&ledger, list(REFERENCE), NOVEMBER_MS - DAY_MS).unwrap().unwrap();
    ledger.topup("t", "acme", Currency::CNY, Amount::from_units(1_000)).unwrap().wait().unwrap();
    let version = Arc::clone(prices.book().in_force_at(NOVEMBER_MS).unwrap());
    for (id, terms) in version.grants("acme", NOVEMBER_MS) {
        ledger.grant(&id, &id, terms).unwrap().wait().unwrap();
    }
    (ledger, prices)
}

/// One request, admitted and settled `at_ms`.
fn serve(ledger: &Ledger, prices: &KeptPrices, n: u64, model: &str, at_ms: u64) -> Amount {
    let payer =
        Payer { org: "acme".into(), project: format!("p{}", n % 2).into(), key: "k".into() };
    let facts = RequestFacts {
        id: format!("r{at_ms}-{n}").into(),
        payer,
        model: model.into(),
        batch: n.is_multiple_of(5),
        arrival_ms: at_ms,
        ..RequestFacts::default()
    };
    let ask = Ask {
        prompt_tokens: n * 997 % 150_000 + 1,
        max_output_tokens: 400,
        n: 1,
        batch: facts.batch,
        admitted_ms: at_ms,
    };
    let rating = prices.rating(model, at_ms, PLAIN).unwrap();
    let hold = ledger.admit(Admission { facts, ask, rating }, |_| Ok::<(), ()>(())).unwrap();
    let cached_input = ask.prompt_tokens / 3;
    let usage = TokenUsage {
        input: ask.prompt_tokens - cached_input,
        cached_input,
        output: n % 300,
        thinking: n % 100,
        ..TokenUsage::default()
    };
    let outcome = Outcome { end_ms: at_ms + 5, finish: "stop".into(), ..Outcome::default() };
    ledger.settle(hold, usage, outcome, Together::default()).wait().unwrap().record.amount
}

const MODELS: [&str; 4] = ["default", "qwen-plus", "qwen-flash", "unheard-of"];

#[test]
fn prices_postings_and_invoices_are_one_sum() {
    let folder = tempfile::tempdir().unwrap();
    let (ledger, prices) = opened(folder.path());
    let mut november = 0;
    for n in 0..120 {
        let (model, at_ms) = (MODELS[(n % 4) as usize], NOVEMBER_MS + n * 3_600_000);
        november += serve(&ledger, &prices, n, model, at_ms).pico();
    }
    // The price changes in the middle of the month; records keep theirs.
    let cheaper = REFERENCE.replace("input = \"0.8\"", "input = \"0.16\"");
    let change_ms = NOVEMBER_MS + 10 * DAY_MS;
    prices.import(&ledger, list(&cheaper), change_ms).unwrap().unwrap();
    let late = serve(&ledger, &prices, 3, "qwen-plus", change_ms).pico();
    let early = serve(&ledger, &prices, 3, "qwen-plus", change_ms - 1).pico();
    assert!(late < early);
    november += late + early;
    let december = serve(&ledger, &prices, 7, "default", NOVEMBER_MS + 30 * DAY_MS);

    let balance = ledger.balance("acme", Currency::CNY);
    let spent = Amount::from_units(1_000).pico() - balance.balance.pico();
    assert_eq!(spent, november + december.pico());
    assert_eq!(balance.held, Amount::ZERO);
    let now_ms = NOVEMBER_MS + 90 * DAY_MS;
    let issue = |text| invoice::issue(&ledger, &prices.book(), "acme", month(text), now_ms);
    let first = issue("2026-11").unwrap();
    assert_eq!((first.total.pico(), first.records), (november, 122));
    let free: u64 = first.lines.iter().map(|line| line.free).sum();
    let records = ledger.usage(&UsageFilter::default()).unwrap();
    assert_eq!(free, records.iter().map(|(_, record)| record.free_tokens).sum::<u64>());
    assert!(free > 0, "the free quota was used");
    let second = issue("2026-12").unwrap();
    assert_eq!((second.total, second.carried_in), (december, first.carried_out));
    assert_eq!(issue("2026-11").unwrap(), first, "an issued invoice stays as it is");
    assert!(matches!(issue("2026-10"), Err(KeptInvoiceError::OutOfOrder { .. })));

    // Everything is there after a restart, and says the same.
    drop(ledger);
    let ledger = Ledger::open(folder.path()).unwrap();
    let prices = KeptPrices::open(&ledger).unwrap();
    assert_eq!(invoice::list(&ledger, Some("acme")).unwrap(), [first, second]);
    assert_eq!(invoice::list(&ledger, Some("other")).unwrap(), []);
    for (_, record) in ledger.usage(&UsageFilter::default()).unwrap() {
        let version = prices.book().version(&record.price_version).cloned().unwrap();
        let again = version.rate_record(&record).unwrap();
        assert_eq!((again.total, again.free_tokens), (record.amount, record.free_tokens));
    }
    let told = ledger.due_messages(now_ms, 10).unwrap();
    assert_eq!(told.iter().filter(|told| &*told.message.topic == "invoice.issued").count(), 2);
}

#[test]
fn a_credit_note_gives_the_money_back_once() {
    let folder = tempfile::tempdir().unwrap();
    let (ledger, prices) = opened(folder.path());
    for n in 0..20 {
        serve(&ledger, &prices, n * 4 + 1, "qwen-plus", NOVEMBER_MS + n);
    }
    let now_ms = NOVEMBER_MS + 40 * DAY_MS;
    let issued = invoice::issue(&ledger, &prices.book(), "acme", month("2026-11"), now_ms).unwrap();
    let before = ledger.balance("acme", Currency::CNY).balance;
    let coin: Amount = "0.01".parse().unwrap();
    let note = invoice::credit(&ledger, &issued.number, coin, "an outage", now_ms).unwrap();
    let after = ledger.balance("acme", Currency::CNY).balance;
    assert_eq!(after.pico() - before.pico(), coin.pico());
    let too_much = invoice::credit(&ledger, &issued.number, issued.payable, "again", now_ms);
    assert!(matches!(too_much, Err(KeptInvoiceError::Invoice(_))), "{too_much:?}");
    assert_eq!(ledger.balance("acme", Currency::CNY).balance, after);
    let (kept, notes) = invoice::get(&ledger, &issued.number).unwrap();
    assert_eq!((kept, notes), (issued, vec![note]));
    assert!(matches!(invoice::get(&ledger, "x"), Err(KeptInvoiceError::Unknown(_))));
    ledger.verify().unwrap();
}

#[test]
fn imports_are_kept_and_the_past_is_closed() {
    let folder = tempfile::tempdir().unwrap();
    let (ledger, prices) = opened(folder.path());
    assert!(prices.import(&ledger, list(REFERENCE), NOVEMBER_MS).unwrap().is_none());
    let past = format!("in_force_from = 2026-01-01T00:00:00Z\n{REFERENCE}");
    let refused = prices.import(&ledger, list(&past), NOVEMBER_MS);
    assert!(matches!(refused, Err(KeptError::Import(_))), "{refused:?}");
    assert!(prices.rating("default", NOVEMBER_MS - 2 * DAY_MS, PLAIN).is_none());
    drop(ledger);
    let ledger = Ledger::open(folder.path()).unwrap();
    let again = KeptPrices::open(&ledger).unwrap();
    assert_eq!(again.book().schedule(), prices.book().schedule());
}

#[test]
fn what_if_of_the_same_list_is_the_same_revenue() {
    let folder = tempfile::tempdir().unwrap();
    let (ledger, prices) = opened(folder.path());
    for n in 0..40 {
        serve(&ledger, &prices, n, MODELS[(n % 4) as usize], NOVEMBER_MS + n * 1_000_000);
    }
    let version = Arc::clone(prices.book().in_force_at(NOVEMBER_MS).unwrap());
    let mut same = WhatIf::new(version);
    for (_, record) in ledger.usage(&UsageFilter::default()).unwrap() {
        same.add(&record);
    }
    let total = same.total();
    assert_eq!((total.before, total.records, total.unpriced), (total.after, 40, 0));
    assert!(!total.before.is_zero());
}
