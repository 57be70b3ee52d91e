//! Prices, costs, usage and invoices from the command line.

use std::path::Path;

use crate::Home;

const REFERENCE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../prices.toml");

#[test]
fn lists_are_checked_line_by_line() {
    let home = Home::new();
    let check = |text: &str| {
        std::fs::write(home.path().join("p.toml"), text).unwrap();
        home.transcript(&["price", "check", "p.toml"])
    };
    insta::assert_snapshot!(check("[[model]]\nname = \"m\"\ninput = 1\noutput = 2\n"), @r"
    status 0
    p.toml is in order; models: 1, version 9260a60d018600ed
    ");
    insta::assert_snapshot!(check("[[model]]\nname = \"m\"\ninput = -1\nouput = 2\n"), @r"
    status 1
    error: p.toml:1: `output` is missing
           p.toml:3: `input`: `-1` is negative; prices start at 0
           p.toml:4: unknown key `ouput`; did you mean `output`?
    ");
    let (status, _, error) = home.run(&["price", "check", "nowhere.toml"]);
    assert_eq!(status, 1);
    assert!(error.contains("nowhere.toml cannot be read"), "{error}");
}

#[test]
fn a_list_is_imported_compared_and_replaced() {
    let home = Home::new();
    let (status, _, error) = home.run(&["price", "show"]);
    assert!(status == 1 && error.contains("mintage price import shipped"), "{error}");
    let (status, out, error) = home.run(&["price", "import", "shipped"]);
    assert_eq!(status, 0, "{error}");
    assert!(out.contains("holds from"), "{out}");
    assert_eq!(home.run(&["price", "import", "shipped"]).1, "this list is in force already\n");
    assert_eq!(
        home.run(&["price", "diff", "current", REFERENCE]).1,
        "the lists have the same prices\n"
    );
    let cheaper = std::fs::read_to_string(REFERENCE).unwrap().replace("\"0.8\"", "\"0.16\"");
    std::fs::write(home.path().join("new.toml"), cheaper).unwrap();
    insta::assert_snapshot!(home.run(&["price", "diff", "current", "new.toml"]).1, @r"
    WHAT                                             BEFORE  AFTER  CHANGE
    qwen-plus / tier up to 128000 / cache_created    0.8     0.16   -80.0 %
    qwen-plus / tier up to 128000 / explicit_cached  0.8     0.16   -80.0 %
    qwen-plus / tier up to 128000 / input            0.8     0.16   -80.0 %
    ");
    let past =
        "in_force_from = 2026-01-01T00:00:00Z\n[[model]]\nname = \"m\"\ninput = 1\noutput = 1\n";
    std::fs::write(home.path().join("past.toml"), past).unwrap();
    let (status, _, error) = home.run(&["price", "import", "past.toml"]);
    assert!(status == 1 && error.contains("in the past"), "{error}");
    assert_eq!(home.run(&["price", "import", "new.toml"]).0, 0);
    let (_, history, _) = home.run(&["price", "history"]);
    let states: Vec<_> =
        history.lines().skip(1).filter_map(|line| line.rsplit("  ").next()).collect();
    assert_eq!(states, ["past", "in force"], "{history}");
    let (_, shown, _) = home.run(&["price", "show"]);
    assert!(shown.contains("qwen-plus") && shown.contains("0.16"), "{shown}");
    let (_, json, _) = home.run(&["price", "show", "--json"]);
    assert_eq!(serde_json::from_str::<serde_json::Value>(&json).unwrap()["currency"], "CNY");
}

#[test]
fn where_nothing_was_used_nothing_is_invoiced() {
    let home = Home::new();
    let (status, usage, error) = home.run(&["usage", "--by", "org"]);
    assert_eq!((status, usage.lines().count()), (0, 1), "{usage}{error}");
    let (status, _, error) = home.run(&["invoice", "issue", "--month", "2026-01"]);
    assert!(status == 1 && error.contains("nobody used anything in 2026-01"), "{error}");
    let (status, _, error) = home.run(&["invoice", "show", "acme-2026-01"]);
    assert!(status == 1 && error.contains("there is no invoice `acme-2026-01`"), "{error}");
    let (status, out, error) = home.run(&["price", "whatif", "shipped", "--json"]);
    assert_eq!(status, 0, "{error}");
    let json: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!((&json["total"]["before"], &json["total"]["requests"]), (&"0".into(), &0.into()));
}

#[test]
fn costs_stand_beside_prices() {
    let home = Home::new();
    let report = r#"{"model": "qwen2.5-coder-0.5b-instruct-q4_k_m", "threads": 2, "load_s": 1, "weight_bytes": 1,
        "measured": [{"name": "prefill 512", "tokens_per_s": 500.0, "runs": []},
                     {"name": "decode, 16 users", "tokens_per_s": 100.0, "runs": []}]}"#;
    std::fs::write(home.path().join("speed.json"), report).unwrap();
    insta::assert_snapshot!(
        home.transcript(&["cost", "--per-hour", "0.18", "--utilisation", "50", "--bench", "speed.json"]), @r"
    status 0
    0.18 CNY an hour, at work 50 % of it; prices of the list `default`; CNY for a million tokens

    MODEL                               TOKENS  TOKENS/S  COST    LIST PRICE  MARGIN
    qwen2.5-coder-0.5b-instruct-q4_k_m  input   500.0     0.2000  0.3000      +33.3 %
    qwen2.5-coder-0.5b-instruct-q4_k_m  output  100.0     1.0000  0.6000      -66.7 %
    ");
    for (arguments, expected) in [
        (vec!["cost", "--per-hour", "1"], "say where the speeds come from"),
        (vec!["cost", "--per-hour", "nan", "--bench", "speed.json"], "a machine costs 0 or more"),
        (vec!["cost", "--per-hour", "1", "--bench", "nowhere.json"], "cannot be read"),
        (
            vec!["cost", "--per-hour", "1", "--server", "http://127.0.0.1:9", "--seconds", "1"],
            "is the server running?",
        ),
    ] {
        let (status, _, error) = home.run(&arguments);
        assert!(status == 1 && error.contains(expected), "{arguments:?}: {error}");
    }
    assert!(Path::new(REFERENCE).is_file());
}
