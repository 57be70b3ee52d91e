//! HTTP in: the OpenAI dialect, authentication, gateway, metering seam, metrics.
//!
//! A request's life: [`http`] bounds it, `auth` decides on the matched route who asks, `openai` parses it into a valid
//! request, `gateway` tokenises it once and gives it a cache domain, `metered` submits it and takes its usage,
//! `answer` turns tokens back into text, `openai` writes it as JSON or as events.
//!
//! Not here: kernels, the engine, model files, prices. Tests run on `ScriptedEngine`.
//! Invariants: what a client sees never holds an internal error's text; nothing from outside is read, kept or computed
//! without a bound; every request that reached an engine is metered exactly once, however it ends.

mod config;
mod served;

mod admin;
mod answer;
mod app;
mod auth;
mod body;
mod error;
mod fields;
mod gateway;
mod health;
mod http;
mod idempotency;
mod metered;
mod metrics;
mod openai;
mod rate_limit;
mod request_id;
mod sse;
mod stop;
mod till;
mod webhooks;

pub use admin::{Answer, Books, Office, openapi_document};
pub use auth::Access;
pub use config::{Limits, ServerConfig};
pub use http::{Server, ServerError, check_exposure, serve};
pub use served::{ModelSetError, ServedModel};
pub use till::{Billing, PriceSource};
pub use webhooks::WebhookPolicy;
