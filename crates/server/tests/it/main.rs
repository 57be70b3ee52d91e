//! The server as clients see it: over sockets, on `ScriptedEngine`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "helpers of tests fail as tests do"
)]

mod harness;

mod admin;
mod anthropic;
mod batches;
mod chat;
mod completions;
mod connections;
mod dashscope;
mod described;
mod dialects;
mod errors;
mod far_vectors;
mod files;
mod hostile;
mod kept_chats;
mod ledger;
mod lifecycle;
mod limits;
mod numbers;
mod ollama;
mod openapi;
mod responses;
mod routes;
mod sockets;
mod structured;
mod tasks;
mod thinking;
mod tls;
mod tokens;
mod tools;
mod upstreams;
mod vectors;
mod webhooks;
