//! Several gateways on one PostgreSQL ledger: crowds, deaths and cut wires.

use std::future::Future;
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use mintage_ledger::{
    AdmitError, Amount, Changes, Currency, DirectoryStore, Document, GrantTerms, Hold, Ledger,
    LedgerError, NewKey, PostgresUrl, Refusal, Together, Unavailable, UsageFilter, backup_shared,
    migrate_file, restore_shared,
};
use postgres::NoTls;

use crate::cluster::Cluster;
use crate::proxy::Proxy;
use crate::rig::{admission, ended, tokens, usage};

const CNY: Currency = Currency::CNY;
/// Longer than a lease lasts and its end takes to be noticed.
pub(crate) const TAKEN_OVER: Duration = Duration::from_secs(30);
/// Tells the test program to be a gateway that is going to be killed.
const VICTIM: &str = "MINTAGE_TEST_VICTIM_URL";

struct Unpark(std::thread::Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

pub(crate) fn block_on<T>(future: impl Future<Output = T>) -> T {
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut future = std::pin::pin!(future);
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(value) => return value,
            Poll::Pending => std::thread::park(),
        }
    }
}

pub(crate) fn gateway(url: &str, name: &str) -> Ledger {
    let url: PostgresUrl = url.parse().unwrap();
    Ledger::open_shared(&url, name).unwrap()
}

/// As a server does it: asks again for as long as a larger slice comes in.
fn admit(ledger: &Ledger, id: &str, prompt: u64, output: u64) -> Result<Hold, AdmitError<()>> {
    loop {
        match ledger.admit(admission(id, "acme", prompt, output), |_| Ok::<(), ()>(())) {
            Err(AdmitError::Refused(refusal)) => {
                if !block_on(ledger.cover("acme", &refusal)) {
                    return Err(AdmitError::Refused(refusal));
                }
            }
            outcome => return outcome,
        }
    }
}

fn serve(ledger: &Ledger, id: &str, tokens: u64) -> Result<(), AdmitError<()>> {
    let hold = admit(ledger, id, tokens, 0)?;
    ledger.settle(hold, usage(tokens, 0), ended(), Together::default()).wait().unwrap();
    Ok(())
}

fn whole(ledger: &Ledger) -> Amount {
    ledger.whole_balance("acme", CNY).unwrap().balance
}

pub(crate) fn one(url: &str, sql: &str) -> i64 {
    let mut client = postgres::Client::connect(url, NoTls).unwrap();
    client.query_one(sql, &[]).unwrap().get(0)
}

/// In no slice and with no claim, whatever happened.
fn nothing_is_leased(url: &str) {
    let leased = "SELECT coalesce(sum(leased - spent), 0)::int8 FROM mintage.slice";
    assert_eq!(one(url, leased), 0);
    assert_eq!(one(url, "SELECT count(*) FROM mintage.claim"), 0);
    assert_eq!(one(url, "SELECT count(*) FROM mintage.mark"), 0);
}

/// 1,000 at once over three gateways on a balance for 10: exactly 10 are served, and nothing is left held or leased.
#[test]
fn a_balance_for_ten_serves_ten_over_three_gateways() {
    let Some(cluster) = Cluster::start() else { return };
    let url = cluster.database("ten");
    let gateways = ["a", "b", "c"].map(|name| gateway(&url, name));
    gateways[0].topup("t1", "acme", CNY, tokens(10 * 20 + 19)).unwrap().wait().unwrap();
    let (served, start) = (AtomicUsize::new(0), std::sync::Barrier::new(1_000));
    let began = Instant::now();
    std::thread::scope(|scope| {
        for i in 0..1_000 {
            let (gateways, served, start) = (&gateways, &served, &start);
            let request = move || {
                start.wait();
                match serve(&gateways[i % 3], &format!("r{i}"), 20) {
                    Ok(()) => served.fetch_add(1, Ordering::Relaxed),
                    Err(AdmitError::Refused(Refusal::InsufficientBalance { .. })) => 0,
                    Err(other) => panic!("{other:?}"),
                };
            };
            std::thread::Builder::new().stack_size(128 << 10).spawn_scoped(scope, request).unwrap();
        }
    });
    eprintln!("1,000 answers in {:?}", began.elapsed());
    assert_eq!(served.load(Ordering::Relaxed), 10);
    for gateway in &gateways {
        assert_eq!((whole(gateway), gateway.open_holds()), (tokens(19), 0));
    }
    let verified = gateways[1].verify().unwrap();
    assert_eq!((verified.records, verified.marks), (10, 0));
    drop(gateways);
    nothing_is_leased(&url);
    gateway(&url, "a").verify().unwrap();
}

/// The last money is affordable wherever the request comes in, though another gateway was the one that spent.
#[test]
fn the_last_yuan_moves_to_whoever_needs_it() {
    let Some(cluster) = Cluster::start() else { return };
    let url = cluster.database("last");
    let [a, b] = ["a", "b"].map(|name| gateway(&url, name));
    let twice = a.topup("t1", "acme", CNY, tokens(1_000)).unwrap();
    twice.wait().unwrap();
    b.topup("t1", "acme", CNY, tokens(1_000)).unwrap().wait().unwrap();
    assert!(b.topup("t1", "acme", CNY, tokens(1_001)).is_err(), "the id means another top-up");
    for i in 0..50 {
        serve(&a, &format!("a{i}"), 10).unwrap();
    }
    let here = a.balance("acme", CNY).available();
    assert!(here < tokens(400), "half of what is left stays in the pool, not {here}");
    serve(&b, "b", 500).unwrap();
    assert_eq!(whole(&a), Amount::ZERO);
    assert!(serve(&a, "a", 1).is_err());
    a.credit_line("l1", "acme", CNY, tokens(3)).unwrap().wait().unwrap();
    serve(&b, "on credit too", 2).unwrap();
    serve(&a, "on credit", 1).unwrap();
    assert!(serve(&b, "b3", 1).is_err());
    assert_eq!(whole(&b).pico(), -tokens(3).pico());
    // A refund of what another gateway posted, at most once.
    a.refund("f1", "b", tokens(500)).unwrap().wait().unwrap();
    assert!(b.refund("f2", "b", tokens(1)).is_err());
    serve(&a, "refunded", 497).unwrap();
    a.verify().unwrap();
    drop((a, b));
    nothing_is_leased(&url);
}

/// Not a test by itself: what the next one kills.
#[test]
#[ignore = "runs as a child of another test"]
fn a_gateway_under_load() {
    let Ok(url) = std::env::var(VICTIM) else { return };
    let ledger = gateway(&url, "victim");
    let mut marked = admit(&ledger, "marked", 10, 100).unwrap();
    for sampled in 1..=64 {
        marked.progress(usage(10, sampled));
    }
    let _unmarked = admit(&ledger, "unmarked", 10, 100).unwrap();
    std::thread::scope(|scope| {
        for worker in 0..4 {
            let ledger = &ledger;
            scope.spawn(move || {
                for i in 0.. {
                    let id = format!("w{worker}-{i}");
                    serve(ledger, &id, 7).unwrap();
                    writeln!(std::io::stdout(), "settled {id}").unwrap();
                }
            });
        }
    });
}

/// `kill -9` under load: another gateway settles what was journalled and gives the rest back; what the victim told is
/// there, once.
#[test]
fn a_killed_gateway_is_taken_over() {
    let Some(cluster) = Cluster::start() else { return };
    let url = cluster.database("killed");
    let heir = gateway(&url, "heir");
    let all = tokens(10_000_000);
    heir.topup("t1", "acme", CNY, all).unwrap().wait().unwrap();
    let mut victim = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "shared::a_gateway_under_load", "--ignored", "--nocapture"])
        .env(VICTIM, &url)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut told = Vec::new();
    let mut lines = BufReader::new(victim.stdout.take().unwrap()).lines();
    while told.len() < 300 {
        let line = lines.next().unwrap().unwrap();
        told.extend(line.split_once("settled ").map(|(_, id)| id.to_owned()));
    }
    victim.kill().unwrap();
    victim.wait().unwrap();
    told.extend(
        lines
            .map_while(Result::ok)
            .filter_map(|line| line.split_once("settled ").map(|(_, id)| id.to_owned())),
    );
    let killed = Instant::now();
    while one(&url, "SELECT count(*) FROM mintage.stream WHERE live") > 1 {
        assert!(killed.elapsed() < TAKEN_OVER, "nobody took the stream over");
        serve(&heir, &format!("h{}", killed.elapsed().as_nanos()), 1).unwrap();
        std::thread::sleep(Duration::from_millis(100));
    }
    eprintln!("taken over after {:?}; {} settlements were told", killed.elapsed(), told.len());
    let filter = UsageFilter::default();
    let records = heir.usage(&filter).unwrap();
    let of = |id: &str| records.iter().filter(|(_, record)| *record.facts.id == *id).count();
    assert!(told.iter().all(|id| of(id) == 1));
    let marked: Vec<_> = records.iter().filter(|(_, r)| &*r.outcome.finish == "crash").collect();
    assert_eq!(marked.len(), 1);
    assert_eq!((&*marked[0].1.facts.id, marked[0].1.amount), ("marked", tokens(10 + 64)));
    assert_eq!(of("unmarked"), 0);
    let billed: Amount = records.iter().map(|(_, record)| record.amount).sum();
    assert_eq!(whole(&heir), all.checked_sub(billed).unwrap());
    heir.verify().unwrap();
    drop(heir);
    nothing_is_leased(&url);
}

/// A short cut stalls and loses nothing; after a long one the gateway's late settlements are refused.
#[test]
fn a_cut_wire_loses_nothing() {
    let Some(cluster) = Cluster::start() else { return };
    let url = cluster.database("cut");
    let proxy = Proxy::start(cluster.socket());
    let near = gateway(&url, "near");
    near.topup("t1", "acme", CNY, tokens(1_000)).unwrap().wait().unwrap();
    let far = gateway(&proxy.url("cut"), "far");
    serve(&far, "before", 10).unwrap();
    let held = admit(&far, "during", 10, 10).unwrap();
    let open = admit(&far, "late", 10, 10).unwrap();
    proxy.cut();
    let pending = far.settle(held, usage(10, 5), ended(), Together::default());
    std::thread::sleep(Duration::from_secs(1));
    let stalled = far.admit(admission("refused", "acme", 1, 0), |_| Ok::<(), ()>(()));
    assert!(
        matches!(stalled, Err(AdmitError::Unavailable(Unavailable::Stalled(_)))),
        "{stalled:?}"
    );
    proxy.mend();
    pending.wait().unwrap();
    // The writer goes on at once, slices within moments.
    let mended = Instant::now();
    while serve(&far, &format!("after{}", mended.elapsed().as_nanos()), 1).is_err() {
        assert!(mended.elapsed() < Duration::from_secs(5));
        std::thread::sleep(Duration::from_millis(50));
    }
    proxy.cut();
    let cut = Instant::now();
    while one(&url, "SELECT count(*) FROM mintage.stream WHERE live") > 1 {
        assert!(cut.elapsed() < TAKEN_OVER, "nobody took the stream over");
        std::thread::sleep(Duration::from_millis(100));
    }
    proxy.mend();
    let late = far.settle(open, usage(10, 10), ended(), Together::default());
    assert!(late.wait().is_err(), "its hold was voided and its slice given back");
    let records = near.usage(&UsageFilter::default()).unwrap();
    let ids: Vec<&str> = records.iter().map(|(_, record)| &*record.facts.id).collect();
    assert_eq!(ids[..2], ["before", "during"]);
    assert!(ids.len() == 3 && ids[2].starts_with("after"), "{ids:?}");
    assert_eq!(whole(&near), tokens(1_000 - 10 - 15 - 1));
    near.verify().unwrap();
    drop(far);
    serve(&near, "all of it", 974).unwrap();
    drop(near);
    nothing_is_leased(&url);
}

/// A key revoked at one gateway opens nowhere a moment later; gateways look once a second.
#[test]
fn a_revoked_key_dies_everywhere() {
    let Some(cluster) = Cluster::start() else { return };
    let url: PostgresUrl = cluster.database("keys").parse().unwrap();
    let folders = [(); 3].map(|()| tempfile::tempdir().unwrap());
    let first = DirectoryStore::open(folders[0].path()).unwrap();
    let project = first.ensure_tenant("acme", 1).unwrap();
    let key = first.create_key(NewKey::of_project("k", &project.id), 1).unwrap();
    // What the first has becomes the shared directory.
    drop(DirectoryStore::open_shared(folders[0].path(), &url).unwrap());
    for folder in &folders[1..] {
        let stranger = DirectoryStore::open_shared(folder.path(), &url).unwrap_err().to_string();
        assert!(stranger.contains("not the pepper"), "{stranger}");
        let pepper = "keys.pepper";
        std::fs::copy(folders[0].path().join(pepper), folder.path().join(pepper)).unwrap();
    }
    let stores: Vec<_> = folders
        .iter()
        .map(|folder| DirectoryStore::open_shared(folder.path(), &url).unwrap())
        .collect();
    let opens = |store: &DirectoryStore, secret: &str| {
        store.reload_if_changed().unwrap();
        store.authenticate(secret, 2).is_ok()
    };
    let secret = key.secret.expose();
    assert!(stores.iter().all(|store| opens(store, secret)));
    let other = stores[1].create_key(NewKey::of_project("l", &project.id), 1).unwrap();
    assert!(stores.iter().all(|store| opens(store, other.secret.expose())));
    stores[2].revoke_key(&key.info.id, 2).unwrap();
    assert!(!stores.iter().any(|store| opens(store, secret)));
    assert!(!stores[0].reload_if_changed().unwrap());
    // Two at once lose nothing, and what is refused leaves no lock behind.
    assert!(stores[0].revoke_key("nobody", 2).is_err());
    std::thread::scope(|scope| {
        for store in &stores {
            let project = &project.id;
            scope.spawn(move || {
                for _ in 0..5 {
                    store.create_key(NewKey::of_project("many", project), 3).unwrap();
                }
            });
        }
    });
    stores[0].reload_if_changed().unwrap();
    assert_eq!(stores[0].snapshot().keys().count(), 17);
}

/// A file's ledger goes over with its chain, records, documents and balances, and gateways go on from there.
#[test]
fn a_file_moves_into_the_database() {
    let Some(cluster) = Cluster::start() else { return };
    let text = cluster.database("moved");
    let url: PostgresUrl = text.parse().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = crate::rig::funded(folder.path(), 1_000);
    for i in 0..20 {
        serve(&file, &format!("r{i}"), 7).unwrap();
    }
    file.credit_line("l1", "poor", CNY, tokens(50)).unwrap().wait().unwrap();
    let owed = Amount::from_pico(-tokens(20).pico());
    file.adjust("a1", "poor", CNY, owed).unwrap().wait().unwrap();
    let terms =
        GrantTerms { org: "free".into(), models: Vec::new(), tokens: 9, expires_ms: 1 << 40 };
    file.grant("g1", "g1", terms).unwrap().wait().unwrap();
    let document =
        Document { kind: "price".into(), id: "1".into(), version: 1, body: b"{}".to_vec() };
    let changes = Changes { documents: vec![document], ..Changes::default() };
    file.write(changes).unwrap().wait().unwrap();
    let before = file.verify().unwrap();
    let records = file.usage(&UsageFilter::default()).unwrap();
    assert!(matches!(migrate_file(folder.path(), &url), Err(LedgerError::InUse(_))));
    drop(file);
    let after = migrate_file(folder.path(), &url).unwrap();
    assert_eq!((after.records, after.documents), (before.records, before.documents));
    assert!(migrate_file(folder.path(), &url).is_err(), "there is nothing left to move");
    let moved = gateway(&text, "a");
    assert_eq!(moved.usage(&UsageFilter::default()).unwrap(), records);
    let chain = format!(
        "SELECT count(*) FROM mintage.log WHERE stream = 0 AND seq = {} AND \
                         encode(link, 'hex') = '{}'",
        before.lines, before.link
    );
    assert_eq!(one(&text, &chain), 1, "the chain goes on where the file's ended");
    assert_eq!(whole(&moved), tokens(860));
    let poor = moved.whole_balance("poor", CNY).unwrap();
    assert_eq!((poor.balance, poor.available()), (owed, tokens(30)));
    serve(&moved, "new", 860).unwrap();
    assert!(serve(&moved, "too much", 1).is_err());
    // What the file knew is known: ids of operations, postings to refund, versions of documents.
    moved.topup("t1", "acme", CNY, tokens(1_000)).unwrap().wait().unwrap();
    assert_eq!(whole(&moved), Amount::ZERO);
    moved.refund("f1", "r3", tokens(7)).unwrap().wait().unwrap();
    assert!(moved.refund("f2", "r3", tokens(1)).is_err());
    assert_eq!(moved.history("price", "1").unwrap().len(), 1);
    moved.verify().unwrap();
    drop(moved);
    nothing_is_leased(&text);
    let other = tempfile::tempdir().unwrap();
    drop(crate::rig::funded(other.path(), 1));
    assert!(migrate_file(other.path(), &url).is_err(), "the database has a ledger already");
    Ledger::open(other.path()).unwrap().verify().unwrap();
}

/// A ledger in use is copied into a file, and goes on from there in another database: with its balances, its ids, its
/// streams (one of them left open), its documents. A file that was changed or cut is refused and leaves nothing.
#[test]
fn a_backup_goes_on_in_another_database() {
    let Some(cluster) = Cluster::start() else { return };
    let (old, new) = (cluster.database("old"), cluster.database("new"));
    let a = gateway(&old, "a");
    a.topup("t1", "acme", CNY, tokens(1_000)).unwrap().wait().unwrap();
    for i in 0..20 {
        serve(&a, &format!("r{i}"), 7).unwrap();
    }
    let mut open = admit(&a, "open", 10, 100).unwrap();
    for sampled in 1..=64 {
        open.progress(usage(10, sampled));
    }
    let marks = || one(&old, "SELECT count(*) FROM mintage.mark");
    let start = Instant::now();
    while marks() == 0 {
        assert!(start.elapsed() < Duration::from_secs(10), "nothing is journalled");
        std::thread::sleep(Duration::from_millis(20));
    }
    let document =
        Document { kind: "price".into(), id: "1".into(), version: 1, body: b"\\\t\n".to_vec() };
    a.write(Changes { documents: vec![document], ..Changes::default() }).unwrap().wait().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("backup");
    let (from, to): (PostgresUrl, PostgresUrl) = (old.parse().unwrap(), new.parse().unwrap());
    let written = backup_shared(&from, &path).unwrap();
    assert_eq!(written.records, 20);
    assert!(matches!(backup_shared(&from, &path), Err(LedgerError::Io { .. })), "overwritten");
    // Goes on meanwhile; the backup does not know of it.
    serve(&a, "later", 7).unwrap();
    let bytes = std::fs::read(&path).unwrap();
    let damaged = folder.path().join("damaged");
    for at in [0, 30, bytes.len() / 3, bytes.len() / 2, bytes.len() - 5] {
        let mut flipped = bytes.clone();
        flipped[at] ^= 1;
        std::fs::write(&damaged, flipped).unwrap();
        let refused = restore_shared(&damaged, &to);
        assert!(matches!(refused, Err(LedgerError::Io { .. })), "flipped at {at}: {refused:?}");
        std::fs::write(&damaged, &bytes[..at]).unwrap();
        let refused = restore_shared(&damaged, &to);
        assert!(matches!(refused, Err(LedgerError::Io { .. })), "cut at {at}: {refused:?}");
    }
    assert_eq!(restore_shared(&path, &to).unwrap(), written);
    assert!(restore_shared(&path, &to).is_err(), "the database has a ledger already");
    // The open request of the gateway that was cut off is billed at its mark, and the rest can be spent.
    let b = gateway(&new, "b");
    let left = tokens(1_000 - 20 * 7 - 10 - 64);
    let start = Instant::now();
    while whole(&b) != left || one(&new, "SELECT count(*) FROM mintage.stream WHERE live") > 1 {
        assert!(start.elapsed() < TAKEN_OVER, "{:?} is not {left:?}", whole(&b));
        std::thread::sleep(Duration::from_millis(100));
    }
    serve(&b, "all of it", 1_000 - 20 * 7 - 74).unwrap();
    assert_eq!(&b.history("price", "1").unwrap()[0].body, b"\\\t\n");
    b.verify().unwrap();
    drop(b);
    nothing_is_leased(&new);
    a.void(open);
}
