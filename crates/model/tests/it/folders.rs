//! What `ModelFile::open` finds in folders, and what it refuses there.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use mintage_model::{ModelFile, TextFile};
use serde_json::json;

use crate::gguf_bytes::{Gguf, Value, config_json, decoder_safetensors};

/// A folder of its own, removed at the end.
struct Folder(PathBuf);

impl Folder {
    fn new(files: &[(&str, &[u8])]) -> Self {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("mintage-model-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        fs::create_dir_all(&path).unwrap();
        for (name, bytes) in files {
            fs::write(path.join(name), bytes).unwrap();
        }
        Self(path)
    }

    fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[track_caller]
fn refused(path: &Path, parts: &[&str]) {
    let message = match ModelFile::open(path) {
        Ok(model) => panic!("opened: {:?}", model.config()),
        Err(error) => error.to_string(),
    };
    for part in parts {
        assert!(message.contains(part), "`{message}` does not contain `{part}`");
    }
}

#[test]
fn safetensors_by_folder_or_file() {
    let (config, weights) = (config_json().to_string(), decoder_safetensors());
    let folder = Folder::new(&[
        ("config.json", config.as_bytes()),
        ("model.safetensors", &weights),
        ("tokenizer.json", b"{\"a\": 1}"),
        ("generation_config.json", br#"{"eos_token_id": [3, 1], "temperature": 0.5, "top_k": 20}"#),
    ]);
    for path in [folder.0.clone(), folder.join("model.safetensors")] {
        let model = ModelFile::open(&path).unwrap();
        let generation = model.generation();
        assert_eq!(generation.eos, [1, 2, 3]);
        assert_eq!((generation.temperature, generation.top_k), (Some(0.5), Some(20)));
        assert_eq!(model.text_file(TextFile::Tokenizer).unwrap().as_deref(), Some("{\"a\": 1}"));
        assert_eq!(model.text_file(TextFile::ChatTemplate).unwrap(), None);
        assert_eq!(model.config_json(), Some(&config_json()));
    }
    fs::write(folder.join("generation_config.json"), b"{").unwrap();
    refused(&folder.0, &["generation_config.json", "not valid JSON"]);
    fs::write(folder.join("config.json"), b"[1]").unwrap();
    fs::remove_file(folder.join("generation_config.json")).unwrap();
    refused(&folder.0, &["config.json", "a JSON object"]);
}

#[test]
fn pickles_are_refused() {
    let config = config_json().to_string();
    let folder =
        Folder::new(&[("config.json", config.as_bytes()), ("pytorch_model.bin", b"PK\x03\x04")]);
    refused(&folder.0, &["pytorch_model.bin", "pickle", "safetensors or GGUF"]);
    refused(&folder.join("pytorch_model.bin"), &["pytorch_model.bin", "pickle"]);
    fs::rename(folder.join("pytorch_model.bin"), folder.join("disguised.gguf")).unwrap();
    refused(&folder.join("disguised.gguf"), &["disguised.gguf", "pickle"]);
    refused(&folder.0, &["model.safetensors"]);
}

#[test]
fn shards_stay_in_their_folder() {
    let (config, weights) = (config_json().to_string(), decoder_safetensors());
    let outside = Folder::new(&[("outside.safetensors", &weights)]);
    let folder = Folder::new(&[("config.json", config.as_bytes()), ("a.safetensors", &weights)]);
    let index = folder.join("model.safetensors.index.json");
    let map = |tensor: &str, shard: &str| {
        fs::write(&index, json!({ "weight_map": { tensor: shard } }).to_string()).unwrap();
    };
    map("model.norm.weight", "a.safetensors");
    ModelFile::open(&folder.0).unwrap();
    let absolute = outside.join("outside.safetensors").display().to_string();
    let relative = format!("../{}/outside.safetensors", outside.0.file_name().unwrap().display());
    for shard in [absolute.as_str(), &relative, "", ".safetensors", "b/a.safetensors", "a.bin"] {
        map("model.norm.weight", shard);
        refused(&folder.0, &["weight_map.model.norm.weight", "the same folder"]);
    }
    map("model.norm.weight", "b.safetensors");
    refused(&folder.0, &["b.safetensors"]);
    map("no.such.tensor", "a.safetensors");
    refused(&folder.0, &["no.such.tensor", "is not in `a.safetensors`"]);
    fs::write(&index, b"{\"weight_map\": []}").unwrap();
    refused(&folder.0, &["weight_map", "an object"]);
}

/// The same tiny decoder in two files.
fn split() -> [Gguf; 2] {
    let whole = Gguf::decoder("qwen3");
    let (mut first, mut second) = (whole.clone(), whole);
    second.entries.clear();
    second.tensors.drain(..5);
    first.tensors.truncate(5);
    let total = (first.tensors.len() + second.tensors.len()) as i32;
    [(first, 0), (second, 1)].map(|(gguf, number)| {
        gguf.set("split.no", Value::U16(number))
            .set("split.count", Value::U16(2))
            .set("split.tensors.count", Value::I32(total))
    })
}

#[test]
fn split_files() {
    let [first, second] = split();
    let names = ["m-00001-of-00002.gguf", "m-00002-of-00002.gguf"];
    let write = |a: &Gguf, b: &Gguf| Folder::new(&[(names[0], &a.build()), (names[1], &b.build())]);
    let folder = write(&first, &second);
    for path in [folder.0.clone(), folder.join(names[0]), folder.join(names[1])] {
        let model = ModelFile::open(&path).unwrap();
        assert_eq!(model.tensors().count(), 13);
        assert_eq!(model.metadata().unwrap().string("general.name").unwrap(), Some("tiny"));
        assert_eq!(model.paths().count(), 2);
    }
    fs::rename(folder.join(names[1]), folder.join("x.gguf")).unwrap();
    refused(&folder.join(names[0]), &[names[1]]);
    fs::rename(folder.join(names[0]), folder.join("y.gguf")).unwrap();
    refused(&folder.join("y.gguf"), &["y.gguf", "split.count", "-00001-of-0000N"]);
    refused(&folder.0, &["2 models", "x.gguf"]);

    let check = |a: &Gguf, b: &Gguf, parts: &[&str]| refused(&write(a, b).0, parts);
    check(&second, &first, &["split.no"]);
    check(&first, &first, &[names[1], "split.no"]);
    let other = second.clone().set("split.count", Value::U16(3));
    check(&first, &other, &[names[1], "split.count", "is 3"]);
    let other = second.clone().set("split.tensors.count", Value::I32(14));
    check(&first, &other, &[names[1], "split.tensors.count", "13", "is 14"]);
    let mut other = second.clone();
    other.tensors[0] = first.tensors[0].clone();
    check(&first, &other, &["token_embd.weight", "occurs in two files"]);
    refused(&folder.join("m-00001-of-99999.gguf"), &["m-00001-of-99999.gguf"]);
    fs::write(folder.join("m-00001-of-99999.gguf"), b"").unwrap();
    refused(&folder.join("m-00001-of-99999.gguf"), &["99999", "the limit is 1000"]);
}

#[test]
fn what_is_no_model() {
    let folder = Folder::new(&[("notes.txt", b"hello"), ("empty.gguf", b"")]);
    refused(&folder.join("notes.txt"), &["notes.txt", "instead of `GGUF`", "give a .gguf file"]);
    refused(&folder.join("absent.gguf"), &["absent.gguf"]);
    refused(&folder.join("empty.gguf"), &["empty.gguf", "the magic number"]);
    fs::remove_file(folder.join("empty.gguf")).unwrap();
    refused(&folder.0, &["neither config.json nor a .gguf file"]);
}
