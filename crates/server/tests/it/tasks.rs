//! DashScope's tasks as programs send, watch, find and cancel them, over restarts.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use mintage_ledger::{Begin, NewKey};
use mintage_model::{EngineFault, GenerateRequest, Script, ScriptEnd, SubmitError};
use mintage_server::ServerConfig;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;

use crate::dashscope::{MULTIMODAL, TEXT, body};
use crate::harness::{CONTEXT, House, MODEL, Reply, says, start, start_in, start_with};
use crate::vectors::{self, BERT, DASHSCOPE, DASHSCOPE_RERANK, JUDGE, Vectors};

const PATH: &str = "/api/v1/tasks";
const ASYNC: (&str, &str) = ("x-dashscope-async", "enable");
const NOT_PENDING: &str =
    "Failed to cancel the task, please confirm if the task is in PENDING status.";

fn one_at_a_time(config: &mut ServerConfig) {
    config.storage.as_mut().unwrap().answers.max_running_tasks = 1;
}

/// The server's own index of what it keeps.
fn index(folder: &Path) -> rusqlite::Connection {
    rusqlite::Connection::open(folder.join("files/index.sqlite")).unwrap()
}

/// Hangs until the door is open.
fn behind(
    door: &Arc<AtomicBool>,
) -> impl Fn(&GenerateRequest) -> Result<Script, SubmitError> + Send + Sync + use<> {
    let door = Arc::clone(door);
    move |_| {
        let hangs = Script { tokens: vec![65], end: ScriptEnd::Silence, ..Script::default() };
        Ok(if door.load(Ordering::SeqCst) { says("Hi") } else { hangs })
    }
}

impl House {
    async fn submit_to(&self, path: &str, body: &Value) -> String {
        let reply = self.speak(path, &[ASYNC], body).await;
        assert_eq!(reply.status, 200, "{}", reply.body);
        let told = reply.json();
        assert_eq!(told["request_id"].as_str(), reply.header("x-request-id"));
        assert_eq!(told["output"]["task_status"], "PENDING", "{told}");
        assert!(told.get("usage").is_none() && told.get("code").is_none(), "{told}");
        let id = told["output"]["task_id"].as_str().unwrap();
        let lengths: Vec<usize> = id.split('-').map(str::len).collect();
        assert_eq!(lengths, [8, 4, 4, 4, 12], "{id}");
        id.to_owned()
    }

    pub(crate) async fn submit(&self) -> String {
        self.submit_to(TEXT, &body(json!({}))).await
    }

    async fn task(&self, id: &str) -> Value {
        let reply = self.get(&format!("{PATH}/{id}")).await;
        assert_eq!(reply.status, 200, "{}", reply.body);
        reply.json()
    }

    /// Waits until a task has this status.
    async fn task_until(&self, id: &str, status: &str) -> Value {
        let start = Instant::now();
        loop {
            let task = self.task(id).await;
            if task["output"]["task_status"] == status {
                return task;
            }
            assert!(start.elapsed() < Duration::from_secs(20), "{task:#}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn cancel_task(&self, id: &str) -> Reply {
        self.post(&format!("{PATH}/{id}/cancel"), json!({})).await
    }

    /// Sends a request and goes away while the store is at it.
    async fn leave_amid(&self, request: &str) {
        let lock = index(self.folder());
        lock.execute_batch("BEGIN IMMEDIATE").unwrap();
        let mut socket = self.connect().await;
        socket.write_all(request.as_bytes()).await.unwrap();
        // Until others wait for the store, too.
        let brief = Duration::from_millis(100);
        while tokio::time::timeout(brief, self.get(PATH)).await.is_ok() {}
        drop(socket);
        tokio::time::sleep(brief).await;
        lock.execute_batch("COMMIT").unwrap();
    }

    async fn listed(&self, query: &str) -> Vec<String> {
        let list = self.get(&format!("{PATH}{query}")).await.json();
        // For Alibaba's newer client, in the words of a task by itself.
        let ids = |name: &str, ids: &str| {
            let entries = list[name].as_array().unwrap_or_else(|| panic!("{list}"));
            entries.iter().map(|entry| entry[ids].clone()).collect::<Vec<_>>()
        };
        assert_eq!(ids("tasks", "task_id"), ids("data", "task_id"));
        assert_eq!(ids("tasks", "task_status"), ids("data", "status"));
        assert!(ids("tasks", "submit_time").iter().all(Value::is_string), "{list}");
        let tasks = list["data"].as_array().unwrap_or_else(|| panic!("{list}")).iter();
        tasks.map(|task| task["task_id"].as_str().unwrap().to_owned()).collect()
    }
}

/// What a task tells of its answer, and of itself nothing.
fn answer(task: &Value) -> Value {
    let mut output = task["output"].clone();
    for own in ["task_id", "task_status", "submit_time", "scheduled_time", "end_time", "record_id"]
    {
        let gone = output.as_object_mut().unwrap().shift_remove(own);
        assert!(gone.is_some_and(|value| value.is_string()), "{own}: {task}");
    }
    json!({"output": output, "usage": task["usage"]})
}

#[tokio::test]
async fn whatever_computes_can_be_a_task_and_answers_the_same() {
    let Vectors { house, .. } = vectors::start().await;
    let texts = json!({"model": BERT, "input": {"texts": ["the embed", "the"]}});
    let rerank = json!({"model": JUDGE, "input": {"query": "q", "documents": ["a", "bbb"]},
        "parameters": {"return_documents": true}});
    let message = body(json!({"result_format": "message", "n": 2}));
    let mut count = 0;
    for (path, body) in [
        (TEXT, &body(json!({"max_tokens": 1}))),
        (TEXT, &message),
        (MULTIMODAL, &message),
        (DASHSCOPE, &texts),
        (DASHSCOPE_RERANK, &rerank),
    ] {
        let mut whole = house.speak(path, &[], body).await.json();
        let id = house.submit_to(path, body).await;
        let task = house.task_until(&id, "SUCCEEDED").await;
        whole.as_object_mut().unwrap().shift_remove("request_id").unwrap();
        assert_eq!(answer(&task), whole, "{path}");
        let times = ["submit_time", "scheduled_time", "end_time"].map(|time| {
            let time = task["output"][time].as_str().unwrap();
            assert_eq!((time.len(), &time[10..11], &time[19..20]), (23, " ", "."));
            time
        });
        assert!(times.is_sorted(), "{times:?}");
        count += 2;
        let records = house.settled(count).await;
        let record = &records[task["output"]["record_id"].as_str().unwrap()];
        assert_eq!(record.usage.total(), task["usage"]["total_tokens"]);
        // As any request: no line of a batch.
        assert!(!record.facts.batch);
        assert_eq!(&*record.facts.client, "harness/1");
    }
}

#[tokio::test]
async fn a_task_waits_for_its_place_and_can_be_cancelled_until_then() {
    let slow = Script { token_delay: Duration::from_millis(60), ..says("0123456789") };
    let house = start_with(one_at_a_time, move |_| Ok(slow.clone())).await;
    let first = house.submit().await;
    let (second, third) = (house.submit().await, house.submit().await);
    let running = house.task_until(&first, "RUNNING").await;
    assert!(running["output"]["scheduled_time"].is_string(), "{running}");
    assert!(running["output"].get("end_time").is_none() && running.get("usage").is_none());
    let waiting = house.task(&second).await;
    assert_eq!(waiting["output"]["task_status"], "PENDING");
    assert!(waiting["output"].get("scheduled_time").is_none(), "{waiting}");
    // Only what waits is cancelled, and once.
    for (id, status) in [(&first, 400), (&second, 200), (&second, 400)] {
        let reply = house.cancel_task(id).await;
        assert_eq!(reply.status, status, "{}", reply.body);
        let told = reply.json();
        if status == 200 {
            assert_eq!(told, json!({"request_id": told["request_id"]}));
        } else {
            assert_eq!(
                (&told["code"], &told["message"]),
                (&json!("UnsupportedOperation"), &json!(NOT_PENDING))
            );
        }
    }
    let cancelled = house.task(&second).await;
    assert_eq!(cancelled["output"]["task_status"], "CANCELED");
    assert!(cancelled["output"]["end_time"].is_string(), "{cancelled}");
    for id in [&first, &third] {
        house.task_until(id, "SUCCEEDED").await;
    }
    assert_eq!(house.cancel_task(&third).await.status, 400);
    house.settled(2).await;
    assert_eq!(house.engine.requests().len(), 2);
}

#[tokio::test]
async fn what_could_not_be_computed_is_refused_at_once() {
    let house = start(says("x")).await;
    let mut key = NewKey::of_project("scoped", &house.project);
    key.scopes.models = vec!["other".to_owned()];
    let scoped = house.keys.create_key(key, 0).unwrap().secret.expose().to_owned();
    let mut key = NewKey::of_project("routes", &house.project);
    key.scopes.endpoints = vec![PATH.to_owned()];
    let routes = house.keys.create_key(key, 0).unwrap().secret.expose().to_owned();
    let own = house.key.clone();
    let url = json!({"model": MODEL, "input": {"url": "http://127.0.0.1/texts"}});
    let unknown = json!({"model": "nobody", "input": {"prompt": "x"}});
    let good = body(json!({}));
    for (key, path, headers, body, status, code) in [
        (&own, TEXT, vec![ASYNC], &body(json!({"temperature": 9})), 400, "InvalidParameter"),
        (&own, TEXT, vec![ASYNC], &unknown, 404, "Model.NotExist"),
        (&own, DASHSCOPE, vec![ASYNC], &url, 400, "InvalidParameter"),
        (&own, TEXT, vec![ASYNC, ("x-dashscope-sse", "enable")], &good, 400, "InvalidParameter"),
        (&scoped, TEXT, vec![ASYNC], &good, 403, "AccessDenied"),
        (&routes, TEXT, vec![ASYNC], &good, 403, "AccessDenied"),
    ] {
        let reply = house.post_with(key, path, &headers, body).await;
        assert_eq!((reply.status, &reply.json()["code"]), (status, &json!(code)), "{}", reply.body);
    }
    assert!(house.listed("").await.is_empty());
    assert_eq!(house.get_with(&routes, PATH).await.status, 200);
    assert_eq!(house.get_with(&routes, &format!("{PATH}/x")).await.status, 403);
    // Where no answers are kept there are no tasks.
    let house = start_with(
        |config| config.storage.as_mut().unwrap().answers.keep_days = 0,
        |_| Ok(says("Hi")),
    )
    .await;
    let reply = house.speak(TEXT, &[ASYNC], &good).await;
    assert_eq!((reply.status, &reply.json()["code"]), (400, &json!("InvalidParameter")));
}

#[tokio::test]
async fn a_task_that_fails_says_why_and_costs_nothing() {
    let fault = ScriptEnd::Fault(EngineFault::Internal("secret".to_owned()));
    let house = start(Script { tokens: vec![65], end: fault, ..Script::default() }).await;
    let check = async |body: &Value, code: &str, says: &str| {
        let id = house.submit_to(TEXT, body).await;
        let failed = house.task_until(&id, "FAILED").await;
        assert_eq!(failed["output"]["code"], code, "{failed}");
        assert!(failed["output"]["message"].as_str().unwrap().contains(says), "{failed}");
        assert!(failed.get("code").is_none() && failed.get("usage").is_none(), "{failed}");
        assert!(!failed.to_string().contains("secret"));
    };
    check(&body(json!({})), "InternalError", "had an error").await;
    check(&body(json!({"max_tokens": CONTEXT})), "InvalidParameter", "maximum context").await;
    assert!(house.settled(0).await.is_empty());
}

#[tokio::test]
async fn a_task_of_a_key_that_is_revoked_fails() {
    let slow = Script { token_delay: Duration::from_millis(50), ..says("0123456789") };
    let house = start_with(one_at_a_time, move |_| Ok(slow.clone())).await;
    let brief = house.keys.create_key(NewKey::of_project("brief", &house.project), 0).unwrap();
    let first = house.submit().await;
    let request = house.request("POST", TEXT, &body(json!({})).to_string());
    let request = request.replace(&house.key, brief.secret.expose()).replacen(
        "\r\n",
        "\r\nx-dashscope-async: enable\r\n",
        1,
    );
    let second = house.send(&request).await.json();
    house.keys.revoke_key(&brief.info.id, 1).unwrap();
    house.task_until(&first, "SUCCEEDED").await;
    let id = second["output"]["task_id"].as_str().unwrap();
    let failed = house.task_until(id, "FAILED").await;
    assert_eq!(failed["output"]["code"], "InvalidApiKey", "{failed}");
    house.settled(1).await;
}

#[tokio::test]
async fn a_task_waits_for_capacity_and_is_billed_once() {
    let asked = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&asked);
    let house = start_with(
        |_| {},
        move |_| match seen.fetch_add(1, Ordering::SeqCst) {
            0 => Err(SubmitError::QueueFull { waiting: 1, limit: 1 }),
            _ => Ok(says("Hi")),
        },
    )
    .await;
    let id = house.submit().await;
    let task = house.task_until(&id, "SUCCEEDED").await;
    assert_eq!(task["output"]["text"], "Hi");
    house.settled(1).await;
    assert_eq!(asked.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn a_project_has_so_many_tasks_and_no_more() {
    let door = Arc::new(AtomicBool::new(false));
    let house = start_with(
        |config| config.storage.as_mut().unwrap().answers.max_project_tasks = 2,
        behind(&door),
    )
    .await;
    house.submit().await;
    house.submit().await;
    let reply = house.speak(TEXT, &[ASYNC], &body(json!({}))).await;
    assert_eq!((reply.status, &reply.json()["code"]), (429, &json!("Throttling")));
    let message = "The project has 2 tasks that are not over; the limit is 2.";
    assert_eq!(reply.json()["message"], message);
    // Another project has its own.
    let stranger = house.stranger().await;
    let reply = house.post_with(&stranger, TEXT, &[ASYNC], &body(json!({}))).await;
    assert_eq!(reply.status, 200, "{}", reply.body);
}

#[tokio::test]
async fn another_projects_tasks_do_not_exist() {
    let door = Arc::new(AtomicBool::new(false));
    let house = start_with(one_at_a_time, behind(&door)).await;
    let ids = [house.submit().await, house.submit().await];
    house.task_until(&ids[0], "RUNNING").await;
    let stranger = house.stranger().await;
    for id in &ids {
        for (method, path) in
            [("GET", format!("{PATH}/{id}")), ("POST", format!("{PATH}/{id}/cancel"))]
        {
            let theirs = house.ask(&stranger, method, &path, &Value::Null).await;
            let nobodys =
                house.ask(&stranger, method, &path.replace(id.as_str(), "x"), &Value::Null).await;
            let same = |reply: &Reply| {
                let mut told = reply.json();
                told["request_id"] = Value::Null;
                told.to_string().replace(id.as_str(), "x")
            };
            assert_eq!(theirs.status, nobodys.status, "{method} {path}");
            assert_eq!(same(&theirs), same(&nobodys), "{method} {path}");
        }
    }
    let unknown = house.get_with(&stranger, &format!("{PATH}/{}", ids[0])).await;
    let output = json!({"task_id": ids[0], "task_status": "UNKNOWN"});
    assert_eq!((unknown.status, &unknown.json()["output"]), (200, &output));
    let none = house.get_with(&stranger, PATH).await.json();
    assert_eq!((&none["data"], &none["total"]), (&json!([]), &json!(0)));
    // Nothing of it was touched.
    assert_eq!(house.task(&ids[1]).await["output"]["task_status"], "PENDING");
    assert_eq!(house.listed("").await.len(), 2);
}

#[tokio::test]
async fn tasks_are_listed_by_what_they_are() {
    let Vectors { house, .. } = vectors::start().await;
    let texts = json!({"model": BERT, "input": {"texts": "the"}});
    let bad = body(json!({"max_tokens": CONTEXT}));
    let ids = [
        house.submit().await,
        house.submit_to(DASHSCOPE, &texts).await,
        house.submit_to(TEXT, &bad).await,
    ];
    for (id, status) in ids.iter().zip(["SUCCEEDED", "SUCCEEDED", "FAILED"]) {
        house.task_until(id, status).await;
    }
    let [text, embedding, failed] = ids.each_ref().map(String::as_str);
    let check = async |query: &str, expected: &[&str]| {
        assert_eq!(house.listed(query).await, expected, "{query}");
    };
    check("", &[failed, embedding, text]).await;
    check("/", &[failed, embedding, text]).await;
    check("?page_no=2&page_size=2", &[text]).await;
    check("?page_no=9", &[]).await;
    check("?status=SUCCEEDED&region=cn-beijing", &[embedding, text]).await;
    check("?status=UNKNOWN", &[]).await;
    check(&format!("?model_name={BERT}"), &[embedding]).await;
    check(&format!("?task_id={text}"), &[text]).await;
    check("?api_key_id=nobody", &[]).await;
    let list = house.get(&format!("{PATH}?page_size=2")).await.json();
    assert_eq!((&list["total"], &list["total_page"]), (&json!(3), &json!(2)));
    assert_eq!((&list["page_no"], &list["page_size"]), (&json!(1), &json!(2)));
    let entry = &list["data"][1];
    assert_eq!((&entry["status"], &entry["model_name"]), (&json!("SUCCEEDED"), &json!(BERT)));
    let key = "apikey:v1:embeddings:text-embedding:text-embedding:bert";
    assert_eq!(entry["user_api_unique_key"], key);
    let key = entry["api_key_id"].as_str().unwrap();
    check(&format!("?api_key_id={key}"), &[failed, embedding, text]).await;
    // Around the second in which they were sent.
    let sent = house.task(embedding).await["output"]["submit_time"].as_str().unwrap().to_owned();
    let second: String = sent[..19].chars().filter(char::is_ascii_digit).collect();
    let found = house.listed(&format!("?start_time={second}&end_time={second}")).await;
    assert!(found.iter().any(|id| id == embedding), "{second}");
    check("?end_time=20230420000000", &[]).await;
    check("?start_time=21230420000000", &[]).await;
    check("?start_time=20230420000000&end_time=21230420000000", &[failed, embedding, text]).await;
    for query in [
        "page_no=0",
        "page_size=101",
        "status=DONE",
        "start_time=2023",
        "end_time=20231301000000",
        "what=1",
    ] {
        let reply = house.get(&format!("{PATH}?{query}")).await;
        assert_eq!((reply.status, &reply.json()["code"]), (400, &json!("InvalidParameter")));
    }
}

#[tokio::test]
async fn a_keyed_task_is_one_task() {
    let house = start(says("Hi")).await;
    let send = async |key: &str, body: &Value| {
        house.speak(TEXT, &[ASYNC, ("idempotency-key", key)], body).await
    };
    let first = send("k", &body(json!({}))).await.json();
    let id = first["output"]["task_id"].as_str().unwrap();
    house.task_until(id, "SUCCEEDED").await;
    let again = send("k", &body(json!({}))).await.json();
    assert_eq!(again["output"], json!({"task_id": id, "task_status": "SUCCEEDED"}));
    let other = send("k", &body(json!({"seed": 3}))).await;
    assert_eq!((other.status, &other.json()["code"]), (422, &json!("InvalidParameter")));
    let second = send("k2", &body(json!({}))).await.json();
    assert_ne!(second["output"]["task_id"], id);
    house.task_until(second["output"]["task_id"].as_str().unwrap(), "SUCCEEDED").await;
    house.settled(2).await;
}

#[tokio::test]
async fn a_task_is_kept_for_a_day() {
    let house = start(says("Hi")).await;
    let id = house.submit().await;
    house.task_until(&id, "SUCCEEDED").await;
    house.settled(1).await;
    let mut house = house;
    house.stop();
    let folder = house.gone().await;
    let index = index(folder.path());
    let sql = "SELECT expires - unixepoch(), length(input) FROM answers WHERE id = ?1";
    let (left, input): (i64, i64) =
        index.query_row(sql, [&id], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
    assert!((86_300..=86_401).contains(&left), "{left}");
    assert_eq!(input, 0, "what was asked is gone");
    index.execute("UPDATE answers SET expires = 1", []).unwrap();
    drop(index);
    let house = start_in(folder, |_| {}, |_| Ok(says("Hi"))).await;
    assert_eq!(house.task(&id).await["output"]["task_status"], "UNKNOWN");
    assert!(house.listed("").await.is_empty());
}

#[tokio::test]
async fn what_waits_or_runs_at_a_shutdown_runs_after_it() {
    let brief = |config: &mut ServerConfig| {
        one_at_a_time(config);
        config.drain_timeout = Duration::from_millis(50);
    };
    let door = Arc::new(AtomicBool::new(false));
    let mut house = start_with(brief, behind(&door)).await;
    let ids = [house.submit().await, house.submit().await];
    house.task_until(&ids[0], "RUNNING").await;
    house.stop();
    let house = start_in(house.gone().await, one_at_a_time, |_| Ok(says("Hi"))).await;
    for id in &ids {
        let task = house.task_until(id, "SUCCEEDED").await;
        assert_eq!(task["output"]["text"], "Hi");
    }
    house.settled(2).await;
}

/// As kills leave them: one was billed and not written down as over, one ran and was not billed, one waited.
#[tokio::test]
async fn after_a_crash_a_task_is_there_and_billed_or_failed_and_not_or_waits() {
    let mut house = start(says("Hi")).await;
    let id = house.submit().await;
    let over = house.task_until(&id, "SUCCEEDED").await;
    house.settled(1).await;
    house.stop();
    let folder = house.gone().await;
    let index = index(folder.path());
    let input = body(json!({})).to_string();
    let set = |id: &str, status: &str| {
        let sql = "UPDATE answers SET is_over = 0, steps = NULL, input = ?3,
                   document = json_set(document, '$.status', ?2, '$.ended_ms', NULL) WHERE id = ?1";
        assert_eq!(index.execute(sql, (id, status, &input)).unwrap(), 1);
    };
    for copy in ["ran", "waited"] {
        let sql = "INSERT INTO answers (id, project, kind, model, bytes, expires, is_over, document, input, steps, kept_at)
                   SELECT ?2, project, kind, model, bytes, expires, 0, document, input, NULL, replace(kept_at, id, ?2)
                   FROM answers WHERE id = ?1";
        assert_eq!(index.execute(sql, (id.as_str(), copy)).unwrap(), 1);
    }
    set(&id, "RUNNING");
    set("ran", "RUNNING");
    set("waited", "PENDING");
    drop(index);
    let house = start_in(folder, |_| {}, |_| Ok(says("Ha"))).await;
    let found = house.task(&id).await;
    assert_eq!(answer(&found), answer(&over));
    assert_eq!(found["output"]["record_id"], over["output"]["record_id"]);
    let failed = house.task("ran").await;
    assert_eq!(failed["output"]["task_status"], "FAILED");
    let message = failed["output"]["message"].as_str().unwrap();
    assert!(message.contains("Nothing was billed"), "{failed}");
    let waited = house.task_until("waited", "SUCCEEDED").await;
    assert_eq!(waited["output"]["text"], "Ha");
    house.settled(2).await;
}

/// One that waits though it was answered and billed: the stop came between the two. It is not computed again.
#[tokio::test]
async fn what_was_billed_is_not_computed_again() {
    let mut house = start(says("Hi")).await;
    let id = house.submit().await;
    let over = house.task_until(&id, "SUCCEEDED").await;
    house.settled(1).await;
    house.stop();
    let folder = house.gone().await;
    let index = index(folder.path());
    let sql = "UPDATE answers SET is_over = 0, steps = NULL, input = ?2,
               document = json_set(document, '$.status', 'PENDING', '$.ended_ms', NULL) WHERE id = ?1";
    let input = body(json!({})).to_string();
    assert_eq!(index.execute(sql, (id.as_str(), &input)).unwrap(), 1);
    drop(index);
    let house = start_in(folder, |_| {}, |_| Ok(says("Ha"))).await;
    let found = house.task_until(&id, "SUCCEEDED").await;
    assert_eq!(answer(&found), answer(&over));
    house.settled(1).await;
    assert!(house.engine.requests().is_empty());
}

/// As where gateways share the ledger: a key that was given back is free a little later.
#[tokio::test]
async fn a_task_waits_for_its_place_in_the_ledger() {
    let slow = Script { token_delay: Duration::from_millis(40), ..says("0123456789") };
    let house = start_with(one_at_a_time, move |_| Ok(slow.clone())).await;
    let (first, second) = (house.submit().await, house.submit().await);
    let kept_at: String = index(house.folder())
        .query_row("SELECT kept_at FROM answers WHERE id = ?1", [&second], |row| row.get(0))
        .unwrap();
    let place: Value = serde_json::from_str(&kept_at).unwrap();
    let digest: [u8; 32] = serde_json::from_value(place["body_digest"].clone()).unwrap();
    let [scope, key] = ["scope", "key"].map(|name| place[name].as_str().unwrap().into());
    let held = house.ledger.begin(&scope, &key, digest, 0).unwrap();
    assert!(matches!(held, Begin::First(_)), "{held:?}");
    house.task_until(&first, "SUCCEEDED").await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let waits = house.task(&second).await;
    assert_eq!(waits["output"]["task_status"], "PENDING", "{waits}");
    drop(held);
    house.task_until(&second, "SUCCEEDED").await;
    house.settled(2).await;
}

#[tokio::test]
async fn a_task_waits_while_the_ledger_does_not_answer() {
    let house = start(says("Hi")).await;
    let ledger = rusqlite::Connection::open(house.folder().join("ledger/ledger.sqlite")).unwrap();
    ledger.execute_batch("ALTER TABLE answer RENAME TO away").unwrap();
    let id = house.submit().await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let waits = house.task(&id).await;
    assert_eq!(waits["output"]["task_status"], "PENDING", "{waits}");
    ledger.execute_batch("ALTER TABLE away RENAME TO answer").unwrap();
    house.task_until(&id, "SUCCEEDED").await;
    house.settled(1).await;
}

#[tokio::test]
async fn a_task_runs_though_its_client_went_away_at_once() {
    let house = start(says("Hi")).await;
    let request = house.request("POST", TEXT, &body(json!({})).to_string());
    house.leave_amid(&request.replacen("\r\n", "\r\nx-dashscope-async: enable\r\n", 1)).await;
    let start = Instant::now();
    while house.listed("?status=SUCCEEDED").await.is_empty() {
        assert!(start.elapsed() < Duration::from_secs(20), "{}", house.get(PATH).await.body);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    house.settled(1).await;
}

/// The index takes no cancellation, and nobody hears of that.
#[tokio::test]
async fn a_task_that_could_not_be_cancelled_still_waits() {
    let slow = Script { token_delay: Duration::from_millis(100), ..says("0123456789") };
    let house = start_with(one_at_a_time, move |_| Ok(slow.clone())).await;
    let ids = [house.submit().await, house.submit().await];
    let refuses = "CREATE TRIGGER refuses BEFORE UPDATE ON answers
         WHEN json_extract(NEW.document, '$.status') = 'CANCELED'
         BEGIN SELECT RAISE(ABORT, 'no'); END";
    index(house.folder()).execute_batch(refuses).unwrap();
    house.leave_amid(&house.request("POST", &format!("{PATH}/{}/cancel", ids[1]), "{}")).await;
    for id in &ids {
        house.task_until(id, "SUCCEEDED").await;
    }
    house.settled(2).await;
}

#[tokio::test]
async fn a_key_is_free_again_when_its_task_is_gone_or_failed() {
    let asked = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&asked);
    let fault = ScriptEnd::Fault(EngineFault::Internal("secret".to_owned()));
    let breaks = Script { tokens: vec![65], end: fault, ..Script::default() };
    let respond = move |_: &GenerateRequest| match seen.fetch_add(1, Ordering::SeqCst) {
        0 => Ok(breaks.clone()),
        _ => Ok(says("Hi")),
    };
    let house = start_with(|_| {}, respond).await;
    let headers = [ASYNC, ("idempotency-key", "k")];
    let check = async |parameters: Value, status: &str| {
        let told = house.speak(TEXT, &headers, &body(parameters)).await.json();
        assert_eq!(told["output"]["task_status"], "PENDING", "{told}");
        let id = told["output"]["task_id"].as_str().unwrap().to_owned();
        house.task_until(&id, status).await;
        id
    };
    let id = check(json!({}), "FAILED").await;
    // Errors are not kept.
    assert_eq!(check(json!({}), "SUCCEEDED").await, id);
    house.settled(1).await;
    assert_eq!(house.listed("").await, [id.as_str()]);
    let forget = || index(house.folder()).execute("DELETE FROM answers", []).unwrap();
    // Its answer is kept for longer than the task, and stands in nobody's way.
    forget();
    check(json!({"seed": 3}), "SUCCEEDED").await;
    house.settled(2).await;
    // The first body's answer is still there: it is not computed again.
    forget();
    check(json!({}), "SUCCEEDED").await;
    house.settled(2).await;
    assert_eq!(asked.load(Ordering::SeqCst), 3);
}

/// What would be computed in full and then not given is refused at once; what is let in is given.
#[tokio::test]
async fn a_task_whose_answer_would_be_too_long_is_refused() {
    const WIDTH: usize = 4096;
    // 4 MiB hold so many vectors.
    const MOST: usize = 78;
    let (house, engine) = vectors::start_wide(WIDTH).await;
    let texts = |count: usize| json!({"model": BERT, "input": {"texts": vec!["the"; count]}});
    let reply = house.speak(DASHSCOPE, &[ASYNC], &texts(MOST + 1)).await;
    assert_eq!((reply.status, &reply.json()["code"]), (400, &json!("InvalidParameter")));
    let message = "`input.texts` holds at most 78 inputs here, not 79: a vector has 4096 numbers, and an answer of a \
                   task or in a batch at most 4194304 bytes.";
    assert_eq!(reply.json()["message"], message);
    assert!(house.listed("").await.is_empty());
    assert!(engine.requests().is_empty());
    let id = house.submit_to(DASHSCOPE, &texts(MOST)).await;
    let task = house.task_until(&id, "SUCCEEDED").await;
    assert_eq!(task["output"]["embeddings"].as_array().unwrap().len(), MOST);
    house.settled(1).await;
    // Who waits for it may have it longer.
    assert_eq!(house.speak(DASHSCOPE, &[], &texts(MOST + 1)).await.status, 200);
}
