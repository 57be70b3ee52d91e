//! Keys that open and keys that do not; the file under several processes; roles.

use std::fs;

use super::secret::{CHECKSUM_CHARS, ID_CHARS, PREFIX, SECRET_CHARS, checksum, random_base62};
use super::*;
use crate::limits::{Level, ModelChoice, Policy, RateRule};

const DIRECTORY_FILE: &str = "directory.json";

fn store() -> (tempfile::TempDir, DirectoryStore) {
    let folder = tempfile::tempdir().unwrap();
    let store = DirectoryStore::open(folder.path()).unwrap();
    (folder, store)
}

/// A key of the tenant `acme`.
fn key(store: &DirectoryStore, expires_unix: Option<u64>) -> CreatedKey {
    let project = store.ensure_tenant("acme", 0).unwrap();
    let new = NewKey { expires_unix, ..NewKey::of_project("laptop", &project.id) };
    store.create_key(new, 100).unwrap()
}

fn refusal(store: &DirectoryStore, text: &str, now_unix: u64) -> KeyRefusal {
    store.authenticate(text, now_unix).unwrap_err()
}

#[test]
fn a_created_key_opens_and_its_neighbours_do_not() {
    let (_folder, store) = store();
    let key = key(&store, None);
    let text = key.secret.expose().to_owned();
    assert_eq!(text.len(), PREFIX.len() + ID_CHARS + 1 + SECRET_CHARS + CHECKSUM_CHARS);
    let principal = store.authenticate(&text, 100).unwrap();
    assert_eq!(*principal.key, *key.info.id);
    assert_eq!(principal.project.as_deref(), Some(&*store.ensure_tenant("acme", 1).unwrap().id));
    let levels: Vec<_> = principal.parties.iter().map(|party| party.level).collect();
    assert_eq!(levels, [Level::Organisation, Level::Project, Level::Key]);
    // One character changed anywhere never opens; the checksum catches it where it is well-formed.
    for at in 0..text.len() {
        let mut other = text.clone().into_bytes();
        other[at] = if other[at] == b'x' { b'y' } else { b'x' };
        let other = String::from_utf8(other).unwrap();
        assert!(store.authenticate(&other, 100).is_err(), "position {at}");
    }
    // The right id and checksum with another secret: same first and last bytes matter not.
    let forged = random_base62(SECRET_CHARS).unwrap();
    let forged = format!("{PREFIX}{}-{forged}{}", key.info.id, checksum(&key.info.id, &forged));
    assert_eq!(refusal(&store, &forged, 100), KeyRefusal::Unknown);
}

#[test]
fn odd_presentations_are_refused() {
    let (_folder, store) = store();
    key(&store, None);
    let long = "x".repeat(secret::MAX_PRESENTED_BYTES + 1);
    for (presented, why) in [
        ("", KeyRefusal::Malformed),
        (long.as_str(), KeyRefusal::Malformed),
        ("sk-mint-", KeyRefusal::Unknown),
        ("sk-mint-ключ", KeyRefusal::Unknown),
        ("' OR 1=1 --", KeyRefusal::Unknown),
        ("0000000000000000", KeyRefusal::Unknown),
    ] {
        assert_eq!(refusal(&store, presented, 0), why, "{presented:?}");
    }
}

#[test]
fn the_files_hold_no_secret_and_survive_a_restart() {
    let (folder, store) = store();
    let key = key(&store, None);
    let secret_part = &key.secret.expose()[PREFIX.len() + ID_CHARS + 1..];
    for entry in fs::read_dir(folder.path()).unwrap() {
        let path = entry.unwrap().path();
        let text = fs::read_to_string(&path).unwrap();
        assert!(!text.contains(&secret_part[..8]), "{}", path.display());
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o077, 0);
        }
    }
    assert!(!format!("{key:?} {store:?}").contains(&secret_part[..8]));
    let again = DirectoryStore::open(folder.path()).unwrap();
    assert!(again.authenticate(key.secret.expose(), 0).is_ok());
    // Another installation has another pepper: the same file opens nothing there.
    let (other_folder, _) = self::store();
    let copy = other_folder.path().join(DIRECTORY_FILE);
    fs::copy(folder.path().join(DIRECTORY_FILE), copy).unwrap();
    let other = DirectoryStore::open(other_folder.path()).unwrap();
    assert_eq!(refusal(&other, key.secret.expose(), 0), KeyRefusal::Unknown);
    assert_ne!(other.derived_secret("x"), store.derived_secret("x"));
    assert_eq!(again.derived_secret("x"), store.derived_secret("x"));
}

#[test]
fn keys_end_as_they_are_told() {
    let (folder, store) = store();
    let key = key(&store, Some(200));
    let text = key.secret.expose();
    assert!(store.authenticate(text, 199).is_ok());
    assert_eq!(refusal(&store, text, 200), KeyRefusal::Expired);
    assert!(store.has_valid_key(199) && !store.has_valid_key(200));
    store.set_key_enabled(&key.info.id, false, 110).unwrap();
    assert_eq!(refusal(&store, text, 110), KeyRefusal::Disabled);
    store.set_key_enabled(&key.info.id, true, 111).unwrap();
    assert!(store.authenticate(text, 111).is_ok());

    // Revoked by another process: seen after a reload.
    let other = DirectoryStore::open(folder.path()).unwrap();
    other.revoke_key(&key.info.id, 112).unwrap();
    assert!(store.reload_if_changed().unwrap());
    assert!(!store.reload_if_changed().unwrap());
    assert_eq!(refusal(&store, text, 115), KeyRefusal::Revoked);
    store.change(|d| d.change_key(&key.info.id, |key| key.revoked_unix = None)).unwrap();
    assert_eq!(refusal(&store, text, 115), KeyRefusal::Revoked);
    assert!(matches!(store.revoke_key("nobody", 0), Err(DirectoryError::NoSuch { .. })));
    assert!(store.rotate_key(&key.info.id, 10, 120).is_err());
}

#[test]
fn rotation_overlaps_and_shares_counters() {
    let (_folder, store) = store();
    let old = key(&store, None);
    let new = store.rotate_key(&old.info.id, 60, 1000).unwrap();
    let principal = |key: &CreatedKey, now| store.authenticate(key.secret.expose(), now);
    assert_eq!(principal(&old, 1059).unwrap().parties, principal(&new, 1059).unwrap().parties);
    assert_eq!(principal(&old, 1060), Err(KeyRefusal::Expired));
    assert!(principal(&new, 99_999).is_ok());
    assert_eq!(new.info.lineage, old.info.id);
    // The overlap never lengthens a life.
    let short = key(&store, Some(1010));
    let next = store.rotate_key(&short.info.id, 60, 1000).unwrap();
    assert_eq!(principal(&short, 1010), Err(KeyRefusal::Expired));
    assert_eq!(next.info.expires_unix, Some(1010));
}

#[test]
fn an_inactive_owner_closes_its_keys() {
    let (_folder, store) = store();
    let key = key(&store, None);
    let text = key.secret.expose();
    let project = store.ensure_tenant("acme", 0).unwrap();
    let archive = |archived_unix| {
        store
            .change(|d| d.put_project(Project { archived_unix, ..d.project(&project.id)?.clone() }))
            .unwrap();
    };
    archive(Some(5));
    assert_eq!(refusal(&store, text, 10), KeyRefusal::OwnerInactive);
    assert!(!store.has_valid_key(10));
    archive(None);
    assert!(store.authenticate(text, 10).is_ok());
    let id = project.organisation.as_str();
    let suspend = |d: &mut Directory| {
        d.put_organisation(Organisation { suspended: true, ..d.organisation(id)?.clone() })
    };
    store.change(suspend).unwrap();
    assert_eq!(refusal(&store, text, 10), KeyRefusal::OwnerInactive);
}

#[test]
fn a_bootstrap_key_is_taken_once() {
    let (_folder, store) = store();
    let project = store.ensure_tenant("default", 0).unwrap();
    assert_eq!(
        (project.id.as_str(), project.organisation.as_str()),
        ("proj_default", "org-default")
    );
    let import = |key: &str| store.import_key("boot", &project.id, key, 0);
    let text = "correct-horse-battery-staple";
    assert!(matches!(import(text), Ok(Imported::Added(_))));
    let Ok(Imported::Known(info)) = import(text) else { panic!("taken twice") };
    assert_eq!(store.snapshot().keys().count(), 1);
    assert_eq!(&*store.authenticate(text, 0).unwrap().organisation, "org-default");
    store.revoke_key(&info.id, 1).unwrap();
    assert!(import(text).is_err());
    let lookalike = "sk-mint-looks-like-ours-but-is-not";
    assert!(matches!(import(lookalike), Ok(Imported::Added(_))));
    assert!(store.authenticate(lookalike, 0).is_ok());
    for bad in ["short", "has space in it 123"] {
        assert!(matches!(import(bad), Err(DirectoryError::Invalid(_))), "{bad}");
    }
}

#[test]
fn two_writers_lose_nothing() {
    let folder = tempfile::tempdir().unwrap();
    std::thread::scope(|scope| {
        for writer in 0..4 {
            let folder = folder.path();
            scope.spawn(move || {
                let store = DirectoryStore::open(folder).unwrap();
                for _ in 0..5 {
                    let project = store.ensure_tenant(&format!("t{writer}"), 0).unwrap();
                    store.create_key(NewKey::of_project("k", &project.id), 0).unwrap();
                }
            });
        }
    });
    let directory = DirectoryStore::open(folder.path()).unwrap().snapshot();
    assert_eq!((directory.keys().count(), directory.organisations().count()), (20, 4));
}

#[test]
fn damaged_files_are_refused_not_replaced() {
    let dangling = r#"{"version":1,"organisations":[],"members":[],"keys":[],
        "projects":[{"id":"p","organisation":"o","name":"n","created_unix":0}]}"#;
    for (file, text) in [
        (DIRECTORY_FILE, "{"),
        (
            DIRECTORY_FILE,
            r#"{"version":2,"organisations":[],"projects":[],"members":[],"keys":[]}"#,
        ),
        (DIRECTORY_FILE, dangling),
        ("keys.json", "{"),
        ("keys.json", r#"{"version":2,"keys":[]}"#),
        ("keys.pepper", "zz"),
        ("keys.pepper", ""),
    ] {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(file), text).unwrap();
        let opened = DirectoryStore::open(folder.path());
        assert!(matches!(opened, Err(DirectoryError::Damaged { .. })), "{text}");
        assert_eq!(fs::read_to_string(folder.path().join(file)).unwrap(), text);
    }
}

/// What the first version of this program wrote, byte for byte in form.
#[test]
fn keys_of_the_first_version_are_taken_over() {
    let (folder, store) = store();
    let a = key(&store, None);
    let b = key(&store, Some(500));
    let hashes = fs::read_to_string(folder.path().join(DIRECTORY_FILE)).unwrap();
    let hashes: serde_json::Value = serde_json::from_str(&hashes).unwrap();
    let old = |key: &CreatedKey, tenant: &str| {
        let records = hashes["keys"].as_array().unwrap();
        let record = records.iter().find(|r| r["id"] == key.info.id.as_str()).unwrap();
        serde_json::json!({"id": key.info.id, "name": "n", "tenant": tenant, "display": "d",
            "created_unix": 1, "expires_unix": key.info.expires_unix, "revoked_unix": null,
            "hash": record["hash"]})
    };
    let keys = serde_json::json!({"version": 1, "keys": [old(&a, "default"), old(&b, "other")]});
    fs::remove_file(folder.path().join(DIRECTORY_FILE)).unwrap();
    fs::write(folder.path().join("keys.json"), keys.to_string()).unwrap();
    for _ in 0..2 {
        let store = DirectoryStore::open(folder.path()).unwrap();
        let of = |key: &CreatedKey| store.authenticate(key.secret.expose(), 499).unwrap();
        assert_eq!(&*of(&a).organisation, "org-default");
        assert_ne!(of(&a).organisation, of(&b).organisation);
        assert_eq!(refusal(&store, b.secret.expose(), 500), KeyRefusal::Expired);
        assert!(!folder.path().join("keys.json").exists());
    }
}

#[test]
fn roles_may_what_they_may() {
    let table: Vec<String> = Role::ALL
        .iter()
        .map(|role| {
            let may: Vec<String> = Action::ALL
                .iter()
                .filter(|action| role.may(**action))
                .map(|action| format!("{action:?}"))
                .collect();
            format!("{role:?}: {}", may.join(" "))
        })
        .collect();
    insta::assert_snapshot!(table.join("\n"), @r"
    Owner: CallModels ReadDirectory ReadUsage ReadBilling ManageKeys ManageProjects ManageMembers ManageOwners ManageBilling
    Admin: CallModels ReadDirectory ReadUsage ReadBilling ManageKeys ManageProjects ManageMembers
    Developer: CallModels ReadDirectory ReadUsage ManageKeys
    Billing: ReadDirectory ReadUsage ReadBilling ManageBilling
    Viewer: ReadDirectory ReadUsage
    ");
}

#[test]
fn members_keep_an_owner_and_lend_their_role_to_their_keys() {
    let (_folder, store) = store();
    let organisation = store.create_organisation("acme", 0).unwrap();
    let member = |id: &str, role| Member {
        id: id.to_owned(),
        organisation: organisation.id.clone(),
        name: format!("{id}@example.com"),
        role,
        created_unix: 0,
    };
    let put = |member: Member| store.change(|d| d.put_member(member));
    put(member("user-1", Role::Owner)).unwrap();
    assert!(put(member("user-1", Role::Viewer)).is_err());
    assert!(store.change(|d| d.remove_member("user-1")).is_err());
    put(member("user-2", Role::Owner)).unwrap();
    put(member("user-1", Role::Billing)).unwrap();
    let new = NewKey {
        owner: KeyOwner::Member("user-1".to_owned()),
        ..NewKey::of_project("console", "-")
    };
    let key = store.create_key(new, 0).unwrap();
    let principal = store.authenticate(key.secret.expose(), 0).unwrap();
    assert!(principal.may(Action::ManageBilling) && !principal.may(Action::CallModels));
    assert!(!store.has_valid_key(0), "a key that administers does not call models");
    store.change(|d| d.remove_member("user-1")).unwrap();
    assert_eq!(refusal(&store, key.secret.expose(), 0), KeyRefusal::OwnerInactive);
    let operator = NewKey { owner: KeyOwner::Operator, ..NewKey::of_project("root", "-") };
    let operator = store.create_key(operator, 0).unwrap();
    let operator = store.authenticate(operator.secret.expose(), 0).unwrap();
    assert!(operator.may(Action::ManageBilling) && !operator.may(Action::CallModels));
}

#[test]
fn the_directory_refuses_what_cannot_be() {
    let (_folder, store) = store();
    let organisation = store.create_organisation("acme", 0).unwrap();
    assert!(store.create_organisation("acme", 0).is_err(), "the name is taken");
    assert!(store.create_project("org-none", "p", 0).is_err());
    let project = store.create_project(&organisation.id, "p", 0).unwrap();
    assert!(store.create_project(&organisation.id, "p", 0).is_err(), "the name is taken");
    assert!(store.create_key(NewKey::of_project("k", "proj_none"), 0).is_err());
    let with = |scopes: KeyScopes, policy: Policy| {
        let new = NewKey { scopes, policy, ..NewKey::of_project("k", &project.id) };
        store.create_key(new, 0).map(|_| ())
    };
    let models = |names: &[&str]| KeyScopes {
        models: names.iter().map(|name| (*name).to_owned()).collect(),
        ..KeyScopes::default()
    };
    with(models(&["qwen*", "a"]), Policy::default()).unwrap();
    for bad in [models(&["q*en"]), models(&[""]), models(&["x"; MAX_SCOPE_ENTRIES + 1])] {
        assert!(with(bad, Policy::default()).is_err());
    }
    let twice = Policy { rates: vec![RateRule::default(); 2], ..Policy::default() };
    assert!(with(KeyScopes::default(), twice).is_err());
    let weight = Organisation { weight: 0, ..organisation.clone() };
    assert!(store.change(|d| d.put_organisation(weight)).is_err());
    let moved = Project { organisation: "org-none".to_owned(), ..project };
    assert!(store.change(|d| d.put_project(moved)).is_err());
    assert_eq!(RateRule::default().models, ModelChoice::Together);
}

#[test]
fn scopes_name_models_and_endings() {
    let check = |list: &[&str], name: &str, allowed: bool| {
        let list: Vec<String> = list.iter().map(|entry| (*entry).to_owned()).collect();
        let scopes = KeyScopes { models: list.clone(), endpoints: list };
        assert_eq!(scopes.allows_model(name), allowed, "{scopes:?} {name}");
        assert_eq!(scopes.allows_endpoint(name), allowed);
    };
    check(&[], "anything", true);
    check(&["a", "b"], "b", true);
    check(&["a", "b"], "ab", false);
    check(&["qwen*"], "qwen2.5", true);
    check(&["qwen*"], "qwe", false);
    check(&["*"], "x", true);
}
