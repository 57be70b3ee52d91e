//! Models on the disk: pulled from a folder, shown, tokenised, scored, removed.

use crate::{Home, small_model};

#[test]
fn a_model_is_pulled_from_a_folder_shown_and_removed() {
    let Some(model) = small_model() else { return };
    let home = Home::new();
    let name = "smollm2-135m-instruct-q4_1";
    std::os::unix::fs::symlink(&model, home.path().join("SmolLM2-135M-Instruct.Q4_1.gguf"))
        .unwrap();
    let (status, out, err) = home.run(&["pull", "smollm2:135m", "--from", "."]);
    assert_eq!(
        (status, out.as_str()),
        (0, "smollm2-135m-instruct-q4_1 is ready (93.8 MiB)\n"),
        "{err}"
    );
    assert!(err.contains("SHA-256 verified"), "{err}");

    let (_, path, _) = home.run(&["show", name, "--path"]);
    assert_eq!(std::fs::metadata(path.trim()).unwrap().len(), 98_362_432);
    let (_, shown, _) = home.run(&["show", name, "--context", "1000"]);
    for expected in
        ["family           llama", "135M", "Apache-2.0", "8192 tokens", "for 1000 tokens"]
    {
        assert!(shown.contains(expected), "`{expected}` is not in\n{shown}");
    }
    let (_, all, _) = home.run(&["show", name, "--tensors", "--metadata"]);
    assert!(all.contains("token_embd.weight") && all.contains("general.architecture = \"llama\""));
    let (_, json, _) = home.run(&["show", name, "--json"]);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["context_length"], 8192);

    assert!(home.run(&["list"]).1.contains(name));
    let (status, out, _) = home.run(&["rm", "smollm2:135m"]);
    assert_eq!(
        (status, out.as_str()),
        (0, "smollm2-135m-instruct-q4_1 is removed (93.8 MiB freed)\n")
    );
    assert_eq!(home.run(&["show", name, "--path"]).0, 1);
}

#[test]
fn text_becomes_tokens_and_text_again() {
    let Some(model) = small_model() else { return };
    let (home, model) = (Home::new(), model.display().to_string());
    let text = "Hello, 世界! <|im_end|>";
    let (status, ids, err) = home.run(&["tokenize", "--model", &model, "--ids", text]);
    assert_eq!(status, 0, "{err}");
    let joined = ids.trim().replace(' ', ",");
    let (_, back, _) = home.run(&["tokenize", "--model", &model, "--decode", &joined]);
    assert_eq!(back, format!("{text}\n"));
    // What a user types is text; only the operator's `--special` makes control tokens of it.
    let (_, special, _) = home.run(&["tokenize", "--model", &model, "--ids", "--special", text]);
    assert!(special.split(' ').count() < ids.split(' ').count());
    let (_, listing, _) = home.run(&["tokenize", "--model", &model, "ab"]);
    assert!(listing.ends_with("tokens, 2 characters\n"), "{listing}");
    assert_eq!(home.run(&["tokenize", "--model", &model, "--decode", "4000000"]).0, 1);
}

#[test]
fn perplexity_tells_prose_from_noise() {
    let Some(model) = small_model() else { return };
    let (home, model) = (Home::new(), model.display().to_string());
    let prose = "The quick brown fox jumps over the lazy dog, and the dog does not mind at all. "
        .repeat(30);
    let noise: String =
        (0..3000_u32).map(|i| char::from(b'a' + (i * i % 7919 % 26) as u8)).collect();
    let score = |text: &str| -> f64 {
        std::fs::write(home.path().join("text.txt"), text).unwrap();
        let arguments = ["perplexity", "text.txt", "--model", &model, "--window", "64", "--json"];
        let (status, json, err) = home.run(&arguments);
        assert_eq!(status, 0, "{err}");
        let report: serde_json::Value = serde_json::from_str(&json).unwrap();
        report["perplexity"].as_f64().unwrap()
    };
    let (prose, noise) = (score(&prose), score(&noise));
    assert!(prose < 10.0 && noise > 20.0 * prose, "prose {prose}, noise {noise}");
}
