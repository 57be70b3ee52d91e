//! Golden cases at every boundary of every form, properties over random lists and usage, hostile documents.

use std::sync::Arc;

use proptest::prelude::*;

use super::time::parse_instant;
use super::*;
use crate::{Amount, TokenUsage, UsageRecord};

const REFERENCE: &str = include_str!("../../../../prices.toml");
/// Noon in Shanghai, 2026-12-01: no window, no promotion.
const NOON_MS: u64 = 1_796_097_600_000;

fn version(text: &str) -> PriceVersion {
    match PriceDocument::from_toml(text) {
        Ok(document) => PriceVersion::new(document),
        Err(problems) => panic!("{problems:#?}"),
    }
}

/// A list of one model `m`.
fn one(model: &str) -> PriceVersion {
    version(&format!("[[model]]\nname = \"m\"\n{model}"))
}

/// Input, cached, explicit, created, output, thinking.
fn usage(tokens: [u64; 6]) -> TokenUsage {
    let [input, cached_input, explicit_cached, cache_created, output, thinking] = tokens;
    TokenUsage { input, cached_input, explicit_cached, cache_created, output, thinking }
}

fn tokens(list: [u64; 6]) -> Charge {
    Charge::Tokens { usage: usage(list), batch: false }
}

fn batch(list: [u64; 6]) -> Charge {
    Charge::Tokens { usage: usage(list), batch: true }
}

fn ms(text: &str) -> u64 {
    u64::try_from(parse_instant(text).unwrap()).unwrap() * 1000
}

fn cost(version: &PriceVersion, model: &str, at_ms: u64, charge: Charge) -> String {
    match version.rate(model, at_ms, &charge, 0) {
        Ok(rated) => {
            assert_eq!(rated.lines.iter().map(|line| line.amount).sum::<Amount>(), rated.total);
            rated.total.to_string()
        }
        Err(error) => error.to_string(),
    }
}

#[test]
fn tiers_hold_up_to_and_with_their_bound() {
    let list = version(REFERENCE);
    let check = |charge, expected: &str| {
        assert_eq!(cost(&list, "qwen-plus", NOON_MS, charge), expected, "{charge:?}");
    };
    // 0.8, 2.4 and 4.8 yuan a million tokens of input; 2, 20 and 48 of output.
    check(tokens([1, 0, 0, 0, 0, 0]), "0.0000008");
    check(tokens([127_999, 0, 0, 0, 1, 0]), "0.1024012");
    check(tokens([128_000, 0, 0, 0, 1, 0]), "0.102402");
    check(tokens([128_001, 0, 0, 0, 1, 0]), "0.3072224");
    check(tokens([255_999, 0, 0, 0, 1, 0]), "0.6144176");
    check(tokens([256_000, 0, 0, 0, 1, 0]), "0.61442");
    check(tokens([256_001, 0, 0, 0, 1, 0]), "1.2288528");
    check(tokens([1_000_000, 0, 0, 0, 1, 0]), "4.800048");
    check(
        tokens([1_000_001, 0, 0, 0, 1, 0]),
        "a prompt of 1000001 tokens is longer than the 1000000 that the price list covers for `qwen-plus`",
    );
    // Cached tokens count towards the tier: 0.2 a million in the first, 0.6 in the second.
    check(tokens([1, 127_999, 0, 0, 0, 0]), "0.0256006");
    check(tokens([1, 128_000, 0, 0, 0, 0]), "0.0768024");
    check(tokens([1, 0, 128_000, 0, 0, 0]), "0.3072024");
    check(tokens([1, 0, 0, 128_000, 0, 0]), "0.3072024");
    // Output does not.
    check(tokens([1, 0, 0, 0, 500_000, 0]), "1.0000008");
}

#[test]
fn a_request_that_thought_pays_for_its_answer_as_thinking() {
    let list = version(REFERENCE);
    assert_eq!(cost(&list, "qwen-plus", NOON_MS, tokens([0, 0, 0, 0, 100, 0])), "0.0002");
    assert_eq!(cost(&list, "qwen-plus", NOON_MS, tokens([0, 0, 0, 0, 100, 1])), "0.000808");
    assert_eq!(cost(&list, "qwen-plus", NOON_MS, tokens([0, 0, 0, 0, 0, 1])), "0.000008");
    let apart = one("input = 1\noutput = 2\nthinking = 8\nthinking_price = \"thinking_tokens\"");
    assert_eq!(cost(&apart, "m", NOON_MS, tokens([0, 0, 0, 0, 100, 1])), "0.000208");
    // Without a price of its own thinking costs what an answer does.
    let plain = one("input = 1\noutput = 2");
    assert_eq!(cost(&plain, "m", NOON_MS, tokens([0, 0, 0, 0, 0, 3])), "0.000006");
}

#[test]
fn each_class_of_input_has_its_price() {
    let list = version(REFERENCE);
    let check = |charge, expected: &str| {
        assert_eq!(cost(&list, "default", NOON_MS, charge), expected, "{charge:?}");
    };
    // An alias of the 0.5B model: 0.3, 20 %, 10 %, 125 %, 0.6.
    check(tokens([1_000_000, 0, 0, 0, 0, 0]), "0.3");
    check(tokens([0, 1_000_000, 0, 0, 0, 0]), "0.06");
    check(tokens([0, 0, 1_000_000, 0, 0, 0]), "0.03");
    check(tokens([0, 0, 0, 1_000_000, 0, 0]), "0.375");
    check(tokens([0, 0, 0, 0, 1_000_000, 0]), "0.6");
    check(tokens([0; 6]), "0");
    // 15 and 187.5 nano-yuan a token: what micro-units could not say.
    assert_eq!(cost(&list, "qwen-flash", NOON_MS, tokens([1_000, 0, 1, 1, 0, 0])), "0.0001502025");
    // A price without a name for cached tokens is no discount.
    let plain = one("input = 1\noutput = 2");
    assert_eq!(cost(&plain, "m", NOON_MS, tokens([1, 1, 1, 1, 0, 0])), "0.000004");
}

#[test]
fn batches_stack_with_what_their_list_says() {
    let list = version(REFERENCE);
    // Half of the plain price, cached tokens as computed ones.
    assert_eq!(cost(&list, "default", NOON_MS, batch([0, 500_000, 0, 500_000, 0, 0])), "0.15");
    assert_eq!(cost(&list, "default", NOON_MS, batch([0, 0, 0, 0, 1_000_000, 0])), "0.3");
    // At night a batch keeps its price; in the promotion this one has both.
    let night = ms("2026-12-01T03:00:00+08:00");
    let launch = ms("2027-01-15T12:00:00+08:00");
    assert_eq!(cost(&list, "qwen-flash", night, batch([1_000_000, 0, 0, 0, 0, 0])), "0.075");
    assert_eq!(cost(&list, "qwen-flash", launch, batch([1_000_000, 0, 0, 0, 0, 0])), "0.06");
    let stacked = one("input = 1\noutput = 2\ncached_input = \"20%\"\n\
        batch = { factor = \"1/2\", stacks_with = [\"cache\"] }");
    assert_eq!(cost(&stacked, "m", NOON_MS, batch([0, 1_000_000, 0, 0, 0, 0])), "0.1");
    // Free quota is not for batches unless the list says so.
    let free = one("input = 1\noutput = 2\nbatch = { factor = \"1/2\" }\n\
        free_quota = { tokens = 5, days = 1 }");
    let rated = free.rate("m", NOON_MS, &batch([10, 0, 0, 0, 0, 0]), 5).unwrap();
    assert_eq!((rated.free_tokens, rated.total.to_string().as_str()), (0, "0.000005"));
    let bounds = Bounds {
        prompt_tokens: 10,
        output_tokens: 0,
        explicit_cache: false,
        thinking: false,
        batch: true,
    };
    assert_eq!(free.ceiling("m", NOON_MS, &bounds, 5).unwrap().free_tokens, 0);
    // A list without a batch price sells batches at the plain one.
    assert_eq!(cost(&list, "qwen-plus", NOON_MS, batch([1_000, 0, 0, 0, 0, 0])), "0.0008");
}

#[test]
fn windows_begin_and_end_on_their_second() {
    let list = version(REFERENCE);
    let check = |at: &str, expected: &str| {
        let charge = tokens([1_000_000, 0, 0, 0, 1_000_000, 0]);
        assert_eq!(cost(&list, "qwen-flash", ms(at), charge), expected, "{at}");
    };
    let (day, night) = ("1.65", "0.45");
    check("2026-12-01T00:29:59+08:00", day);
    check("2026-12-01T00:30:00+08:00", night);
    check("2026-12-01T08:29:59+08:00", night);
    check("2026-12-01T08:30:00+08:00", day);
    // The same seconds elsewhere on earth.
    check("2026-11-30T16:29:59Z", day);
    check("2026-11-30T16:30:00Z", night);
    // What the window does not name keeps its price.
    let created = tokens([0, 0, 0, 1_000_000, 0, 0]);
    assert_eq!(cost(&list, "qwen-flash", ms("2026-12-01T01:00:00+08:00"), created), "0.1875");
    // The last millisecond before a bound is before it.
    let end = ms("2026-12-01T08:30:00+08:00");
    assert_eq!(cost(&list, "qwen-flash", end - 1, tokens([1_000_000, 0, 0, 0, 0, 0])), "0.075");
    // Over midnight, west of Greenwich.
    let west = version(
        "time_zone = \"-05:00\"\n[[model]]\nname = \"m\"\ninput = 1\noutput = 1\n\
         [[model.window]]\nfrom = \"22:00\"\nto = \"02:00\"\nfactor = 2\n\
         [[model.window]]\nfrom = \"02:00\"\nto = \"22:00\"\nfactor = 3\n",
    );
    for (at, expected) in [
        ("2026-12-02T02:59:59Z", "3"),
        ("2026-12-02T03:00:00Z", "2"),
        ("2026-12-02T06:59:59Z", "2"),
        ("2026-12-02T07:00:00Z", "3"),
    ] {
        let charge = tokens([1_000_000, 0, 0, 0, 0, 0]);
        assert_eq!(cost(&west, "m", ms(at), charge), expected, "{at}");
    }
}

#[test]
fn promotions_begin_and_end_on_their_second() {
    let list = version(REFERENCE);
    let check = |at: &str, expected: &str| {
        let charge = tokens([1_000_000, 0, 0, 0, 0, 0]);
        assert_eq!(cost(&list, "qwen-flash", ms(at), charge), expected, "{at}");
    };
    check("2026-12-31T23:59:59+08:00", "0.15");
    check("2027-01-01T00:00:00+08:00", "0.12");
    // With the window: 0.15 × 1/2 × 4/5.
    check("2027-01-01T00:30:00+08:00", "0.06");
    check("2027-01-31T23:59:59+08:00", "0.12");
    check("2027-02-01T00:00:00+08:00", "0.15");
}

#[test]
fn a_minimum_lifts_what_costs_something() {
    let list = one("input = 1\noutput = 2\nminimum_charge = \"0.0001\"");
    let check = |charge, expected: &str| assert_eq!(cost(&list, "m", NOON_MS, charge), expected);
    // Usage of zero is billed zero; it is not taken for missing.
    check(tokens([0; 6]), "0");
    check(tokens([1, 0, 0, 0, 0, 0]), "0.0001");
    check(tokens([99, 0, 0, 0, 0, 0]), "0.0001");
    check(tokens([100, 0, 0, 0, 0, 0]), "0.0001");
    check(tokens([101, 0, 0, 0, 0, 0]), "0.000101");
    let rated = list.rate("m", NOON_MS, &tokens([99, 0, 0, 0, 0, 0]), 0).unwrap();
    let minimum = rated.lines.last().unwrap();
    assert_eq!((minimum.class, minimum.amount.pico()), (LineClass::Minimum, 1_000_000));
    // All of it free: nothing.
    let rated = list.rate("m", NOON_MS, &tokens([99, 0, 0, 0, 0, 0]), 99).unwrap();
    assert_eq!((rated.total, rated.free_tokens), (Amount::ZERO, 99));
    let rated = list.rate("m", NOON_MS, &tokens([99, 0, 0, 0, 0, 0]), 98).unwrap();
    assert_eq!(rated.total.to_string(), "0.0001");
}

#[test]
fn free_tokens_are_used_prompt_first() {
    let list = one(
        "input = 1\ncached_input = \"0.2\"\noutput = 4\nfree_quota = { tokens = 100, days = 1 }",
    );
    let check = |free, expected: &str, used| {
        let rated = list.rate("m", NOON_MS, &tokens([10, 10, 0, 0, 10, 0]), free).unwrap();
        assert_eq!(
            (rated.total.to_string().as_str(), rated.free_tokens),
            (expected, used),
            "{free}"
        );
    };
    check(0, "0.000052", 0);
    check(1, "0.000051", 1);
    check(10, "0.000042", 10);
    check(11, "0.0000418", 11);
    check(20, "0.00004", 20);
    check(29, "0.000004", 29);
    check(30, "0", 30);
    check(u64::MAX, "0", 30);
}

#[test]
fn free_quota_ends_on_its_second() {
    let list = version(REFERENCE);
    let opened = ms("2027-01-01T00:00:00Z");
    let grant = list.free_grant("qwen-flash", opened).unwrap();
    assert_eq!((grant.tokens, grant.expires_ms), (1_000_000, ms("2027-04-01T00:00:00Z")));
    assert_eq!(grant.left(grant.expires_ms - 1, 999_999), 1);
    assert_eq!(grant.left(grant.expires_ms, 0), 0);
    assert_eq!(grant.left(opened, 2_000_000), 0);
    // A date ends it earlier than the days would.
    let late = list.free_grant("qwen-flash", ms("2027-12-31T00:00:00Z")).unwrap();
    assert_eq!(late.expires_ms, ms("2028-01-01T00:00:00+08:00"));
    assert_eq!(list.free_grant("qwen-plus", opened), None);
}

#[test]
fn training_and_deployments_have_units_of_their_own() {
    let list = version(REFERENCE);
    let check = |charge, expected: &str| {
        assert_eq!(cost(&list, "qwen-flash", NOON_MS, charge), expected, "{charge:?}");
    };
    assert_eq!(training_tokens(900_000, 100_000, 3), Some(3_000_000));
    assert_eq!(training_tokens(u64::MAX, 1, 1), None);
    check(Charge::TrainingTokens(3_000_000), "60");
    check(Charge::TrainingTokens(1), "0.00002");
    check(Charge::TrainingTokens(0), "0");
    check(Charge::DeploymentMs(0), "0");
    check(Charge::DeploymentMs(1), "20");
    check(Charge::DeploymentMs(3_600_000), "20");
    check(Charge::DeploymentMs(3_600_001), "40");
    assert_eq!(
        cost(&list, "qwen-plus", NOON_MS, Charge::TrainingTokens(1)),
        "the price list `default` has no price for training of the model `qwen-plus`"
    );
    let only = one("[model.deployment]\nprice = \"0.01\"\nper = \"second\"");
    assert_eq!(cost(&only, "m", NOON_MS, Charge::DeploymentMs(1_001)), "0.02");
    assert!(cost(&only, "m", NOON_MS, tokens([1, 0, 0, 0, 0, 0])).contains("no price for tokens"));
}

#[test]
fn models_are_found_by_name_alias_and_star() {
    let list = version(REFERENCE);
    assert_eq!(cost(&list, "unheard-of", NOON_MS, tokens([1_000_000, 0, 0, 0, 0, 0])), "1");
    let strict = one("input = 1\noutput = 1");
    assert_eq!(
        cost(&strict, "n", NOON_MS, tokens([1, 0, 0, 0, 0, 0])),
        "the price list `prices` has no prices for the model `n`; add it, or a model `*` for all others"
    );
}

#[test]
fn what_no_posting_can_hold_is_refused() {
    let list = one("input = 1000000\noutput = 1000000");
    let most = 9_223_372;
    assert_eq!(cost(&list, "m", NOON_MS, tokens([most, 0, 0, 0, 0, 0])), most.to_string());
    for charge in [tokens([most + 1, 0, 0, 0, 0, 0]), tokens([u64::MAX; 6])] {
        let error = list.rate("m", NOON_MS, &charge, 0).unwrap_err();
        assert_eq!(error, PriceError::TooLarge);
    }
    let bounds = Bounds {
        prompt_tokens: u64::MAX,
        output_tokens: u64::MAX,
        explicit_cache: true,
        thinking: true,
        batch: false,
    };
    assert_eq!(list.ceiling("m", u64::MAX, &bounds, 0), Err(PriceError::TooLarge));
}

#[test]
fn a_ceiling_counts_the_dearest_that_can_come() {
    let list = version(REFERENCE);
    let check = |model, explicit_cache, thinking, free, expected: &str| {
        let bounds = Bounds {
            prompt_tokens: 1_000,
            output_tokens: 100,
            explicit_cache,
            thinking,
            batch: false,
        };
        let ceiling = list.ceiling(model, NOON_MS, &bounds, free).unwrap();
        assert_eq!(ceiling.amount.to_string(), expected, "{model}");
    };
    check("default", false, false, 0, "0.00036");
    check("default", true, false, 0, "0.000435");
    check("qwen-plus", false, false, 0, "0.001");
    check("qwen-plus", false, true, 0, "0.0016");
    check("qwen-flash", false, false, 0, "0.0003");
    check("qwen-flash", false, false, 1_000, "0.00015");
    check("qwen-flash", false, false, 1_050, "0.000075");
    check("qwen-flash", false, false, 1_100, "0");
}

#[test]
fn json_reads_back_as_the_same_document() {
    let list = PriceDocument::from_toml(REFERENCE).unwrap();
    let json = list.to_json().to_string();
    assert_eq!(PriceDocument::from_json(&json).unwrap(), list);
    insta::assert_snapshot!(serde_json::to_string_pretty(&list.to_json()).unwrap());
    // Notation is not content.
    let a = one("input = \"0.30\"\ncached_input = \"50%\"\noutput = 1");
    let b = version(
        "per_tokens = 1000 # a remark\n[[model]]\noutput = 0.001\ninput = 0.0003\ncached_input = 0.00015\nname = \"m\"",
    );
    assert_eq!(a.digest(), b.digest());
    assert_ne!(a.digest(), one("input = \"0.31\"\noutput = 1").digest());
}

#[test]
fn versions_hold_from_their_time_on() {
    let list = |price: u32| {
        PriceDocument::from_toml(&format!("[[model]]\nname = \"m\"\ninput = {price}\noutput = 1"))
            .unwrap()
    };
    let mut book = PriceBook::default();
    assert!(book.in_force_at(u64::MAX).is_none());
    let kept: Vec<PriceImport> = [(1, 100), (2, 200), (1, 300)]
        .into_iter()
        .map(|(price, now)| book.import(list(price), now).unwrap().unwrap())
        .collect();
    assert_eq!(book.import(list(1), 400), Ok(None), "nothing changes");
    let id = |at| book.in_force_at(at).map(|version| version.id().to_string());
    assert_eq!(id(99), None);
    assert_eq!(id(100), id(199));
    assert_ne!(id(199), id(200));
    assert_eq!(id(300), id(100), "an old list that holds again is the same version");
    let again = PriceBook::restore(kept.clone()).unwrap();
    assert_eq!(again.schedule(), book.schedule());
    let mut tampered = kept;
    tampered[0].document["model"][0]["tier"][0]["input"] = "9".into();
    assert!(matches!(PriceBook::restore(tampered), Err(ImportError::Damaged { .. })));
}

#[test]
fn the_past_keeps_its_prices() {
    let list = |from: &str, currency: &str| {
        let text = format!(
            "in_force_from = {from}\ncurrency = \"{currency}\"\n[[model]]\nname = \"m\"\ninput = 1\noutput = 1"
        );
        PriceDocument::from_toml(&text).unwrap()
    };
    let start = ms("2026-01-01T00:00:00Z");
    let mut book = PriceBook::default();
    book.import(list("2026-01-01T00:00:00Z", "CNY"), start + 5).unwrap().unwrap();
    assert!(book.in_force_at(start - 1).is_none());
    assert!(book.in_force_at(start).is_some(), "the first list may name the past");
    let late = book.import(list("2026-01-02T00:00:00Z", "CNY"), ms("2026-01-02T00:00:01Z"));
    assert!(matches!(late, Err(ImportError::Retroactive { .. })), "{late:?}");
    let foreign = book.import(list("2026-03-01T00:00:00Z", "EUR"), start + 6);
    assert!(matches!(foreign, Err(ImportError::OtherCurrency { .. })), "{foreign:?}");
    book.import(list("2026-03-01T00:00:00Z", "CNY"), start + 6).unwrap().unwrap();
    let change = ms("2026-03-01T00:00:00Z");
    assert_ne!(
        book.in_force_at(change - 1).map(|v| v.id().clone()),
        book.in_force_at(change).map(|v| v.id().clone())
    );
}

/// What is wrong with a list, as `line: message`.
fn problems(text: &str) -> String {
    match PriceDocument::from_toml(text) {
        Ok(_) => "none".to_owned(),
        Err(problems) => {
            let lines = problems.iter().map(|p| format!("{}: {}", p.line, p.message));
            lines.collect::<Vec<_>>().join("\n")
        }
    }
}

#[test]
fn hostile_numbers_are_refused_with_their_line() {
    let check =
        |value: &str| problems(&format!("[[model]]\nname = \"m\"\noutput = 1\ninput = {value}\n"));
    let all: Vec<String> = [
        "nan",
        "inf",
        "-inf",
        "\"NaN\"",
        "\"Infinity\"",
        "-0.5",
        "-1",
        "1e3",
        "\"1e-3\"",
        "0x10",
        "\"\"",
        "\"1,5\"",
        "\"٣\"",
        "0.0000001",
        "1000001",
        "99999999999999999999999999",
        "true",
        "[1]",
        "{ a = 1 }",
        "2026-01-01T00:00:00Z",
        "\"1111111111111111111111111111111111111111111111111111\"",
    ]
    .iter()
    .map(|value| format!("{value}\n    {}", check(value)))
    .collect();
    insta::assert_snapshot!(all.join("\n"));
}

/// What is wrong, and a list where it is.
const CONTRADICTIONS: &[(&str, &str)] = &[
    ("nothing", ""),
    ("no TOML", "[[model]\n"),
    ("a key twice", "[[model]]\nname = \"m\"\nname = \"n\"\ninput = 1\noutput = 1"),
    ("misspelt", "[[model]]\nname = \"m\"\ninptu = 1\ninput = 1\noutput = 1\nwindw = []"),
    ("no name", "[[model]]\ninput = 1\noutput = 1"),
    ("no output", "[[model]]\nname = \"m\"\ninput = 1"),
    ("no prices", "[[model]]\nname = \"m\""),
    (
        "twice",
        "[[model]]\nname = \"m\"\ninput = 1\noutput = 1\n[[model]]\nname = \"n\"\naliases = [\"m\"]\ninput = 1\noutput = 1",
    ),
    ("flat and tiers", "[[model]]\nname = \"m\"\ninput = 1\n[[model.tier]]\ninput = 1\noutput = 1"),
    (
        "gap",
        "[[model]]\nname = \"m\"\n[[model.tier]]\nup_to_tokens = 10\ninput = 1\noutput = 1\n[[model.tier]]\nover_tokens = 11\ninput = 1\noutput = 1",
    ),
    (
        "overlap",
        "[[model]]\nname = \"m\"\n[[model.tier]]\nup_to_tokens = 10\ninput = 1\noutput = 1\n[[model.tier]]\nover_tokens = 9\nup_to_tokens = 20\ninput = 1\noutput = 1",
    ),
    (
        "descending",
        "[[model]]\nname = \"m\"\n[[model.tier]]\nup_to_tokens = 10\ninput = 1\noutput = 1\n[[model.tier]]\nup_to_tokens = 10\ninput = 1\noutput = 1",
    ),
    (
        "open in the middle",
        "[[model]]\nname = \"m\"\n[[model.tier]]\ninput = 1\noutput = 1\n[[model.tier]]\nup_to_tokens = 10\ninput = 1\noutput = 1",
    ),
    ("no tier", "[[model]]\nname = \"m\"\ntier = []"),
    (
        "tier of zero",
        "[[model]]\nname = \"m\"\n[[model.tier]]\nup_to_tokens = 0\ninput = 1\noutput = 1",
    ),
    (
        "windows overlap",
        "[[model]]\nname = \"m\"\ninput = 1\noutput = 1\n[[model.window]]\nfrom = \"22:00\"\nto = \"02:00\"\nfactor = 1\n[[model.window]]\nfrom = \"01:59\"\nto = \"03:00\"\nfactor = 1",
    ),
    (
        "window inside",
        "[[model]]\nname = \"m\"\ninput = 1\noutput = 1\n[[model.window]]\nfrom = \"02:00\"\nto = \"03:00\"\nfactor = 1\n[[model.window]]\nfrom = \"01:00\"\nto = \"04:00\"\nfactor = 1",
    ),
    (
        "empty window",
        "[[model]]\nname = \"m\"\ninput = 1\noutput = 1\n[[model.window]]\nfrom = \"02:00\"\nto = \"02:00\"\nfactor = 1",
    ),
    (
        "no factor",
        "[[model]]\nname = \"m\"\ninput = 1\noutput = 1\n[[model.window]]\nfrom = \"02:00\"\nto = \"25:00\"",
    ),
    (
        "factors",
        "[[model]]\nname = \"m\"\ninput = 1\noutput = 1\n[model.batch]\nfactor = \"half\"\nstacks_with = [\"everything\"]",
    ),
    (
        "class factor",
        "[[model]]\nname = \"m\"\ninput = 1\noutput = 1\nbatch = { factor = { input = \"1/0\", outputs = 1 } }",
    ),
    (
        "promotions overlap",
        "[[model]]\nname = \"m\"\ninput = 1\noutput = 1\n[[model.promotion]]\nname = \"a\"\nstart = 2026-01-01T00:00:00Z\nend = 2026-02-01T00:00:00Z\nfactor = 1\n[[model.promotion]]\nstart = 2026-01-31T23:59:59Z\nend = 2026-03-01T00:00:00Z\nfactor = 1",
    ),
    (
        "promotion backwards",
        "[[model]]\nname = \"m\"\ninput = 1\noutput = 1\n[[model.promotion]]\nstart = 2026-01-01T00:00:00Z\nend = 2026-01-01T00:00:00Z\nfactor = 1",
    ),
    (
        "no zone",
        "[[model]]\nname = \"m\"\ninput = 1\noutput = 1\n[[model.promotion]]\nstart = 2026-01-01T00:00:00\nend = 2026-02-01\nfactor = 1",
    ),
    (
        "a fraction of a pico",
        "[[model]]\nname = \"m\"\ninput = \"0.000001\"\noutput = 1\nbatch = { factor = \"1/2\" }",
    ),
    (
        "a fraction in a product",
        "[[model]]\nname = \"m\"\ninput = \"0.000002\"\noutput = 4\nbatch = { factor = \"1/2\", stacks_with = [\"window\"] }\nwindow = [{ from = \"01:00\", to = \"02:00\", factor = \"1/2\" }]",
    ),
    (
        "not in a product",
        "[[model]]\nname = \"m\"\ninput = \"0.000002\"\noutput = 4\nbatch = { factor = \"1/2\" }\nwindow = [{ from = \"01:00\", to = \"02:00\", factor = \"1/2\" }]",
    ),
    (
        "a share with a fraction",
        "[[model]]\nname = \"m\"\ninput = \"0.000001\"\ncached_input = \"20%\"\noutput = 1",
    ),
    (
        "quota for ever",
        "[[model]]\nname = \"m\"\ninput = 1\noutput = 1\nfree_quota = { tokens = 5 }",
    ),
    (
        "units",
        "per_tokens = 10\ncurrency = \"yuan\"\ntime_zone = \"CST\"\nformat = 2\n[[model]]\nname = \"m\"\n[model.deployment]\nprice = 1\nper = \"day\"",
    ),
    ("wrong kinds", "name = 5\nmodel = 5"),
    (
        "wrong kinds below",
        "[[model]]\nname = [\"m\"]\naliases = \"x\"\nbatch = 1\ninput = 1\noutput = 1\ntraining = {}",
    ),
];

#[test]
fn contradictions_are_refused_with_their_line() {
    let all: Vec<String> = CONTRADICTIONS
        .iter()
        .map(|(what, text)| format!("{what}\n    {}", problems(text).replace('\n', "\n    ")))
        .collect();
    insta::assert_snapshot!(all.join("\n"));
}

#[test]
fn masses_are_refused() {
    let tier = "[[model.tier]]\nup_to_tokens = 1\ninput=1\noutput=1\n";
    let check = |text: String, expected: &str| {
        let found = problems(&text);
        assert!(found.contains(expected), "{}", &found[..found.len().min(500)]);
    };
    check(
        format!("[[model]]\nname = \"m\"\n{}", tier.repeat(1_000_000)),
        "bytes; a price list may have",
    );
    check(
        format!("[[model]]\nname = \"m\"\n{}", tier.repeat(10_000)),
        "259: 10000 of `tier`; at most 64",
    );
    check("[[model]]\n".repeat(60_000), "2001: 60000 of `model`; at most 2000 are taken");
    check(format!("x = {}1{}", "[".repeat(100_000), "]".repeat(100_000)), "1: ");
    check(format!("x = {}1{}", "{a=".repeat(100_000), "}".repeat(100_000)), "1: ");
    let keys: String = (0..50_000).map(|i| format!("k{i} = 1\n")).collect();
    assert_eq!(problems(&keys).lines().count(), 20);
    let windows = "{from=\"00:00\",to=\"01:00\",factor=1},".repeat(1_000);
    check(
        format!("[[model]]\nname=\"m\"\ninput=1\noutput=1\nwindow=[{windows}]"),
        "1000 of `window`",
    );
}

/// A list within the rules whose prices divide by 8, and factors that divide 8.
fn lists() -> impl Strategy<Value = String> {
    let tier = (proptest::collection::vec(0_u32..50, 6), 1_u64..50);
    let factor = prop_oneof![Just("1/2"), Just("2"), Just("0"), Just("1"), Just("1/4")];
    let stacks = proptest::sample::subsequence(
        vec!["\"cache\"", "\"free_quota\"", "\"window\"", "\"promotion\""],
        0..=4,
    );
    let parts = (
        proptest::collection::vec(tier, 1..4),
        (factor.clone(), factor.clone(), factor),
        stacks,
        prop_oneof![Just("whole_output"), Just("thinking_tokens")],
        0_u32..200,
        any::<bool>(),
    );
    parts.prop_map(|(tiers, (batch, window, promotion), stacks, thinking, minimum, open)| {
        let mut text = format!(
            "[[model]]\nname = \"m\"\nthinking_price = \"{thinking}\"\nminimum_charge = \"0.{minimum:06}\"\n\
             batch = {{ factor = \"{batch}\", stacks_with = [{}] }}\n\
             window = [{{ from = \"22:00\", to = \"06:00\", factor = \"{window}\" }}]\n\
             promotion = [{{ start = 2026-01-01T00:00:00Z, end = 2026-06-01T00:00:00Z, factor = {{ input = \"{promotion}\", output = \"1/2\" }} }}]\n",
            stacks.join(",")
        );
        let (mut bound, count) = (0, tiers.len());
        for (index, (prices, length)) in tiers.iter().enumerate() {
            bound += length;
            text += "[[model.tier]]\n";
            if index + 1 < count || !open {
                text += &format!("up_to_tokens = {bound}\n");
            }
            for (class, price) in TokenClass::ALL.iter().zip(prices) {
                text += &format!("{} = {}\n", class.key(), price * 8);
            }
        }
        text
    })
}

/// Small counts: the bounds of tiers are near.
fn usages() -> impl Strategy<Value = TokenUsage> {
    proptest::array::uniform6(prop_oneof![Just(0_u64), 0_u64..40]).prop_map(usage)
}

/// Times inside and outside of the window and the promotion.
fn times() -> impl Strategy<Value = u64> {
    (0_u64..600).prop_map(|hours| ms("2025-12-20T00:00:00Z") + hours * 3_599_999)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(400) })]

    #[test]
    fn a_rate_never_exceeds_its_ceiling(
        list in lists(), used in usages(), spare in proptest::array::uniform2(0_u64..20), at in times(),
        is_batch in any::<bool>(), free in 0_u64..100,
    ) {
        let list = version(&list);
        let bounds = Bounds {
            prompt_tokens: used.prompt() + spare[0],
            output_tokens: used.completion() + spare[1],
            explicit_cache: used.explicit_cached + used.cache_created > 0,
            thinking: used.thinking > 0,
            batch: is_batch,
        };
        let Ok(ceiling) = list.ceiling("m", at, &bounds, free) else { return Ok(()) };
        let charge = Charge::Tokens { usage: used, batch: is_batch };
        let rated = list.rate("m", at, &charge, ceiling.free_tokens).unwrap();
        prop_assert!(rated.total <= ceiling.amount, "{rated:?} above {ceiling:?}");
        prop_assert!(rated.free_tokens <= ceiling.free_tokens);
        prop_assert!(ceiling.free_tokens <= free);
        // Holding more free tokens than given would sell them twice.
        prop_assert!(!rated.total.is_negative());
    }

    #[test]
    fn lines_hold_every_token_once(list in lists(), used in usages(), at in times(), free in 0_u64..100) {
        let list = version(&list);
        let charge = Charge::Tokens { usage: used, batch: false };
        let Ok(rated) = list.rate("m", at, &charge, free) else { return Ok(()) };
        let count = |classes: &[TokenClass]| -> u64 {
            let of = |line: &&RatedLine| matches!(line.class, LineClass::Tokens(class) if classes.contains(&class));
            rated.lines.iter().filter(of).map(|line| line.quantity).sum()
        };
        prop_assert_eq!(count(&TokenClass::ALL[..4]), used.prompt());
        prop_assert_eq!(count(&TokenClass::ALL[4..]), used.completion());
        prop_assert_eq!(rated.lines.iter().map(|line| line.free).sum::<u64>(), rated.free_tokens);
        prop_assert_eq!(rated.free_tokens, free.min(used.total()));
        for line in &rated.lines {
            let charged = i128::from(line.quantity - line.free) * i128::from(line.pico_per_unit);
            prop_assert_eq!(line.amount.pico(), charged);
        }
        // Rating again with the free tokens that the record keeps changes nothing.
        prop_assert_eq!(list.rate("m", at, &charge, rated.free_tokens).unwrap(), rated);
    }

    #[test]
    fn one_more_sampled_token_never_costs_less(list in lists(), used in usages(), at in times(), free in 0_u64..50) {
        let list = version(&list);
        let more = [
            TokenUsage { output: used.output + 1, ..used },
            // The first thought can change the answer's price: from then on it only grows.
            TokenUsage { thinking: used.thinking + u64::from(used.thinking > 0), ..used },
        ];
        let rate = |usage| list.rate("m", at, &Charge::Tokens { usage, batch: false }, free).map(|r| r.total);
        let Ok(before) = rate(used) else { return Ok(()) };
        for usage in more {
            prop_assert!(rate(usage).unwrap() >= before);
        }
        // And a free token never makes it dearer.
        let charge = Charge::Tokens { usage: used, batch: false };
        prop_assert!(list.rate("m", at, &charge, free + 1).unwrap().total <= before);
    }

    #[test]
    fn any_text_is_read_or_refused(text in "[\\[\\]{}a-z0-9_=.\"\\n -]{0,200}") {
        let _ = PriceDocument::from_toml(&text);
        let _ = PriceDocument::from_json(&text);
    }

    #[test]
    fn lists_survive_json(list in lists()) {
        let list = PriceDocument::from_toml(&list).unwrap();
        prop_assert_eq!(PriceDocument::from_json(&list.to_json().to_string()).unwrap(), list);
    }
}

#[test]
fn differences_are_told_by_path() {
    let list = PriceDocument::from_toml(REFERENCE).unwrap();
    assert_eq!(diff(&list, &list), []);
    let text = REFERENCE
        .replacen("input = \"0.3\"", "input = \"0.06\"", 1)
        .replacen("up_to_tokens = 256_000", "up_to_tokens = 300_000", 1)
        .replacen("factor = \"80%\"", "factor = \"70%\"", 1)
        .replacen("aliases = [\"smollm2:135m\"]", "aliases = []", 1);
    let cheaper = PriceDocument::from_toml(&text).unwrap();
    let show = |change: &PriceChange| {
        let side = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
        let (before, after) = (side(&change.before), side(&change.after));
        format!("{}: {before} → {after} ({:?} ‰)", change.path, change.permille())
    };
    let changes: Vec<String> = diff(&list, &cheaper).iter().map(show).collect();
    insta::assert_snapshot!(changes.join("\n"));
}

#[test]
fn what_if_the_list_were_another() {
    let (list, mut records) = (Arc::new(version(REFERENCE)), Vec::new());
    for n in 0..500_u64 {
        let mut record = UsageRecord::default();
        record.facts.payer.org = Arc::from(format!("org{}", n % 3));
        record.facts.model =
            Arc::from(["default", "qwen-plus", "qwen-flash", "unheard-of"][(n % 4) as usize]);
        record.facts.arrival_ms = NOON_MS + n * 3_600_000;
        record.facts.batch = n % 7 == 0;
        record.usage = usage([n * 601 % 200_000, n % 100, 0, 0, n * 7 % 4_000, n % 2]);
        record.free_tokens = if n % 5 == 0 { 100 } else { 0 };
        let rated = list.rate_record(&record).unwrap();
        (record.amount, record.free_tokens) = (rated.total, rated.free_tokens);
        records.push(record);
    }
    let under = |list: &Arc<PriceVersion>| {
        let mut whatif = WhatIf::new(Arc::clone(list));
        records.iter().for_each(|record| whatif.add(record));
        whatif
    };
    let same = under(&list);
    assert_eq!(same.total().before, same.total().after);
    for row in same.by_model().values().chain(same.by_organisation().values()) {
        assert_eq!((row.before, row.unpriced), (row.after, 0));
    }
    let sum: Amount = same.by_organisation().values().map(|row| row.before).sum();
    assert_eq!((sum, same.total().records), (same.total().before, 500));
    let strict = Arc::new(one("input = 1\noutput = 1"));
    let lost = under(&strict).total();
    assert_eq!((lost.unpriced, lost.after), (500, Amount::ZERO));
}
