//! Batches as programs run them, over restarts.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use mintage_model::{Priority, Script, ScriptEnd};
use serde_json::{Value, json};

use crate::harness::{House, Reply, says, start_in, start_with};
use crate::openapi::{check as check_schema, document, validator};

const CHAT: &str = "/v1/chat/completions";

/// Lines that say their number.
fn lines(numbers: impl Iterator<Item = usize>) -> String {
    let line = |n: usize| {
        let body = json!({"model": "scripted", "messages": [{"role": "user", "content": format!("line {n}")}]});
        json!({"custom_id": format!("c{n}"), "method": "POST", "url": CHAT, "body": body})
            .to_string()
            + "\n"
    };
    numbers.map(line).collect()
}

impl House {
    async fn batch(&self, input: &str) -> String {
        self.batch_to(CHAT, input).await
    }

    pub(crate) async fn batch_to(&self, endpoint: &str, input: &str) -> String {
        let file = self.upload(input).await;
        let body = json!({"input_file_id": file, "endpoint": endpoint, "completion_window": "24h", "metadata": {"a": "b"}});
        let reply = self.post("/v1/batches", body).await;
        assert_eq!(
            (reply.status, &reply.json()["status"]),
            (200, &json!("validating")),
            "{}",
            reply.body
        );
        reply.json()["id"].as_str().unwrap().to_owned()
    }

    /// Waits until a batch is as asked.
    async fn batch_until(&self, id: &str, until: impl Fn(&Value) -> bool) -> Value {
        let start = Instant::now();
        loop {
            let batch = self.get(&format!("/v1/batches/{id}")).await.json();
            if until(&batch) {
                return batch;
            }
            assert!(start.elapsed() < Duration::from_secs(20), "{batch:#}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    pub(crate) async fn batch_over(&self, id: &str) -> Value {
        let over = ["completed", "failed", "expired", "cancelled"];
        self.batch_until(id, |batch| over.contains(&batch["status"].as_str().unwrap())).await
    }

    /// The lines of a file that a batch names.
    pub(crate) async fn results(&self, batch: &Value, name: &str) -> Vec<Value> {
        let Some(id) = batch[name].as_str() else { return Vec::new() };
        let text = self.get(&format!("/v1/files/{id}/content")).await.body;
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

fn custom_ids(results: &[Value]) -> Vec<&str> {
    results.iter().map(|result| result["custom_id"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn a_batch_is_answered_and_costs_half() {
    let online = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&online);
    let house = start_with(
        |_| {},
        move |request| {
            seen.fetch_add(usize::from(request.priority == Priority::Online), Ordering::SeqCst);
            Ok(says("Hi"))
        },
    )
    .await;
    let bad = lines([9].into_iter()).replace("\"messages\"", "\"temperature\":99,\"messages\"");
    let id = house.batch(&(lines(0..3) + &bad + &lines(3..5))).await;
    let batch = house.batch_over(&id).await;
    assert_eq!(batch["status"], "completed", "{batch:#}");
    assert_eq!(batch["request_counts"], json!({"total": 6, "completed": 5, "failed": 1}));
    assert_eq!((&batch["model"], &batch["metadata"]), (&json!("scripted"), &json!({"a": "b"})));
    let output = house.results(&batch, "output_file_id").await;
    assert_eq!(custom_ids(&output), ["c0", "c1", "c2", "c3", "c4"]);
    let records = house.settled(5).await;
    for result in &output {
        let body = &result["response"]["body"];
        assert_eq!(body["choices"][0]["message"]["content"], "Hi");
        let record = &records[body["id"].as_str().unwrap()];
        assert!(record.facts.batch);
        assert_eq!(record.usage.prompt(), body["usage"]["prompt_tokens"].as_u64().unwrap());
    }
    let errors = house.results(&batch, "error_file_id").await;
    assert_eq!(custom_ids(&errors), ["c9"]);
    assert_eq!(errors[0]["response"]["status_code"], 400);
    assert_eq!(errors[0]["response"]["body"]["error"]["param"], "temperature");
    let total: u64 = records.values().map(|record| record.usage.total()).sum();
    assert_eq!(batch["usage"]["total_tokens"], total);
    assert_eq!(online.load(Ordering::SeqCst), 0, "lines are of low priority");
    if let Some(document) = document() {
        check_schema(&validator(&document, "Batch"), &batch);
        let list = house.get("/v1/batches?limit=1").await.json();
        check_schema(&validator(&document, "ListBatchesResponse"), &list);
    }
    house.chat(json!({})).await;
    assert_eq!(online.load(Ordering::SeqCst), 1);
    // It is over, so it stays.
    let reply = house.post(&format!("/v1/batches/{id}/cancel"), json!({})).await;
    assert_eq!(
        (reply.status, &reply.json()["error"]["code"]),
        (409, &json!("batch_not_cancellable"))
    );
}

#[tokio::test]
async fn a_wrong_input_fails_as_a_whole() {
    let house = start_with(|_| {}, |_| Ok(says("Hi"))).await;
    let check = async |input: &str, code: &str, line: Value| {
        let batch = house.batch_over(&house.batch(input).await).await;
        assert_eq!(batch["status"], "failed");
        let told = &batch["errors"]["data"][0];
        assert_eq!((&told["code"], &told["line"]), (&json!(code), &line), "{batch:#}");
        assert!(batch.get("output_file_id").is_none());
    };
    check(&(lines(0..2) + "nonsense"), "invalid_json_line", json!(3)).await;
    check(&(lines(0..2) + &lines(1..2)), "duplicate_custom_id", json!(3)).await;
    check(&lines(0..2).replace("scripted", "nobody"), "model_not_found", Value::Null).await;
    assert!(house.settled(0).await.is_empty());
    let body = json!({"input_file_id": "file-none", "endpoint": CHAT, "completion_window": "24h"});
    assert_eq!(house.post("/v1/batches", body).await.status, 404);
}

/// One whose input was lost comes first, and more than run at once follow it.
#[tokio::test]
async fn batches_do_not_wait_for_a_broken_one() {
    let slow = |_: &_| Ok(Script { token_delay: Duration::from_millis(20), ..says("Hi") });
    let mut house = start_with(|_| {}, slow).await;
    let ids = [house.batch(&lines(0..200)).await, house.batch(&lines(0..2)).await];
    house.batch_until(&ids[0], |batch| batch["request_counts"]["completed"] != 0).await;
    house.stop();
    let folder = house.gone().await;
    let files = folder.path().join("files");
    let index = rusqlite::Connection::open(files.join("index.sqlite")).unwrap();
    let sql = "SELECT input_file FROM batches WHERE id = ?1";
    let lost: String = index.query_row(sql, [&ids[0]], |row| row.get(0)).unwrap();
    drop(index);
    std::fs::remove_file(files.join("content").join(lost)).unwrap();
    let house = start_in(folder, |_| {}, |_| Ok(says("Hi"))).await;
    let batch = house.batch_over(&ids[0]).await;
    assert_eq!(batch["errors"]["data"][0]["code"], "input_file_lost", "{batch:#}");
    // What was answered is billed, so it is handed out.
    let output = house.results(&batch, "output_file_id").await;
    assert!(!output.is_empty());
    assert_eq!(batch["request_counts"]["completed"], output.len());
    let mut more = vec![ids[1].clone()];
    for _ in 0..6 {
        more.push(house.batch(&lines(0..2)).await);
    }
    for id in more {
        assert_eq!(house.batch_over(&id).await["status"], "completed");
    }
}

/// Stopped in the middle, with results that were billed and not written yet, as a kill leaves it behind.
#[tokio::test]
async fn over_restarts_each_line_is_answered_and_billed_once() {
    let slow = |_: &_| Ok(Script { token_delay: Duration::from_millis(20), ..says("Hi") });
    let mut house = start_with(|_| {}, slow).await;
    let id = house.batch(&lines(0..12)).await;
    let some = |batch: &Value| batch["request_counts"]["completed"].as_u64().unwrap() >= 4;
    house.batch_until(&id, some).await;
    house.stop();
    let folder = house.gone().await;
    let lost = {
        let index = rusqlite::Connection::open(folder.path().join("files/index.sqlite")).unwrap();
        index.execute("DELETE FROM batch_lines WHERE line < 2", []).unwrap();
        let text: String =
            index.query_row("SELECT document FROM batches", [], |row| row.get(0)).unwrap();
        let mut document: Value = serde_json::from_str(&text).unwrap();
        let completed = document["request_counts"]["completed"].as_u64().unwrap();
        assert!(completed < 12, "it was stopped in the middle");
        document["request_counts"]["completed"] = (completed - 2).into();
        index.execute("UPDATE batches SET document = ?1", [document.to_string()]).unwrap()
    };
    assert_eq!(lost, 1);
    // The key that made it is still there: the batch goes on under it.
    let house = start_in(folder, |_| {}, |_| Ok(says("Hi"))).await;
    let batch = house.batch_over(&id).await;
    assert_eq!(batch["request_counts"], json!({"total": 12, "completed": 12, "failed": 0}));
    let output = house.results(&batch, "output_file_id").await;
    let expected: Vec<String> = (0..12).map(|n| format!("c{n}")).collect();
    assert_eq!(custom_ids(&output), expected);
    let records = house.settled(12).await;
    for result in &output {
        assert!(records.contains_key(result["response"]["body"]["id"].as_str().unwrap()));
    }
}

#[tokio::test]
async fn a_cancelled_batch_keeps_what_was_answered() {
    let house = start_with(
        |_| {},
        |request| {
            let text: Vec<u8> =
                request.prompt.iter().filter_map(|&id| u8::try_from(id).ok()).collect();
            let hangs = String::from_utf8_lossy(&text).contains("line 3");
            Ok(if hangs {
                Script { tokens: vec![65], end: ScriptEnd::Silence, ..Script::default() }
            } else {
                says("Hi")
            })
        },
    )
    .await;
    // Beside a request that waits there is room for one line at a time: the fourth holds all others up.
    let id = house.batch(&lines(0..6)).await;
    let before = |batch: &Value| batch["request_counts"]["completed"].as_u64().unwrap() >= 3;
    house.batch_until(&id, before).await;
    let reply = house.post(&format!("/v1/batches/{id}/cancel"), json!({})).await.json();
    assert_eq!(reply["status"], "cancelling");
    let batch = house.batch_over(&id).await;
    assert_eq!(batch["status"], "cancelled");
    let again = house.post(&format!("/v1/batches/{id}/cancel"), json!({})).await;
    assert_eq!(
        (again.status, &again.json()["error"]["code"]),
        (409, &json!("batch_not_cancellable"))
    );
    let output = house.results(&batch, "output_file_id").await;
    let errors = house.results(&batch, "error_file_id").await;
    let mut all: Vec<&str> = custom_ids(&output).into_iter().chain(custom_ids(&errors)).collect();
    all.sort_unstable();
    assert_eq!(all, ["c0", "c1", "c2", "c3", "c4", "c5"]);
    assert!(custom_ids(&errors).contains(&"c3"));
    assert!(errors.iter().all(|error| error["error"]["code"] == "batch_cancelled"));
    // Only what was answered is billed.
    house.settled(output.len()).await;
}

#[tokio::test]
async fn a_key_that_is_gone_answers_nothing_more() {
    let slow = |_: &_| Ok(Script { token_delay: Duration::from_millis(20), ..says("Hi") });
    let house = start_with(|_| {}, slow).await;
    let id = house.batch(&lines(0..30)).await;
    house.batch_until(&id, |batch| batch["request_counts"]["completed"] != 0).await;
    let key = house.key.split('-').nth(2).unwrap().to_owned();
    house.keys.revoke_key(&key, 1).unwrap();
    let new = mintage_ledger::NewKey::of_project("second", &house.project);
    let second = house.keys.create_key(new, 0).unwrap().secret.expose().to_owned();
    let start = Instant::now();
    let batch = loop {
        let batch = house.get_with(&second, &format!("/v1/batches/{id}")).await.json();
        if batch["status"] == "completed" {
            break batch;
        }
        assert!(start.elapsed() < Duration::from_secs(20), "{batch:#}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    let path = format!("/v1/files/{}/content", batch["error_file_id"].as_str().unwrap());
    let errors = house.get_with(&second, &path).await.body;
    assert!(errors.contains("invalid_api_key"), "{errors}");
    let failed = batch["request_counts"]["failed"].as_u64().unwrap();
    assert_eq!(errors.lines().count() as u64, failed);
    house.settled(30 - failed as usize).await;
}

/// A batch takes no place of a request that somebody waits for, and limits of requests a minute are not for it.
#[tokio::test]
async fn online_requests_do_not_feel_a_batch() {
    let house = start_with(
        |config| config.limits.max_concurrent_requests = 1,
        |request| {
            let hangs = request.priority == Priority::Batch;
            Ok(if hangs {
                Script { tokens: vec![65], end: ScriptEnd::Silence, ..Script::default() }
            } else {
                says("Hi")
            })
        },
    )
    .await;
    let id = house.batch(&lines(0..3)).await;
    house.batch_until(&id, |batch| batch["status"] == "in_progress").await;
    for _ in 0..3 {
        assert_eq!(house.chat(json!({})).await.status, 200);
    }
    house.post(&format!("/v1/batches/{id}/cancel"), json!({})).await;
    house.batch_over(&id).await;
}

/// Every route with an id, as the document lists them, asked by another project.
#[tokio::test]
async fn another_projects_files_batches_and_tasks_do_not_exist() {
    let house = start_with(|_| {}, |_| Ok(says("Hi"))).await;
    let batch = house.batch(&lines(0..1)).await;
    let over = house.batch_over(&batch).await;
    let file = over["output_file_id"].as_str().unwrap().to_owned();
    let task = house.submit().await;
    let stranger = house.stranger().await;
    let paths = house.get("/openapi.json").await.json()["paths"].clone();
    let mut asked = 0;
    for (pattern, operations) in paths.as_object().unwrap() {
        let ids = [("{file}", &file), ("{batch}", &batch), ("{task}", &task)];
        let Some((name, id)) = ids.iter().find(|(name, _)| pattern.contains(name)) else {
            continue;
        };
        for method in operations.as_object().unwrap().keys() {
            let method = method.to_ascii_uppercase();
            let theirs =
                house.ask(&stranger, &method, &pattern.replace(name, id), &Value::Null).await;
            let nobodys =
                house.ask(&stranger, &method, &pattern.replace(name, "none"), &Value::Null).await;
            // DashScope has words of its own for what is not there.
            let status = match (method.as_str(), *name) {
                ("GET", "{task}") => 200,
                _ if pattern.starts_with("/api/v1/") => 400,
                _ => 404,
            };
            assert_eq!(theirs.status, status, "{method} {pattern}: {}", theirs.body);
            let words = |reply: &Reply| {
                let request = reply.header("x-request-id").unwrap();
                reply.body.replace(id.as_str(), "none").replace(request, "none")
            };
            assert_eq!(words(&theirs), words(&nobodys), "{method} {pattern}");
            asked += 1;
        }
    }
    // Files and batches here and under Model Studio's prefix; files and tasks as DashScope has them.
    assert_eq!(asked, 2 * 5 + 2 + 2);
    let body = json!({"input_file_id": file, "endpoint": CHAT, "completion_window": "24h"});
    assert_eq!(house.ask(&stranger, "POST", "/v1/batches", &body).await.status, 404);
    assert_eq!(house.get_with(&stranger, "/v1/batches").await.json()["data"], json!([]));
    assert_eq!(house.get_with(&stranger, &format!("/v1/batches?after={batch}")).await.status, 404);
    // Nothing of it was changed.
    assert_eq!(house.get(&format!("/v1/batches/{batch}")).await.json(), over);
    assert_eq!(house.get(&format!("/v1/files/{file}/content")).await.status, 200);
}
