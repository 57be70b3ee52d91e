//! Messages are a part of the product: what is said when something is wrong.

use crate::Home;

#[test]
fn mistakes_in_the_settings_are_explained() {
    let home = Home::new();
    let check = |text: &str| {
        std::fs::write(home.path().join("mintage.toml"), text).unwrap();
        home.transcript(&["list", "--config", "mintage.toml"])
    };
    insta::assert_snapshot!(check("[server]\nlisen = \"127.0.0.1:8080\"\n"), @r"
    status 1
    error: mintage.toml:2: unknown key `lisen`; did you mean `listen`?
    ");
    insta::assert_snapshot!(check("[engine]\nthreads = \"many\"\n"), @r#"
    status 1
    error: mintage.toml:2: invalid type: string "many", expected usize
    "#);
    insta::assert_snapshot!(check("[hub\n"), @r"
    status 1
    error: mintage.toml:1: unclosed table, expected `]`
    ");
    insta::assert_snapshot!(home.transcript(&["list", "--config", "nowhere.toml"]), @r"
    status 1
    error: the settings file nowhere.toml cannot be read
      because: No such file or directory (os error 2)
    ");
}

#[test]
fn models_that_are_not_there_are_explained() {
    let home = Home::new();
    insta::assert_snapshot!(home.transcript(&["pull", "qwen2.5-codr:0.5b"]), @r"
    status 1
    error: no model is called `qwen2.5-codr:0.5b`; did you mean `qwen2.5-coder:0.5b`?
    ");
    insta::assert_snapshot!(home.transcript(&["chat", "./nothing.gguf"]), @r"
    status 1
    error: standard input is empty; give a prompt there or with `--prompt TEXT`
    ");
    insta::assert_snapshot!(home.transcript(&["show", "./nothing.gguf"]), @r"
    status 1
    error: `./nothing.gguf` does not name a model: No such file or directory (os error 2)
    ");
    insta::assert_snapshot!(home.transcript(&["show", "default"]), @r"
    status 1
    error: the model is not on this machine yet; `mintage pull` fetches it, `mintage list --all` shows the names
    ");
    insta::assert_snapshot!(home.transcript(&["rm", "default"]), @r"
    status 1
    error: no model called `qwen2.5-coder-0.5b-instruct-q4_k_m` is here; `mintage list` shows those that are
    ");
    std::fs::write(home.path().join("x.gguf"), "not a model").unwrap();
    let text = home.transcript(&["show", "x.gguf"]);
    assert!(
        text.starts_with("status 1\nerror: `x` (HOME/x.gguf) cannot be opened\n  because: "),
        "{text}"
    );
}

#[test]
fn the_catalogue_is_listed() {
    insta::assert_snapshot!(Home::new().transcript(&["list", "--all"]), @r"
    status 0
    NAME                                SIZE       LICENCE     STATE          ALSO CALLED
    qwen2.5-coder-0.5b-instruct-q4_k_m  468.6 MiB  Apache-2.0  can be pulled  qwen2.5-coder:0.5b, default
    qwen2.5-coder-1.5b-instruct-q4_k_m  1.0 GiB    Apache-2.0  can be pulled  qwen2.5-coder:1.5b
    smollm2-135m-instruct-q4_1          93.8 MiB   Apache-2.0  can be pulled  smollm2:135m
    all-minilm-l6-v2                    87.1 MiB   Apache-2.0  can be pulled  all-minilm, all-minilm:l6-v2
    ");
}

#[test]
fn keys_are_made_listed_and_revoked() {
    let home = Home::new();
    let (status, key, note) = home.run(&["keys", "create", "laptop", "--expires-days", "30"]);
    assert_eq!(status, 0, "{note}");
    assert!(key.starts_with("sk-mint-"), "{key}");
    let (_, list, _) = home.run(&["keys", "list"]);
    assert!(list.contains("laptop") && list.contains("valid for 30 days"), "{list}");
    assert!(!list.contains(key.trim()), "the list shows a key");
    let id = list.lines().nth(1).unwrap().split_whitespace().next().unwrap().to_owned();
    assert_eq!(home.run(&["keys", "revoke", &id]).0, 0);
    assert!(home.run(&["keys", "list"]).1.contains("revoked"));
    assert_eq!(home.run(&["keys", "revoke", "nobody"]).0, 1);
}

#[test]
fn every_shell_gets_its_completions() {
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        let (status, script, _) = Home::new().run(&["completions", shell]);
        assert_eq!(status, 0);
        assert!(script.contains("perplexity"), "{shell}");
    }
}
