//! Encoders' folders and WordPiece, against `tokenizers` (see `crates/engine/tests/goldens/make_vectors.py`).

use std::path::{Path, PathBuf};

use mintage_model::{EncoderFile, Pooling, TokenId, WordPiece};

fn golden() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../engine/tests/goldens/bert")
}

#[derive(serde::Deserialize)]
struct Text {
    text: String,
    ids: Vec<TokenId>,
}

#[test]
fn ids_are_those_of_the_reference() {
    let folder = golden();
    let tokenizer = EncoderFile::open(&folder).unwrap().tokenizer().unwrap();
    let texts = std::fs::read_to_string(folder.join("texts.json")).unwrap();
    for Text { text, ids } in serde_json::from_str::<Vec<Text>>(&texts).unwrap() {
        assert_eq!(tokenizer.encode(&text), ids, "{text:?}");
    }
    assert_eq!((tokenizer.first(), tokenizer.last()), (2, 3));
}

#[test]
fn a_folder_says_what_it_is() {
    let file = EncoderFile::open(&golden()).unwrap();
    let config = file.config();
    assert_eq!((config.hidden_size, config.num_heads, config.num_layers), (40, 2, 2));
    assert_eq!((config.max_positions, config.max_tokens), (64, 48));
    assert_eq!(config.pooling, Pooling::Mean);
    let check = |path: &Path, expected| assert_eq!(EncoderFile::is_at(path).unwrap(), expected);
    check(&golden(), true);
    check(&golden().join("model.safetensors"), true);
    check(&golden().join("texts.json"), false);
    check(&golden().join("../qwen3"), false);
    check(&golden().join("../qwen3/qwen3.gguf"), false);
}

#[test]
fn what_is_not_known_is_refused() {
    let names = ["config.json", "model.safetensors", "modules.json", "1_Pooling_config.json"];
    let check = |file: &str, from: &str, to: &str, needle: &str| {
        let folder = tempfile::tempdir().unwrap();
        for name in names {
            std::fs::copy(golden().join(name), folder.path().join(name)).unwrap();
        }
        let path = folder.path().join(file);
        let bytes = std::fs::read(&path).unwrap();
        // Headers and JSON files are text; what follows a header may be anything.
        let text = String::from_utf8_lossy(&bytes);
        assert!(text.contains(from), "`{from}` is not in {file}");
        let at = bytes.windows(from.len()).position(|w| w == from.as_bytes()).unwrap();
        let changed = [&bytes[..at], to.as_bytes(), &bytes[at + from.len()..]].concat();
        std::fs::write(&path, changed).unwrap();
        let error = EncoderFile::open(folder.path()).unwrap_err().to_string();
        assert!(error.contains(needle) && error.contains(file), "{error}");
    };
    check("config.json", "\"gelu\"", "\"relu\"", "hidden_act");
    check("config.json", "\"bert\"", "\"roberta\"", "model_type");
    check("config.json", "\"is_decoder\": false", "\"is_decoder\": true", "is_decoder");
    check("config.json", "\"hidden_size\": 40", "\"hidden_size\": 41", "divisor");
    check("config.json", "\"intermediate_size\": 72", "\"intermediate_size\": 0", "intermediate");
    check("config.json", "{", "[", "JSON");
    check("modules.json", "models.Normalize", "models.Dense", "Dense");
    check(
        "1_Pooling_config.json",
        "\"pooling_mode_cls_token\": false",
        "\"pooling_mode_cls_token\": true",
        "pooling",
    );
    check(
        "model.safetensors",
        "layer.1.output.dense.bias",
        "layer.1.output.dense.bios",
        "is missing",
    );
    check("model.safetensors", "word_embeddings", "worm_embeddings", "word_embeddings");
}

#[test]
fn other_tokenizers_are_refused() {
    let good = std::fs::read_to_string(golden().join("tokenizer.json")).unwrap();
    let check = |from: &str, to: &str, needle: &str| {
        let text = good.replacen(from, to, 1);
        assert_ne!(text, good, "`{from}` is not in the file");
        let error = WordPiece::from_json(&text).unwrap_err().to_string();
        assert!(error.contains(needle), "{error}");
    };
    check("\"BertNormalizer\"", "\"NFC\"", "normalizer");
    check("\"BertPreTokenizer\"", "\"ByteLevel\"", "pre-tokenizer");
    check("\"WordPiece\"", "\"Unigram\"", "model");
    check("\"unk_token\": \"[UNK]\"", "\"unk_token\": \"[NONE]\"", "unknown words");
    check("\"[PAD]\": 0", "\"[PAD]\": 4000000000", "limit");
    check("{", "", "parse");
}

#[test]
fn long_texts_take_linear_time() {
    let tokenizer = EncoderFile::open(&golden()).unwrap().tokenizer().unwrap();
    // One word without a break, and words of a hundred letters that no token ends.
    assert_eq!(tokenizer.encode(&"a".repeat(1 << 20)).len(), 1);
    let words = format!("{}~ ", "é".repeat(100)).repeat(2000);
    assert_eq!(tokenizer.encode(&words).len(), 101 * 2000);
}
