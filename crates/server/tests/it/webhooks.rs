//! Webhooks against a receiver that fails, hangs and dies, and a sender that dies between delivery and acknowledgement.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpListener;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use mintage_ledger::{Changes, Currency, Message};
use mintage_server::WebhookPolicy;
use serde_json::{Value, json};

use crate::admin::{operator_key, tenant};
use crate::harness::{House, says, start_with};

/// Longer than any delivery takes, retries included.
const PATIENCE: Duration = Duration::from_secs(30);

/// What came in: the headers by name, in lower case, and the body.
struct Posted {
    headers: Vec<(String, String)>,
    body: String,
}

impl Posted {
    fn header(&self, name: &str) -> &str {
        &self.headers.iter().find(|(known, _)| known == name).unwrap().1
    }
}

/// What a receiver does with a request.
#[derive(Clone, Copy)]
enum Does {
    Answer(u16),
    /// Says nothing until the sender gives up.
    Hang,
    /// Closes after reading.
    Die,
}

/// A receiver on loopback that does one thing after the other, the last one for ever.
fn receiver(does: &'static [Does]) -> (String, Receiver<Posted>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/in", listener.local_addr().unwrap());
    let (posted, got) = channel();
    std::thread::spawn(move || {
        for (n, stream) in listener.incoming().enumerate() {
            let Ok(mut stream) = stream else { return };
            let mut reader = BufReader::new(stream.try_clone().unwrap());
            let mut headers = Vec::new();
            loop {
                let mut line = String::new();
                if reader.read_line(&mut line).unwrap_or(0) <= 2 {
                    break;
                }
                if let Some((name, value)) = line.split_once(':') {
                    headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
                }
            }
            let length = headers.iter().find(|(name, _)| name == "content-length");
            let mut body = vec![0; length.map_or(0, |(_, n)| n.parse().unwrap())];
            if reader.read_exact(&mut body).is_err() {
                continue;
            }
            let body = String::from_utf8(body).unwrap();
            if posted.send(Posted { headers, body }).is_err() {
                return;
            }
            match does[n.min(does.len() - 1)] {
                Does::Answer(status) => {
                    let _ = write!(
                        stream,
                        "HTTP/1.1 {status} x\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
                    );
                }
                Does::Hang => {
                    // Until the sender closes.
                    let _ = reader.read(&mut [0]);
                }
                Does::Die => {}
            }
        }
    });
    (url, got)
}

async fn house(max_attempts: u32) -> House {
    let webhooks = WebhookPolicy {
        allow_private_addresses: true,
        timeout: Duration::from_secs(1),
        first_retry: Duration::from_millis(100),
        max_attempts,
        ..WebhookPolicy::default()
    };
    start_with(|config| config.webhooks = webhooks, |_| Ok(says("x"))).await
}

async fn next(got: &Receiver<Posted>) -> Posted {
    let deadline = std::time::Instant::now() + PATIENCE;
    loop {
        if let Ok(posted) = got.try_recv() {
            return posted;
        }
        assert!(std::time::Instant::now() < deadline, "nothing came");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn endpoint(house: &House, key: &str, url: &str) -> Value {
    let reply = house.ask(key, "POST", "/admin/v1/webhooks", &json!({"url": url})).await;
    assert_eq!(reply.status, 201, "{}", reply.body);
    reply.json()
}

/// Of what falls due within a minute: the tenants' invoices are issued at a month's end that is still to come.
async fn until_the_outbox_is_empty(house: &House) {
    let deadline = std::time::Instant::now() + PATIENCE;
    loop {
        let ledger = house.ledger.clone();
        let since_1970 = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let soon_ms = u64::try_from(since_1970.unwrap().as_millis()).unwrap() + 60_000;
        let left = tokio::task::spawn_blocking(move || ledger.due_messages(soon_ms, 10).unwrap());
        let left = left.await.unwrap();
        if left.is_empty() {
            return;
        }
        assert!(std::time::Instant::now() < deadline, "{left:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Checked the way receivers' libraries do it, from the secret as text.
fn verify(posted: &Posted, secret: &str) {
    use base64::Engine as _;
    use hmac::{Hmac, KeyInit as _, Mac as _};
    let key = base64::engine::general_purpose::STANDARD
        .decode(secret.strip_prefix("whsec_").unwrap())
        .unwrap();
    let mut mac = Hmac::<sha2::Sha256>::new_from_slice(&key).unwrap();
    let (id, time) = (posted.header("webhook-id"), posted.header("webhook-timestamp"));
    mac.update(format!("{id}.{time}.{}", posted.body).as_bytes());
    let expected = base64::engine::general_purpose::STANDARD.encode(mac.finalize().into_bytes());
    assert_eq!(posted.header("webhook-signature"), format!("v1,{expected}"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_low_balance_is_told_once_to_its_own_organisation() {
    let house = house(3).await;
    let (a, b, operator) =
        (tenant(&house, "a").await, tenant(&house, "b").await, operator_key(&house));
    let (mine, got) = receiver(&[Does::Answer(204)]);
    let (theirs, nothing) = receiver(&[Does::Answer(204)]);
    let made = endpoint(&house, &a.key, &mine).await;
    endpoint(&house, &b.key, &theirs).await;
    let org = a.id("organization");
    house.ledger.topup("t", org, Currency::CNY, "10".parse().unwrap()).unwrap().await.unwrap();
    let path = format!("/admin/v1/organizations/{org}/balance-alert");
    let set = house.ask(&a.key, "PUT", &path, &json!({"below": "5"})).await;
    assert_eq!(set.status, 200, "{}", set.body);
    house.ledger.adjust("x", org, Currency::CNY, "-6".parse().unwrap()).unwrap().await.unwrap();
    let posted = next(&got).await;
    verify(&posted, made["secret"].as_str().unwrap());
    let body: Value = serde_json::from_str(&posted.body).unwrap();
    assert_eq!(body["type"], "balance.low");
    assert_eq!(
        body["data"],
        json!({"organisation": org, "available": "4", "below": "5", "currency": "CNY"})
    );
    until_the_outbox_is_empty(&house).await;
    tokio::time::sleep(Duration::from_millis(1200)).await;
    assert!(got.try_recv().is_err(), "told twice");
    assert!(nothing.try_recv().is_err(), "told to another");
    // The operator sees all endpoints, without their secrets.
    let all = house.ask(&operator, "GET", "/admin/v1/webhooks", &Value::Null).await;
    assert_eq!(all.json()["data"].as_array().unwrap().len(), 4);
    assert!(!all.body.contains("whsec_"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failures_are_retried_under_one_id_and_then_kept() {
    let house = house(3).await;
    let a = tenant(&house, "a").await;
    let (url, got) = receiver(&[Does::Answer(500), Does::Hang, Does::Die, Does::Answer(200)]);
    let made = endpoint(&house, &a.key, &url).await;
    let path = format!("/admin/v1/webhooks/{}/test", made["id"].as_str().unwrap());
    let sent = house.ask(&a.key, "POST", &path, &Value::Null).await.json();
    let id = sent["message"].as_str().unwrap();
    // Answered with an error, then not at all, then cut off: three attempts.
    for _ in 0..3 {
        let posted = next(&got).await;
        assert_eq!(posted.header("webhook-id"), id);
        verify(&posted, made["secret"].as_str().unwrap());
    }
    until_the_outbox_is_empty(&house).await;
    let letters = house.ask(&a.key, "GET", "/admin/v1/webhook-dead-letters", &Value::Null).await;
    let letter = letters.json()["data"][0].clone();
    assert_eq!(
        (&letter["message"], &letter["attempts"]),
        (&json!(id), &json!(3)),
        "{}",
        letters.body
    );
    let path = format!("/admin/v1/webhook-dead-letters/{}/retry", letter["id"].as_str().unwrap());
    assert_eq!(house.ask(&a.key, "POST", &path, &Value::Null).await.status, 200);
    assert_eq!(next(&got).await.header("webhook-id"), id);
    until_the_outbox_is_empty(&house).await;
    let letters = house.ask(&a.key, "GET", "/admin/v1/webhook-dead-letters", &Value::Null).await;
    assert!(!letters.body.contains(id), "{}", letters.body);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hanging_receiver_holds_up_nobody_else() {
    let house = house(1).await;
    let (a, b) = (tenant(&house, "a").await, tenant(&house, "b").await);
    let (slow, _hangs) = receiver(&[Does::Hang]);
    let (quick, got) = receiver(&[Does::Answer(200)]);
    endpoint(&house, &a.key, &slow).await;
    endpoint(&house, &b.key, &quick).await;
    let event = |org: &str| Message {
        topic: "balance.low".into(),
        body: json!({"organisation": org}).to_string().into_bytes(),
        due_ms: 0,
    };
    let mut messages: Vec<Message> = (0..50).map(|_| event(a.id("organization"))).collect();
    messages.push(event(b.id("organization")));
    house.ledger.write(Changes { messages, ..Changes::default() }).unwrap().await.unwrap();
    let begun = std::time::Instant::now();
    next(&got).await;
    // 50 messages at a second each, two at a time, would be 25 s.
    assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
}
