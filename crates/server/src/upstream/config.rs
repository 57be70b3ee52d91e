//! What the operator says of a service.

use std::sync::Arc;
use std::time::Duration;

use axum::http::{HeaderValue, Uri};
use mintage_model::TextModel;

use super::breaker::BreakerPolicy;
use crate::egress::{CaCertificates, ClientConfig, EgressPolicy};

/// A service that answers under a model's name.
#[derive(Clone)]
pub struct UpstreamConfig {
    /// As clients, prices and records call it.
    pub name: String,
    /// Up to what stands before `/chat/completions`, `/embeddings` or `/rerank`:
    /// `https://dashscope.aliyuncs.com/compatible-mode/v1`.
    pub base_url: String,
    /// What the service calls the model.
    pub model: String,
    /// What it does.
    pub task: UpstreamTask,
    /// Sent as `authorization: Bearer …`.
    pub api_key: Option<ApiKey>,
    /// What the service takes beyond OpenAI's own parameters.
    pub flavour: Flavour,
    /// Tokens of prompt and answer together; of vectors, of each input, with the query where both are read together.
    pub context_length: u32,
    /// Tokens of an answer where the client sets no limit, and the most it may ask for; `None`: the context.
    pub max_output_tokens: Option<u32>,
    /// The service knows the limit of an answer as `max_completion_tokens`, not as `max_tokens`.
    pub max_completion_tokens: bool,
    /// Counts where the service does not, and for what only tokens can answer.
    pub tokenizer: Option<Arc<TextModel>>,
    /// It may stand at an address of this machine or of a network inside, and be reached without TLS.
    pub allow_private_address: bool,
    /// Authorities whose certificates it may have beside those that this machine trusts.
    pub ca: CaCertificates,
    /// To open a connection: name, TCP and TLS.
    pub connect_timeout: Duration,
    /// Connections to it that are kept open for the next request.
    pub max_idle_connections: usize,
    /// From sending the request to the first event of the answer.
    pub first_event_timeout: Duration,
    /// Between two events.
    pub idle_timeout: Duration,
    /// Attempts after the first, before anything of an answer came.
    pub max_retries: u32,
    /// So many failures in a row open its circuit breaker.
    pub breaker_failures: u32,
    /// How long it is left alone then; longer each time a trial fails.
    pub breaker_pause: Duration,
    /// Requests to it at once, those included that are read to their end for nobody.
    pub max_in_flight: usize,
    /// What becomes of an answer that nobody waits for any more.
    pub on_disconnect: OnDisconnect,
    /// When it was set up, in seconds since 1970.
    pub created_unix: u64,
}

impl UpstreamConfig {
    /// With the usual bounds.
    #[must_use]
    pub fn new(name: &str, base_url: &str, model: &str, context_length: u32) -> Self {
        Self {
            name: name.to_owned(),
            base_url: base_url.to_owned(),
            model: model.to_owned(),
            task: UpstreamTask::default(),
            api_key: None,
            flavour: Flavour::Openai,
            context_length,
            max_output_tokens: None,
            max_completion_tokens: false,
            tokenizer: None,
            allow_private_address: false,
            ca: CaCertificates::default(),
            connect_timeout: Duration::from_secs(5),
            max_idle_connections: 32,
            first_event_timeout: Duration::from_secs(60),
            idle_timeout: Duration::from_secs(30),
            max_retries: 2,
            breaker_failures: 5,
            breaker_pause: Duration::from_secs(10),
            max_in_flight: 256,
            on_disconnect: OnDisconnect::default(),
            created_unix: 0,
        }
    }

    /// Only its own host, and inside only where that is allowed.
    pub(super) fn egress(&self) -> EgressPolicy {
        let uri: Option<Uri> = self.base_url.parse().ok();
        let host = uri.as_ref().and_then(Uri::host).unwrap_or_default().to_ascii_lowercase();
        EgressPolicy {
            allow_hosts: vec![host],
            allow_private_addresses: self.allow_private_address,
        }
    }

    pub(super) fn client(&self) -> ClientConfig {
        ClientConfig {
            connect_timeout: self.connect_timeout,
            max_idle_connections: self.max_idle_connections,
            ca: self.ca.clone(),
        }
    }

    pub(super) fn breaker(&self) -> BreakerPolicy {
        let pause_ms = u64::try_from(self.breaker_pause.as_millis()).unwrap_or(u64::MAX);
        BreakerPolicy { failures: self.breaker_failures.max(1), pause_ms }
    }
}

impl std::fmt::Debug for UpstreamConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("UpstreamConfig")
            .field("name", &self.name)
            .field("base_url", &self.base_url)
            .field("model", &self.model)
            .finish_non_exhaustive()
    }
}

/// A service's key: shown to nobody.
#[derive(Clone)]
pub struct ApiKey(HeaderValue);

impl ApiKey {
    /// # Errors
    /// It is empty, or no text that a header can hold. The error does not repeat it.
    pub fn new(key: &str) -> Result<Self, String> {
        let key = key.trim();
        if key.is_empty() {
            return Err("the key is empty".to_owned());
        }
        let mut value = HeaderValue::from_str(&format!("Bearer {key}"))
            .map_err(|_| "the key holds characters that no header can".to_owned())?;
        value.set_sensitive(true);
        Ok(Self(value))
    }

    pub(super) fn header(&self) -> HeaderValue {
        self.0.clone()
    }

    /// Takes it out of a text that may repeat it.
    pub(super) fn hide_in(&self, text: &mut String) {
        let key = self.0.to_str().unwrap_or_default().trim_start_matches("Bearer ");
        if !key.is_empty() && text.contains(key) {
            *text = text.replace(key, "…");
        }
    }
}

impl std::fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ApiKey")
    }
}

/// What a service does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum UpstreamTask {
    /// It answers chats and completions.
    #[default]
    Generate,
    /// It makes embeddings.
    Embed,
    /// It scores documents.
    Rerank,
}

/// What a service takes beyond OpenAI's own parameters. A request that needs more is refused, by the parameter's name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Flavour {
    /// Nothing.
    #[default]
    Openai,
    /// Model Studio: `top_k`, `repetition_penalty`, `enable_thinking`, `thinking_budget`, `partial`.
    Dashscope,
    /// vLLM: `top_k`, `min_p`, `repetition_penalty`, `stop_token_ids`, `ignore_eos`, `guided_*`, `enable_thinking` in
    /// `chat_template_kwargs`.
    Vllm,
    /// Another Mintage: all of these.
    Mintage,
}

/// What becomes of an answer that nobody waits for any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnDisconnect {
    /// It is read on for so long, because only its end tells what it cost; then cancelled.
    Drain(Duration),
    /// The connection is closed at once, and what came is counted here.
    Cancel,
}

impl Default for OnDisconnect {
    fn default() -> Self {
        Self::Drain(Duration::from_secs(60))
    }
}

/// Why a service cannot be set up.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UpstreamError {
    /// Its address is none that requests may go to.
    #[error("the upstream `{name}`: `base_url`: {why}")]
    Url {
        /// Of the service.
        name: String,
        /// In words.
        why: String,
    },
    /// A number that cannot be.
    #[error("the upstream `{name}`: `{field}` must be at least 1")]
    Zero {
        /// Of the service.
        name: String,
        /// Of the setting.
        field: &'static str,
    },
    /// This machine cannot check certificates.
    #[error("the upstream `{name}`: {why}")]
    Tls {
        /// Of the service.
        name: String,
        /// In words.
        why: String,
    },
}
