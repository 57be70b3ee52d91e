//! Sums, rounding, immutability, corrections, rendering.

use std::sync::Arc;

use super::*;
use crate::price::{PriceDocument, PriceVersion};
use crate::{Outcome, Payer, RequestFacts, TokenUsage};

const NOVEMBER_MS: u64 = 1_793_462_400_000;

fn month() -> Month {
    Month::parse("2026-11", 480).unwrap()
}

fn list() -> PriceVersion {
    let text = "[[model]]\nname = \"m\"\ninput = \"0.3\"\ncached_input = \"0.06\"\noutput = \"0.7\"\n\
        minimum_charge = \"0.000001\"\n[model.training]\nprice = 20\n";
    PriceVersion::new(PriceDocument::from_toml(text).unwrap())
}

/// Record number `n`, rated by the list.
fn record(list: &PriceVersion, n: u64) -> UsageRecord {
    let facts = RequestFacts {
        id: Arc::from(format!("r{n}")),
        payer: Payer {
            org: Arc::from("acme"),
            project: Arc::from(format!("p{}", n % 2)),
            key: Arc::from(format!("k{}", n % 3)),
        },
        model: Arc::from("m"),
        arrival_ms: NOVEMBER_MS + n,
        ..RequestFacts::default()
    };
    let usage = TokenUsage {
        input: n * 7 % 1000,
        cached_input: n * 3 % 50,
        output: n * 11 % 300,
        ..TokenUsage::default()
    };
    let outcome = Outcome { end_ms: NOVEMBER_MS + n * 1000, ..Outcome::default() };
    let mut record = UsageRecord {
        facts,
        outcome,
        usage,
        price_version: Arc::clone(list.id()),
        ..UsageRecord::default()
    };
    record.free_tokens = n % 5;
    let rated = list.rate_record(&record).unwrap();
    (record.amount, record.free_tokens) = (rated.total, rated.free_tokens);
    record
}

fn draft(carried_in: i128) -> InvoiceDraft {
    InvoiceDraft::new(Arc::from("acme"), month(), Currency::CNY, Amount::from_pico(carried_in))
}

fn issued(count: u64, carried_in: i128) -> Invoice {
    let (list, mut draft) = (list(), draft(carried_in));
    let records: Vec<UsageRecord> = (0..count).map(|n| record(&list, n)).collect();
    for record in &records {
        draft.add(record, Some(&list)).unwrap();
    }
    let postings = records.iter().map(|record| record.amount).sum();
    draft.issue(postings, month().until_ms() + SETTLING_MS).unwrap()
}

#[test]
fn lines_sum_up_to_the_postings_exactly() {
    let invoice = issued(2_000, 0);
    assert_eq!(invoice.records, 2_000);
    let lines: Amount = invoice.lines.iter().map(|line| line.amount).sum();
    assert_eq!(lines, invoice.total);
    for line in invoice.lines.iter().filter(|line| line.class != "minimum_charge") {
        let price = line.unit_price.unwrap().pico();
        assert_eq!(line.amount.pico(), price * i128::from(line.quantity - line.free));
    }
    // Two projects, three keys, three classes and the minimum.
    assert_eq!(
        invoice.lines.len(),
        2 * 3 * 3 + invoice.lines.iter().filter(|l| l.class == "minimum_charge").count()
    );
    assert!(invoice.is_intact());
}

#[test]
fn only_the_payable_is_rounded_and_the_rest_is_carried() {
    let coin = crate::PICO_PER_UNIT / 100;
    let (mut carried, mut paid, mut exact) = (0, 0, 0);
    for count in [1, 2, 1_000, 1_001, 0, 3] {
        let invoice = issued(count, carried);
        assert_eq!(invoice.payable.pico() % coin, 0);
        assert!((0..coin).contains(&invoice.carried_out.pico()));
        assert_eq!(
            invoice.total.pico() + carried,
            invoice.payable.pico() + invoice.carried_out.pico()
        );
        carried = invoice.carried_out.pico();
        paid += invoice.payable.pico();
        exact += invoice.total.pico();
        assert!(paid <= exact && exact < paid + coin, "{count}");
    }
    // A credit that was carried in can make the payable negative; it is still rounded down.
    let invoice = issued(0, -1);
    assert_eq!((invoice.payable.pico(), invoice.carried_out.pico()), (-coin, coin - 1));
}

#[test]
fn what_does_not_add_up_is_no_invoice() {
    let list = list();
    let good = record(&list, 7);
    let late = month().until_ms() + SETTLING_MS;
    let sum = |draft: InvoiceDraft, postings| draft.issue(Amount::from_pico(postings), late);
    let mut one = draft(0);
    one.add(&good, Some(&list)).unwrap();
    let off_by_one = sum(one, good.amount.pico() + 1);
    assert!(matches!(off_by_one, Err(InvoiceError::Unbalanced { .. })));

    let check = |change: fn(&mut UsageRecord), expected: &str| {
        let mut bad = good.clone();
        change(&mut bad);
        let error = draft(0).add(&bad, Some(&list)).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    };
    check(|r| r.amount = Amount::from_pico(r.amount.pico() + 1), "was posted at");
    check(|r| r.usage.output = 0, "was posted at");
    // What a hold cut off is on the invoice, and the sum is that of the postings.
    let (mut capped, mut cut) = (good.clone(), draft(0));
    capped.amount = Amount::from_pico(good.amount.pico() - 5);
    cut.add(&capped, Some(&list)).unwrap();
    let invoice = sum(cut, capped.amount.pico()).unwrap();
    let line = invoice.lines.iter().find(|line| line.class == "beyond_hold").unwrap();
    assert_eq!((line.amount.pico(), invoice.total), (-5, capped.amount));
    check(|r| r.facts.payer.org = Arc::from("other"), "another organisation");
    check(|r| r.outcome.end_ms = NOVEMBER_MS - 1, "another organisation, month");
    check(|r| r.outcome.end_ms = 1_796_054_400_000, "another organisation, month");
    check(|r| r.currency = "EUR".parse().unwrap(), "currency");
    check(|r| r.facts.model = Arc::from("n"), "cannot be rated");
    let unknown = draft(0).add(&good, None);
    assert!(matches!(unknown, Err(InvoiceError::NoVersion { .. })));
    // What was counted before there were prices is no line and no obstacle.
    let mut free = good.clone();
    (free.price_version, free.amount) = (Arc::from(""), Amount::ZERO);
    assert_eq!(draft(0).add(&free, None), Ok(()));
    let early = draft(0).issue(Amount::ZERO, late - 1);
    assert_eq!(
        early.unwrap_err().to_string(),
        "the month 2026-11 is not over and settled yet; its invoice can be issued from 2026-11-30T17:00:00Z on"
    );
}

#[test]
fn an_issued_invoice_shows_every_change() {
    let invoice = issued(100, 0);
    let json = serde_json::to_string(&invoice).unwrap();
    assert_eq!(serde_json::from_str::<Invoice>(&json).unwrap(), invoice);
    let changes: [fn(&mut Invoice); 5] = [
        |i| i.lines[0].quantity += 1,
        |i| i.payable = Amount::ZERO,
        |i| i.organisation = Arc::from("other"),
        |i| i.issued_ms += 1,
        |i| {
            i.lines.pop();
        },
    ];
    for change in changes {
        let mut changed = invoice.clone();
        change(&mut changed);
        assert!(!changed.is_intact());
    }
    assert_eq!(issued(100, 0), invoice, "issuing again gives the same document");
}

#[test]
fn corrections_are_credit_notes_up_to_the_invoice() {
    let invoice = issued(2_000, 0);
    let coin = Amount::from_pico(crate::PICO_PER_UNIT / 100);
    let credit = |earlier: &[CreditNote], pico, reason| {
        invoice.credit(earlier, Amount::from_pico(pico), reason, invoice.issued_ms + 1)
    };
    let first = credit(&[], coin.pico(), " outage ").unwrap();
    assert_eq!((first.number.as_str(), first.reason.as_str()), ("acme-2026-11-C1", "outage"));
    assert!(first.is_intact());
    let left = invoice.payable.pico() - coin.pico();
    let all = [first];
    let second = credit(&all, left, "all of it").unwrap();
    assert_eq!(second.number, "acme-2026-11-C2");
    for (pico, reason) in
        [(left + coin.pico(), "x"), (0, "x"), (-coin.pico(), "x"), (coin.pico() + 1, "x")]
    {
        assert!(
            matches!(credit(&all, pico, reason), Err(InvoiceError::CreditAmount { .. })),
            "{pico}"
        );
    }
    assert_eq!(credit(&all, coin.pico(), " "), Err(InvoiceError::Reason));
}

#[test]
fn documents_render() {
    let list = list();
    let mut draft = draft(1_234);
    let mut hostile = record(&list, 7);
    hostile.facts.payer.project = Arc::from("=HYPERLINK(\"http://x\"),<script>alert(1)</script>");
    draft.add(&hostile, Some(&list)).unwrap();
    draft.add(&record(&list, 14), Some(&list)).unwrap();
    let postings = [hostile.amount, record(&list, 14).amount].into_iter().sum();
    let invoice = draft.issue(postings, month().until_ms() + SETTLING_MS).unwrap();
    let note = CreditNote {
        number: "acme-2026-11-C1".to_owned(),
        invoice: invoice.number.clone(),
        organisation: Arc::from("acme"),
        issued_ms: invoice.issued_ms,
        currency: Currency::CNY,
        amount: "0.1".parse().unwrap(),
        reason: "a & b".to_owned(),
        digest: String::new(),
    };
    let html = invoice.to_html(Language::English, std::slice::from_ref(&note));
    assert!(!html.contains("<script"), "{html}");
    insta::assert_snapshot!("csv", invoice.to_csv());
    insta::assert_snapshot!("html_en", html);
    insta::assert_snapshot!("html_zh", invoice.to_html(Language::Chinese, &[]));
    insta::assert_snapshot!("note_zh", note.to_html(Language::Chinese));
}

#[test]
fn months_are_found() {
    let month = month();
    assert_eq!((month.from_ms(), month.until_ms()), (NOVEMBER_MS, NOVEMBER_MS + 30 * 86_400_000));
    let check = |at_ms, expected: &str| assert_eq!(Month::before(at_ms, 480).to_string(), expected);
    check(NOVEMBER_MS, "2026-10");
    check(NOVEMBER_MS - 1, "2026-09");
    check(1_800_000_000_000, "2026-12");
    let december = Month::parse("2026-12", 0).unwrap();
    assert_eq!(december.until_ms(), Month::parse("2027-01", 0).unwrap().from_ms());
    for bad in
        ["2026-13", "2026-0", "2026-00", "26-11", "2026/11", "", "1969-12", "+026-11", "2026-११"]
    {
        assert!(Month::parse(bad, 0).is_err(), "{bad}");
    }
}
