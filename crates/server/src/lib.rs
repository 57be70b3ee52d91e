//! HTTP in: dialects, authentication, gateway, metering seam, metrics.
//!
//! A request's life: [`http`] bounds it, `auth` decides on the matched route who asks, a dialect (`openai`) parses it into
//! a valid request, `chat` tokenises it once, `job` gives it a cache domain and submits it, `metered` takes its usage,
//! `answer` turns tokens back into parts (or `upstream` asks another service for them), `respond` settles, and the dialect
//! writes JSON or events. What makes vectors goes the same way through `vectors`.
//!
//! Not here: kernels, the engine, model files, prices. Tests run on `ScriptedEngine`.
//! Invariants: what a client sees never holds an internal error's text; nothing from outside is read, kept or computed
//! without a bound; every request that reached an engine is metered exactly once, however it ends.

mod config;
mod served;

mod admin;
mod answer;
mod anthropic;
mod app;
mod auth;
mod batch;
mod body;
mod chat;
mod dashscope;
mod egress;
mod error;
mod fields;
mod gateway;
mod health;
mod http;
mod idempotency;
mod job;
mod metered;
mod metrics;
mod models;
mod ollama;
mod openai;
mod openapi;
mod options;
mod paging;
mod project_store;
mod rate_limit;
mod request_id;
mod respond;
mod routes;
mod sse;
mod stop;
mod storage;
mod structured;
mod till;
mod upload;
mod upstream;
mod vectors;
mod webhooks;

pub use admin::{Answer, Books, Office};
pub use auth::Access;
pub use config::{Limits, ServerConfig};
pub use egress::{CaCertificates, EgressPolicy};
pub use http::{Server, ServerError, check_exposure, serve};
pub use openapi::document as openapi_document;
pub use routes::{RouteConfig, RouteTarget};
pub use served::{ModelSetError, Models, ServedModel, VectorModel};
pub use storage::{AnswerLimits, StorageConfig, StorageError};
pub use till::{Billing, PriceSource};
pub use upstream::{ApiKey, Flavour, OnDisconnect, UpstreamConfig, UpstreamError, UpstreamTask};
pub use webhooks::WebhookPolicy;
