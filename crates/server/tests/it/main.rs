//! The server as clients see it: over sockets, on `ScriptedEngine`.

mod harness;

mod chat;
mod completions;
mod errors;
mod lifecycle;
mod numbers;
mod openapi;
mod sockets;
