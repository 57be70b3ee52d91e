//! One flipped byte anywhere in any row is found.

use std::path::Path;

use mintage_ledger::{
    Amount, Changes, Currency, Document, GrantTerms, KeptAnswer, Message, Together,
};
use rusqlite::Connection;
use rusqlite::types::Value;

use crate::rig::{admit, ended, funded, tokens, usage};

/// At least one row in every table.
fn populate(folder: &Path) {
    let ledger = funded(folder, 1_000);
    ledger.adjust("a1", "acme", Currency::CNY, Amount::from_pico(-7)).unwrap().wait().unwrap();
    let terms = GrantTerms { org: "acme".into(), models: vec![], tokens: 5, expires_ms: 9 };
    ledger.grant("g1", "g", terms).unwrap().wait().unwrap();
    let answer = KeptAnswer {
        scope: "p".into(),
        key: "k".into(),
        body_digest: [1; 32],
        answer: b"hello".to_vec(),
        expires_ms: u64::MAX >> 1,
    };
    let message = Message { topic: "low".into(), body: b"{}".to_vec(), due_ms: 5 };
    let together = Together { messages: vec![message], answer: Some(answer) };
    let hold = admit(&ledger, "r1", 100, 50);
    ledger.settle(hold, usage(100, 7), ended(), together).wait().unwrap();
    ledger.refund("f1", "r1", tokens(3)).unwrap().wait().unwrap();
    let document =
        Document { kind: "key".into(), id: "a".into(), version: 1, body: b"one".to_vec() };
    let changes = Changes { documents: vec![document], ..Changes::default() };
    ledger.write(changes).unwrap().wait().unwrap();
    let mut hold = admit(&ledger, "r2", 100, 50);
    hold.progress(usage(100, 40));
    ledger.topup("t2", "acme", Currency::CNY, tokens(1)).unwrap().wait().unwrap();
    // The process dies here: the mark stays.
    std::mem::forget(hold);
    drop(ledger);
}

/// The value with one bit of its first, middle or last byte changed.
fn flip(value: &Value, at: usize) -> Option<Value> {
    let flipped = |bytes: &[u8]| {
        let mut bytes = bytes.to_vec();
        let at = [0, bytes.len() / 2, bytes.len().checked_sub(1)?][at];
        bytes[at] ^= 1;
        Some(bytes)
    };
    Some(match value {
        Value::Integer(number) => Value::Integer(number ^ [1, 1 << 20, 1 << 40][at]),
        Value::Text(text) => Value::Text(String::from_utf8(flipped(text.as_bytes())?).ok()?),
        Value::Blob(bytes) => Value::Blob(flipped(bytes)?),
        _ => return None,
    })
}

#[test]
fn a_flipped_byte_in_any_row_is_found() {
    let folder = tempfile::tempdir().unwrap();
    populate(folder.path());
    let path = folder.path().join("ledger.sqlite");
    mintage_ledger::verify_file(folder.path()).unwrap();
    let connection = Connection::open(&path).unwrap();
    connection.pragma_update(None, "foreign_keys", false).unwrap();
    connection.pragma_update(None, "ignore_check_constraints", true).unwrap();
    let mut flips = 0;
    for table in tables(&connection) {
        for (key, row) in rows(&connection, &table) {
            for (column, value) in &row {
                for at in 0..3 {
                    let Some(changed) = flip(value, at) else { continue };
                    let update =
                        format!("UPDATE {table} SET {column} = ?1 WHERE {}", key_clause(&key));
                    if connection.execute(&update, [&changed]).is_err() {
                        // The table's own rules do not even let it in.
                        continue;
                    }
                    flips += 1;
                    let found = mintage_ledger::verify_file(folder.path());
                    assert!(found.is_err(), "{table}.{column}: {value:?} → {changed:?}");
                    let mut key = key.clone();
                    if let Some(own) = key.iter_mut().find(|(name, _)| name == column) {
                        own.1 = changed;
                    }
                    let undo =
                        format!("UPDATE {table} SET {column} = ?1 WHERE {}", key_clause(&key));
                    assert_eq!(connection.execute(&undo, [value]).unwrap(), 1);
                }
            }
        }
    }
    assert!(flips > 300, "{flips}");
    mintage_ledger::verify_file(folder.path()).unwrap();
    for gone in ["DELETE FROM log WHERE seq = 3", "DELETE FROM usage", "DELETE FROM document"] {
        connection.execute_batch(&format!("BEGIN; {gone};")).unwrap();
        connection.execute_batch("COMMIT").unwrap();
        assert!(mintage_ledger::verify_file(folder.path()).is_err(), "{gone}");
    }
}

fn tables(connection: &Connection) -> Vec<String> {
    let sql = "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite_%'";
    let mut select = connection.prepare(sql).unwrap();
    let names = select.query_map([], |row| row.get(0)).unwrap();
    names.map(Result::unwrap).collect()
}

type Row = Vec<(String, Value)>;

/// Each row with its primary key.
fn rows(connection: &Connection, table: &str) -> Vec<(Row, Row)> {
    let mut keys = connection.prepare(&format!("PRAGMA table_info({table})")).unwrap();
    let is_key: Vec<bool> =
        keys.query_map([], |row| row.get::<_, i64>(5)).unwrap().map(|k| k.unwrap() > 0).collect();
    let mut select = connection.prepare(&format!("SELECT * FROM {table}")).unwrap();
    let names: Vec<_> = select.column_names().map(str::to_owned).collect();
    let rows = select.query_map([], |row| {
        let row: Row = names.iter().cloned().zip((0..).map_while(|i| row.get(i).ok())).collect();
        let key = row.iter().zip(&is_key).filter(|(_, is)| **is).map(|(c, _)| c.clone()).collect();
        Ok((key, row))
    });
    let rows: Vec<_> = rows.unwrap().map(Result::unwrap).collect();
    assert!(!rows.is_empty(), "{table} is empty");
    rows
}

fn key_clause(key: &Row) -> String {
    let parts = key.iter().map(|(name, value)| match value {
        Value::Integer(number) => format!("{name} = {number}"),
        Value::Text(text) => format!("{name} = '{}'", text.replace('\'', "''")),
        _ => panic!("a key of {value:?}"),
    });
    parts.collect::<Vec<_>>().join(" AND ")
}
