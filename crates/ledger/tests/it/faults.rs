//! Power loss, full disks, failing writes and failing syncs.
//!
//! Many losses in a row: `MINTAGE_POWER_LOSSES=200 cargo nextest run -p mintage-ledger power`.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use mintage_ledger::{
    Amount, Currency, Ledger, SqliteStore, Synchronous, Together, Unavailable, UsageFilter,
};

use crate::faulty_disk::{Fault, FaultyDisk, Seeded};
use crate::rig::{admission, admit, ended, tokens, usage};

const FUNDS: u64 = 1_000_000_000;
const CALLERS: u64 = 8;

/// What was acknowledged: id → amount.
type Acknowledged = BTreeMap<String, Amount>;

/// Serves requests until `stop` or until the ledger refuses.
fn serve(ledger: &Ledger, run: &str, stop: &AtomicBool, acknowledged: &Mutex<Acknowledged>) {
    std::thread::scope(|scope| {
        for caller in 0..CALLERS {
            scope.spawn(move || {
                for request in 0.. {
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    let id = format!("{run}-{caller}-{request}");
                    let admitted =
                        ledger.admit(admission(&id, "acme", 10, 90), |_| Ok::<(), ()>(()));
                    let Ok(mut hold) = admitted else { break };
                    let sampled = 1 + (request * 7 + caller) % 90;
                    hold.progress(usage(10, sampled / 2));
                    let all = usage(10, sampled);
                    let receipt = ledger.settle(hold, all, ended(), Together::default()).wait();
                    let Ok(receipt) = receipt else { break };
                    acknowledged.lock().unwrap().insert(id, receipt.record.amount);
                }
            });
        }
    });
}

/// What an opened ledger has, by id; its books are checked on the way.
fn recorded(ledger: &Ledger) -> Acknowledged {
    let mut records = Acknowledged::new();
    let mut filter = UsageFilter::default();
    loop {
        let page = ledger.usage(&filter).unwrap();
        let Some((last, _)) = page.last() else { break };
        filter.after = *last;
        records.extend(page.into_iter().map(|(_, r)| (r.facts.id.to_string(), r.amount)));
    }
    let used: Amount = records.values().copied().sum();
    let balance = ledger.balance("acme", Currency::CNY);
    assert_eq!(balance.held, Amount::ZERO);
    assert_eq!(balance.balance.checked_add(used), Some(tokens(FUNDS)));
    records
}

/// Runs under load, cuts the power at a moment of the seed's choice, and says how many acknowledged settlements are
/// not there afterwards. `None` where such a disk cannot be had.
fn lose_power(seed: u64, synchronous: Synchronous) -> Option<Result<usize, String>> {
    let mut random = Seeded(seed);
    let mounted = tempfile::tempdir().unwrap();
    let disk = FaultyDisk::mount(mounted.path())?;
    // Half of the time the log is folded again and again beside the commits.
    let rows = if seed.is_multiple_of(2) { 50 } else { u64::MAX };
    let store = SqliteStore::open(mounted.path(), synchronous).unwrap().folding_every(rows);
    let ledger = Ledger::start(Box::new(store), None).unwrap();
    ledger.topup("t", "acme", Currency::CNY, tokens(FUNDS)).unwrap().wait().unwrap();
    let (stop, acknowledged) = (AtomicBool::new(false), Mutex::new(Acknowledged::new()));
    std::thread::scope(|scope| {
        scope.spawn(|| serve(&ledger, "r", &stop, &acknowledged));
        // However busy the machine is: something was acknowledged before.
        wait_for(|| (!acknowledged.lock().unwrap().is_empty()).then_some(()));
        std::thread::sleep(Duration::from_micros(random.below(60_000)));
        disk.fail(Fault::PowerOff);
        stop.store(true, Ordering::Relaxed);
    });
    drop(ledger);
    let after = tempfile::tempdir().unwrap();
    disk.after_power_loss(&mut random, after.path());
    drop(disk);
    let acknowledged = acknowledged.into_inner().unwrap();
    assert!(!acknowledged.is_empty(), "nothing was served before the power went");
    Some(missing(after.path(), &acknowledged))
}

fn missing(folder: &Path, acknowledged: &Acknowledged) -> Result<usize, String> {
    let ledger = Ledger::open(folder).map_err(|e| e.to_string())?;
    ledger.verify().map_err(|e| e.to_string())?;
    if ledger.balance("acme", Currency::CNY).balance.is_zero() {
        return Err("the top-up is gone".to_owned());
    }
    let records = recorded(&ledger);
    Ok(acknowledged.iter().filter(|(id, amount)| records.get(*id) != Some(amount)).count())
}

fn losses() -> u64 {
    let set = std::env::var("MINTAGE_POWER_LOSSES").ok();
    set.map_or(6, |text| text.parse().unwrap())
}

#[test]
fn power_loss_takes_nothing_that_was_acknowledged() {
    for seed in 0..losses() {
        let Some(lost) = lose_power(seed, Synchronous::Full) else { return };
        assert_eq!(lost, Ok(0), "seed {seed}");
    }
}

/// The test above can fail: without syncs, acknowledged settlements are lost.
#[test]
fn without_syncs_power_loss_takes_something() {
    let mut lost = 0;
    for seed in 0..losses() {
        let Some(outcome) = lose_power(seed, Synchronous::Off) else { return };
        lost += u64::from(outcome != Ok(0));
    }
    eprintln!("{lost} of {} power losses took something", losses());
    assert!(lost > 0, "a disk that drops what was not synced lost nothing");
}

/// Room is missing for a while: requests are refused, nothing is lost, and it goes on by itself.
fn without_room(fault: Fault) {
    let mounted = tempfile::tempdir().unwrap();
    let Some(disk) = FaultyDisk::mount(mounted.path()) else { return };
    let ledger = Ledger::open(mounted.path()).unwrap();
    ledger.topup("t", "acme", Currency::CNY, tokens(FUNDS)).unwrap().wait().unwrap();
    let (stop, acknowledged) = (AtomicBool::new(false), Mutex::new(Acknowledged::new()));
    let running = admit(&ledger, "running", 10, 10);
    std::thread::scope(|scope| {
        let served = scope.spawn(|| serve(&ledger, "before", &stop, &acknowledged));
        std::thread::sleep(Duration::from_millis(30));
        disk.fail(fault);
        let refused = wait_for(|| ledger.trouble());
        assert!(matches!(refused, Unavailable::Stalled(_)), "{refused}");
        let new = ledger.admit(admission("new", "acme", 1, 1), |_| Ok::<(), ()>(()));
        assert_eq!(new.map(|_| ()).unwrap_err(), mintage_ledger::AdmitError::Unavailable(refused));
        // What runs already is settled as soon as there is room.
        let settled = ledger.settle(running, usage(10, 10), ended(), Together::default());
        std::thread::sleep(Duration::from_millis(300));
        disk.fail(Fault::None);
        settled.wait().unwrap();
        wait_for(|| ledger.trouble().is_none().then_some(()));
        stop.store(true, Ordering::Relaxed);
        served.join().unwrap();
    });
    stop.store(false, Ordering::Relaxed);
    std::thread::scope(|scope| {
        scope.spawn(|| serve(&ledger, "after", &stop, &acknowledged));
        std::thread::sleep(Duration::from_millis(30));
        stop.store(true, Ordering::Relaxed);
    });
    drop(ledger);
    let ledger = Ledger::open(mounted.path()).unwrap();
    ledger.verify().unwrap();
    let mut acknowledged = acknowledged.into_inner().unwrap();
    assert!(acknowledged.keys().any(|id| id.starts_with("after")), "it did not go on");
    acknowledged.insert("running".to_owned(), tokens(20));
    assert_eq!(recorded(&ledger), acknowledged);
}

fn wait_for<T>(mut what: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + Duration::from_secs(20);
    loop {
        if let Some(found) = what() {
            return found;
        }
        assert!(Instant::now() < end, "it did not happen");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_full_disk_refuses_and_loses_nothing() {
    without_room(Fault::Full);
}

#[test]
fn failing_writes_refuse_and_lose_nothing() {
    without_room(Fault::Write);
}

/// After a failed sync nobody knows what is on the disk: the ledger stops, and never syncs again.
#[test]
fn a_failed_sync_stops_the_ledger_for_good() {
    let mounted = tempfile::tempdir().unwrap();
    let Some(disk) = FaultyDisk::mount(mounted.path()) else { return };
    let ledger = Ledger::open(mounted.path()).unwrap();
    ledger.topup("t", "acme", Currency::CNY, tokens(FUNDS)).unwrap().wait().unwrap();
    let (stop, acknowledged) = (AtomicBool::new(false), Mutex::new(Acknowledged::new()));
    let running = admit(&ledger, "running", 10, 10);
    std::thread::scope(|scope| {
        scope.spawn(|| serve(&ledger, "before", &stop, &acknowledged));
        std::thread::sleep(Duration::from_millis(30));
        disk.fail(Fault::Sync);
        let trouble = wait_for(|| ledger.trouble());
        assert!(matches!(trouble, Unavailable::Failed(_)), "{trouble}");
    });
    // The disk says yes again; the ledger does not believe it.
    disk.fail(Fault::None);
    let (_, failed) = disk.syncs();
    assert_eq!(failed, 1, "the sync was tried again");
    let settled = ledger.settle(running, usage(10, 10), ended(), Together::default()).wait();
    assert!(matches!(settled, Err(Unavailable::Failed(_))), "{settled:?}");
    assert!(ledger.topup("t2", "acme", Currency::CNY, tokens(1)).is_err());
    drop(ledger);
    let ledger = Ledger::open(mounted.path()).unwrap();
    ledger.verify().unwrap();
    let records = recorded(&ledger);
    for (id, amount) in acknowledged.into_inner().unwrap() {
        assert_eq!(records.get(&id), Some(&amount), "{id}");
    }
}
