-- Version 1. Tables are STRICT: a column holds what it says.

-- Append-only. One line is one transfer (or one document); `link` is SHA-256 over the previous link and this line.
CREATE TABLE log (
    seq INTEGER PRIMARY KEY,
    at_ms INTEGER NOT NULL,
    kind TEXT NOT NULL,
    id TEXT NOT NULL,
    debit TEXT NOT NULL,
    credit TEXT NOT NULL,
    asset TEXT NOT NULL,
    amount INTEGER NOT NULL CHECK (amount >= 0),
    refers INTEGER,
    detail BLOB NOT NULL CHECK (length(detail) = 32),
    link BLOB NOT NULL CHECK (length(link) = 32)
) STRICT;

-- One row per answered request; `seq` is its posting. Amounts in 10^-12 of the currency's unit.
CREATE TABLE usage (
    seq INTEGER PRIMARY KEY REFERENCES log (seq),
    id TEXT NOT NULL,
    org TEXT NOT NULL,
    project TEXT NOT NULL,
    key TEXT NOT NULL,
    model TEXT NOT NULL,
    model_digest TEXT NOT NULL,
    adapter TEXT NOT NULL,
    protocol TEXT NOT NULL,
    client TEXT NOT NULL,
    batch INTEGER NOT NULL,
    arrival_ms INTEGER NOT NULL,
    first_token_ms INTEGER NOT NULL,
    end_ms INTEGER NOT NULL,
    finish TEXT NOT NULL,
    label TEXT NOT NULL,
    quantity INTEGER NOT NULL,
    input INTEGER NOT NULL,
    cached_input INTEGER NOT NULL,
    explicit_cached INTEGER NOT NULL,
    cache_created INTEGER NOT NULL,
    output INTEGER NOT NULL,
    thinking INTEGER NOT NULL,
    units INTEGER NOT NULL,
    price_version TEXT NOT NULL,
    amount_pico INTEGER NOT NULL CHECK (amount_pico >= 0),
    currency TEXT NOT NULL,
    free_tokens INTEGER NOT NULL
) STRICT;
CREATE INDEX usage_id ON usage (id);
CREATE INDEX usage_org_end ON usage (org, end_ms);

-- Operations that were not requests, whole; `seq` is the first line they made.
CREATE TABLE operation (
    seq INTEGER PRIMARY KEY REFERENCES log (seq),
    id TEXT NOT NULL UNIQUE,
    body TEXT NOT NULL
) STRICT;

-- Immutable versions; the newest counts, an empty body means deleted. `seq` is its line of the log.
CREATE TABLE document (
    kind TEXT NOT NULL,
    id TEXT NOT NULL,
    version INTEGER NOT NULL CHECK (version > 0),
    seq INTEGER NOT NULL UNIQUE REFERENCES log (seq),
    body BLOB NOT NULL,
    PRIMARY KEY (kind, id, version)
) STRICT, WITHOUT ROWID;

-- What went through each account, in decimal: recomputable from the log.
CREATE TABLE account (
    name TEXT NOT NULL,
    asset TEXT NOT NULL,
    debits TEXT NOT NULL,
    credits TEXT NOT NULL,
    PRIMARY KEY (name, asset)
) STRICT, WITHOUT ROWID;

-- How far open holds have come; empty after an orderly end.
CREATE TABLE mark (
    id TEXT PRIMARY KEY,
    body TEXT NOT NULL,
    sum BLOB NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE outbox (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    topic TEXT NOT NULL,
    body BLOB NOT NULL,
    due_ms INTEGER NOT NULL,
    attempts INTEGER NOT NULL,
    sum BLOB NOT NULL
) STRICT;
CREATE INDEX outbox_due ON outbox (due_ms);

CREATE TABLE answer (
    scope TEXT NOT NULL,
    key TEXT NOT NULL,
    body_digest BLOB NOT NULL CHECK (length(body_digest) = 32),
    answer BLOB NOT NULL,
    expires_ms INTEGER NOT NULL,
    sum BLOB NOT NULL,
    PRIMARY KEY (scope, key)
) STRICT, WITHOUT ROWID;
CREATE INDEX answer_expiry ON answer (expires_ms);
