//! The Hugging Face protocol: redirects, tokens, ranges, interruptions, wrong bytes, refusals.

use std::sync::Arc;

use mintage_hub::{Hub, HubError};

use crate::server::{Reply, Server};
use crate::{Events, assert_stored, catalogue, config, content, sha256};

const SOURCE: &str = r#"
    [[model.source]]
    kind = "hugging-face"
    repo = "a/m"
    revision = "v1"
    file = "m.gguf"
    "#;
const SECOND_SOURCE: &str = r#"
    [[model.source]]
    kind = "hugging-face"
    repo = "b/m"
    revision = "v2"
    file = "sub/m.gguf"
    "#;
const PATH: &str = "/a/m/resolve/v1/m.gguf";
const SECOND_PATH: &str = "/b/m/resolve/v2/sub/m.gguf";

/// Pulls `m` from a server; the data folder lives as long as the hub.
fn pull(
    server: &Server,
    content: &[u8],
    sources: &str,
) -> (Hub, tempfile::TempDir, Result<(), HubError>) {
    let dir = tempfile::tempdir().unwrap();
    let hub = Hub::open(config(dir.path(), &server.url)).unwrap();
    let hub = hub.with_catalogue(catalogue(content, sources));
    let outcome = hub.pull(&"m".parse().unwrap(), None, &Events::default()).map(|_| ());
    (hub, dir, outcome)
}

#[track_caller]
fn assert_fails(outcome: Result<(), HubError>, needle: &str) {
    let error = outcome.unwrap_err().to_string();
    assert!(error.contains(needle), "{error}");
}

#[test]
fn follows_redirects_and_keeps_the_token_at_home() {
    let bytes = content(300_000);
    let served = bytes.clone();
    let elsewhere = Server::start(move |request, _| Reply::range(&served, request));
    let target = format!("{}/blob", elsewhere.url);
    let (digest, size) = (sha256(&bytes), bytes.len().to_string());
    let server = Server::start(move |request, _| match request.path.as_str() {
        PATH => Reply::redirect("/renamed".to_owned()),
        _ => Reply::redirect(target.clone())
            .with("X-Linked-Etag", format!("\"{digest}\""))
            .with("X-Linked-Size", size.clone()),
    });
    let (hub, _dir, outcome) = pull(&server, &bytes, SOURCE);
    outcome.unwrap();
    assert_stored(&hub, &bytes);
    assert_eq!(server.log(), [PATH, "/renamed"]);
    for request in server.requests() {
        assert_eq!(request.header("authorization"), Some("Bearer secret"));
    }
    assert_eq!(elsewhere.log(), ["/blob"]);
    assert_eq!(elsewhere.requests()[0].header("authorization"), None);
}

#[test]
fn resumes_where_the_body_broke_off() {
    let bytes = content(300_000);
    let served = bytes.clone();
    let server = Server::start(move |request, before| match before {
        0 => Reply::range(&served, request).cut_after(100_000),
        1 => Reply::range(&served, request).cut_after(50_000),
        _ => Reply::range(&served, request),
    });
    let (hub, _dir, outcome) = pull(&server, &bytes, SOURCE);
    outcome.unwrap();
    assert_stored(&hub, &bytes);
    let expected = [PATH.to_owned(), format!("{PATH} from 100000"), format!("{PATH} from 150000")];
    assert_eq!(server.log(), expected);
}

#[test]
fn another_run_goes_on_where_the_first_stopped() {
    let bytes = content(300_000);
    let served = bytes.clone();
    let server = Server::start(move |request, before| match before {
        0 => Reply::range(&served, request).cut_after(200_000),
        1 => Reply::status(403),
        _ => Reply::range(&served, request),
    });
    let (hub, _dir, outcome) = pull(&server, &bytes, SOURCE);
    assert_fails(outcome, "HTTP 403");
    hub.pull(&"m".parse().unwrap(), None, &Events::default()).unwrap();
    assert_stored(&hub, &bytes);
    assert_eq!(server.log()[2], format!("{PATH} from 200000"));
}

#[test]
fn starts_again_where_ranges_are_not_known() {
    let bytes = content(300_000);
    let served = bytes.clone();
    let server = Server::start(move |_, before| match before {
        0 => Reply::ok(served.clone()).cut_after(100_000),
        _ => Reply::ok(served.clone()),
    });
    let (hub, _dir, outcome) = pull(&server, &bytes, SOURCE);
    outcome.unwrap();
    assert_stored(&hub, &bytes);
}

#[test]
fn wrong_bytes_lead_to_the_next_source() {
    let bytes = content(300_000);
    let served = bytes.clone();
    let mut wrong = bytes.clone();
    wrong[123_456] ^= 1;
    let server = Server::start(move |request, _| match request.path.as_str() {
        PATH => Reply::range(&wrong, request),
        _ => Reply::range(&served, request),
    });
    let (_hub, _dir, outcome) = pull(&server, &bytes, SOURCE);
    assert_fails(outcome, "wrong bytes");
    let (hub, _dir, outcome) = pull(&server, &bytes, &format!("{SOURCE}{SECOND_SOURCE}"));
    outcome.unwrap();
    assert_stored(&hub, &bytes);
}

#[test]
fn wrong_bytes_that_another_source_left_get_a_second_chance() {
    let bytes = content(300_000);
    let served = bytes.clone();
    let mut wrong = bytes.clone();
    wrong[5] ^= 1;
    // The first source delivers wrong bytes, breaks off and is gone; the second is right, but goes on from there.
    let server = Server::start(move |request, before| match (request.path.as_str(), before) {
        (PATH, 0) => Reply::range(&wrong, request).cut_after(10_000),
        (PATH, _) => Reply::status(404),
        _ => Reply::range(&served, request),
    });
    let (hub, _dir, outcome) = pull(&server, &bytes, &format!("{SOURCE}{SECOND_SOURCE}"));
    outcome.unwrap();
    assert_stored(&hub, &bytes);
    let expected =
        [PATH, &format!("{PATH} from 10000"), &format!("{SECOND_PATH} from 10000"), SECOND_PATH];
    assert_eq!(server.log(), expected);
}

#[test]
fn announced_sizes_and_digests_are_compared_before_the_download() {
    let bytes = content(1000);
    let check = |reply: Reply| {
        let server = Server::start(move |_, _| reply.clone());
        let (_hub, _dir, outcome) = pull(&server, &bytes, SOURCE);
        assert_fails(outcome, "wrong bytes");
        assert_eq!(server.log().len(), 1);
    };
    check(Reply::ok(bytes.clone()).with("X-Linked-Etag", format!("\"{}\"", sha256(b"other"))));
    check(Reply::ok(bytes.clone()).with("X-Linked-Size", "999"));
    check(Reply::ok(content(1001)));
    check(Reply::ok(content(999)));
    let endless = Reply { unsized_body: true, ..Reply::ok(content(5_000_000)) };
    check(endless);
}

#[test]
fn refusals_say_what_to_do() {
    let bytes = content(1000);
    let check = |reply: Reply, needle: &str, requests: usize| {
        let server = Server::start(move |_, _| reply.clone());
        let (_hub, _dir, outcome) = pull(&server, &bytes, SOURCE);
        assert_fails(outcome, needle);
        assert_eq!(server.log().len(), requests, "{needle}");
    };
    check(Reply::status(401), "set `HF_TOKEN`", 1);
    check(Reply::status(403), "set `HF_TOKEN`", 1);
    check(Reply::status(404), "not found: a/m/m.gguf at v1", 1);
    check(Reply::status(418), "HTTP 418", 1);
    check(
        Reply::status(503).with("Retry-After", "0"),
        "5 times in a row; the last reason: HTTP 503",
        5,
    );
    check(Reply::redirect(PATH.to_owned()), "more than 8 redirects", 9);
    check(Reply::redirect("file:///etc/passwd".to_owned()), "not an http(s) URL", 1);
    let shifted =
        Reply { status: 206, ..Reply::ok(bytes.clone()) }.with("Content-Range", "bytes 7-9/10");
    check(shifted, "range", 1);
}

#[test]
fn an_unreachable_endpoint_is_left_quickly() {
    let bytes = content(1000);
    let (dir, folder) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    // A port that was free a moment ago: nobody listens.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut config = config(dir.path(), &format!("http://127.0.0.1:{port}"));
    let open = |config| Hub::open(config).unwrap().with_catalogue(catalogue(&bytes, SOURCE));
    let started = std::time::Instant::now();
    let outcome = open(config.clone()).pull(&"m".parse().unwrap(), None, &Events::default());
    assert_fails(outcome.map(|_| ()), "cannot be reached");
    assert!(started.elapsed().as_secs() < 6);

    std::fs::write(folder.path().join("m.gguf"), &bytes).unwrap();
    config.folder = Some(folder.path().to_owned());
    let hub = open(config);
    hub.pull(&"m".parse().unwrap(), None, &Events::default()).unwrap();
    assert_stored(&hub, &bytes);
}

/// A safetensors repository: large files with digests in the listing, small ones without.
#[test]
fn a_repository_becomes_one_model_of_several_files() {
    let weights = Arc::new(content(200_000));
    let listing = format!(
        r#"{{"sha": "c0ffee", "tags": ["license:apache-2.0"], "siblings": [
            {{"rfilename": "README.md", "size": 5}},
            {{"rfilename": "config.json", "size": 2}},
            {{"rfilename": "model.safetensors", "size": {0}, "lfs": {{"sha256": "{1}", "size": {0}}}}}]}}"#,
        weights.len(),
        sha256(&weights)
    );
    let served = Arc::clone(&weights);
    let server = Server::start(move |request, _| match request.path.as_str() {
        "/api/models/a/Repo/revision/main?blobs=true" => Reply::ok(listing.clone()),
        "/a/Repo/resolve/c0ffee/config.json" => Reply::ok("{}").with("ETag", "\"x\""),
        "/a/Repo/resolve/c0ffee/model.safetensors" => Reply::range(&served, request),
        _ => Reply::status(404),
    });
    let dir = tempfile::tempdir().unwrap();
    let hub = Hub::open(config(dir.path(), &server.url)).unwrap();
    let reference = "hf:a/Repo".parse().unwrap();
    let events = Events::default();
    let model = hub.resolve(&reference, &events).unwrap();
    assert_eq!(model.name.as_str(), "repo");
    assert_eq!(std::fs::read(model.path.join("config.json")).unwrap(), b"{}");
    assert_eq!(std::fs::read(model.path.join("model.safetensors")).unwrap(), *weights);
    assert_eq!(model.manifest.unwrap().licence.as_deref(), Some("apache-2.0"));

    let asked = server.log().len();
    hub.resolve(&reference, &events).unwrap();
    hub.resolve(&"repo".parse().unwrap(), &events).unwrap();
    assert_eq!(server.log().len(), asked, "a stored model was asked for again");

    let other = "hf:b/Repo".parse().unwrap();
    let error = hub.pull(&other, None, &events).unwrap_err().to_string();
    assert!(error.contains("not found"), "{error}");
}

#[test]
fn hostile_listings_are_refused() {
    let check = |listing: &'static str, needle: &str| {
        let server = Server::start(move |_, _| Reply::ok(listing));
        let dir = tempfile::tempdir().unwrap();
        let hub = Hub::open(config(dir.path(), &server.url)).unwrap();
        let outcome = hub.pull(&"hf:a/b".parse().unwrap(), None, &Events::default());
        assert_fails(outcome.map(|_| ()), needle);
    };
    check("nonsense", "does not parse");
    check(r#"{"sha": "../../x", "siblings": []}"#, "no usable commit");
    check(r#"{"sha": "0a", "siblings": [{"rfilename": "../x.gguf", "size": 1}]}"#, "plain path");
    check(r#"{"sha": "0a", "siblings": [{"rfilename": "x.gguf"}]}"#, "how large");
    check(
        r#"{"sha": "0a", "siblings": [{"rfilename": "x.gguf", "lfs": {"sha256": "../../x", "size": 1}}]}"#,
        "not a SHA-256",
    );
}
