//! Tenants and their money from the command line, on the data folder.

use serde_json::Value;

use crate::Home;

fn run(home: &Home, arguments: &[&str]) -> String {
    let (status, out, err) = home.run(arguments);
    assert_eq!(status, 0, "{arguments:?}: {err}");
    out
}

fn json(home: &Home, arguments: &[&str]) -> Value {
    let mut all = arguments.to_vec();
    all.push("--json");
    serde_json::from_str(&run(home, &all)).unwrap()
}

#[test]
fn a_tenant_is_set_up() {
    let home = Home::new();
    let org = json(&home, &["org", "create", "acme", "--weight", "2"]);
    assert_eq!((&org["name"], &org["weight"]), (&"acme".into(), &2.into()));
    let project = json(&home, &["project", "create", "shop", "--org", "acme"]);
    let project = project["id"].as_str().unwrap();
    let key = run(&home, &["key", "create", "till", "--project", project, "--model", "qwen*"]);
    assert!(key.starts_with("sk-mint-"), "{key}");
    let keys = run(&home, &["key", "list", "--org", "acme"]);
    assert!(keys.contains("till") && !keys.contains(key.trim()), "{keys}");
    let id = keys.lines().nth(1).unwrap().split_whitespace().next().unwrap().to_owned();
    assert!(run(&home, &["key", "disable", &id]).contains("disabled"));
    run(&home, &["key", "enable", &id]);
    assert!(run(&home, &["key", "rotate", &id, "--overlap-hours", "1"]).starts_with("sk-mint-"));
}

#[test]
fn money_moves_once_and_limits_are_kept() {
    let home = Home::new();
    run(&home, &["org", "create", "acme"]);
    for _ in 0..2 {
        let balance = json(&home, &["topup", "acme", "12.5", "--id", "p-1"]);
        assert_eq!(balance["balance"], "12.5");
    }
    let (status, _, err) = home.run(&["topup", "acme", "13", "--id", "p-1"]);
    assert_eq!(status, 1);
    assert!(
        err.contains("the id `p-1` was used for another operation") || err.contains("The id `p-1`"),
        "{err}"
    );
    let (_, _, err) = home.run(&["topup", "nobody", "1", "--id", "p-2"]);
    assert!(err.contains("`mintage org list` shows all"), "{err}");
    let shown = json(&home, &["balance", "adjust", "acme", "-0.5", "--id", "a-1"]);
    assert_eq!(shown["available"], "12");
    run(&home, &["limit", "--org", "acme", "set", "--rpm", "60"]);
    run(&home, &["budget", "--org", "acme", "set", "month", "--money", "80", "--warn"]);
    run(&home, &["budget", "--org", "acme", "set", "month", "--money", "90", "--warn"]);
    let budgets = json(&home, &["budget", "--org", "acme", "show"]);
    assert_eq!(budgets[0]["limit"]["money"], "90");
    assert_eq!(budgets.as_array().unwrap().len(), 1);
    let rates = json(&home, &["limit", "--org", "acme", "show"]);
    assert_eq!(rates[0]["requests_per_minute"], 60);
}

#[test]
fn what_is_missing_is_said() {
    let home = Home::new();
    insta::assert_snapshot!(home.transcript(&["key", "create", "x"]), @r"
    status 1
    error: whose key? `--project ID` calls models, `--member ID` administers an organisation, `--operator` everything
    ");
    insta::assert_snapshot!(home.transcript(&["org", "list", "--server", "http://127.0.0.1:9"]), @r"
    status 1
    error: set MINTAGE_ADMIN_KEY to a key that administers; `mintage key create NAME --operator` makes one on the server's machine
    ");
    insta::assert_snapshot!(home.transcript(&["webhook", "create", "http://10.0.0.1/"]), @r"
    status 1
    error: `url` cannot be used: it must begin with https://
    ");
}
