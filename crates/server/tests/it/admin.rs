//! Administration as programs see it: who may what, and that nobody sees another's.

use std::sync::Arc;

use mintage_ledger::directory::{KeyOwner, Member, NewKey, Role};
use mintage_ledger::invoice::{self, Month};
use mintage_ledger::{Changes, Document, Outcome, Payer, RequestFacts, TokenUsage, UsageRecord};
use serde_json::{Value, json};

use crate::harness::{House, Reply, says, start};
use crate::openapi::{check as check_schema, document as openai_document, validator};

/// An organisation with everything in it, and an owner's key.
pub(crate) struct Tenant {
    pub(crate) key: String,
    /// What stands for the names in paths.
    pub(crate) ids: Vec<(&'static str, String)>,
}

impl Tenant {
    pub(crate) fn id(&self, name: &str) -> &str {
        let found = self.ids.iter().find(|(known, _)| *known == name);
        &found.unwrap_or_else(|| panic!("no id stands for {{{name}}}: add one")).1
    }
}

pub(crate) fn member_key(house: &House, organisation: &str, role: Role) -> (String, String) {
    let id = format!("user-{organisation}-{role:?}");
    let member = Member {
        id: id.clone(),
        organisation: organisation.to_owned(),
        name: format!("{role:?}@example.com"),
        role,
        created_unix: 0,
    };
    house.keys.change(|directory| directory.put_member(member.clone())).unwrap();
    let new = NewKey { owner: KeyOwner::Member(id.clone()), ..NewKey::of_project("admin", "") };
    (id, house.keys.create_key(new, 0).unwrap().secret.expose().to_owned())
}

pub(crate) fn operator_key(house: &House) -> String {
    let new = NewKey { owner: KeyOwner::Operator, ..NewKey::of_project("operator", "") };
    house.keys.create_key(new, 0).unwrap().secret.expose().to_owned()
}

/// An organisation with a project, its key, an owner, a usage record and an invoice.
pub(crate) async fn tenant(house: &House, name: &str) -> Tenant {
    let organisation = house.keys.create_organisation(name, 0).unwrap().id;
    let project = house.keys.create_project(&organisation, "shop", 0).unwrap().id;
    let (member, key) = member_key(house, &organisation, Role::Owner);
    let new = NewKey::of_project("till", &project);
    let project_key = house.keys.create_key(new, 0).unwrap().info.id;
    let record = format!("chatcmpl-{organisation}");
    charge(house, &record, &organisation, &project, &project_key).await;
    let invoice = invoice(house, &organisation).await;
    // An event that no test brings about: nothing is ever sent there.
    let body = json!({"url": "https://hooks.example.com/in", "topics": ["budget.reached"]});
    let made = house.ask(&key, "POST", "/admin/v1/webhooks", &body).await.json();
    let webhook = made["id"].as_str().unwrap().to_owned();
    let letter = dead_letter(house, &organisation, &webhook).await;
    let ids = vec![
        ("organization", organisation),
        ("project", project),
        ("member", member),
        ("key", project_key),
        // A key reads `sk-mint-ID-SECRET`.
        ("admin_key", key.split('-').nth(2).unwrap_or_default().to_owned()),
        ("record", record),
        ("invoice", invoice),
        ("webhook", webhook),
        ("letter", letter),
        // The same for all.
        ("version", "none".to_owned()),
    ];
    Tenant { key, ids }
}

/// A time in a month that is long over: 2026-10-15T00:00:00Z.
pub(crate) const USED_MS: u64 = 1_792_022_400_000;

/// A usage record of its own, unpriced.
async fn charge(house: &House, id: &str, organisation: &str, project: &str, key: &str) {
    let facts = RequestFacts {
        id: id.into(),
        payer: Payer { org: organisation.into(), project: project.into(), key: key.into() },
        model: "m".into(),
        arrival_ms: USED_MS,
        ..RequestFacts::default()
    };
    let outcome = Outcome { end_ms: USED_MS, finish: "stop".into(), ..Outcome::default() };
    let usage = TokenUsage {
        input: 100,
        cached_input: 20,
        output: 30,
        thinking: 7,
        ..TokenUsage::default()
    };
    let record = UsageRecord { facts, outcome, usage, ..UsageRecord::default() };
    house.ledger.charge(record).unwrap().await.unwrap();
}

async fn invoice(house: &House, organisation: &str) -> String {
    let (ledger, organisation) = (Arc::clone(&house.ledger), organisation.to_owned());
    let issue = move || {
        let book = mintage_ledger::price::PriceBook::default();
        let month = Month::parse("2026-10", 0).unwrap();
        invoice::issue(&ledger, &book, &organisation, month, USED_MS + 60 * 86_400_000).unwrap()
    };
    tokio::task::spawn_blocking(issue).await.unwrap().number
}

/// As the sender leaves one behind.
async fn dead_letter(house: &House, organisation: &str, webhook: &str) -> String {
    let id = format!("dl_{organisation}");
    let letter = json!({
        "id": id, "endpoint": webhook, "organisation": organisation, "topic": "balance.low",
        "message": "msg_0", "payload": "{}", "attempts": 3, "last_error": "gone", "given_up_ms": 0,
    });
    let document = Document {
        kind: "dead_letter".into(),
        id: id.as_str().into(),
        version: 1,
        body: letter.to_string().into_bytes(),
    };
    let changes = Changes { documents: vec![document], ..Changes::default() };
    house.ledger.write(changes).unwrap().await.unwrap();
    id
}

impl House {
    /// A request with a key of its own.
    pub(crate) async fn ask(&self, key: &str, method: &str, path: &str, body: &Value) -> Reply {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        self.send(&self.request(method, path, &body).replace(&self.key, key)).await
    }
}

/// A value that the schema takes.
fn example(schema: &Value) -> Value {
    match (&schema["enum"][0], &schema["pattern"], schema["type"].as_str()) {
        (Value::String(first), ..) => first.as_str().into(),
        (_, Value::String(_), _) => "1".into(),
        (.., Some("integer")) => 1.into(),
        (.., Some("boolean")) => true.into(),
        (.., Some("object")) => json!({}),
        (.., Some("array")) => json!([]),
        _ => "example".into(),
    }
}

/// One operation of the document with everything filled in that it requires.
pub(crate) struct Asked {
    pub(crate) method: String,
    pub(crate) pattern: String,
    pub(crate) path: String,
    pub(crate) body: Value,
    pub(crate) for_operator: bool,
}

fn asked(document: &Value, ids: &dyn Fn(&str) -> String) -> Vec<Asked> {
    let mut all = Vec::new();
    for (pattern, operations) in document["paths"].as_object().unwrap() {
        for (method, operation) in operations.as_object().unwrap() {
            if operation["security"][0].get("admin_key").is_none() {
                continue;
            }
            let mut path = pattern.clone();
            let mut query = Vec::new();
            for parameter in operation["parameters"].as_array().into_iter().flatten() {
                let name = parameter["name"].as_str().unwrap();
                if parameter["in"] == "path" {
                    let is_admin_key = name == "key" && pattern.contains("/admin_api_keys/");
                    let id = ids(if is_admin_key { "admin_key" } else { name });
                    path = path.replace(&format!("{{{name}}}"), &id);
                } else if parameter["required"] == true {
                    let value = example(&parameter["schema"]);
                    let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
                    query.push(format!("{name}={text}"));
                }
            }
            if !query.is_empty() {
                path = format!("{path}?{}", query.join("&"));
            }
            let schema = &operation["requestBody"]["content"]["application/json"]["schema"];
            let mut body = Value::Null;
            for name in schema["required"].as_array().into_iter().flatten() {
                let name = name.as_str().unwrap();
                body[name] = example(&schema["properties"][name]);
            }
            all.push(Asked {
                method: method.to_ascii_uppercase(),
                pattern: pattern.clone(),
                path,
                body,
                for_operator: operation["description"] == "The operator.",
            });
        }
    }
    all
}

/// Every route with an id, as the document lists them, asked by the owner of another organisation.
#[tokio::test]
async fn what_is_anothers_looks_like_what_does_not_exist() {
    let house = start(says("x")).await;
    let (a, b) = (tenant(&house, "a").await, tenant(&house, "b").await);
    let document = house.get("/openapi.json").await.json();
    let before = house.keys.snapshot();
    let theirs = asked(&document, &|name| a.id(name).to_owned());
    let nobodys = asked(&document, &|_| "nobody".to_owned());
    let mut with_ids = 0;
    for (theirs, nobodys) in theirs.iter().zip(&nobodys) {
        // Prices are the same for all tenants.
        if !theirs.pattern.contains('{') || theirs.pattern.contains("{version}") {
            continue;
        }
        with_ids += 1;
        let reply = house.ask(&b.key, &theirs.method, &theirs.path, &theirs.body).await;
        let shown = format!("{} {} → {} {}", theirs.method, theirs.path, reply.status, reply.body);
        let missing = house.ask(&b.key, &nobodys.method, &nobodys.path, &nobodys.body).await;
        assert_eq!(reply.status, if theirs.for_operator { 403 } else { 404 }, "{shown}");
        let mut said = reply.body.clone();
        // A member's id holds its organisation's: the longest first.
        let mut ids: Vec<&String> = a.ids.iter().map(|(_, id)| id).collect();
        ids.sort_by_key(|id| std::cmp::Reverse(id.len()));
        for id in ids {
            said = said.replace(id, "nobody");
        }
        assert_eq!(said, missing.body, "{shown}");
    }
    assert!(with_ids > 25, "{with_ids} routes with ids");
    // Neither seen nor changed.
    assert_eq!(before, house.keys.snapshot());
    // The owner itself is answered: the requests were not refused for their form.
    for own in theirs.iter().filter(|own| own.method == "GET" && !own.for_operator) {
        if own.pattern.starts_with("/admin/v1/prices/") {
            continue;
        }
        let reply = house.ask(&a.key, &own.method, &own.path, &own.body).await;
        assert_eq!(reply.status, 200, "{} → {}", own.path, reply.body);
        for (_, id) in &b.ids {
            assert!(!reply.body.contains(id.as_str()), "{} shows {id}", own.path);
        }
    }
}

/// All routes, asked with each kind of key: allowed exactly where the document says so.
#[tokio::test]
async fn roles_decide() {
    let house = start(says("x")).await;
    let document = house.get("/openapi.json").await.json();
    for role in Role::ALL {
        let a = tenant(&house, &format!("{role:?}")).await;
        let (_, key) = member_key(&house, a.id("organization"), role);
        // Ids of nobody, so that nothing changes on the way.
        for asked in asked(&document, &|_| "nobody".to_owned()) {
            let operation = &document["paths"][&asked.pattern][asked.method.to_ascii_lowercase()];
            let roles = operation["description"].as_str().unwrap();
            let name = format!("{role:?}").to_ascii_lowercase();
            let allowed = roles.contains(&name);
            let reply = house.ask(&key, &asked.method, &asked.path, &asked.body).await;
            let refused = reply.status == 403;
            assert_eq!(
                refused, !allowed,
                "{role:?} {} {}: {}",
                asked.method, asked.path, reply.body
            );
        }
    }
    // Keys that call models administer nothing; wrong ones open nothing.
    for asked in asked(&document, &|_| "nobody".to_owned()) {
        let reply = house.ask(&house.key, &asked.method, &asked.path, &asked.body).await;
        assert_eq!(reply.status, 403, "{} {}", asked.method, asked.path);
        let reply = house.ask("sk-wrong", &asked.method, &asked.path, &asked.body).await;
        assert_eq!(reply.status, 401, "{} {}", asked.method, asked.path);
    }
}

#[tokio::test]
async fn nobody_hands_out_more_than_they_have() {
    let house = start(says("x")).await;
    let a = tenant(&house, "a").await;
    let (_, admin) = member_key(&house, a.id("organization"), Role::Admin);
    let (billing, _) = member_key(&house, a.id("organization"), Role::Billing);
    let (viewer, _) = member_key(&house, a.id("organization"), Role::Viewer);
    let named = json!({"name": "new"});
    let check = async |key: &str, path: String, body: &Value, status: u16| {
        let reply = house.ask(key, "POST", &path, body).await;
        assert_eq!(reply.status, status, "{path}: {}", reply.body);
        reply
    };
    let owner = a.id("member");
    check(&admin, format!("/admin/v1/members/{owner}/keys"), &named, 403).await;
    check(&admin, format!("/admin/v1/members/{billing}/keys"), &named, 403).await;
    let made = check(&admin, format!("/admin/v1/members/{viewer}/keys"), &named, 201).await.json();
    let id = made["id"].as_str().unwrap();
    let path = format!("/admin/v1/keys/{id}/rotate");
    let rotated = check(&admin, path, &json!({"overlap_s": 0}), 201).await.json();
    // Without overlap the old one is refused at once, the new one opens.
    let see = format!("/admin/v1/organizations/{}", a.id("organization"));
    let old = made["value"].as_str().unwrap();
    assert_eq!(house.ask(old, "GET", &see, &Value::Null).await.status, 401);
    let new = rotated["value"].as_str().unwrap();
    assert_eq!(house.ask(new, "GET", &see, &Value::Null).await.status, 200);
    check(&admin, "/admin/v1/operator-keys".to_owned(), &named, 403).await;
    let members = format!("/admin/v1/organizations/{}/members", a.id("organization"));
    check(&admin, members.clone(), &json!({"name": "o", "role": "owner"}), 403).await;
    check(&a.key, members, &json!({"name": "o", "role": "owner"}), 201).await;
    // A key made for some routes makes no further keys that administer.
    let narrow =
        json!({"name": "n", "endpoints": ["/admin/v1/members/*", "/admin/v1/organizations/*"]});
    let made = check(&a.key, format!("/admin/v1/members/{owner}/keys"), &narrow, 201).await.json();
    let narrow = made["value"].as_str().unwrap();
    assert_eq!(house.ask(narrow, "GET", &see, &Value::Null).await.status, 200);
    check(narrow, format!("/admin/v1/members/{owner}/keys"), &named, 403).await;
    assert_eq!(
        house.ask(narrow, "GET", "/v1/organization/projects", &Value::Null).await.status,
        403
    );
}

#[tokio::test]
async fn a_tenant_is_set_up_and_switched_off() {
    let house = start(says("x")).await;
    let operator = operator_key(&house);
    let post = async |path: String, body: Value| {
        let reply = house.ask(&operator, "POST", &path, &body).await;
        assert!(matches!(reply.status, 200 | 201), "{path}: {}", reply.body);
        reply.json()
    };
    let org = post("/admin/v1/organizations".into(), json!({"name": "globex", "weight": 3})).await;
    assert_eq!(org["weight"], 3);
    let org = org["id"].as_str().unwrap();
    let project =
        post(format!("/admin/v1/organizations/{org}/projects"), json!({"name": "p"})).await;
    let project = project["id"].as_str().unwrap();
    let key = post(format!("/admin/v1/projects/{project}/keys"), json!({"name": "k"})).await;
    let (id, value) = (key["id"].as_str().unwrap(), key["value"].as_str().unwrap());
    let models = async || house.ask(value, "GET", "/v1/models", &Value::Null).await.status;
    assert_eq!(models().await, 200);
    let shown = house.ask(&operator, "GET", &format!("/admin/v1/keys/{id}"), &Value::Null).await;
    assert!(!shown.body.contains(value) && shown.json()["state"] == "active", "{}", shown.body);
    post(format!("/admin/v1/keys/{id}/disable"), Value::Null).await;
    assert_eq!(models().await, 401);
    post(format!("/admin/v1/keys/{id}/enable"), Value::Null).await;
    assert_eq!(models().await, 200);
    let suspend = json!({"suspended": true});
    let path = format!("/admin/v1/organizations/{org}");
    assert_eq!(house.ask(&operator, "PATCH", &path, &suspend).await.status, 200);
    assert_eq!(models().await, 401);
    // Limits are kept as given; rules that cannot be used are refused with the reason.
    let limits = format!("/admin/v1/projects/{project}/limits");
    let rules = json!({
        "rates": [{"models": "together", "requests_per_minute": 60, "smooth": false}],
        "budgets": [{"models": {"one": "m"}, "period": "month", "limit": {"money": "12.5"}, "effect": "hard"}],
    });
    let put = house.ask(&operator, "PUT", &limits, &rules).await;
    assert_eq!(put.status, 200, "{}", put.body);
    let shown = house.ask(&operator, "GET", &limits, &Value::Null).await.json();
    assert_eq!((&shown["rates"], &shown["budgets"]), (&rules["rates"], &rules["budgets"]));
    let wrong = json!({"budgets": [{"period": "year", "limit": {"tokens": 1}}]});
    let put = house.ask(&operator, "PUT", &limits, &wrong).await;
    assert_eq!(put.status, 400);
    assert!(put.body.contains("unknown variant `year`"), "{}", put.body);
}

#[tokio::test]
async fn lists_come_in_pages() {
    let house = start(says("x")).await;
    let a = tenant(&house, "a").await;
    for i in 0..7 {
        house.keys.create_project(a.id("organization"), &format!("p{i}"), 0).unwrap();
    }
    let mut seen = Vec::new();
    let mut after = String::new();
    loop {
        let path = format!("/v1/organization/projects?limit=3{after}");
        let page = house.ask(&a.key, "GET", &path, &Value::Null).await.json();
        let ids = page["data"].as_array().unwrap().iter().map(|p| p["id"].as_str().unwrap());
        seen.extend(ids.map(str::to_owned));
        if page["has_more"] == false {
            break;
        }
        after = format!("&after={}", page["last_id"].as_str().unwrap());
    }
    assert_eq!(seen.len(), 8);
    seen.dedup();
    assert_eq!(seen.len(), 8);
    let reply = house.ask(&a.key, "GET", "/v1/organization/projects?limit=0", &Value::Null).await;
    assert_eq!(reply.status, 400);
    let reply = house.ask(&a.key, "GET", "/v1/organization/projects?limt=3", &Value::Null).await;
    assert!(reply.body.contains("Unknown parameter: `limt`"), "{}", reply.body);
}

#[tokio::test]
async fn openais_forms_are_kept() {
    let Some(document) = openai_document() else { return };
    let house = start(says("x")).await;
    let a = tenant(&house, "a").await;
    let ask = async |method: &str, path: &str, body: Value, schema: &str| {
        let reply = house.ask(&a.key, method, path, &body).await;
        assert_eq!(reply.status, 200, "{method} {path}: {}", reply.body);
        let value = reply.json();
        check_schema(&validator(&document, schema), &value);
        value
    };
    let org = "/v1/organization";
    let project = ask("POST", &format!("{org}/projects"), json!({"name": "new"}), "Project").await;
    let id = project["id"].as_str().unwrap();
    ask("GET", &format!("{org}/projects"), Value::Null, "ProjectListResponse").await;
    ask("GET", &format!("{org}/projects/{id}"), Value::Null, "Project").await;
    ask("POST", &format!("{org}/projects/{id}"), json!({"name": "newer"}), "Project").await;
    let archived =
        ask("POST", &format!("{org}/projects/{id}/archive"), Value::Null, "Project").await;
    assert_eq!(archived["status"], "archived");
    let keys = format!("{org}/projects/{}/api_keys", a.id("project"));
    ask("GET", &keys, Value::Null, "ProjectApiKeyListResponse").await;
    let key = format!("{keys}/{}", a.id("key"));
    ask("GET", &key, Value::Null, "ProjectApiKey").await;
    ask("DELETE", &key, Value::Null, "ProjectApiKeyDeleteResponse").await;
    assert_eq!(house.ask(&a.key, "GET", &key, &Value::Null).await.status, 404);
    let (viewer, _) = member_key(&house, a.id("organization"), Role::Viewer);
    ask("GET", &format!("{org}/users"), Value::Null, "UserListResponse").await;
    ask("POST", &format!("{org}/users/{viewer}"), json!({"role": "developer"}), "User").await;
    ask("DELETE", &format!("{org}/users/{viewer}"), Value::Null, "UserDeleteResponse").await;
    let keys = format!("{org}/admin_api_keys");
    let new = json!({"name": "more", "expires_in_seconds": 60});
    let made = ask("POST", &keys, new, "AdminApiKeyCreateResponse").await;
    ask("GET", &keys, Value::Null, "ApiKeyList").await;
    let key = format!("{keys}/{}", made["id"].as_str().unwrap());
    ask("GET", &key, Value::Null, "AdminApiKey").await;
    let value = made["value"].as_str().unwrap();
    assert_eq!(house.ask(value, "GET", &keys, &Value::Null).await.status, 200);
    assert_eq!(house.ask(&a.key, "DELETE", &key, &Value::Null).await.status, 200);
    assert_eq!(house.ask(value, "GET", &keys, &Value::Null).await.status, 401);
}

#[tokio::test]
async fn money_moves_once() {
    let house = start(says("x")).await;
    let (a, operator) = (tenant(&house, "a").await, operator_key(&house));
    let org = format!("/admin/v1/organizations/{}", a.id("organization"));
    let check = async |method: &str, path: String, body: Value, status: u16, says: &str| {
        let reply = house.ask(&operator, method, &path, &body).await;
        assert_eq!(reply.status, status, "{path}: {}", reply.body);
        assert!(reply.body.contains(says), "{path}: {} says no {says}", reply.body);
    };
    let topup = json!({"id": "t-1", "amount": "12.5"});
    check("POST", format!("{org}/topups"), topup.clone(), 200, r#""balance":"12.5""#).await;
    check("POST", format!("{org}/topups"), topup, 200, r#""balance":"12.5""#).await;
    let other = json!({"id": "t-1", "amount": "13"});
    check("POST", format!("{org}/topups"), other, 409, "was used for another operation").await;
    let credit = json!({"id": "c-1", "amount": "0.000000000001"});
    check("POST", format!("{org}/credits"), credit, 200, r#""balance":"12.500000000001""#).await;
    let less = json!({"id": "a-1", "amount": "-20"});
    check("POST", format!("{org}/adjustments"), less, 200, r#""available":"-7.4"#).await;
    let line = json!({"id": "l-1", "limit": "unlimited"});
    check("PUT", format!("{org}/credit-line"), line, 200, r#""available":"unlimited""#).await;
    let wrong = json!({"id": "t-2", "amount": "-1"});
    check("POST", format!("{org}/topups"), wrong, 400, "must be above zero").await;
    let refund = json!({"id": "r-1", "amount": "1"});
    let path = format!("/admin/v1/usage/{}/refunds", a.id("record"));
    check("POST", path, refund, 400, "would exceed what was posted").await;
    // The tenant sees it, and cannot do it.
    let shown = house.ask(&a.key, "GET", &format!("{org}/balance"), &Value::Null).await.json();
    assert_eq!(shown["balance"], "-7.499999999999");
    let topup = json!({"id": "mine", "amount": "1"});
    let reply = house.ask(&a.key, "POST", &format!("{org}/topups"), &topup).await;
    assert_eq!((reply.status, &reply.json()["error"]["code"]), (403, &json!("operator_only")));
}

#[tokio::test]
async fn usage_and_costs_are_summed_in_buckets() {
    let house = start(says("x")).await;
    let a = tenant(&house, "a").await;
    let more = ["x-1", "x-2"];
    for id in more {
        charge(&house, id, a.id("organization"), a.id("project"), a.id("key")).await;
    }
    let start_s = USED_MS / 1000;
    let path = format!(
        "/v1/organization/usage/completions?start_time={}&end_time={}&bucket_width=1h&limit=2\
         &group_by[]=model&group_by[]=project_id",
        start_s - 1800,
        start_s + 7200,
    );
    let page = house.ask(&a.key, "GET", &path, &Value::Null).await.json();
    let (half, whole) = (&page["data"][0], &page["data"][1]);
    assert_eq!((&half["start_time"], &half["results"]), (&json!(start_s - 1800), &json!([])));
    assert_eq!(
        (&whole["start_time"], &whole["end_time"]),
        (&json!(start_s), &json!(start_s + 3600))
    );
    let expected = json!([{
        "object": "organization.usage.completions.result",
        "input_tokens": 360, "input_cached_tokens": 60, "input_cache_write_tokens": 0,
        "input_uncached_tokens": 300, "output_tokens": 111, "num_model_requests": 3,
        "project_id": a.id("project"), "user_id": null, "api_key_id": null, "model": "m",
        "batch": null, "service_tier": null,
    }]);
    assert_eq!(whole["results"], expected);
    let next = format!("{path}&page={}", page["next_page"].as_str().unwrap());
    let last = house.ask(&a.key, "GET", &next, &Value::Null).await.json();
    assert_eq!(last["data"][0]["start_time"], json!(start_s + 3600));
    assert_eq!((&last["has_more"], &last["next_page"]), (&json!(false), &Value::Null));
    let costs = format!("/v1/organization/costs?start_time={start_s}&group_by=line_item&limit=1");
    let costs = house.ask(&a.key, "GET", &costs, &Value::Null).await.json();
    assert_eq!(costs["data"][0]["results"][0]["amount"]["exact"], "0");
    if let Some(document) = openai_document() {
        let schema = validator(&document, "UsageResponse");
        for answer in [&page, &last, &costs] {
            check_schema(&schema, answer);
        }
    }
    // Records come one by one, too.
    let path = "/admin/v1/usage?limit=2";
    let page = house.ask(&a.key, "GET", path, &Value::Null).await.json();
    let rest = format!("{path}&after={}", page["next"]);
    let rest = house.ask(&a.key, "GET", &rest, &Value::Null).await.json();
    let ids = |page: &Value| -> Vec<String> {
        let data = page["data"].as_array().unwrap();
        data.iter().map(|record| record["id"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!([ids(&page), ids(&rest)].concat(), [a.id("record"), "x-1", "x-2"]);
}

#[tokio::test]
async fn organisations_get_the_free_quota_of_the_list_once() {
    let house = start(says("x")).await;
    let operator = operator_key(&house);
    let toml = "format = 1\nname = \"free\"\ncurrency = \"CNY\"\nper_tokens = 1000\ntime_zone = \"+08:00\"\n\
                [[model]]\nname = \"small\"\ninput = \"1\"\noutput = \"1\"\n\
                free_quota = { tokens = 1234, days = 30 }\n";
    let now_ms = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let now_ms = u64::try_from(now_ms.as_millis()).unwrap();
    let free = |id: &str| house.ledger.free_left(id, "small", now_ms);
    let make = async |name: &str| -> String {
        let body = json!({"name": name});
        let made = house.ask(&operator, "POST", "/admin/v1/organizations", &body).await;
        assert_eq!(made.status, 201, "{}", made.body);
        made.json()["id"].as_str().unwrap().to_owned()
    };
    let early = make("early").await;
    assert_eq!(free(&early), 0);
    let reply = house.ask(&operator, "POST", "/admin/v1/prices", &json!({"toml": toml})).await;
    assert_eq!(reply.status, 201, "{}", reply.body);
    assert_eq!(free(&early), 1234);
    let late = make("late").await;
    assert_eq!((free(&late), free(&early)), (1234, 1234));
    // Long ago: its quota has expired, whatever the list says now.
    assert_eq!(free(&house.organisation), 0);
}

#[tokio::test]
async fn prices_are_imported_and_invoices_shown() {
    let house = start(says("x")).await;
    let (a, operator) = (tenant(&house, "a").await, operator_key(&house));
    let missing = house.ask(&a.key, "GET", "/admin/v1/prices/in-force", &Value::Null).await;
    assert_eq!(missing.status, 404);
    let toml = include_str!("../../../../prices.toml");
    let reply = house.ask(&operator, "POST", "/admin/v1/prices", &json!({"toml": toml})).await;
    assert_eq!(reply.status, 201, "{}", reply.body);
    let bad = json!({"toml": "nmae = \"x\"\n"});
    let refused = house.ask(&operator, "POST", "/admin/v1/prices", &bad).await;
    assert!(refused.status == 400 && refused.body.contains("line 1"), "{}", refused.body);
    let id = reply.json()["id"].as_str().unwrap().to_owned();
    let list = house.ask(&a.key, "GET", "/admin/v1/prices", &Value::Null).await.json();
    assert_eq!(list["data"][0]["id"], json!(id));
    let shown = house.ask(&a.key, "GET", &format!("/admin/v1/prices/{id}"), &Value::Null).await;
    assert_eq!(shown.status, 200, "{}", shown.body);
    let invoice = format!("/admin/v1/invoices/{}", a.id("invoice"));
    for (format, kind) in [("csv", "text/csv; charset=utf-8"), ("html", "text/html; charset=utf-8")]
    {
        let path = format!("{invoice}?format={format}");
        let reply = house.ask(&a.key, "GET", &path, &Value::Null).await;
        assert_eq!((reply.status, reply.header("content-type")), (200, Some(kind)));
    }
    // Issuing once more gives what was issued.
    let path = format!("/admin/v1/organizations/{}/invoices", a.id("organization"));
    let again = house.ask(&operator, "POST", &path, &json!({"month": "2026-10"})).await;
    let known = house.ask(&a.key, "GET", &invoice, &Value::Null).await;
    assert_eq!(again.json(), known.json());
}

#[test]
fn the_document_is_the_golden_one() {
    let text = serde_json::to_string_pretty(&mintage_server::openapi_document()).unwrap();
    insta::assert_snapshot!(text);
}

#[tokio::test]
async fn every_route_of_the_document_exists() {
    let house = start(says("x")).await;
    let document = house.get("/openapi.json").await.json();
    for (path, operations) in document["paths"].as_object().unwrap() {
        for method in operations.as_object().unwrap().keys() {
            let reply =
                house.ask("sk-wrong", &method.to_ascii_uppercase(), path, &Value::Null).await;
            assert!(!matches!(reply.status, 404 | 405), "{method} {path}: {}", reply.status);
        }
    }
}
