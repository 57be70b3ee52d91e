//! Reads texts, each a JSON string on a line of standard input, and prints each one's token ids as a line of JSON.
//!
//! `encode MODEL [allow|as-text]`; MODEL is a GGUF file or a folder with `tokenizer.json`. The other half of the
//! comparison with the package `tokenizers`: `tests/goldens/tokenizer.py`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::io::{BufRead, Write};
use std::path::Path;

use mintage_model::{ModelFile, SpecialTokens, TextModel, Tokenizer};

fn open(path: &Path) -> Tokenizer {
    if path.is_dir() {
        let read = |name| std::fs::read_to_string(path.join(name)).ok();
        let config = read("tokenizer_config.json");
        return Tokenizer::from_json(
            &read("tokenizer.json").expect("tokenizer.json"),
            config.as_deref(),
        )
        .unwrap();
    }
    TextModel::from_model_file(&ModelFile::open(path).unwrap()).unwrap().into_tokenizer()
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (path, special) = match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice()
    {
        [path] | [path, "allow"] => (Path::new(path).to_owned(), SpecialTokens::Allow),
        [path, "as-text"] => (Path::new(path).to_owned(), SpecialTokens::AsText),
        _ => panic!("usage: encode MODEL [allow|as-text]"),
    };
    let tokenizer = open(&path);
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    for line in std::io::stdin().lock().lines() {
        let text: String = serde_json::from_str(&line.unwrap()).expect("a JSON string");
        serde_json::to_writer(&mut out, &tokenizer.encode(&text, special)).unwrap();
        writeln!(out).unwrap();
    }
    out.flush().unwrap();
}
