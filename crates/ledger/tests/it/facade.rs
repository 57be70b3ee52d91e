//! The facade's promises, one by one.

use std::sync::Arc;

use mintage_ledger::{
    AdmitError, Amount, Begin, Changes, Currency, Delivery, Document, GrantTerms, KeptAnswer,
    Ledger, LedgerError, Message, Refusal, Together, UsageFilter, UsageRecord,
};

use crate::rig::{admission, admit, ended, funded, tokens, usage};

#[test]
fn what_is_settled_is_there_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let ledger = funded(folder.path(), 1_000);
    let hold = admit(&ledger, "r1", 100, 50);
    let balance = ledger.balance("acme", Currency::CNY);
    assert_eq!((balance.held, balance.available()), (tokens(150), tokens(850)));
    let receipt = ledger.settle(hold, usage(100, 7), ended(), Together::default()).wait().unwrap();
    assert_eq!(receipt.record.amount, tokens(107));
    ledger.void(admit(&ledger, "r2", 100, 50));
    drop(admit(&ledger, "r3", 100, 50));
    for again in 0..2 {
        let ledger = if again == 0 { &ledger } else { &{ reopen_after(folder.path()) } };
        let balance = ledger.balance("acme", Currency::CNY);
        assert_eq!((balance.balance, balance.held), (tokens(893), Amount::ZERO), "{again}");
        let records = ledger.usage(&UsageFilter::default()).unwrap();
        assert_eq!(records.len(), 1);
        assert_eq!(records[0].1, receipt.record);
        assert_eq!(ledger.verify().unwrap().records, 1);
        if again == 0 {
            continue;
        }
        let other = UsageFilter { org: Some("other".into()), ..UsageFilter::default() };
        assert!(ledger.usage(&other).unwrap().is_empty());
    }
}

/// What a copy of the files says, as the first process still has them open.
fn reopen_after(folder: &std::path::Path) -> Ledger {
    let copy = tempfile::tempdir().unwrap().keep();
    for name in ["ledger.sqlite", "ledger.sqlite-wal"] {
        std::fs::copy(folder.join(name), copy.join(name)).unwrap();
    }
    Ledger::open(&copy).unwrap()
}

#[test]
fn one_process_at_a_time() {
    let folder = tempfile::tempdir().unwrap();
    let ledger = funded(folder.path(), 1);
    assert!(matches!(Ledger::open(folder.path()), Err(LedgerError::InUse(_))));
    drop(ledger);
    Ledger::open(folder.path()).unwrap();
}

#[test]
fn an_operation_acts_once() {
    let folder = tempfile::tempdir().unwrap();
    let ledger = funded(folder.path(), 10);
    let topup = |amount| ledger.topup("t1", "acme", Currency::CNY, amount);
    topup(tokens(10)).unwrap().wait().unwrap();
    assert_eq!(ledger.balance("acme", Currency::CNY).balance, tokens(10));
    let other = topup(tokens(11)).unwrap_err();
    assert!(matches!(other, LedgerError::Refused(Refusal::IdReused(_))), "{other}");
    drop(ledger);
    let ledger = Ledger::open(folder.path()).unwrap();
    ledger.topup("t1", "acme", Currency::CNY, tokens(10)).unwrap().wait().unwrap();
    assert_eq!(ledger.balance("acme", Currency::CNY).balance, tokens(10));
}

#[test]
fn refunds_never_exceed_their_posting() {
    let folder = tempfile::tempdir().unwrap();
    let ledger = funded(folder.path(), 100);
    let hold = admit(&ledger, "r1", 10, 10);
    ledger.settle(hold, usage(10, 10), ended(), Together::default()).wait().unwrap();
    ledger.refund("f1", "r1", tokens(15)).unwrap().wait().unwrap();
    for reopened in [false, true] {
        let (other, kept);
        let ledger = if reopened {
            other = reopen_after(folder.path());
            &other
        } else {
            kept = &ledger;
            kept
        };
        assert_eq!(ledger.balance("acme", Currency::CNY).balance, tokens(95));
        let error = ledger.refund("f2", "r1", tokens(6)).unwrap_err();
        assert!(
            matches!(error, LedgerError::Refused(Refusal::RefundExceedsPosting { .. })),
            "{error}"
        );
        assert!(matches!(ledger.refund("f3", "no", tokens(1)), Err(LedgerError::NoRecord(_))));
    }
}

#[test]
fn credit_lines_credits_and_adjustments() {
    let folder = tempfile::tempdir().unwrap();
    let ledger = Ledger::open(folder.path()).unwrap();
    let cny = Currency::CNY;
    let refused = ledger.admit(admission("r1", "acme", 1, 1), |_| Ok::<(), ()>(()));
    assert!(matches!(
        refused,
        Err(AdmitError::Refused(Refusal::InsufficientBalance { needed, .. })) if needed == tokens(2)
    ));
    ledger.credit_line("l1", "acme", cny, tokens(100)).unwrap().wait().unwrap();
    ledger.credit("c1", "acme", cny, tokens(10)).unwrap().wait().unwrap();
    ledger
        .adjust("a1", "acme", cny, Amount::from_pico(-tokens(30).pico()))
        .unwrap()
        .wait()
        .unwrap();
    let ledger = reopen_after(folder.path());
    let balance = ledger.balance("acme", cny);
    assert_eq!(balance.available(), tokens(80));
    assert_eq!(balance.balance.pico(), -tokens(20).pico());
    assert!(ledger.topup("t", "acme", cny, Amount::ZERO).is_err());
    assert!(ledger.topup("", "acme", cny, tokens(1)).is_err());
    ledger.verify().unwrap();
}

#[test]
fn free_quota_is_reserved_used_and_expires() {
    let folder = tempfile::tempdir().unwrap();
    let ledger = Ledger::open(folder.path()).unwrap();
    for (grant, tokens, expires_ms, model) in [
        ("late", 100, 1_000, "m"),
        ("soon", 30, 500, "m"),
        ("past", 50, 1, "m"),
        ("other", 9, 999, "x"),
    ] {
        let terms =
            GrantTerms { org: "acme".into(), models: vec![model.into()], tokens, expires_ms };
        ledger.grant(grant, grant, terms).unwrap().wait().unwrap();
    }
    assert_eq!(ledger.free_left("acme", "m", 1), 130);
    assert_eq!(ledger.free_left("acme", "m", 500), 100);
    let hold = admit(&ledger, "r1", 10, 110);
    assert_eq!((hold.quote().free_tokens, ledger.free_left("acme", "m", 1)), (120, 10));
    let receipt = ledger.settle(hold, usage(10, 25), ended(), Together::default()).wait().unwrap();
    assert_eq!((receipt.record.free_tokens, receipt.record.amount), (35, Amount::ZERO));
    let ledger = reopen_after(folder.path());
    // The one that expires first was used first.
    assert_eq!((ledger.free_left("acme", "m", 1), ledger.free_left("acme", "m", 500)), (95, 95));
    assert!(ledger.admit(admission("r2", "acme", 96, 0), |_| Ok::<(), ()>(())).is_err());
    ledger.verify().unwrap();
}

#[test]
fn the_gate_and_the_hold_succeed_together() {
    let folder = tempfile::tempdir().unwrap();
    let ledger = funded(folder.path(), 10);
    let refused = ledger.admit(admission("r1", "acme", 5, 5), |quote| {
        assert_eq!(quote.amount, tokens(10));
        Err("too fast")
    });
    assert_eq!(refused.map(|_| ()), Err(AdmitError::Gate("too fast")));
    assert_eq!(ledger.balance("acme", Currency::CNY).held, Amount::ZERO);
    let mut asked = false;
    let refused = ledger.admit(admission("r1", "acme", 5, 6), |_| {
        asked = true;
        Ok::<(), ()>(())
    });
    assert!(refused.is_err() && !asked, "the gate is asked only where the money suffices");
    let hold = admit(&ledger, "r1", 5, 5);
    let twice = ledger.admit(admission("r1", "acme", 0, 0), |_| Ok::<(), ()>(()));
    assert!(matches!(twice, Err(AdmitError::Refused(Refusal::IdReused(_)))));
    ledger.void(hold);
}

#[test]
fn documents_have_versions_and_a_history() {
    let folder = tempfile::tempdir().unwrap();
    let ledger = Ledger::open(folder.path()).unwrap();
    let document = |id: &str, version, body: &str| Document {
        kind: "key".into(),
        id: id.into(),
        version,
        body: body.into(),
    };
    let write = |ledger: &Ledger, documents| {
        ledger.write(Changes { documents, ..Changes::default() }).map(|p| p.wait().unwrap())
    };
    write(&ledger, vec![document("a", 1, "one"), document("b", 1, "gone")]).unwrap();
    write(&ledger, vec![document("a", 2, "two"), document("b", 2, "")]).unwrap();
    for stale in [vec![document("a", 2, "x")], vec![document("c", 1, "x"), document("c", 3, "x")]] {
        assert!(matches!(write(&ledger, stale), Err(LedgerError::Conflict { .. })));
    }
    drop(ledger);
    let ledger = Ledger::open(folder.path()).unwrap();
    assert_eq!(ledger.documents("key").unwrap(), vec![document("a", 2, "two")]);
    assert_eq!(ledger.history("key", "b").unwrap().len(), 2);
    assert!(matches!(
        write(&ledger, vec![document("a", 2, "x")]),
        Err(LedgerError::Conflict { current: 2, .. })
    ));
    assert_eq!(ledger.verify().unwrap().documents, 4);
}

#[test]
fn messages_stay_until_they_are_delivered() {
    let folder = tempfile::tempdir().unwrap();
    let ledger = funded(folder.path(), 100);
    let message = Message { topic: "low".into(), body: b"{}".to_vec(), due_ms: 5 };
    let hold = admit(&ledger, "r1", 1, 1);
    let together = Together { messages: vec![message.clone()], ..Together::default() };
    ledger.settle(hold, usage(1, 1), ended(), together).wait().unwrap();
    assert!(ledger.due_messages(4, 10).unwrap().is_empty());
    let due = ledger.due_messages(5, 10).unwrap();
    assert_eq!((due.len(), due[0].attempts, &due[0].message), (1, 0, &message));
    let deliver = |delivery| {
        let deliveries = vec![(due[0].number, delivery)];
        ledger.write(Changes { deliveries, ..Changes::default() }).unwrap().wait().unwrap();
    };
    deliver(Delivery::RetryAt(9));
    assert!(ledger.due_messages(8, 10).unwrap().is_empty());
    assert_eq!(ledger.due_messages(9, 10).unwrap()[0].attempts, 1);
    ledger.verify().unwrap();
    deliver(Delivery::Done);
    assert!(ledger.due_messages(u64::MAX, 10).unwrap().is_empty());
}

#[test]
fn an_idempotency_key_answers_again_without_charge() {
    let folder = tempfile::tempdir().unwrap();
    let ledger = funded(folder.path(), 100);
    let (scope, key): (Arc<str>, Arc<str>) = ("p".into(), "once".into());
    let begin = |digest, now| ledger.begin(&scope, &key, [digest; 32], now).unwrap();
    let Begin::First(answering) = begin(1, 1) else { panic!("not the first") };
    assert!(matches!(begin(1, 1), Begin::InFlight));
    assert!(matches!(begin(2, 1), Begin::OtherBody));
    let hold = admit(&ledger, "r1", 1, 1);
    let answer = KeptAnswer {
        scope: scope.clone(),
        key: key.clone(),
        body_digest: [1; 32],
        answer: b"hello".to_vec(),
        expires_ms: 50,
    };
    let together = Together { answer: Some(answer), ..Together::default() };
    ledger.settle(hold, usage(1, 1), ended(), together).wait().unwrap();
    drop(answering);
    assert!(matches!(begin(1, 2), Begin::Again(answer) if answer == b"hello"));
    assert!(matches!(begin(2, 2), Begin::OtherBody));
    assert!(matches!(begin(1, 50), Begin::First(_)), "it has expired");
    ledger.verify().unwrap();
    // A request that failed leaves the key free.
    let other: Arc<str> = "other".into();
    let Begin::First(answering) = ledger.begin(&scope, &other, [1; 32], 1).unwrap() else {
        panic!("not the first")
    };
    drop(answering);
    assert!(matches!(ledger.begin(&scope, &other, [2; 32], 1).unwrap(), Begin::First(_)));
    assert!(ledger.begin(&scope, &"k".repeat(300).into(), [0; 32], 1).is_err());
}

#[test]
fn usage_without_a_hold_needs_the_money() {
    let folder = tempfile::tempdir().unwrap();
    let ledger = funded(folder.path(), 10);
    let mut record = UsageRecord {
        facts: admission("train-1", "acme", 0, 0).facts,
        amount: tokens(11),
        units: 5,
        quantity: mintage_ledger::Quantity::TrainingTokens,
        ..UsageRecord::default()
    };
    assert!(ledger.charge(record.clone()).is_err());
    record.amount = tokens(10);
    ledger.charge(record.clone()).unwrap().wait().unwrap();
    assert_eq!(ledger.balance("acme", Currency::CNY).balance, Amount::ZERO);
    assert_eq!(ledger.usage(&UsageFilter::default()).unwrap()[0].1, record);
}

#[test]
fn a_marked_hold_is_posted_at_its_mark_after_a_crash() {
    let folder = tempfile::tempdir().unwrap();
    let ledger = funded(folder.path(), 1_000);
    let mut marked = admit(&ledger, "r1", 100, 100);
    let mut young = admit(&ledger, "r2", 100, 100);
    let mut voided = admit(&ledger, "r3", 100, 100);
    for sampled in 1..=70 {
        marked.progress(usage(100, sampled));
        voided.progress(usage(100, sampled));
    }
    young.progress(usage(100, 31));
    ledger.void(voided);
    // Marks are written without waiting; this one is committed after them.
    ledger.topup("t2", "acme", Currency::CNY, tokens(1)).unwrap().wait().unwrap();
    let after = reopen_after(folder.path());
    let records = after.usage(&UsageFilter::default()).unwrap();
    assert_eq!(records.len(), 1);
    let record = &records[0].1;
    assert_eq!(
        (&*record.facts.id, record.usage.output, &*record.outcome.finish),
        ("r1", 64, "crash")
    );
    let balance = after.balance("acme", Currency::CNY);
    assert_eq!((balance.balance, balance.held), (tokens(1_001 - 164), Amount::ZERO));
    assert_eq!(after.verify().unwrap().marks, 0);
    ledger.settle(marked, usage(100, 70), ended(), Together::default()).wait().unwrap();
    ledger.void(young);
    assert_eq!(ledger.verify().unwrap().marks, 0);
}
