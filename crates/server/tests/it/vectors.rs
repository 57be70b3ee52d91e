//! Embeddings and reranking in every dialect: the same vectors, the same usage, the same postings; and what is refused.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use mintage_ledger::TokenUsage;
use mintage_ledger::directory::Role;
use mintage_model::{
    EncoderFile, Engine, EngineFault, EngineInfo, GenerateRequest, Priority, Script, ScriptEnd,
    ScriptedEngine, SubmitError, VectorTask, VectorText,
};
use mintage_server::{ServerConfig, VectorModel};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;

use crate::admin::member_key;
use crate::harness::{House, MODEL, TEMPLATE, VOCAB, byte_model, price, start_beside};
use crate::openapi::{check as check_schema, document, validator};

/// A WordPiece vocabulary; not made for shorter vectors; takes 64 tokens.
pub(crate) const BERT: &str = "bert";
/// Bytes as tokens; made for shorter vectors.
pub(crate) const QWEN: &str = "qwen-embedding";
/// Scores documents.
pub(crate) const JUDGE: &str = "judge";
const WIDTH: usize = 3;

/// What the scripted engines say of a sequence: of length 1, and different for different lengths.
fn vector(tokens: usize) -> [f32; WIDTH] {
    let angle = tokens as f32 / 100.0;
    [0.6 * angle.cos(), 0.6 * angle.sin(), 0.8]
}

pub(crate) fn embeds(request: &GenerateRequest) -> Result<Script, SubmitError> {
    Ok(Script { vector: Some(vector(request.prompt.len()).into()), ..Script::default() })
}

/// Longer documents are better.
fn judges(request: &GenerateRequest) -> Result<Script, SubmitError> {
    let score = 1.0 - 1.0 / request.prompt.len() as f32;
    Ok(Script { vector: Some([score].into()), ..Script::default() })
}

/// A server with these models, and their engines.
pub(crate) struct Vectors {
    pub(crate) house: House,
    pub(crate) bert: Arc<ScriptedEngine>,
    qwen: Arc<ScriptedEngine>,
    judge: Arc<ScriptedEngine>,
}

pub(crate) async fn start() -> Vectors {
    start_with(|_| {}, embeds).await
}

pub(crate) async fn start_with(
    change: impl FnOnce(&mut ServerConfig),
    respond: impl Fn(&GenerateRequest) -> Result<Script, SubmitError> + Send + Sync + Clone + 'static,
) -> Vectors {
    let bytes = |task| {
        let text =
            byte_model(TEMPLATE, &[("ye", 1), ("yes", 1), ("no", 1)], &["y e", "ye s", "n o"]);
        VectorText::of_text_model(text, task).unwrap()
    };
    let bert = engine(BERT, 64, 139, Box::new(respond.clone()));
    let qwen = engine(QWEN, 256, VOCAB + 3, Box::new(respond));
    let judge = engine(JUDGE, 512, VOCAB + 3, Box::new(judges));
    let models = vec![
        served(BERT, &bert, wordpiece(), WIDTH),
        served(QWEN, &qwen, bytes(VectorTask::Embed), WIDTH),
        served(JUDGE, &judge, bytes(VectorTask::Rerank), 1),
    ];
    Vectors { house: start_beside(models, change).await, bert, qwen, judge }
}

/// The same texts, and vectors of so many numbers, as long as numbers of vectors of length 1 are.
pub(crate) async fn start_wide(width: usize) -> (House, Arc<ScriptedEngine>) {
    let number = |n: usize| (n as f64 * 1.7).sin() / (width as f64 / 2.0).sqrt();
    let vector: Arc<[f32]> = (0..width).map(|n| number(n) as f32).collect();
    let respond =
        move |_: &_| Ok(Script { vector: Some(Arc::clone(&vector)), ..Script::default() });
    let engine = engine(BERT, 64, 139, Box::new(respond));
    let house = start_beside(vec![served(BERT, &engine, wordpiece(), width)], |_| {}).await;
    (house, engine)
}

fn wordpiece() -> VectorText {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../engine/tests/goldens/bert");
    VectorText::of_encoder(&EncoderFile::open(&golden).unwrap()).unwrap()
}

fn engine(
    model: &str,
    context_length: u32,
    vocab_size: u32,
    respond: Box<Respond>,
) -> Arc<ScriptedEngine> {
    let info = EngineInfo { model: model.to_owned(), context_length, vocab_size };
    Arc::new(ScriptedEngine::new(info, 4096, respond))
}

fn served(name: &str, engine: &Arc<ScriptedEngine>, text: VectorText, width: usize) -> VectorModel {
    VectorModel {
        name: name.to_owned(),
        aliases: vec![format!("{name}-alias")],
        engine: Arc::clone(engine) as Arc<dyn Engine>,
        text: Arc::new(text),
        width,
        created_unix: 1_700_000_001,
        digest: "sha256:7e58".into(),
    }
}

type Respond = dyn Fn(&GenerateRequest) -> Result<Script, SubmitError> + Send + Sync;

pub(crate) const EMBEDDINGS: &str = "/v1/embeddings";
pub(crate) const DASHSCOPE: &str = "/api/v1/services/embeddings/text-embedding/text-embedding";
pub(crate) const DASHSCOPE_RERANK: &str = "/api/v1/services/rerank/text-rerank/text-rerank";

pub(crate) fn numbers(value: &Value) -> Vec<f32> {
    value.as_array().unwrap().iter().map(|n| n.as_f64().unwrap() as f32).collect()
}

pub(crate) fn unpacked(value: &Value) -> Vec<f32> {
    let bytes = BASE64.decode(value.as_str().unwrap()).unwrap();
    bytes.chunks_exact(4).map(|four| f32::from_le_bytes(four.try_into().unwrap())).collect()
}

/// [CLS] the embed [SEP], and [CLS] the [SEP].
pub(crate) const TWO: [&str; 2] = ["the embed", "the"];

#[tokio::test]
async fn texts_and_tokens_become_vectors_exactly() {
    let Vectors { house, bert, .. } = start().await;
    let check = async |input: Value, sequences: &[&[u32]]| {
        let before = bert.requests().len();
        let body = json!({"model": BERT, "input": input, "user": "u"});
        let reply = house.post(EMBEDDINGS, body.clone()).await;
        assert_eq!(reply.status, 200, "{}", reply.body);
        let told = reply.json();
        let asked: Vec<Vec<u32>> =
            bert.requests()[before..].iter().map(|r| r.prompt.to_vec()).collect();
        assert_eq!(asked, sequences);
        let tokens: usize = sequences.iter().map(|sequence| sequence.len()).sum();
        assert_eq!(told["usage"], json!({"prompt_tokens": tokens, "total_tokens": tokens}));
        assert_eq!((&told["object"], &told["model"]), (&json!("list"), &json!(BERT)));
        let mut packed = body;
        packed["encoding_format"] = "base64".into();
        let packed = house.post(EMBEDDINGS, packed).await.json();
        for (index, sequence) in sequences.iter().enumerate() {
            let entry = &told["data"][index];
            assert_eq!((&entry["index"], &entry["object"]), (&json!(index), &json!("embedding")));
            assert_eq!(numbers(&entry["embedding"]), vector(sequence.len()));
            assert_eq!(unpacked(&packed["data"][index]["embedding"]), vector(sequence.len()));
        }
        assert_eq!(told["data"].as_array().unwrap().len(), sequences.len());
        if let Some(document) = document() {
            check_schema(&validator(&document, "CreateEmbeddingResponse"), &told);
        }
    };
    check(json!("the embed"), &[&[2, 77, 78, 3]]).await;
    check(json!(TWO), &[&[2, 77, 78, 3], &[2, 77, 3]]).await;
    check(json!([77, 78]), &[&[77, 78]]).await;
    check(json!([[77, 78], [2, 3]]), &[&[77, 78], &[2, 3]]).await;
    check(json!(["the", [5]]), &[&[2, 77, 3], &[5]]).await;
    for request in bert.requests() {
        assert_eq!((request.max_new_tokens, request.priority), (0, Priority::Online));
        assert_ne!(request.tenant, 0);
    }
    house.settled(10).await;
}

#[tokio::test]
async fn usage_is_the_records_and_costs_what_the_prices_say() {
    let Vectors { house, .. } = start().await;
    let body = json!({"model": "bert-alias", "input": TWO, "usage": {"include": true}});
    let reply = house.post(EMBEDDINGS, body).await;
    let records = house.settled(1).await;
    let record = &records[reply.json()["id"].as_str().unwrap()];
    assert_eq!(record.usage, TokenUsage { input: 7, ..TokenUsage::default() });
    assert_eq!(record.amount, price(&record.usage));
    // Digit by digit: a float would not do.
    assert!(reply.body.contains(&format!("\"cost\":{}}}", record.amount)), "{}", reply.body);
    let facts = &record.facts;
    assert_eq!((&*facts.model, &*facts.protocol), (BERT, "openai.embeddings"));
    assert_eq!((&*facts.model_digest, &*facts.client), ("sha256:7e58", "harness/1"));
    let shown = house.get(&format!("/v1/generation?id={}", facts.id)).await;
    assert_eq!(shown.status, 200, "{}", shown.body);
    house.metric("vllm:prompt_tokens_total{model_name=\"bert\",engine=\"0\"} 7").await;
}

/// One text through every dialect: the same vector, the same posting.
#[tokio::test]
async fn every_dialect_gets_the_same_vectors() {
    let Vectors { house, .. } = start().await;
    let native =
        json!({"model": BERT, "input": {"texts": TWO}, "parameters": {"text_type": "query"}});
    let openai = json!({"model": BERT, "input": TWO});
    let (data, output) = ("/data", "/output/embeddings");
    let one = json!({"model": "bert:latest", "prompt": TWO[0]});
    for (path, body, place, usage, tokens) in [
        (EMBEDDINGS, openai.clone(), data, "/usage/prompt_tokens", 7),
        ("/compatible-mode/v1/embeddings", openai.clone(), data, "/usage/total_tokens", 7),
        (DASHSCOPE, native, output, "/usage/total_tokens", 7),
        ("/api/embed", openai, "/embeddings", "/prompt_eval_count", 7),
        ("/api/embeddings", one, "", "", 4),
    ] {
        let before = house.records().await;
        let reply = house.post(path, body).await;
        assert_eq!(reply.status, 200, "{path}: {}", reply.body);
        let told = reply.json();
        if usage.is_empty() {
            assert_eq!(numbers(&told["embedding"]), vector(4));
        } else {
            assert_eq!(told.pointer(usage), Some(&json!(tokens)), "{path}");
            let all = told.pointer(place).unwrap().as_array().unwrap();
            for (entry, length) in all.iter().zip([4, 3]) {
                let numbers = numbers(entry.get("embedding").unwrap_or(entry));
                assert_eq!(numbers, vector(length), "{path}");
            }
            assert_eq!(all.len(), 2);
        }
        let records = house.settled(before.len() + 1).await;
        let (id, record) = records.iter().find(|(id, _)| !before.contains_key(*id)).unwrap();
        assert_eq!(record.usage.input, tokens, "{path}");
        if path == DASHSCOPE {
            assert_eq!(told["request_id"], **id, "the id of the record");
        }
    }
}

/// Whatever the dialect, an organisation finds it among embeddings and not among completions.
#[tokio::test]
async fn usage_is_told_apart_from_that_of_chats() {
    let Vectors { house, .. } = start().await;
    let openai = json!({"model": BERT, "input": TWO});
    let rerank = json!({"model": JUDGE, "query": "q", "documents": ["a"]});
    let all = [
        (EMBEDDINGS, openai.clone()),
        (DASHSCOPE, json!({"model": BERT, "input": {"texts": TWO}})),
        ("/api/embed", openai),
        ("/api/embeddings", json!({"model": BERT, "prompt": TWO[0]})),
        ("/v1/rerank", rerank.clone()),
        ("/v2/rerank", rerank),
        (DASHSCOPE_RERANK, json!({"model": JUDGE, "input": {"query": "q", "documents": ["a"]}})),
    ];
    let count = all.len() + 1;
    for (path, body) in all {
        let reply = house.post(path, body).await;
        assert_eq!(reply.status, 200, "{path}: {}", reply.body);
    }
    assert_eq!(house.chat(json!({"max_tokens": 5})).await.status, 200);
    let records = house.settled(count).await;
    let (_, key) = member_key(&house, &house.organisation, Role::Owner);
    let arrived = records.values().map(|record| record.facts.arrival_ms).min().unwrap() / 1000;
    let check = async |kind: &str, models: &[&str]| {
        let path = format!(
            "/v1/organization/usage/{kind}?start_time={}&group_by=model",
            arrived.saturating_sub(60)
        );
        let page = house.ask(&key, "GET", &path, &Value::Null).await.json();
        let results = page["data"].as_array().unwrap().iter();
        let results = results.flat_map(|bucket| bucket["results"].as_array().unwrap());
        let mut told = std::collections::BTreeMap::<String, (u64, u64)>::new();
        for result in results {
            assert_eq!(result["object"], format!("organization.usage.{kind}.result"));
            let sums = told.entry(result["model"].as_str().unwrap().to_owned()).or_default();
            sums.0 += result["num_model_requests"].as_u64().unwrap();
            sums.1 += result["input_tokens"].as_u64().unwrap();
        }
        let mut expected = std::collections::BTreeMap::new();
        for record in records.values().filter(|record| models.contains(&&*record.facts.model)) {
            let sums = expected.entry(record.facts.model.to_string()).or_insert((0, 0));
            *sums = (sums.0 + 1, sums.1 + record.usage.prompt());
        }
        assert_eq!((&told, told.len()), (&expected, models.len()), "{kind}");
        if let Some(document) = document() {
            check_schema(&validator(&document, "UsageResponse"), &page);
        }
    };
    check("embeddings", &[BERT, JUDGE]).await;
    check("completions", &[MODEL]).await;
}

#[tokio::test]
async fn parts_of_vectors_are_for_models_made_for_it() {
    let Vectors { house, .. } = start().await;
    let expected = |width: usize| -> Vec<f32> {
        // "ab" is two bytes; no end is added in this vocabulary.
        let whole = vector(2);
        let length = whole[..width].iter().map(|v| v * v).sum::<f32>().sqrt();
        whole[..width].iter().map(|v| v / length).collect()
    };
    for (path, place, body) in [
        (EMBEDDINGS, "/data/0/embedding", json!({"input": "ab", "dimensions": 2})),
        (
            DASHSCOPE,
            "/output/embeddings/0/embedding",
            json!({"input": {"texts": ["ab"]}, "parameters": {"dimension": 2}}),
        ),
        ("/api/embed", "/embeddings/0", json!({"input": "ab", "dimensions": 2})),
    ] {
        let ask = async |model: &str| {
            let mut body = body.clone();
            body["model"] = model.into();
            house.post(path, body).await
        };
        let reply = ask(QWEN).await;
        let found = numbers(reply.json().pointer(place).unwrap());
        let close = found.iter().zip(expected(2)).all(|(a, b)| (a - b).abs() < 1e-6);
        assert!(close && found.len() == 2, "{path}: {found:?}");
        let refused = ask(BERT).await;
        assert_eq!(refused.status, 400);
        assert!(refused.body.contains("must be 3: this model was not trained"), "{}", refused.body);
    }
    // As many as there are is no part.
    let whole = json!({"model": BERT, "input": "ab", "dimensions": 3});
    assert_eq!(house.post(EMBEDDINGS, whole).await.status, 200);
}

#[tokio::test]
async fn what_cannot_be_embedded_is_refused_in_words() {
    let Vectors { house, bert, qwen, judge } = start().await;
    let long = "the ".repeat(63);
    let many: Vec<&str> = vec!["the"; 2049];
    let heavy: Vec<String> = vec!["x".repeat(256); 1172];
    let openai = |more: Value| {
        let mut body = json!({"model": BERT, "input": "the"});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        (EMBEDDINGS, body)
    };
    let native = |texts: Value, parameters: Value| {
        let body = json!({"model": BERT, "input": {"texts": texts}, "parameters": parameters});
        (DASHSCOPE, body)
    };
    for ((path, body), status, needle) in [
        (
            openai(json!({"input": long})),
            400,
            "65 tokens with its marks; the model takes at most 64",
        ),
        (openai(json!({"input": ["the", long]})), 400, "`input[1]`"),
        (openai(json!({"input": vec![5; 65]})), 400, "`input[0]` has 65 tokens"),
        (
            openai(json!({"input": [5, 139]})),
            400,
            "the token 139, but the model's vocabulary has 139",
        ),
        (openai(json!({"input": many})), 400, "at most 2048 inputs, not 2049"),
        (openai(json!({"model": QWEN, "input": heavy})), 400, "at most 300000 tokens"),
        (openai(json!({"input": ""})), 400, "at least one character"),
        (openai(json!({"input": [[]]})), 400, "at least one token"),
        (openai(json!({"input": []})), 400, "at least one"),
        (openai(json!({"input": 5})), 400, "a string or an array"),
        (openai(json!({"dimensions": 4})), 400, "is at most 3"),
        (openai(json!({"dimensions": 0})), 400, "from 1"),
        (openai(json!({"encoding_format": "int8"})), 400, "`float` or `base64`"),
        (openai(json!({"truncate_prompt_tokens": 0})), 400, "-1 for the model's limit"),
        (openai(json!({"truncate_prompt_tokens": 1})), 400, "the model takes at most 1"),
        (openai(json!({"inputs": "the"})), 400, "Unknown parameter: `inputs`"),
        (openai(json!({"model": "none"})), 404, "does not exist"),
        (openai(json!({"model": MODEL})), 400, "makes no vectors; these do: `bert`"),
        (openai(json!({"model": JUDGE})), 400, "scores documents and makes no embeddings"),
        (native(json!([""]), json!({})), 400, "at least one character"),
        (native(json!([long]), json!({})), 400, "the model takes at most 64"),
        (native(json!(["a"]), json!({"output_type": "sparse"})), 400, "sparse"),
        (native(json!(["a"]), json!({"text_type": "both"})), 400, "`query` or `document`"),
        (
            ("/api/embed", json!({"model": BERT, "input": long, "truncate": false})),
            400,
            "at most 64",
        ),
        (("/api/embed", json!({"model": MODEL, "input": "a"})), 400, "makes no vectors"),
    ] {
        let shown = body.to_string();
        let reply = house.post(path, body).await;
        let shown = shown.get(..120).unwrap_or(&shown);
        assert_eq!(reply.status, status, "{path} {shown}: {}", reply.body);
        assert!(reply.body.contains(needle), "{path} {shown}: {}", reply.body);
    }
    nothing_was_computed(&house, [&bert, &qwen, &judge]).await;
}

async fn nothing_was_computed(house: &House, engines: [&ScriptedEngine; 3]) {
    for engine in engines {
        assert_eq!(engine.requests().len(), 0);
    }
    house.settled(0).await;
}

#[tokio::test]
async fn models_that_make_vectors_say_nothing() {
    let Vectors { house, bert, qwen, judge } = start().await;
    for (path, body) in [
        ("/v1/chat/completions", json!({"messages": [{"role": "user", "content": "Hi"}]})),
        ("/v1/completions", json!({"prompt": "Hi"})),
        ("/v1/messages", json!({"max_tokens": 5, "messages": [{"role": "user", "content": "Hi"}]})),
        ("/api/generate", json!({"prompt": "Hi"})),
        ("/tokenize", json!({"prompt": "Hi"})),
    ] {
        for (model, advice) in [(BERT, "ask it through `/v1/embeddings`"), (JUDGE, "`/v1/rerank`")]
        {
            let mut body = body.clone();
            body["model"] = model.into();
            let reply = house.post(path, body).await;
            assert_eq!(reply.status, 400, "{path}: {}", reply.body);
            assert!(reply.body.contains(advice), "{path}: {}", reply.body);
        }
    }
    nothing_was_computed(&house, [&bert, &qwen, &judge]).await;
}

#[tokio::test]
async fn texts_that_are_too_long_are_cut_where_that_is_asked_for() {
    let Vectors { house, bert, .. } = start().await;
    let long = "the ".repeat(100);
    for (path, body, tokens) in [
        (EMBEDDINGS, json!({"input": long, "truncate_prompt_tokens": -1}), 64),
        (EMBEDDINGS, json!({"input": long, "truncate_prompt_tokens": 10}), 10),
        (EMBEDDINGS, json!({"input": vec![5; 100], "truncate_prompt_tokens": 10}), 10),
        ("/api/embed", json!({"input": [long]}), 64),
        ("/api/embeddings", json!({"prompt": long}), 64),
    ] {
        let mut body = body;
        body["model"] = BERT.into();
        let reply = house.post(path, body).await;
        assert_eq!(reply.status, 200, "{path}: {}", reply.body);
        let asked = bert.requests().last().unwrap().prompt.to_vec();
        assert_eq!(asked.len(), tokens);
        assert!(asked[0] == 5 || (asked[0] == 2 && *asked.last().unwrap() == 3), "marks stay");
    }
    // A request to load a model loads nothing, and costs nothing.
    let loaded = house.post("/api/embed", json!({"model": BERT})).await.json();
    assert_eq!(loaded, json!({"model": BERT, "embeddings": []}));
    house.settled(5).await;
}

pub(crate) const DOCUMENTS: [&str; 3] = ["aa", "aaaaaa", "aaaa"];

/// Indices in order, and whether each has its document's text.
fn order(results: &Value) -> (Vec<u64>, Vec<f64>, bool) {
    let results = results.as_array().unwrap();
    let indices: Vec<u64> = results.iter().map(|one| one["index"].as_u64().unwrap()).collect();
    let scores = results.iter().map(|one| one["relevance_score"].as_f64().unwrap()).collect();
    let told: Vec<Option<&str>> =
        results.iter().map(|one| one["document"]["text"].as_str()).collect();
    let texts: Vec<&str> = indices.iter().map(|index| DOCUMENTS[*index as usize]).collect();
    let has_texts = told.iter().zip(&texts).all(|(told, text)| *told == Some(text));
    assert!(has_texts || told.iter().all(Option::is_none), "{results:?}");
    (indices, scores, has_texts)
}

#[tokio::test]
async fn documents_are_ranked_in_every_dialect() {
    let Vectors { house, judge, .. } = start().await;
    let native = |parameters: Value| json!({"model": JUDGE, "input": {"query": "q", "documents": DOCUMENTS}, "parameters": parameters});
    let flat = |more: Value| {
        let mut body = json!({"model": JUDGE, "query": "q", "documents": DOCUMENTS});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        body
    };
    let objects = json!([{"text": "aa"}, {"text": "aaaaaa", "title": "T"}, "aaaa"]);
    let (results, output) = ("/results", "/output/results");
    for (path, body, place, usage, count, texts) in [
        ("/v1/rerank", flat(json!({})), results, "/usage/total_tokens", 3, true),
        (
            "/v1/rerank",
            flat(json!({"documents": objects})),
            results,
            "/usage/prompt_tokens",
            3,
            true,
        ),
        (
            "/v1/rerank",
            flat(json!({"top_n": 2, "return_documents": false})),
            results,
            "/usage/total_tokens",
            2,
            false,
        ),
        (
            "/compatible-api/v1/reranks",
            flat(json!({"top_n": 1})),
            results,
            "/usage/total_tokens",
            1,
            true,
        ),
        ("/v2/rerank", flat(json!({"top_n": 2})), results, "/meta/tokens/input_tokens", 2, false),
        (DASHSCOPE_RERANK, native(json!({})), output, "/usage/total_tokens", 3, false),
        (
            DASHSCOPE_RERANK,
            native(json!({"top_n": 2, "return_documents": true})),
            output,
            "/usage/total_tokens",
            2,
            true,
        ),
    ] {
        let before = house.records().await;
        let asked = judge.requests().len();
        let reply = house.post(path, body).await;
        assert_eq!(reply.status, 200, "{path}: {}", reply.body);
        let told = reply.json();
        let (indices, scores, has_texts) = order(told.pointer(place).unwrap());
        assert_eq!((indices.as_slice(), has_texts), (&[1, 2, 0][..count], texts), "{path}");
        assert!(
            scores.is_sorted_by(|a, b| a >= b) && scores.iter().all(|s| (0.0..1.0).contains(s))
        );
        let lengths: Vec<u64> =
            judge.requests()[asked..].iter().map(|r| r.prompt.len() as u64).collect();
        assert_eq!((lengths.len(), lengths[1] - lengths[0]), (3, 4), "pairs in order");
        let tokens: u64 = lengths.iter().sum();
        assert_eq!(told.pointer(usage), Some(&json!(tokens)), "{path}");
        let records = house.settled(before.len() + 1).await;
        let (_, record) = records.iter().find(|(id, _)| !before.contains_key(*id)).unwrap();
        assert_eq!(record.usage, TokenUsage { input: tokens, ..TokenUsage::default() });
        assert!(record.facts.protocol.ends_with(".rerank"), "{}", record.facts.protocol);
    }
}

/// A model that makes embeddings compares by cosine: the query stands first, documents are cut, the query is not.
#[tokio::test]
async fn embeddings_rank_by_their_cosine() {
    let Vectors { house, bert, .. } = start().await;
    let body =
        json!({"model": BERT, "query": "the", "documents": ["the embed", "un", "the ".repeat(90)]});
    let told = house.post("/v1/rerank", body).await.json();
    let (found, expected): (Vec<_>, Vec<_>) = told["results"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| {
            let length = [4, 3, 64][one["index"].as_u64().unwrap() as usize];
            let pairs = vector(3).into_iter().zip(vector(length));
            let cosine: f64 = pairs.map(|(a, b)| f64::from(a) * f64::from(b)).sum();
            (one["relevance_score"].as_f64().unwrap(), cosine)
        })
        .unzip();
    assert!(
        found.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-6),
        "{found:?} {expected:?}"
    );
    assert!(found.is_sorted_by(|a, b| a >= b) && found[0] > 0.9999, "{found:?}");
    let lengths: Vec<usize> = bert.requests().iter().map(|r| r.prompt.len()).collect();
    assert_eq!(lengths, [3, 4, 3, 64]);
    assert_eq!(told["usage"]["total_tokens"], 74);
    house.settled(1).await;
}

#[tokio::test]
async fn what_cannot_be_ranked_is_refused_in_words() {
    let Vectors { house, judge, .. } = start().await;
    let long = "x".repeat(600);
    let instruction = "x".repeat(5000);
    let many: Vec<&str> = vec!["a"; 2049];
    let heavy: Vec<&str> = vec![&long; 600];
    for (more, needle) in [
        (json!({"query": long}), "A query is never cut"),
        (json!({"query": ""}), "at least one character"),
        (json!({"query": 5}), "`query` must be a string"),
        (json!({"documents": []}), "1 to 2048 documents, not 0"),
        (json!({"documents": many}), "1 to 2048 documents, not 2049"),
        (json!({"documents": heavy}), "at most 300000 tokens"),
        (json!({"documents": [5]}), "`documents[0]`"),
        (json!({"documents": [{"title": "a"}]}), "`documents[0].text` is missing"),
        (json!({"top_n": 0}), "from 1"),
        (json!({"instruct": instruction}), "at most 4096 bytes, not 5000"),
        (json!({"model": MODEL}), "makes no vectors; these do"),
        (json!({"documens": []}), "Unknown parameter"),
    ] {
        let mut body = json!({"model": JUDGE, "query": "q", "documents": DOCUMENTS});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let reply = house.post("/v1/rerank", body).await;
        assert_eq!(reply.status, 400, "{}", reply.body);
        assert!(reply.body.contains(needle), "{needle}: {}", reply.body);
    }
    assert_eq!(judge.requests().len(), 0);
    let cohere = json!({"model": JUDGE, "query": "q", "documents": ["a"], "instruct": "i"});
    assert_eq!(house.post("/v2/rerank", cohere).await.status, 400, "none of Cohere's");
    let native = json!({"model": JUDGE, "input": {"query": "q", "documents": []}});
    let reply = house.post(DASHSCOPE_RERANK, native).await;
    assert_eq!((reply.status, reply.json()["code"].as_str()), (400, Some("InvalidParameter")));
    house.settled(0).await;
}

/// An instruction stands before queries of models that know instructions, and documents have none.
#[tokio::test]
async fn instructions_reach_the_model() {
    let Vectors { house, qwen, judge, .. } = start().await;
    let texts = |engine: &ScriptedEngine| {
        let last = engine.requests().last().unwrap().prompt.to_vec();
        last.iter().filter_map(|id| u8::try_from(*id).ok()).map(char::from).collect::<String>()
    };
    let embed = async |parameters: Value| {
        let body = json!({"model": QWEN, "input": {"texts": ["a"]}, "parameters": parameters});
        assert_eq!(house.post(DASHSCOPE, body).await.status, 200);
        texts(&qwen)
    };
    assert_eq!(embed(json!({})).await, "a");
    assert_eq!(embed(json!({"instruct": "Find it"})).await, "Instruct: Find it\nQuery:a");
    assert!(embed(json!({"text_type": "query"})).await.starts_with("Instruct: Give"));
    let body = json!({"model": JUDGE, "query": "q", "documents": ["a"], "instruct": "Judge it"});
    assert_eq!(house.post("/compatible-api/v1/reranks", body).await.status, 200);
    assert!(texts(&judge).contains("<Instruct>: Judge it\n<Query>: q\n<Document>: a"));
}

#[tokio::test]
async fn models_are_told_with_what_they_can_do() {
    let Vectors { house, .. } = start().await;
    let listed = house.get("/v1/models").await.json();
    let ids: Vec<&str> =
        listed["data"].as_array().unwrap().iter().map(|m| m["id"].as_str().unwrap()).collect();
    assert_eq!(ids, [MODEL, BERT, QWEN, JUDGE]);
    assert_eq!(house.get("/v1/models/bert-alias").await.json()["max_model_len"], 64);
    let tags = house.get("/api/tags").await.json();
    assert_eq!(tags["models"].as_array().unwrap().len(), 4);
    for (model, ability) in [(MODEL, "completion"), (BERT, "embedding"), (JUDGE, "rerank")] {
        let shown = house.post("/api/show", json!({"model": model})).await.json();
        assert_eq!(shown["capabilities"][0], ability);
    }
    let native = house.get("/api/v1/models?model=bert").await.json();
    assert_eq!(native["output"]["models"][0]["context_window"], 64);
}

#[tokio::test]
async fn who_leaves_pays_for_what_was_computed_and_nothing_is_left() {
    // The second of three is slow.
    let respond = |request: &GenerateRequest| {
        let is_slow = request.prompt.len() == 4;
        let delay = if is_slow { Duration::from_secs(30) } else { Duration::ZERO };
        Ok(Script { prefill_delay: delay, ..embeds(request)? })
    };
    let Vectors { house, bert, .. } = start_with(|_| {}, respond).await;
    let body = json!({"model": BERT, "input": ["the", "the embed", "un"]}).to_string();
    let mut socket = house.connect().await;
    socket.write_all(house.request("POST", EMBEDDINGS, &body).as_bytes()).await.unwrap();
    while bert.requests().len() < 3 {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    drop(socket);
    let records = house.settled(1).await;
    let record = records.values().next().unwrap();
    assert_eq!((record.usage.input, &*record.outcome.finish), (6, "abort"));
}

#[tokio::test]
async fn our_own_faults_and_deadlines_cost_nothing() {
    let broken = |request: &GenerateRequest| {
        let fault = EngineFault::Internal("a secret".to_owned());
        let end =
            if request.prompt.len() == 4 { ScriptEnd::Fault(fault) } else { ScriptEnd::Length };
        Ok(Script { end, ..embeds(request)? })
    };
    let body = json!({"model": BERT, "input": ["the", "the embed"]});
    let Vectors { house, .. } = start_with(|_| {}, broken).await;
    let reply = house.post(EMBEDDINGS, body.clone()).await;
    assert_eq!(reply.status, 500);
    assert!(!reply.body.contains("secret"));
    house.settled(0).await;

    let silent = |_: &GenerateRequest| {
        Ok(Script { prefill_delay: Duration::from_secs(30), ..Script::default() })
    };
    let soon =
        |config: &mut ServerConfig| config.limits.request_timeout = Duration::from_millis(50);
    let Vectors { house, .. } = start_with(soon, silent).await;
    let reply = house.post(EMBEDDINGS, body.clone()).await;
    assert_eq!(
        (reply.status, reply.json()["error"]["code"].as_str()),
        (504, Some("request_timeout"))
    );
    house.settled(0).await;

    let full = |_: &GenerateRequest| Err(SubmitError::QueueFull { waiting: 1, limit: 1 });
    let Vectors { house, .. } = start_with(|_| {}, full).await;
    assert_eq!(house.post(EMBEDDINGS, body).await.status, 503);
    house.settled(0).await;
}

#[tokio::test]
async fn a_repetition_is_answered_and_not_computed() {
    let Vectors { house, bert, .. } = start().await;
    let header = [("idempotency-key", "again")];
    let body = json!({"model": BERT, "input": TWO});
    let key = house.key.clone();
    let first = house.post_with(&key, EMBEDDINGS, &header, &body).await;
    let second = house.post_with(&key, EMBEDDINGS, &header, &body).await;
    assert_eq!((first.status, &first.body), (200, &second.body));
    assert_eq!(second.header("idempotent-replayed"), Some("true"));
    assert_eq!(bert.requests().len(), 2);
    house.settled(1).await;
}

#[tokio::test]
async fn batches_embed_at_half_the_price() {
    let Vectors { house, bert, .. } = start().await;
    let line = |n: usize| {
        let body = json!({"model": BERT, "input": TWO[n % 2]});
        json!({"custom_id": format!("c{n}"), "method": "POST", "url": EMBEDDINGS, "body": body})
            .to_string()
            + "\n"
    };
    let batch = house.batch_to(EMBEDDINGS, &(0..6).map(line).collect::<String>()).await;
    let over = house.batch_over(&batch).await;
    assert_eq!(
        (&over["status"], &over["request_counts"]["completed"]),
        (&json!("completed"), &json!(6))
    );
    assert_eq!(over["usage"]["input_tokens"], 21);
    for result in house.results(&over, "output_file_id").await {
        let number: usize = result["custom_id"].as_str().unwrap()[1..].parse().unwrap();
        let embedding = &result["response"]["body"]["data"][0]["embedding"];
        assert_eq!(numbers(embedding), vector([4, 3][number % 2]));
    }
    assert!(bert.requests().iter().all(|request| request.priority == Priority::Batch));
    house.settled(6).await;
}

/// What would be computed in full and then not given is refused before.
#[tokio::test]
async fn a_line_whose_answer_would_be_too_long_is_not_computed() {
    let (house, engine) = start_wide(4096).await;
    let line = |count: usize, format: &str| {
        let body = json!({"model": BERT, "input": vec!["the"; count], "encoding_format": format});
        let id = format!("{format} {count}");
        json!({"custom_id": id, "method": "POST", "url": EMBEDDINGS, "body": body}).to_string()
            + "\n"
    };
    let input =
        line(78, "float") + &line(79, "float") + &line(191, "base64") + &line(192, "base64");
    let batch = house.batch_to(EMBEDDINGS, &input).await;
    let over = house.batch_over(&batch).await;
    let mut refused = Vec::new();
    for result in house.results(&over, "error_file_id").await {
        let body = &result["response"]["body"];
        assert_eq!(body["error"]["code"], "answer_too_long", "{result}");
        refused.push(body["error"]["message"].as_str().unwrap().to_owned());
    }
    let message = |most: usize| {
        format!(
            "`input` holds at most {most} inputs here, not {}: a vector has 4096 numbers, and an answer of a task or in \
             a batch at most 4194304 bytes.",
            most + 1
        )
    };
    assert_eq!(refused, [message(78), message(191)]);
    assert_eq!(house.results(&over, "output_file_id").await.len(), 2);
    assert_eq!(engine.requests().len(), 78 + 191);
    house.settled(2).await;
}
