//! `kill -9` of a process under load, at random moments, and what the next one finds.
//!
//! The child tells the parent over a pipe what a client would have seen: `B` a request begins, `P` so many tokens have
//! been sent, `E` it ends with so many, `S` its settlement was acknowledged. After each kill every acknowledged
//! settlement is in the ledger with its amount; what else is there was journalled, and is at most what had been sent.
//!
//! Many: `MINTAGE_KILLS=300 cargo nextest run -p mintage-ledger killed`.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use mintage_ledger::{Amount, Currency, Ledger, Together, UsageFilter, UsageRecord};

use crate::faulty_disk::Seeded;
use crate::rig::{admit, ended, tokens, usage};

const FUNDS: u64 = 1_000_000_000_000;
const FOLDER: &str = "MINTAGE_TEST_CHILD_FOLDER";
const RUN: &str = "MINTAGE_TEST_CHILD_RUN";
const CALLERS: u64 = 16;
const PROMPT: u64 = 10;
const MOST: u64 = 100;

/// One line, in one write: a line is whole or absent.
fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(format!("{line}\n").as_bytes()).and_then(|()| out.flush());
}

/// Serves until it is killed.
#[test]
#[ignore = "the child of the test below"]
fn child_under_load() {
    let Ok(folder) = std::env::var(FOLDER) else { return };
    let run = std::env::var(RUN).unwrap();
    let ledger = Arc::new(Ledger::open(Path::new(&folder)).unwrap());
    say("ready");
    std::thread::scope(|scope| {
        for caller in 0..CALLERS {
            let (ledger, run) = (&ledger, &run);
            scope.spawn(move || {
                let mut random = Seeded(caller + 1_000 * run.parse::<u64>().unwrap());
                for request in 0_u64.. {
                    serve(ledger, &format!("r{run}-{caller}-{request}"), &mut random);
                }
            });
        }
    });
}

fn serve(ledger: &Ledger, id: &str, random: &mut Seeded) {
    let end = 1 + random.below(MOST);
    let slow = random.below(4) == 0;
    say(&format!("B {id}"));
    let mut hold = admit(ledger, id, PROMPT, MOST);
    let mut sent = 0;
    while sent < end {
        sent = (sent + 1 + random.below(20)).min(end);
        say(&format!("P {id} {sent}"));
        hold.progress(usage(PROMPT, sent));
        if slow {
            std::thread::sleep(Duration::from_millis(random.below(4)));
        }
    }
    if random.below(20) == 0 {
        say(&format!("V {id}"));
        return ledger.void(hold);
    }
    say(&format!("E {id} {end}"));
    let pending = ledger.settle(hold, usage(PROMPT, end), ended(), Together::default());
    let receipt = pending.wait().unwrap();
    say(&format!("S {id} {}", receipt.record.amount.pico()));
}

/// What the parent was told of a request.
#[derive(Default)]
struct Told {
    sent: u64,
    ended: Option<u64>,
    voided: bool,
    acknowledged: Option<i128>,
}

/// Starts a child, kills it `after`, and returns all it said.
fn run_and_kill(folder: &Path, run: u64, after: Duration, told: &mut HashMap<String, Told>) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "kill::child_under_load", "--ignored", "--nocapture"])
        .env(FOLDER, folder)
        .env(RUN, run.to_string())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    assert!(lines.any(|line| line.ends_with("ready")), "the child did not start");
    let reader = std::thread::spawn(move || lines.collect::<Vec<_>>());
    std::thread::sleep(after);
    child.kill().unwrap();
    child.wait().unwrap();
    for line in reader.join().unwrap() {
        let words: Vec<_> = line.split(' ').collect();
        let number = || words[2].parse::<i128>().unwrap();
        let Some(id) = words.get(1) else { continue };
        let entry = told.entry((*id).to_owned()).or_default();
        match words[0] {
            "P" => entry.sent = number() as u64,
            "E" => entry.ended = Some(number() as u64),
            "V" => entry.voided = true,
            "S" => entry.acknowledged = Some(number()),
            _ => {}
        }
    }
}

fn all_records(ledger: &Ledger) -> HashMap<String, UsageRecord> {
    let (mut records, mut filter) = (HashMap::new(), UsageFilter::default());
    loop {
        let page = ledger.usage(&filter).unwrap();
        let Some((last, _)) = page.last() else { return records };
        filter.after = *last;
        for (_, record) in page {
            let other = records.insert(record.facts.id.to_string(), record);
            assert!(other.is_none(), "two records of one request");
        }
    }
}

/// What a ledger must be after any number of kills; returns what was billed beyond the acknowledged.
fn check(folder: &Path, told: &HashMap<String, Told>) -> (Amount, usize) {
    let ledger = Ledger::open(folder).unwrap();
    let verified = ledger.verify().unwrap();
    assert_eq!((verified.marks, ledger.open_holds()), (0, 0), "a hold is left");
    let records = all_records(&ledger);
    let posted: Amount = records.values().map(|record| record.amount).sum();
    let balance = ledger.balance("acme", Currency::CNY);
    assert_eq!(balance.held, Amount::ZERO);
    assert_eq!(balance.balance.checked_add(posted), Some(tokens(FUNDS)));
    let mut acknowledged = Amount::ZERO;
    for (id, told) in told.iter().filter(|(_, told)| told.acknowledged.is_some()) {
        let amount = Amount::from_pico(told.acknowledged.unwrap());
        assert_eq!(records.get(id).map(|r| r.amount), Some(amount), "{id} was acknowledged");
        acknowledged = acknowledged.checked_add(amount).unwrap();
    }
    let (mut rest, mut crashed) = (Amount::ZERO, 0);
    for (id, record) in &records {
        let told = told.get(id).unwrap_or_else(|| panic!("{id} was never begun"));
        if told.acknowledged.is_some() {
            continue;
        }
        // In flight when the process died: settled and not yet told, or journalled.
        assert_eq!(record.amount, tokens(PROMPT + record.usage.output), "{id}");
        if &*record.outcome.finish == "crash" {
            crashed += 1;
            assert!(record.usage.output <= told.sent, "{id}: more than was sent");
        } else {
            assert_eq!(Some(record.usage.output), told.ended, "{id}");
        }
        rest = rest.checked_add(record.amount).unwrap();
    }
    assert_eq!(acknowledged.checked_add(rest), Some(posted));
    (rest, crashed)
}

#[test]
fn killed_at_any_moment_it_loses_nothing_and_bills_nothing_twice() {
    let kills = std::env::var("MINTAGE_KILLS").map_or(8, |text| text.parse::<u64>().unwrap());
    let folder = tempfile::tempdir().unwrap();
    let funding = Ledger::open(folder.path()).unwrap();
    for part in 0..10 {
        let id = format!("t{part}");
        let part = tokens(FUNDS / 10);
        funding.topup(&id, "acme", Currency::CNY, part).unwrap().wait().unwrap();
    }
    drop(funding);
    let mut told = HashMap::new();
    let mut random = Seeded(kills);
    let mut most = (Amount::ZERO, 0);
    for run in 0..kills {
        let after = Duration::from_micros(random.below(60_000));
        run_and_kill(folder.path(), run, after, &mut told);
        most = check(folder.path(), &told);
    }
    let acknowledged = told.values().filter(|told| told.acknowledged.is_some()).count();
    let rest = most.0;
    eprintln!(
        "{kills} kills, {} requests begun, {acknowledged} acknowledged; {rest} CNY billed beyond, {} at their marks",
        told.len(),
        most.1
    );
    // A few kills on a busy machine may all come early.
    assert!(acknowledged > 0 || kills < 100, "hardly anything ran");
    assert!(most.1 > 0 || kills < 100, "no kill found a journalled hold");
    // At most what was in flight: one request a caller and kill.
    assert!(rest <= tokens(kills * CALLERS * (PROMPT + MOST)));
    assert!(told.iter().all(|(_, told)| !told.voided || told.acknowledged.is_none()));
}
