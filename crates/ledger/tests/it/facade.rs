//! The facade's promises, one by one, on each store.

use std::collections::BTreeMap;
use std::sync::Arc;

use mintage_ledger::{
    AdmitError, Amount, Begin, Changes, Currency, Delivery, Document, GrantTerms, KeptAnswer,
    Ledger, LedgerError, Message, Refusal, SumsFilter, Together, TokenUsage, UsageFilter,
    UsageRecord, UsageSums,
};

use crate::cluster::Cluster;
use crate::ground::Ground;
use crate::rig::{admission, admit, ended, tokens, usage};

type Check = (&'static str, fn(&Ground));

/// The suite that every store passes.
const SUITE: [Check; 14] = [
    ("sums_are_those_of_the_records", sums_are_those_of_the_records),
    ("who_metered_is_told_of_old_and_new", who_metered_is_told_of_old_and_new),
    ("old_records_go_and_the_chain_stays", old_records_go_and_the_chain_stays),
    ("what_is_settled_is_there_after_a_restart", what_is_settled_is_there_after_a_restart),
    ("an_operation_acts_once", an_operation_acts_once),
    ("refunds_never_exceed_their_posting", refunds_never_exceed_their_posting),
    ("credit_lines_credits_and_adjustments", credit_lines_credits_and_adjustments),
    ("free_quota_is_reserved_used_and_expires", free_quota_is_reserved_used_and_expires),
    ("the_gate_and_the_hold_succeed_together", the_gate_and_the_hold_succeed_together),
    ("documents_have_versions_and_a_history", documents_have_versions_and_a_history),
    ("messages_stay_until_they_are_delivered", messages_stay_until_they_are_delivered),
    (
        "an_idempotency_key_answers_again_without_charge",
        an_idempotency_key_answers_again_without_charge,
    ),
    ("usage_without_a_hold_needs_the_money", usage_without_a_hold_needs_the_money),
    (
        "a_marked_hold_is_posted_at_its_mark_after_a_crash",
        a_marked_hold_is_posted_at_its_mark_after_a_crash,
    ),
];

#[test]
fn on_sqlite() {
    for (name, check) in SUITE {
        eprintln!("{name}");
        check(&Ground::sqlite());
    }
}

#[test]
fn on_postgres() {
    let Some(cluster) = Cluster::start() else { return };
    for (name, check) in SUITE {
        eprintln!("{name}");
        check(&Ground::postgres(&cluster, name));
    }
}

fn what_is_settled_is_there_after_a_restart(ground: &Ground) {
    let ledger = ground.funded(1_000);
    let hold = admit(&ledger, "r1", 100, 50);
    let balance = ledger.balance("acme", Currency::CNY);
    assert_eq!((balance.held, balance.available()), (tokens(150), tokens(850)));
    let receipt = ledger.settle(hold, usage(100, 7), ended(), Together::default()).wait().unwrap();
    assert_eq!(receipt.record.amount, tokens(107));
    ledger.void(admit(&ledger, "r2", 100, 50));
    drop(admit(&ledger, "r3", 100, 50));
    for again in 0..2 {
        let ledger = if again == 0 { &ledger } else { &{ ground.after_crash() } };
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

#[test]
fn one_process_at_a_time() {
    let folder = tempfile::tempdir().unwrap();
    let ledger = crate::rig::funded(folder.path(), 1);
    assert!(matches!(Ledger::open(folder.path()), Err(LedgerError::InUse(_))));
    drop(ledger);
    Ledger::open(folder.path()).unwrap();
}

fn an_operation_acts_once(ground: &Ground) {
    let ledger = ground.funded(10);
    let topup = |amount| ledger.topup("t1", "acme", Currency::CNY, amount);
    topup(tokens(10)).unwrap().wait().unwrap();
    assert_eq!(ledger.balance("acme", Currency::CNY).balance, tokens(10));
    let other = topup(tokens(11)).unwrap_err();
    assert!(matches!(other, LedgerError::Refused(Refusal::IdReused(_))), "{other}");
    drop(ledger);
    let ledger = ground.open();
    ledger.topup("t1", "acme", Currency::CNY, tokens(10)).unwrap().wait().unwrap();
    assert_eq!(ledger.balance("acme", Currency::CNY).balance, tokens(10));
}

fn refunds_never_exceed_their_posting(ground: &Ground) {
    let ledger = ground.funded(100);
    let hold = admit(&ledger, "r1", 10, 10);
    ledger.settle(hold, usage(10, 10), ended(), Together::default()).wait().unwrap();
    ledger.refund("f1", "r1", tokens(15)).unwrap().wait().unwrap();
    for reopened in [false, true] {
        let (other, kept);
        let ledger = if reopened {
            other = ground.after_crash();
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

fn credit_lines_credits_and_adjustments(ground: &Ground) {
    let ledger = ground.open();
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
    let ledger = ground.after_crash();
    let balance = ledger.balance("acme", cny);
    assert_eq!(balance.available(), tokens(80));
    assert_eq!(balance.balance.pico(), -tokens(20).pico());
    assert!(ledger.topup("t", "acme", cny, Amount::ZERO).is_err());
    assert!(ledger.topup("", "acme", cny, tokens(1)).is_err());
    ledger.verify().unwrap();
}

fn free_quota_is_reserved_used_and_expires(ground: &Ground) {
    let ledger = ground.open();
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
    let ledger = ground.after_crash();
    // The one that expires first was used first.
    assert_eq!((ledger.free_left("acme", "m", 1), ledger.free_left("acme", "m", 500)), (95, 95));
    assert!(ledger.admit(admission("r2", "acme", 96, 0), |_| Ok::<(), ()>(())).is_err());
    ledger.verify().unwrap();
}

fn the_gate_and_the_hold_succeed_together(ground: &Ground) {
    let ledger = ground.funded(10);
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

fn documents_have_versions_and_a_history(ground: &Ground) {
    let ledger = ground.open();
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
    let ledger = ground.open();
    assert_eq!(ledger.documents("key").unwrap(), vec![document("a", 2, "two")]);
    assert_eq!(ledger.history("key", "b").unwrap().len(), 2);
    assert!(matches!(
        write(&ledger, vec![document("a", 2, "x")]),
        Err(LedgerError::Conflict { current: 2, .. })
    ));
    assert_eq!(ledger.verify().unwrap().documents, 4);
}

fn messages_stay_until_they_are_delivered(ground: &Ground) {
    let ledger = ground.funded(100);
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

fn an_idempotency_key_answers_again_without_charge(ground: &Ground) {
    let ledger = ground.funded(100);
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

fn old_records_go_and_the_chain_stays(ground: &Ground) {
    const DAY_MS: u64 = 86_400_000;
    let ledger = ground.funded(1_000);
    for id in ["r1", "r2", "r3"] {
        let hold = admit(&ledger, id, 10, 10);
        ledger.settle(hold, usage(10, 5), ended(), Together::default()).wait().unwrap();
    }
    let now_ms = ledger.log(0, 10).unwrap().last().unwrap().at_ms;
    assert!(ledger.prune(182, now_ms + 900 * DAY_MS).is_err(), "the law wants them");
    assert_eq!(ledger.prune(183, now_ms + 182 * DAY_MS).unwrap(), 0);
    let before = ledger.balance("acme", Currency::CNY);
    assert_eq!(ledger.prune(183, now_ms + 184 * DAY_MS).unwrap(), 3);
    assert_eq!(ledger.prune(183, now_ms + 184 * DAY_MS).unwrap(), 0);
    assert!(ledger.usage(&UsageFilter::default()).unwrap().is_empty());
    let hold = admit(&ledger, "r4", 10, 10);
    ledger.settle(hold, usage(10, 5), ended(), Together::default()).wait().unwrap();
    assert_eq!(ledger.verify().unwrap().records, 1);
    drop(ledger);
    let ledger = ground.open();
    assert_eq!(ledger.verify().unwrap().records, 1);
    let spent = before.balance.checked_sub(ledger.balance("acme", Currency::CNY).balance).unwrap();
    assert!(
        !spent.is_zero() && ledger.usage(&UsageFilter::default()).unwrap()[0].1.amount == spent
    );
}

/// Who metered a record stands in a column of its own. What was written before there was one, behind the model's digest,
/// stays as its line of the log says, is read the same way, and so are tables that nobody brought up to date.
fn who_metered_is_told_of_old_and_new(ground: &Ground) {
    let far = "upstream:host/model";
    let add = |ledger: &Ledger, id: &str, digest: &str, by: [&str; 2]| {
        let mut admission = admission(id, "acme", 10, 5);
        admission.facts.model_digest = digest.into();
        admission.facts.metered_by = by[0].into();
        let mut hold = ledger.admit(admission, |_| Ok::<(), ()>(())).unwrap();
        hold.metered_by(by[1].into());
        ledger.settle(hold, usage(10, 5), ended(), Together::default()).wait().unwrap();
    };
    let ledger = ground.funded(1_000);
    add(&ledger, "a", "sha256:1", ["", ""]);
    add(&ledger, "b", &format!("{far} metered_by=own"), ["", ""]);
    drop(ledger);
    ground.before_metered_by();
    let old = [("a", "sha256:1", ""), ("b", far, "own")];
    assert_eq!(ground.verified().unwrap().records, 2);
    let exported = ground.exported();
    let records = exported.lines().filter_map(|line| {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        line.get("usage_record").cloned()
    });
    let records: Vec<_> = records.collect();
    assert_eq!(records.len(), old.len());
    for (record, (id, digest, by)) in records.iter().zip(old) {
        let told = ["id", "model_digest", "metered_by"].map(|name| record[name].as_str().unwrap());
        assert_eq!(told, [id, digest, by]);
    }
    let ledger = ground.open();
    add(&ledger, "c", far, ["own", "upstream"]);
    let records = ledger.usage(&UsageFilter::default()).unwrap();
    let told: Vec<[&str; 3]> = records
        .iter()
        .map(|(_, record)| &record.facts)
        .map(|facts| [&*facts.id, &*facts.model_digest, &*facts.metered_by])
        .collect();
    assert_eq!(told, [["a", "sha256:1", ""], ["b", far, "own"], ["c", far, "upstream"]]);
    assert_eq!(ledger.verify().unwrap().records, 3);
    drop(ledger);
    ground.run("UPDATE usage SET metered_by = 'own' WHERE id = 'c'");
    let error = ground.verified().unwrap_err().to_string();
    assert!(error.contains("is not what was written"), "{error}");
}

const SPAN_MS: u64 = 60_000;

/// Records of two organisations that differ in everything that sums can be kept apart by.
fn charge_all_kinds(ledger: &Ledger) {
    // So much that no 64 bits hold the sum.
    let much = Amount::from_units(9_000_000);
    for org in ["acme", "other"] {
        let line = ledger.credit_line(org, org, Currency::CNY, mintage_ledger::UNLIMITED);
        line.unwrap().wait().unwrap();
    }
    for id in 0..40_u64 {
        let one_of =
            |names: [&str; 2], bit: u64| -> Arc<str> { names[(id >> bit & 1) as usize].into() };
        let amount = if id < 4 { much } else { tokens(id) };
        let mut record = UsageRecord { amount, ..UsageRecord::default() };
        let facts = &mut record.facts;
        facts.id = format!("r{id}").into();
        facts.payer.org = if id % 5 == 4 { "other" } else { "acme" }.into();
        facts.payer.project = one_of(["p", "q"], 0);
        facts.payer.key = one_of(["k", "l"], 1);
        facts.model = one_of(["m", "n"], 2);
        facts.batch = id >> 3 & 1 == 1;
        facts.protocol = one_of(["openai.chat", "openai.embeddings"], 4);
        record.outcome.end_ms = 10 * SPAN_MS + id * 7_001;
        record.usage = TokenUsage { cached_input: id % 4, ..usage(id * 3, id) };
        if id % 7 == 6 {
            record.quantity = mintage_ledger::Quantity::TrainingTokens;
        }
        ledger.charge(record).unwrap().wait().unwrap();
    }
}

/// A record as the sums that it would be part of, alone.
fn as_sums(record: &UsageRecord, filter: &SumsFilter) -> UsageSums {
    let facts = &record.facts;
    let name = |is_apart: bool, name: &Arc<str>| if is_apart { name.clone() } else { "".into() };
    UsageSums {
        span_start_ms: record.outcome.end_ms / SPAN_MS * SPAN_MS,
        project: name(filter.by_project, &facts.payer.project),
        key: name(filter.by_key, &facts.payer.key),
        model: name(filter.by_model, &facts.model),
        batch: filter.by_batch && facts.batch,
        protocol: name(filter.by_protocol, &facts.protocol),
        quantity: record.quantity,
        currency: record.currency,
        records: 1,
        usage: record.usage,
        amount: record.amount,
    }
}

/// Whatever keeps them apart, sums are those of the records that the same organisation and times find.
fn sums_are_those_of_the_records(ground: &Ground) {
    let ledger = ground.open();
    charge_all_kinds(&ledger);
    let (from_ms, until_ms) = (10 * SPAN_MS + 5, 10 * SPAN_MS + 200_000);
    let org: Arc<str> = "acme".into();
    let filter =
        UsageFilter { org: Some(org.clone()), from_ms, until_ms, ..UsageFilter::default() };
    let records = ledger.usage(&filter).unwrap();
    let mut page = UsageFilter { limit: 7, ..filter };
    let mut paged = ledger.usage(&page).unwrap();
    while page.after != paged.last().map_or(0, |(last, _)| *last) {
        page.after = paged.last().map_or(0, |(last, _)| *last);
        paged.extend(ledger.usage(&page).unwrap());
    }
    assert_eq!(paged, records, "in pages or at once");
    for by in 0..32 {
        let filter = SumsFilter {
            org: org.clone(),
            from_ms,
            until_ms,
            span_ms: SPAN_MS,
            by_project: by & 1 > 0,
            by_key: by & 2 > 0,
            by_model: by & 4 > 0,
            by_batch: by & 8 > 0,
            by_protocol: by & 16 > 0,
        };
        let mut expected: BTreeMap<String, UsageSums> = BTreeMap::new();
        let place = |sums: &UsageSums| {
            let UsageSums { span_start_ms, project, key, model, batch, protocol, .. } = sums;
            let what = (sums.quantity, sums.currency);
            format!("{span_start_ms} {project} {key} {model} {batch} {protocol} {what:?}")
        };
        for (_, record) in &records {
            let one = as_sums(record, &filter);
            let all = expected.entry(place(&one)).or_insert_with(|| UsageSums {
                records: 0,
                usage: TokenUsage::default(),
                amount: Amount::ZERO,
                ..one.clone()
            });
            all.records += 1;
            all.usage = all.usage.saturating_add(&one.usage);
            all.amount = [all.amount, one.amount].into_iter().sum();
        }
        let sums = ledger.usage_sums(&filter).unwrap();
        let sums: BTreeMap<String, UsageSums> =
            sums.into_iter().map(|sums| (place(&sums), sums)).collect();
        assert_eq!(sums, expected, "{filter:?}");
    }
    let nobody = SumsFilter { org: "nobody".into(), ..SumsFilter::default() };
    assert!(ledger.usage_sums(&nobody).unwrap().is_empty());
}

fn usage_without_a_hold_needs_the_money(ground: &Ground) {
    let ledger = ground.funded(10);
    let mut record = UsageRecord {
        facts: admission("train-1", "acme", 0, 0).facts,
        amount: tokens(11),
        units: 5,
        quantity: mintage_ledger::Quantity::TrainingTokens,
        ..UsageRecord::default()
    };
    assert!(ledger.charge(record.clone()).is_err());
    record.amount = tokens(10);
    let pending = ledger.charge(record.clone()).unwrap();
    record.amount = Amount::ZERO;
    let refused = |result| matches!(result, Err(LedgerError::Refused(Refusal::IdReused(_))));
    assert!(refused(ledger.charge(record.clone()).map(|_| ())), "not even before it is durable");
    pending.wait().unwrap();
    assert!(refused(ledger.charge(record.clone()).map(|_| ())), "no id has two records");
    record.amount = tokens(10);
    assert_eq!(ledger.balance("acme", Currency::CNY).balance, Amount::ZERO);
    assert_eq!(ledger.usage(&UsageFilter::default()).unwrap()[0].1, record);
}

fn a_marked_hold_is_posted_at_its_mark_after_a_crash(ground: &Ground) {
    let ledger = ground.funded(1_000);
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
    let after = ground.after_crash();
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
    if ground.is_postgres() {
        // Another process has the stream: whatever the first one still does is refused.
        let late = ledger.settle(marked, usage(100, 70), ended(), Together::default());
        let refused = late.wait().unwrap_err().to_string();
        assert!(refused.contains("lease expired"), "{refused}");
        ledger.void(young);
        assert_eq!(after.verify().unwrap().records, 1);
        return;
    }
    ledger.settle(marked, usage(100, 70), ended(), Together::default()).wait().unwrap();
    ledger.void(young);
    assert_eq!(ledger.verify().unwrap().marks, 0);
}
