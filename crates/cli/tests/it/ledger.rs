//! `mintage ledger`, from an empty folder to a damaged one.

use mintage_ledger::{Amount, Currency, Ledger, UsageRecord};

use crate::Home;

/// A top-up and two postings.
fn fill(home: &Home) {
    let ledger = Ledger::open(&home.path().join("data/ledger")).unwrap();
    ledger.topup("t1", "acme", Currency::CNY, Amount::from_units(5)).unwrap().wait().unwrap();
    for id in ["r1", "r2"] {
        let mut record = UsageRecord { amount: Amount::from_units(1), ..UsageRecord::default() };
        record.facts.id = id.into();
        record.facts.payer.org = "acme".into();
        ledger.charge(record).unwrap().wait().unwrap();
    }
}

#[test]
fn a_ledger_is_verified_backed_up_and_restored() {
    let home = Home::new();
    let nothing = home.transcript(&["ledger", "verify"]);
    assert!(nothing.contains("there is no ledger in HOME/data/ledger"), "{nothing}");
    fill(&home);
    let (status, verified, _) = home.run(&["ledger", "verify"]);
    assert_eq!(status, 0);
    assert!(
        verified.starts_with("verified: 3 lines, 2 usage records, 0 documents, 0 open marks\n")
    );

    let (status, exported, _) = home.run(&["ledger", "export"]);
    let lines: Vec<serde_json::Value> =
        exported.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((status, lines.len()), (0, 5));
    assert_eq!((&lines[1]["debit"], &lines[1]["credit"]), (&"org/acme".into(), &"revenue".into()));
    assert_eq!(lines[4]["usage_record"]["id"], "r2");

    assert_eq!(home.run(&["ledger", "backup", "copy.sqlite"]).0, 0);
    let twice = home.transcript(&["ledger", "backup", "copy.sqlite"]);
    assert!(twice.starts_with("status 1") && twice.contains("nothing is overwritten"), "{twice}");
    let copy = home.path().join("copy.sqlite");
    let over = home.transcript(&["ledger", "restore", "copy.sqlite"]);
    assert!(over.starts_with("status 1"), "{over}");

    let other = Home::new();
    let (status, restored, _) = other.run(&["ledger", "restore", copy.to_str().unwrap()]);
    assert_eq!((status, restored), (0, format!("restored and {verified}")));
    assert_eq!(other.run(&["ledger", "export"]).1, exported);
    let ledger = Ledger::open(&other.path().join("data/ledger")).unwrap();
    assert_eq!(ledger.balance("acme", Currency::CNY).balance, Amount::from_units(3));
}

#[test]
fn a_damaged_ledger_says_where_and_is_not_backed_up() {
    let home = Home::new();
    fill(&home);
    let path = home.path().join("data/ledger/ledger.sqlite");
    let mut bytes = std::fs::read(&path).unwrap();
    // One digit of an account's sum: SQLite itself has no way to notice.
    let at = bytes.windows(13).position(|window| window == b"5000000000000").unwrap();
    bytes[at] = b'6';
    std::fs::write(&path, bytes).unwrap();
    let (status, _, message) = home.run(&["ledger", "verify"]);
    assert_eq!(status, 1);
    assert!(message.contains("are not those of the log"), "{message}");
    assert_eq!(home.run(&["ledger", "backup", "copy.sqlite"]).0, 1);
    assert!(!home.path().join("copy.sqlite").exists());
}
