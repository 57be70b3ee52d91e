//! Several users of one store: processes that pull at once, models that share a blob, files that rot.

use std::fs;
use std::sync::Arc;

use mintage_hub::{Hub, HubError, StoredState};

use crate::server::{Reply, Server};
use crate::{Events, assert_stored, catalogue, config, content, sha256};

const SOURCE: &str = r#"
    [[model.source]]
    kind = "hugging-face"
    repo = "a/m"
    revision = "v1"
    file = "m.gguf"
    "#;

fn slow_server(content: &[u8]) -> Server {
    let content = content.to_vec();
    Server::start(move |request, _| {
        std::thread::sleep(std::time::Duration::from_millis(300));
        Reply::range(&content, request)
    })
}

/// Locks belong to open files, so two handles in one process exclude each other as two processes do.
#[test]
fn the_second_puller_waits_and_downloads_nothing() {
    let bytes = content(100_000);
    let server = slow_server(&bytes);
    let dir = tempfile::tempdir().unwrap();
    let all = Arc::new(Events::default());
    let threads: Vec<_> = (0..3)
        .map(|_| {
            let (config, catalogue) = (config(dir.path(), &server.url), catalogue(&bytes, SOURCE));
            let events = Arc::clone(&all);
            std::thread::spawn(move || {
                let hub = Hub::open(config).unwrap().with_catalogue(catalogue);
                hub.pull(&"m".parse().unwrap(), None, events.as_ref()).unwrap();
                assert_stored(&hub, &content(100_000));
            })
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
    assert_eq!(server.log().len(), 1, "the file was downloaded more than once");
    let waited = all.all().iter().filter(|event| event.contains("Waiting")).count();
    assert_eq!(waited, 2);
}

#[test]
fn a_damaged_blob_is_noticed_and_fetched_anew() {
    let bytes = content(100_000);
    let server = slow_server(&bytes);
    let dir = tempfile::tempdir().unwrap();
    let hub = Hub::open(config(dir.path(), &server.url)).unwrap();
    let hub = hub.with_catalogue(catalogue(&bytes, SOURCE));
    let (name, events) = ("m".parse().unwrap(), Events::default());
    let manifest = hub.pull(&name, None, &events).unwrap();
    let blob = hub.store().blob_path(manifest.files[0].sha256);

    let mut damaged = bytes.clone();
    damaged[50_000] ^= 0x10;
    fs::write(&blob, &damaged).unwrap();
    assert!(matches!(hub.find(&name, &events), Err(HubError::Corrupt { .. })));
    hub.resolve(&name, &events).unwrap();
    assert_stored(&hub, &bytes);
    assert_eq!(server.log().len(), 2);

    // Rot leaves the times alone: only a full verification sees it.
    let time = fs::metadata(&blob).unwrap().modified().unwrap();
    fs::write(&blob, &damaged).unwrap();
    fs::File::options().append(true).open(&blob).unwrap().set_modified(time).unwrap();
    let manifest = hub.store().manifest(&manifest.name).unwrap().unwrap();
    let expected = manifest.files[0].sha256;
    let state = hub.store().verify(&manifest, &events).unwrap();
    assert_eq!(state, StoredState::Damaged { expected });

    fs::remove_file(&blob).unwrap();
    hub.resolve(&name, &events).unwrap();
    assert_stored(&hub, &bytes);
}

#[test]
fn removing_a_model_keeps_what_others_share() {
    let bytes = content(100_000);
    let server = slow_server(&bytes);
    let dir = tempfile::tempdir().unwrap();
    let hub = Hub::open(config(dir.path(), &server.url)).unwrap();
    let hub = hub.with_catalogue(catalogue(&bytes, SOURCE));
    let events = Events::default();
    let copy = "copy".parse().unwrap();
    let manifest = hub.pull(&"m".parse().unwrap(), None, &events).unwrap();
    hub.pull(&"m".parse().unwrap(), Some("copy".parse().unwrap()), &events).unwrap();
    let names = || -> Vec<String> {
        hub.store().list().unwrap().into_iter().map(|m| m.name.to_string()).collect()
    };
    assert_eq!(names(), ["copy", "m"]);

    assert_eq!(hub.store().remove(&copy).unwrap(), Some(0));
    assert_stored(&hub, &bytes);
    assert_eq!(hub.store().remove(&manifest.name).unwrap(), Some(100_000));
    assert_eq!(hub.store().remove(&manifest.name).unwrap(), None);
    assert_eq!(names(), [""; 0]);
    assert_eq!(fs::read_dir(dir.path().join("blobs")).unwrap().count(), 0);
}

#[test]
fn manifests_cannot_lead_out_of_the_store() {
    let dir = tempfile::tempdir().unwrap();
    let hub = Hub::open(config(dir.path(), "http://127.0.0.1:9")).unwrap();
    let digest = sha256(b"x");
    let check = |file: &str, sha256: &str| {
        let text = format!(
            r#"{{"name": "evil", "origin": "x", "licence": null, "entry": null, "files":
                [{{"name": "{file}", "sha256": "{sha256}", "bytes": 1, "verified_mtime_ns": 0}}]}}"#
        );
        fs::write(dir.path().join("manifests/evil.json"), text).unwrap();
        let outcome = hub.store().manifest(&"evil".parse().unwrap());
        assert!(matches!(outcome, Err(HubError::Manifest { .. })), "{file} {sha256}");
    };
    check("../../escape", &digest);
    check("/etc/passwd", &digest);
    check("x", "../../../etc/passwd");
    check("x", "");
}

#[test]
fn unknown_names_get_a_suggestion() {
    let dir = tempfile::tempdir().unwrap();
    let hub = Hub::open(config(dir.path(), "http://127.0.0.1:9")).unwrap();
    let check = |given: &str, needle: &str| {
        let error =
            hub.resolve(&given.parse().unwrap(), &Events::default()).unwrap_err().to_string();
        assert!(error.contains(needle), "{error}");
    };
    check("qwen2.5-coder:0.6b", "did you mean `qwen2.5-coder:0.5b`?");
    check("entirely-different", "mintage list --all");
    check("../../etc/passwd.gguf", "No such file");
    check("sp ace", "no model is called `sp ace`");
}
