//! Ids beside those of the reference package, on real vocabularies.

use std::path::{Path, PathBuf};

use mintage_model::{ModelFile, SpecialTokens, TextModel, TokenKind, Tokenizer};
use proptest::prelude::*;

/// The text side of a GGUF file in the folder `MINTAGE_TEST_MODELS`, or of a folder in `MINTAGE_TEST_TOKENIZERS`.
pub(crate) fn open(variable: &str, name: &str) -> Option<TextModel> {
    let Some(folder) = std::env::var_os(variable) else {
        eprintln!("skipped: {variable} names no folder with {name}");
        return None;
    };
    let path = PathBuf::from(folder).join(name);
    if path.is_file() {
        return Some(TextModel::from_model_file(&ModelFile::open(&path).unwrap()).unwrap());
    }
    let read = |name| std::fs::read_to_string(path.join(name)).unwrap();
    let config = read("tokenizer_config.json");
    let tokenizer = Tokenizer::from_json(&read("tokenizer.json"), Some(&config)).unwrap();
    let config: serde_json::Value = serde_json::from_str(&config).unwrap();
    Some(TextModel::new(tokenizer, config["chat_template"].as_str(), &[]).unwrap())
}

pub(crate) const QWEN: &str = "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf";
pub(crate) const SMOLLM: &str = "smollm2-135m-instruct-q4_1.gguf";

fn check(text_model: Option<TextModel>, golden: &str) {
    let Some(text_model) = text_model else { return };
    let tokenizer = text_model.tokenizer();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens/tokenizer").join(golden);
    let rows = std::fs::read_to_string(path).unwrap();
    let mut count = 0;
    for line in rows.lines() {
        let row: serde_json::Value = serde_json::from_str(line).unwrap();
        let ids = |key: &str| serde_json::from_value::<Vec<u32>>(row[key].clone()).unwrap();
        let text = row["text"].as_str().unwrap();
        let allow = ids("allow");
        let as_text = if row["as_text"].is_null() { allow.clone() } else { ids("as_text") };
        assert_eq!(tokenizer.encode(text, SpecialTokens::Allow), allow, "{golden}: {text:?}");
        assert_eq!(
            tokenizer.encode(text, SpecialTokens::AsText),
            as_text,
            "{golden}, as text: {text:?}"
        );
        count += 1;
    }
    assert_eq!(count, 700);
}

#[test]
fn ids_equal_the_reference() {
    check(open("MINTAGE_TEST_MODELS", QWEN), "qwen2.jsonl");
    check(open("MINTAGE_TEST_MODELS", SMOLLM), "smollm2.jsonl");
    check(open("MINTAGE_TEST_TOKENIZERS", "qwen3"), "qwen3.jsonl");
    check(open("MINTAGE_TEST_TOKENIZERS", "llama3"), "llama3.jsonl");
}

#[test]
fn one_vocabulary_from_both_containers() {
    let gguf = open("MINTAGE_TEST_MODELS", QWEN);
    let json = open("MINTAGE_TEST_TOKENIZERS", "qwen2_5");
    let (Some(gguf), Some(json)) = (gguf, json) else { return };
    for id in 0..json.tokenizer().vocab_size() as u32 {
        assert_eq!(gguf.tokenizer().token_bytes(id), json.tokenizer().token_bytes(id), "{id}");
    }
    assert_eq!(gguf.end_of_turn_ids(), json.end_of_turn_ids());
    assert!(gguf.tokenizer().added_tokens().eq(json.tokenizer().added_tokens()));
}

#[test]
fn what_ends_a_turn() {
    let Some(qwen) = open("MINTAGE_TEST_MODELS", QWEN) else { return };
    assert_eq!(&**qwen.end_of_turn_ids(), [151_643, 151_645]);
    let tokenizer = qwen.tokenizer();
    assert_eq!(tokenizer.token_kind(151_645), Some(TokenKind::Control));
    assert_eq!(tokenizer.token_kind(151_657), Some(TokenKind::Added)); // <tool_call>
    assert_eq!(tokenizer.token_kind(151_935), Some(TokenKind::Unused));
    assert_eq!(tokenizer.token_kind(151_936), None);
    assert_eq!(
        tokenizer.decode(&[151_644, 9707, 151_657, 151_645, 999_999], true),
        "Hello<tool_call>"
    );
    let Some(smollm) = open("MINTAGE_TEST_MODELS", SMOLLM) else { return };
    assert_eq!(&**smollm.end_of_turn_ids(), [0, 2]);
}

#[test]
fn text_of_control_tokens_is_text_unless_allowed() {
    for (file, end) in [(QWEN, 151_645), (SMOLLM, 2)] {
        let Some(model) = open("MINTAGE_TEST_MODELS", file) else { return };
        let tokenizer = model.tokenizer();
        assert_eq!(tokenizer.encode("<|im_end|>", SpecialTokens::Allow), [end]);
        let ids = tokenizer.encode("<|im_end|>", SpecialTokens::AsText);
        assert!(
            ids.len() > 1
                && ids.iter().all(|id| tokenizer.token_kind(*id) == Some(TokenKind::Normal))
        );
        assert_eq!(tokenizer.decode(&ids, true), "<|im_end|>");
    }
}

/// One mebibyte without a place to cut, or made of places to cut. Quadratic time would take hours.
#[test]
fn adversarial_texts_take_linear_time() {
    let n = 1 << 20;
    let texts = [
        "a".repeat(n),
        " ".repeat(n),
        "\n".repeat(n),
        "啊".repeat(n / 3),
        "!".repeat(n),
        "'".repeat(n),
        " \n".repeat(n / 2) + "x",
        "\n".to_owned() + &" ".repeat(n) + "x",
        "ab".repeat(n / 2),
        "\u{301}".repeat(n / 2),
        "a\u{301}".repeat(n / 3),
        "1".repeat(n),
        "<|im_start".repeat(n / 10),
        "<".repeat(n),
        (0..n as u32 / 4)
            .filter_map(|i| char::from_u32(0x4e00 + i.wrapping_mul(2_654_435_761) % 20_000))
            .collect(),
    ];
    for file in [QWEN, SMOLLM] {
        let Some(model) = open("MINTAGE_TEST_MODELS", file) else { return };
        for text in &texts {
            let ids = model.tokenizer().encode(text, SpecialTokens::Allow);
            let head: String = text.chars().take(10).collect();
            assert!(!ids.is_empty(), "{head:?}");
            if file == SMOLLM {
                assert!(model.tokenizer().decode(&ids, false) == *text, "{head:?}");
            }
        }
    }
}

#[test]
fn round_trip_and_streaming_on_any_text() {
    let (Some(qwen), Some(smollm)) =
        (open("MINTAGE_TEST_MODELS", QWEN), open("MINTAGE_TEST_MODELS", SMOLLM))
    else {
        return;
    };
    let config =
        ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() };
    proptest!(config, |(text in any_text())| {
        use unicode_normalization::UnicodeNormalization;
        // Qwen's vocabulary reads NFC; the others read the text as it is.
        let nfc: String = text.nfc().collect();
        for (tokenizer, read) in [(qwen.tokenizer(), &nfc), (smollm.tokenizer(), &text)] {
            let ids = tokenizer.encode(&text, SpecialTokens::AsText);
            // SmolLM2 has no token for some bytes, and loses them as its reference does.
            let kept: Vec<u8> = read.bytes().filter(|byte| has_byte(tokenizer, *byte)).collect();
            prop_assert_eq!(tokenizer.decode(&ids, true), String::from_utf8_lossy(&kept));
        }
    });
    let config =
        ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() };
    proptest!(config, |(ids in proptest::collection::vec(0..152_000u32, 0..40), skip in any::<bool>())| {
        let tokenizer = qwen.tokenizer();
        let mut stream = tokenizer.stream(skip);
        let mut pieces: Vec<String> = ids.iter().map(|id| stream.push(*id)).collect();
        pieces.push(stream.finish());
        prop_assert_eq!(pieces.concat(), tokenizer.decode(&ids, skip));
    });
}

/// Whether the vocabulary has a token for this byte alone: those come first.
fn has_byte(tokenizer: &Tokenizer, byte: u8) -> bool {
    (0..1000).any(|id| tokenizer.token_bytes(id) == Some(&[byte]))
}

fn any_text() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        any::<char>().prop_map(String::from),
        proptest::sample::select(vec![
            "<|im_end|>",
            "<|",
            "e\u{301}",
            "你好",
            "👩\u{200d}👧",
            "  ",
            "\n\n",
            "\r\n",
            "'s",
            "'LL",
            "hello",
            "123",
            "\u{1161}",
        ])
        .prop_map(str::to_owned),
    ];
    proptest::collection::vec(piece, 0..30).prop_map(|pieces| pieces.concat())
}

/// Vocabularies that do not load say why; none panics.
#[test]
fn damaged_vocabularies_are_refused() {
    let check = |json: &str, message: &str| {
        let error = Tokenizer::from_json(json, None).unwrap_err().to_string();
        assert!(error.contains(message), "{json}: {error}");
    };
    let with = |field: &str, model: &str| {
        format!(
            r#"{{"pre_tokenizer": {{"type": "ByteLevel", "add_prefix_space": false, "use_regex": true}}, {field}
            "model": {{"type": "BPE", "vocab": {{"a": 0, "b": 1, "ab": 2}}, "merges": ["a b"] {model}}}}}"#
        )
    };
    assert!(Tokenizer::from_json(&with("", ""), None).is_ok());
    check("{", "does not parse");
    check("{}", "does not parse");
    check(
        &with(r#""normalizer": {"type": "Lowercase"},"#, ""),
        "normalizer is `{\"type\":\"Lowercase\"}`",
    );
    check(&with(r#""post_processor": {"type": "BertProcessing"},"#, ""), "post-processor");
    check(&with("", r#", "byte_fallback": true"#), "byte_fallback");
    check(&with("", r#", "dropout": 0.1"#), "dropout");
    check(&with("", "").replace(r#""BPE""#, r#""Unigram""#), "model");
    check(&with("", "").replace(r#"["a b"]"#, r#"["a c"]"#), "merge 0");
    check(&with("", "").replace(r#"["a b"]"#, r#"["b a"]"#), "merge 0");
    check(&with("", "").replace(r#"["a b"]"#, r#"["ab"]"#), "merge 0 of the tokenizer is `ab`");
    check(&with("", "").replace(r#""ab": 2"#, r#""ab": 4294967295"#), "tokens, the limit is");
    check(
        &with("", "").replace(r#""add_prefix_space": false"#, r#""add_prefix_space": true"#),
        "pre-tokenizer",
    );
    let split = r#"{"type": "Sequence", "pretokenizers": [{"type": "Split", "pattern": {"Regex": "\\d+"}, "behavior": "Isolated"}, {"type": "ByteLevel", "add_prefix_space": false, "use_regex": false}]}"#;
    let byte_level = r#"{"type": "ByteLevel", "add_prefix_space": false, "use_regex": true}"#;
    check(&with("", "").replace(byte_level, split), "pre-tokenizer is");
    check(
        &with(r#""added_tokens": [{"id": 3, "content": "<s>", "lstrip": true}],"#, ""),
        "`<s>` with single_word",
    );
}
