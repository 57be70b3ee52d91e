//! A sender that dies between delivery and acknowledgement.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpListener;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use mintage_ledger::price::KeptPrices;
use mintage_ledger::{DirectoryStore, Ledger};

use super::target::WebhookPolicy;
use super::{Endpoint, put, run, send_test};
use crate::admin::{Books, Office};

fn office(keys: &Path, folder: &Path) -> (Arc<Office>, Arc<Ledger>) {
    let ledger = Arc::new(Ledger::open(folder).unwrap());
    let books = Books {
        prices: Arc::new(KeptPrices::open(&ledger).unwrap()),
        ledger: Arc::clone(&ledger),
        utc_offset_minutes: 0,
        webhooks: WebhookPolicy {
            allow_private_addresses: true,
            timeout: Duration::from_secs(2),
            ..WebhookPolicy::default()
        },
    };
    let directory = Arc::new(DirectoryStore::open(keys).unwrap());
    (Arc::new(Office::new(directory, Some(books))), ledger)
}

/// A receiver that takes a request, says so with its id, and answers when told to.
fn receiver() -> (String, Receiver<String>, std::sync::mpsc::Sender<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let (id_sent, ids) = channel();
    let (go, may_answer) = channel();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let reader = BufReader::new(stream.try_clone().unwrap());
            let lines = reader.lines().map_while(Result::ok).take_while(|line| !line.is_empty());
            let id = lines.filter_map(|line| line.strip_prefix("webhook-id: ").map(str::to_owned));
            let id = id.last().unwrap_or_default();
            if id_sent.send(id).is_err() || may_answer.recv().is_err() {
                return;
            }
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n");
        }
    });
    (url, ids, go)
}

#[test]
fn what_was_not_acknowledged_is_sent_again_after_a_crash() {
    let folder = tempfile::tempdir().unwrap();
    let (keys, before, after) =
        (folder.path().join("keys"), folder.path().join("before"), folder.path().join("after"));
    let (url, ids, go) = receiver();
    let (first, ledger) = office(&keys, &before);
    let endpoint = Endpoint {
        id: "wh".into(),
        organisation: None,
        url,
        topics: Vec::new(),
        secret_version: 1,
        is_enabled: true,
        created_unix: 0,
    };
    put(&ledger, 0, &endpoint, true).unwrap().wait().unwrap();
    send_test(&ledger, &endpoint, "msg_once".to_owned(), 0).unwrap().wait().unwrap();
    let runtime = || tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let dying = runtime();
    dying.spawn(run(first));
    assert_eq!(ids.recv_timeout(Duration::from_secs(10)).unwrap(), "msg_once");
    // The receiver has it, the sender does not know yet: what is on disk now is what a killed sender leaves.
    std::fs::create_dir(&after).unwrap();
    for file in std::fs::read_dir(&before).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), after.join(file.file_name())).unwrap();
    }
    dying.shutdown_background();
    go.send(()).unwrap();

    let (second, ledger) = office(&keys, &after);
    assert_eq!(ledger.due_messages(u64::MAX >> 1, 10).unwrap().len(), 1);
    let living = runtime();
    living.spawn(run(second));
    assert_eq!(ids.recv_timeout(Duration::from_secs(10)).unwrap(), "msg_once");
    go.send(()).unwrap();
    let deadline = std::time::Instant::now() + Duration::from_secs(10);
    while !ledger.due_messages(u64::MAX >> 1, 10).unwrap().is_empty() {
        assert!(std::time::Instant::now() < deadline, "never acknowledged");
        std::thread::sleep(Duration::from_millis(20));
    }
    living.shutdown_background();
}
