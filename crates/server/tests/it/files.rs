//! Files as programs leave and find them.

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::harness::{House, Reply, says, start, start_with};
use crate::openapi::{check as check_schema, document, validator};

const BOUNDARY: &str = "a-line-that-stands-in-no-file";

/// The body of a form.
fn form(fields: &[(&str, Option<&str>, &str)]) -> String {
    let mut body = String::new();
    for (name, filename, text) in fields {
        let filename = filename.map(|f| format!("; filename=\"{f}\"")).unwrap_or_default();
        body += &format!(
            "--{BOUNDARY}\r\ncontent-disposition: form-data; name=\"{name}\"{filename}\r\n\r\n{text}\r\n"
        );
    }
    body + &format!("--{BOUNDARY}--\r\n")
}

impl House {
    pub(crate) async fn send_form(&self, fields: &[(&str, Option<&str>, &str)]) -> Reply {
        self.send_form_to("/v1/files", fields).await
    }

    async fn send_form_to(&self, path: &str, fields: &[(&str, Option<&str>, &str)]) -> Reply {
        let request = self.request("POST", path, &form(fields));
        let kind = format!("multipart/form-data; boundary={BOUNDARY}");
        self.send(&request.replacen("application/json", &kind, 1)).await
    }

    /// The id of a new file.
    pub(crate) async fn upload(&self, text: &str) -> String {
        let fields = [("purpose", None, "batch"), ("file", Some("in.jsonl"), text)];
        let reply = self.send_form(&fields).await;
        assert_eq!(reply.status, 200, "{}", reply.body);
        reply.json()["id"].as_str().unwrap().to_owned()
    }

    pub(crate) async fn delete(&self, path: &str) -> Reply {
        self.send(&self.request("DELETE", path, "")).await
    }
}

#[tokio::test]
async fn a_file_comes_is_found_and_goes() {
    let house = start(says("x")).await;
    let text = "line one\nline two\n世界";
    let fields = [
        ("file", Some("söme name.jsonl"), text),
        ("expires_after[anchor]", None, "created_at"),
        ("expires_after[seconds]", None, "3600"),
        ("purpose", None, "user_data"),
    ];
    let made = house.send_form(&fields).await.json();
    assert_eq!(
        (made["bytes"].as_u64(), &made["purpose"]),
        (Some(text.len() as u64), &json!("user_data"))
    );
    assert_eq!(made["filename"], "söme name.jsonl");
    assert_eq!(made["expires_at"].as_u64().unwrap() - made["created_at"].as_u64().unwrap(), 3600);
    let id = made["id"].as_str().unwrap();
    assert_eq!(house.get(&format!("/v1/files/{id}")).await.json(), made);
    let content = house.get(&format!("/v1/files/{id}/content")).await;
    assert_eq!((content.status, content.body.as_str()), (200, text));
    assert_eq!(content.header("content-length"), Some(text.len().to_string().as_str()));
    let second = house.upload("2").await;
    let list = house.get("/v1/files?limit=1").await.json();
    assert_eq!((&list["data"][0]["id"], &list["has_more"]), (&json!(second), &json!(true)));
    let list = house.get(&format!("/v1/files?limit=1&after={second}")).await.json();
    assert_eq!((&list["data"][0]["id"], &list["has_more"]), (&json!(id), &json!(false)));
    let list = house.get("/v1/files?purpose=batch&order=asc").await.json();
    assert_eq!((&list["first_id"], &list["last_id"]), (&json!(second), &json!(second)));
    if let Some(document) = document() {
        check_schema(&validator(&document, "OpenAIFile"), &made);
        check_schema(&validator(&document, "ListFilesResponse"), &list);
    }
    // A stranger finds nothing, and learns nothing of what there is.
    let stranger = house.stranger().await;
    for path in [
        format!("/v1/files/{id}"),
        format!("/v1/files/{id}/content"),
        format!("/v1/files?after={id}"),
    ] {
        let reply = house.get_with(&stranger, &path).await;
        let nobody = house.get_with(&stranger, &path.replace(id, "file-0")).await;
        assert_eq!((reply.status, reply.body.replace(id, "file-0")), (404, nobody.body), "{path}");
    }
    assert_eq!(house.get_with(&stranger, "/v1/files").await.json()["data"], json!([]));
    let reply = house.ask(&stranger, "DELETE", &format!("/v1/files/{id}"), &Value::Null).await;
    assert_eq!(reply.status, 404);
    let gone = house.delete(&format!("/v1/files/{id}")).await.json();
    assert_eq!(gone, json!({"id": id, "object": "file", "deleted": true}));
    for path in [format!("/v1/files/{id}"), format!("/v1/files/{id}/content")] {
        assert_eq!(house.get(&path).await.status, 404);
    }
}

#[tokio::test]
async fn forms_are_checked() {
    let house = start_with(
        |config| {
            let storage = config.storage.as_mut().unwrap();
            storage.max_file_bytes = 100;
            storage.max_project_bytes = 150;
        },
        |_| Ok(says("x")),
    )
    .await;
    let file = ("file", Some("f"), "text");
    let purpose = ("purpose", None, "batch");
    let long = "x".repeat(101);
    let full = "x".repeat(100);
    let check = async |fields: &[(&str, Option<&str>, &str)], status: u16, message: &str| {
        let reply = house.send_form(fields).await;
        let told = reply.json()["error"]["message"].as_str().unwrap_or_default().to_owned();
        assert_eq!((reply.status, told.as_str()), (status, message), "{fields:?}");
    };
    check(&[file], 400, "`purpose` is missing.").await;
    check(&[purpose], 400, "`file` is missing.").await;
    check(&[purpose, ("file", Some("f"), "")], 400, "`file` is empty.").await;
    let purposes = "`purpose` must be one of assistants, batch, evals, fine-tune, user_data, vision, file-extract, not `x`.";
    check(&[("purpose", None, "x"), file], 400, purposes).await;
    check(&[purpose, file, ("color", None, "red")], 400, "Unknown or repeated parameter: `color`.")
        .await;
    check(&[purpose, file, file], 400, "Unknown or repeated parameter: `file`.").await;
    check(&[purpose, ("file", Some("f"), &long)], 413, "`file`: a file has at most 100 bytes.")
        .await;
    check(&[purpose, ("file", Some("f"), &full)], 200, "").await;
    let quota = "The project's files have 100 bytes and this one 100; the limit is 150.";
    check(&[purpose, ("file", Some("f"), &full)], 400, quota).await;
    let lifetime = "`expires_after` has an `anchor`, which is `created_at`, and `seconds`.";
    check(&[purpose, file, ("expires_after[seconds]", None, "3600")], 400, lifetime).await;
    // Cut in the middle, or no form at all.
    let request = house.request("POST", "/v1/files", &form(&[purpose, file]));
    assert_eq!(house.send(&request).await.status, 415);
    let kind = format!("multipart/form-data; boundary={BOUNDARY}");
    let cut = request
        .replacen("application/json", &kind, 1)
        .replace(&format!("--{BOUNDARY}--"), &format!("--{BOUNDARY}xx"));
    assert_eq!(house.send(&cut).await.status, 400);
    for query in ["limit=0", "limit=x", "limit=10001", "order=up", "what=1", "limit=1&limit=2"] {
        assert_eq!(house.get(&format!("/v1/files?{query}")).await.status, 400, "{query}");
    }
    let stored = house.get("/v1/files").await.json();
    assert_eq!(stored["data"].as_array().unwrap().len(), 1, "refused files are not kept");
}

const NATIVE: &str = "/api/v1/files";

#[tokio::test]
async fn dashscopes_files_are_the_same_files() {
    let house = start(says("x")).await;
    let fields = [
        ("files", Some("a.jsonl"), "{}"),
        ("descriptions", None, "the first"),
        ("files", Some("b.txt"), "two"),
    ];
    let made = house.send_form_to(NATIVE, &fields).await;
    assert_eq!(made.status, 200, "{}", made.body);
    let made = made.json();
    assert_eq!(made["request_id"].as_str().map(|id| id.starts_with("req_")), Some(true));
    let made = &made["data"];
    let uploaded = made["uploaded_files"].as_array().unwrap();
    let names: Vec<&str> = uploaded.iter().map(|file| file["name"].as_str().unwrap()).collect();
    assert_eq!((names, &made["failed_uploads"]), (vec!["a.jsonl", "b.txt"], &json!([])));
    let first = uploaded[0]["file_id"].as_str().unwrap();
    let shown = house.get(&format!("{NATIVE}/{first}")).await.json();
    let file = &shown["data"];
    assert_eq!((&file["description"], &file["size"]), (&json!("the first"), &json!(2)));
    assert_eq!((&file["purpose"], &file["name"]), (&json!("fine-tune"), &json!("a.jsonl")));
    let created = file["gmt_create"].as_str().unwrap();
    assert!(created.len() == 19 && created.as_bytes()[10] == b' ', "{created}");
    assert_eq!(file["upload_time"], created);
    // In the other dialect, and from there.
    let same = house.get(&format!("/v1/files/{first}")).await.json();
    assert_eq!((&same["filename"], &same["purpose"]), (&file["name"], &file["purpose"]));
    assert_eq!(house.get(&format!("/v1/files/{first}/content")).await.body, "{}");
    let third = house.upload("3").await;
    let list = house.get(&format!("{NATIVE}?page_no=1&page_size=2")).await.json();
    let ids = |list: &Value| -> Vec<String> {
        let files = list["data"]["files"].as_array().unwrap().iter();
        files.map(|file| file["file_id"].as_str().unwrap().to_owned()).collect()
    };
    let second = uploaded[1]["file_id"].as_str().unwrap();
    assert_eq!(ids(&list), [third.as_str(), second]);
    assert_eq!((&list["data"]["total"], &list["data"]["page_size"]), (&json!(3), &json!(2)));
    let list = house.get(&format!("{NATIVE}?page_no=2&page_size=2")).await.json();
    assert_eq!(ids(&list), [first]);
    assert_eq!(ids(&house.get(NATIVE).await.json()).len(), 3);
    // A stranger finds nothing, and learns nothing of what there is.
    let stranger = house.stranger().await;
    let path = format!("{NATIVE}/{first}");
    for method in ["GET", "DELETE"] {
        let theirs = house.ask(&stranger, method, &path, &Value::Null).await;
        let nobodys = house.ask(&stranger, method, &path.replace(first, "x"), &Value::Null).await;
        assert_eq!((theirs.status, &theirs.json()["code"]), (400, &json!("InvalidParameter")));
        assert_eq!(theirs.json()["message"], format!("No such file: `{first}`."));
        assert_eq!(nobodys.json()["message"], "No such file: `x`.");
    }
    let none = house.get_with(&stranger, NATIVE).await.json();
    assert_eq!((&none["data"]["total"], &none["data"]["files"]), (&json!(0), &json!([])));
    let gone = house.delete(&path).await.json();
    assert_eq!(gone["data"], json!({"file_id": first, "deleted": true}));
    assert_eq!(house.get(&path).await.status, 400);
    assert_eq!(house.get(&format!("/v1/files/{first}")).await.status, 404);
}

#[tokio::test]
async fn dashscopes_forms_are_checked() {
    let limit = |config: &mut mintage_server::ServerConfig| {
        config.storage.as_mut().unwrap().max_project_bytes = 5;
    };
    let house = start_with(limit, |_| Ok(says("x"))).await;
    let check = async |fields: &[(&str, Option<&str>, &str)], message: &str| {
        let reply = house.send_form_to(NATIVE, fields).await;
        let told = reply.json();
        assert_eq!((reply.status, &told["code"]), (400, &json!("InvalidParameter")), "{fields:?}");
        assert_eq!(told["message"], message);
    };
    check(&[("descriptions", None, "x")], "`files` is missing.").await;
    check(&[("files", Some("f"), "")], "`files` is empty.").await;
    let one = ("files", Some("one"), "123");
    check(&[one, ("color", None, "x")], "Unknown or repeated parameter: `color`.").await;
    let purposes = "`purpose` must be one of assistants, batch, evals, fine-tune, user_data, vision, file-extract, not `x`.";
    check(&[one, ("purpose", None, "x")], purposes).await;
    let request = house.request("POST", NATIVE, "{}");
    assert_eq!(house.send(&request).await.status, 415);
    for query in ["page_no=0", "page_size=101", "page_size=x", "limit=1"] {
        assert_eq!(house.get(&format!("{NATIVE}?{query}")).await.status, 400, "{query}");
    }
    assert_eq!(house.get(NATIVE).await.json()["data"]["total"], 0, "refused files are not kept");
    // What finds no room is told of beside what does.
    let fields = [one, ("files", Some("two"), "456"), ("purpose", None, "fine_tune")];
    let made = house.send_form_to(NATIVE, &fields).await.json();
    let (uploaded, failed) = (&made["data"]["uploaded_files"], &made["data"]["failed_uploads"]);
    assert_eq!((&uploaded[0]["name"], &failed[0]["name"]), (&json!("one"), &json!("two")));
    let quota = "The project's files have 3 bytes and this one 3; the limit is 5.";
    assert_eq!(failed[0]["message"], quota);
}

/// What has no room goes when it has come, not when all have.
#[tokio::test]
async fn a_form_fills_no_more_than_the_projects_room() {
    let limit = |config: &mut mintage_server::ServerConfig| {
        config.storage.as_mut().unwrap().max_project_bytes = 5;
    };
    let house = start_with(limit, |_| Ok(says("x"))).await;
    let names = ["a", "b", "c", "d"];
    let fields = names.map(|name| ("files", Some(name), "123"));
    let kind = format!("multipart/form-data; boundary={BOUNDARY}");
    let request = house.request("POST", NATIVE, &form(&fields));
    let request = request.replacen("application/json", &kind, 1);
    // Up to within the last file.
    let (first, rest) = request.split_at(request.rfind("123").unwrap() + 1);
    let mut socket = house.connect().await;
    socket.write_all(first.as_bytes()).await.unwrap();
    let partial = house.folder().join("files/partial");
    let stored = || -> Vec<u64> {
        let files = std::fs::read_dir(&partial).unwrap();
        // One that goes at this moment has no length any more.
        let mut bytes: Vec<u64> =
            files.map(|file| file.unwrap().metadata().map_or(0, |file| file.len())).collect();
        bytes.sort_unstable();
        bytes
    };
    // The one that has room, and a beginning.
    let wait = async {
        while stored() != [1, 3] {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    let waited = tokio::time::timeout(std::time::Duration::from_secs(10), wait).await;
    assert!(waited.is_ok(), "{:?}", stored());
    socket.write_all(rest.as_bytes()).await.unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).await.unwrap();
    let told: Value = serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap();
    let names = |list: &Value| -> Vec<String> {
        let files = list.as_array().unwrap().iter();
        files.map(|file| file["name"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(names(&told["data"]["uploaded_files"]), ["a"], "{told}");
    assert_eq!(names(&told["data"]["failed_uploads"]), ["b", "c", "d"], "{told}");
    assert!(stored().is_empty(), "{:?}", stored());
}

#[tokio::test]
async fn files_that_are_kept_are_told_of_beside_one_that_breaks() {
    let house = start(says("x")).await;
    let index = rusqlite::Connection::open(house.folder().join("files/index.sqlite")).unwrap();
    let breaks = "CREATE TRIGGER breaks BEFORE INSERT ON files WHEN NEW.filename = 'b'
         BEGIN SELECT RAISE(ABORT, 'secret'); END";
    index.execute_batch(breaks).unwrap();
    let fields = ["a", "b", "c"].map(|name| ("files", Some(name), "123"));
    let made = house.send_form_to(NATIVE, &fields).await;
    assert_eq!(made.status, 200, "{}", made.body);
    assert!(!made.body.contains("secret"), "{}", made.body);
    let data = &made.json()["data"];
    let (uploaded, failed) = (&data["uploaded_files"], &data["failed_uploads"]);
    assert_eq!((&uploaded[0]["name"], &uploaded[1]["name"]), (&json!("a"), &json!("c")));
    assert_eq!((&failed[0]["name"], &failed[0]["code"]), (&json!("b"), &json!("InternalError")));
    assert_eq!(house.get(NATIVE).await.json()["data"]["total"], 2);
    let path = format!("{NATIVE}/{}", uploaded[1]["file_id"].as_str().unwrap());
    assert_eq!(house.get(&path).await.json()["data"]["name"], "c");
}

/// A server without a folder says so.
#[tokio::test]
async fn without_a_folder_there_are_no_files() {
    let house = start_with(|config| config.storage = None, |_| Ok(says("x"))).await;
    for path in ["/v1/files", "/v1/files/x", "/v1/batches"] {
        let reply = house.get(path).await;
        assert_eq!((reply.status, &reply.json()["error"]["code"]), (404, &json!("files_disabled")));
    }
    for path in [NATIVE, "/api/v1/tasks", "/api/v1/tasks/x"] {
        let reply = house.get(path).await;
        assert_eq!((reply.status, &reply.json()["code"]), (404, &json!("InvalidURL")), "{path}");
    }
}
