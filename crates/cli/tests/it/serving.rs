//! `mintage up` from the first start to SIGTERM, as a user and as a container sees it.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::{Home, small_model};

/// More than any start or stop takes on a slow machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// A running server; killed if the test fails before it is stopped.
struct Running {
    child: Child,
    address: SocketAddr,
    /// What stands behind `API key`.
    key: String,
}

impl Running {
    fn start(home: &Home, arguments: &[&str], bootstrap_key: Option<&str>) -> Self {
        let mut command = home.mintage(arguments);
        if let Some(key) = bootstrap_key {
            command.env("MINTAGE_BOOTSTRAP_KEY", key);
        }
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut field = |name: &str| loop {
            let line = lines.next().expect("it ended before it was ready").unwrap();
            if let Some(rest) = line.trim().strip_prefix(name) {
                break rest.trim().to_owned();
            }
        };
        let url = field("address");
        let address = url.trim_start_matches("http://").trim_end_matches("/v1").parse().unwrap();
        let key = field("API key");
        // Nobody reads on; what the program prints later must not block it.
        std::thread::spawn(move || lines.for_each(drop));
        Self { child, address, key }
    }

    /// Status and body.
    fn request(&self, head: &str, key: &str, body: &Value) -> (u16, Value) {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let mut stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let length = body.len();
        write!(
            stream,
            "{head} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer {key}\r\n\
             Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
        )
        .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
        let (_, body) = answer.split_once("\r\n\r\n").unwrap();
        (status, serde_json::from_str(body).unwrap_or(Value::Null))
    }

    fn chat(&self, key: &str) -> (u16, Value) {
        let body = json!({
            "model": "smollm2-135m-instruct-q4_1",
            "messages": [{"role": "user", "content": "What is the capital of France? Answer with its name only."}],
            "temperature": 0,
            "max_tokens": 24,
        });
        self.request("POST /v1/chat/completions", key, &body)
    }

    fn stop(mut self) -> ExitStatus {
        let id = self.child.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &id]).status().unwrap().success());
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "SIGTERM did not stop it");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn up_answers_stops_and_starts_again() {
    let Some(model) = small_model() else { return };
    let (home, model) = (Home::new(), model.display().to_string());
    let up = ["up", "--listen", "127.0.0.1:0", "--model", &model, "--kv-cache-mib", "64"];
    let first = Running::start(&home, &up, None);
    let key = first.key.split_whitespace().next().unwrap().to_owned();
    assert!(key.starts_with("sk-mint-"), "{key}");
    let (status, answer) = first.chat(&key);
    assert_eq!(status, 200, "{answer}");
    let text = answer["choices"][0]["message"]["content"].as_str().unwrap();
    assert!(text.contains("Paris"), "{text}");
    let usage = &answer["usage"];
    assert!(usage["prompt_tokens"].as_u64() > Some(10), "{usage}");
    assert_eq!(first.chat("sk-wrong").0, 401);
    assert_eq!(first.request("GET /readyz", "", &Value::Null).0, 200);
    assert_eq!(first.stop().code(), Some(0));

    // The key of the first start holds, and is not shown again.
    let second = Running::start(&home, &up, None);
    assert!(second.key.contains("one made earlier"), "{}", second.key);
    assert_eq!(second.chat(&key).1["choices"][0]["message"]["content"].as_str().unwrap(), text);
    assert_eq!(second.stop().code(), Some(0));
}

#[test]
fn a_container_brings_its_own_key() {
    let Some(model) = small_model() else { return };
    let (home, model) = (Home::new(), model.display().to_string());
    let serve = ["serve", "--listen", "0.0.0.0:0", "--model", &model, "--kv-cache-mib", "64"];
    let key = "a-key-that-the-operator-chose";
    let running = Running::start(&home, &serve, Some(key));
    assert!(running.key.contains("MINTAGE_BOOTSTRAP_KEY"), "{}", running.key);
    assert_eq!(running.chat(key).0, 200);
    assert_eq!(running.stop().code(), Some(0));
}

#[test]
fn a_port_in_use_is_reported_before_anything_is_fetched() {
    let home = Home::new();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let (status, _, err) = home.run(&["up", "--listen", &address]);
    assert_eq!(status, 1);
    assert!(err.contains(&format!("{address} is in use by another program")), "{err}");
    assert!(err.contains("--listen 127.0.0.1:0"), "{err}");
    assert!(!err.contains("fetching"), "{err}");
}

#[test]
fn an_open_address_without_keys_is_refused() {
    let home = Home::new();
    std::fs::write(home.path().join("mintage.toml"), "[server]\nrequire_key = false\n").unwrap();
    let (status, _, err) =
        home.run(&["serve", "--config", "mintage.toml", "--listen", "0.0.0.0:0"]);
    assert_eq!(status, 1);
    assert!(err.contains("without API keys"), "{err}");
    assert!(!err.contains("fetching"), "{err}");
}

#[test]
fn a_bad_bootstrap_key_is_refused() {
    let home = Home::new();
    let output = home.mintage(&["up"]).env("MINTAGE_BOOTSTRAP_KEY", "short").output().unwrap();
    let err = String::from_utf8_lossy(&output.stderr);
    assert!(err.contains("MINTAGE_BOOTSTRAP_KEY cannot be used"), "{err}");
}

/// A real encoder, tiny and random, whose vectors `transformers` made too.
#[test]
fn an_encoder_embeds_beside_nobody_and_shows_what_it_is() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../engine/tests/goldens/bert");
    let model = golden.display().to_string();
    let home = Home::new();
    let (status, shown, err) = home.run(&["show", &model]);
    assert_eq!(status, 0, "{err}");
    for expected in ["family           bert", "40 numbers, the mean", "48 tokens with its marks"] {
        assert!(shown.contains(expected), "`{expected}` is not in\n{shown}");
    }
    let (_, shown, _) = home.run(&["show", &model, "--json"]);
    assert_eq!(serde_json::from_str::<Value>(&shown).unwrap()["embedding_length"], 40);
    // It guesses nothing, and has nobody guess.
    let draft = home.run(&["up", "--listen", "127.0.0.1:0", "--model", &model, "--draft", &model]);
    assert!(draft.0 != 0 && draft.2.contains("makes vectors and guesses nothing"), "{}", draft.2);

    let arguments =
        ["serve", "--listen", "127.0.0.1:0", "--embedding-model", &model, "--model", &model];
    let twice = home.run(&arguments);
    assert!(
        twice.0 != 0 && twice.2.contains("two models answer to the name `bert`"),
        "{}",
        twice.2
    );
    let running =
        Running::start(&home, &["up", "--listen", "127.0.0.1:0", "--model", &model], None);
    let key = running.key.split(' ').next().unwrap().to_owned();
    let sequences = std::fs::read_to_string(golden.join("sequences.json")).unwrap();
    let mut sequences: Vec<Vec<u32>> = serde_json::from_str(&sequences).unwrap();
    // There are places for 64 tokens, but it was made for 48.
    let longest = sequences.pop().unwrap();
    let (status, answer) =
        running.request("POST /v1/embeddings", &key, &json!({"model": "bert", "input": longest}));
    let message = answer["error"]["message"].as_str().unwrap();
    assert!(status == 400 && message.contains("takes at most 48"), "{answer}");
    let body = json!({"model": "bert", "input": sequences});
    let (status, answer) = running.request("POST /v1/embeddings", &key, &body);
    assert_eq!(status, 200, "{answer}");
    let bytes = std::fs::read(golden.join("mean.f32")).unwrap();
    let expected: Vec<f64> = bytes
        .chunks_exact(4)
        .map(|four| f64::from(f32::from_le_bytes(four.try_into().unwrap())))
        .collect();
    let data = answer["data"].as_array().unwrap();
    assert_eq!((data.len() + 1) * 40, expected.len());
    for (entry, expected) in data.iter().zip(expected.chunks(40)) {
        let found = entry["embedding"].as_array().unwrap().iter().map(|n| n.as_f64().unwrap());
        let cosine: f64 = found.zip(expected).map(|(a, b)| a * b).sum();
        assert!(cosine > 0.9999, "{cosine}");
    }
    let chat = json!({"model": "bert", "messages": [{"role": "user", "content": "Hi"}]});
    let (status, answer) = running.request("POST /v1/chat/completions", &key, &chat);
    assert_eq!((status, &answer["error"]["code"]), (400, &json!("unsupported_model")));
    assert!(running.stop().success());
}
