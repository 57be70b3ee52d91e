//! What all handlers share, and the table of routes.
//!
//! Invariant: everything that tells of models or computes passes `auth::layer`; what is public is listed by name.

use std::sync::Arc;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::middleware::{from_fn, from_fn_with_state};
use axum::routing::{get, post};
use mintage_ledger::Principal;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, watch};
use tokio_util::task::TaskTracker;

use crate::admin::{self, Office};
use crate::auth::{self, Access};
use crate::config::Limits;
use crate::error::{ApiError, Fault};
use crate::gateway::Gateway;
use crate::metrics::Metrics;
use crate::served::ModelSet;
use crate::storage::Storage;
use crate::till::Till;
use crate::webhooks::WebhookPolicy;
use crate::{anthropic, dashscope, health, idempotency, models, ollama, openai, request_id};

/// Where the server stands in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    /// Requests are welcome.
    Serving,
    /// Running requests go on, new ones are refused.
    Draining,
    /// Running requests end with an error.
    Ending,
}

/// Where Model Studio has the dialects of OpenAI and of Anthropic.
pub(crate) const PREFIXES: [&str; 2] = ["/compatible-mode", "/apps/anthropic"];

/// A body of this size is parsed, rendered and tokenised in less time than a change of threads and back may take.
const INLINE_TEXT_BYTES: usize = 2048;

/// Files that come in at once.
const MAX_UPLOADS: usize = 16;

/// What all handlers share.
pub(crate) struct App {
    pub(crate) limits: Limits,
    pub(crate) access: Access,
    /// On whose behalf requests without a key run, where none is needed.
    pub(crate) local: Arc<Principal>,
    pub(crate) models: ModelSet,
    pub(crate) gateway: Gateway,
    pub(crate) till: Till,
    /// Administration; `None` where there are no keys, so no tenants.
    pub(crate) office: Option<Arc<Office>>,
    pub(crate) metrics: Arc<Metrics>,
    /// Files and batches, where a folder is given for them.
    pub(crate) storage: Option<Arc<Storage>>,
    /// Responses that run in the background.
    pub(crate) background: openai::Background,
    /// Tasks that wait, or run.
    pub(crate) tasks: dashscope::Tasks,
    /// A batch came in, or was cancelled.
    pub(crate) batches_changed: Notify,
    /// Places for files that are coming in.
    pub(crate) uploads: Arc<Semaphore>,
    /// Streams that nobody reads any more and whose usage is still to come.
    pub(crate) settling: TaskTracker,
    pub(crate) phase: watch::Sender<Phase>,
    requests: Arc<Semaphore>,
    text: Arc<Semaphore>,
}

/// A place among the running requests; leaving it makes room.
pub(crate) struct Admission(
    #[expect(dead_code, reason = "held for its drop")] Option<OwnedSemaphorePermit>,
);

impl Admission {
    /// Lines of batches take no place of a request that somebody waits for; who runs them bounds them.
    pub(crate) fn of_batch() -> Self {
        Self(None)
    }
}

impl App {
    pub(crate) fn new(
        limits: Limits,
        access: Access,
        models: ModelSet,
        gateway: Gateway,
        till: Till,
        webhooks: WebhookPolicy,
        storage: Option<Storage>,
    ) -> Self {
        let metrics = Arc::new(Metrics::new(&models));
        let office = match &access {
            Access::Keys(keys) => {
                Some(Arc::new(Office::new(Arc::clone(keys), till.books(webhooks))))
            }
            Access::Open => None,
        };
        Self {
            local: Arc::new(Principal::unlimited("org-default", "proj_default", "none")),
            access,
            gateway,
            till,
            office,
            metrics,
            storage: storage.map(Arc::new),
            background: openai::Background::default(),
            tasks: dashscope::Tasks::default(),
            batches_changed: Notify::new(),
            uploads: Arc::new(Semaphore::new(MAX_UPLOADS)),
            settling: TaskTracker::new(),
            phase: watch::Sender::new(Phase::Serving),
            requests: Arc::new(Semaphore::new(limits.max_concurrent_requests)),
            text: Arc::new(Semaphore::new(limits.text_threads.max(1))),
            models,
            limits,
        }
    }

    pub(crate) fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    /// Whether a model answers to this name.
    pub(crate) fn serves(&self, name: &str) -> bool {
        self.models.knows(name)
    }

    /// Requests that hold an [`Admission`].
    pub(crate) fn requests_in_flight(&self) -> usize {
        self.limits.max_concurrent_requests.saturating_sub(self.requests.available_permits())
    }

    /// Lets a request in, before its body is read.
    pub(crate) fn admit(&self) -> Result<Admission, ApiError> {
        if self.phase() != Phase::Serving {
            self.metrics.refused("shutting_down");
            return Err(ApiError::shutting_down());
        }
        let permit = Arc::clone(&self.requests).try_acquire_owned().map_err(|_| {
            self.metrics.refused("concurrency");
            let limit = self.limits.max_concurrent_requests;
            let message = format!(
                "The server is overloaded: {limit} requests are running, the limit is {limit}. Please try again."
            );
            ApiError::new(Fault::Overloaded, "overloaded", message)
        })?;
        Ok(Admission(Some(permit)))
    }

    /// Runs work on text (parsing, templates, tokenising) away from the threads that serve sockets, a bounded number
    /// at a time. The work goes on when the client goes away, so it holds its place itself. A short body is quicker done
    /// than handed over.
    pub(crate) async fn on_text_thread<T: Send + 'static>(
        &self,
        bytes: usize,
        work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, ApiError> {
        if bytes <= INLINE_TEXT_BYTES {
            return work();
        }
        let permit = Arc::clone(&self.text).acquire_owned().await;
        let permit = permit.map_err(|e| ApiError::internal(format!("text threads closed: {e}")))?;
        let span = tracing::Span::current();
        let done = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            span.in_scope(work)
        });
        done.await.map_err(|e| ApiError::internal(format!("work on text failed: {e}")))?
    }

    /// Resolves when running requests must end.
    pub(crate) async fn ending(mut phase: watch::Receiver<Phase>) {
        // The sender lives in the same `App`; should it be gone, the server is too.
        let _ = phase.wait_for(|phase| *phase == Phase::Ending).await;
    }
}

/// The table of routes. Under the prefixes that Model Studio has for them stand two dialects once more.
pub(crate) fn router(app: Arc<App>) -> Router {
    let [compatible, for_anthropic] = PREFIXES;
    let public = Router::new()
        .route("/healthz", get(health::healthz))
        .route("/readyz", get(health::readyz))
        // What others call it.
        .route("/health", get(health::readyz))
        .route("/metrics", get(health::metrics))
        .method_not_allowed_fallback(method_not_allowed);
    Router::new()
        .merge(protected(&app, openai_routes()))
        .merge(protected(&app, rerank_routes()))
        .merge(protected(&app, model_routes()).layer(from_fn(models::errors_layer)))
        .merge(protected(&app, anthropic_routes()).layer(from_fn(anthropic::errors_layer)))
        .merge(protected(&app, dashscope_routes()).layer(from_fn(dashscope::errors_layer)))
        .merge(protected(&app, ollama_routes()).layer(from_fn(ollama::errors_layer)))
        .nest(compatible, protected(&app, openai_routes().merge(model_routes())))
        .nest(
            for_anthropic,
            protected(&app, anthropic_routes().merge(model_routes()))
                .layer(from_fn(anthropic::errors_layer)),
        )
        .merge(public)
        .merge(admin::router(&app))
        .fallback(not_found)
        // Bodies are bounded in `body`, with our own message.
        .layer(DefaultBodyLimit::disable())
        .layer(from_fn(request_id::layer))
        .with_state(app)
}

/// Routes that only callers reach.
fn protected(app: &Arc<App>, routes: Router<Arc<App>>) -> Router<Arc<App>> {
    routes
        .method_not_allowed_fallback(method_not_allowed)
        // Inside of authentication: a key for repetitions belongs to a project.
        .route_layer(from_fn_with_state(Arc::clone(app), idempotency::layer))
        .route_layer(from_fn_with_state(Arc::clone(app), auth::layer))
}

fn openai_routes() -> Router<Arc<App>> {
    Router::new()
        .route("/v1/chat/completions", get(openai::list_chats).post(openai::chat))
        .route(
            "/v1/chat/completions/{id}",
            get(openai::get_chat).post(openai::change_chat).delete(openai::delete_chat),
        )
        .route("/v1/chat/completions/{id}/messages", get(openai::list_chat_messages))
        .route("/v1/completions", post(openai::completions))
        .route("/v1/responses", post(openai::create_response))
        .route("/v1/responses/input_tokens", post(openai::count_input))
        .route("/v1/responses/{id}", get(openai::get_response).delete(openai::delete_response))
        .route("/v1/responses/{id}/cancel", post(openai::cancel_response))
        .route("/v1/responses/{id}/input_items", get(openai::list_input_items))
        .route("/v1/embeddings", post(openai::embeddings))
        .route("/v1/generation", get(openai::generation))
        .route("/v1/files", get(openai::list_files).post(openai::create_file))
        .route("/v1/files/{id}", get(openai::get_file).delete(openai::delete_file))
        .route("/v1/files/{id}/content", get(openai::file_content))
        .route("/v1/batches", get(openai::list_batches).post(openai::create_batch))
        .route("/v1/batches/{id}", get(openai::get_batch))
        .route("/v1/batches/{id}/cancel", post(openai::cancel_batch))
        .route("/tokenize", post(openai::tokenize))
        .route("/detokenize", post(openai::detokenize))
        .route("/tokenizer_info", get(openai::tokenizer_info))
}

/// Jina's, Cohere's, and where Model Studio has it.
fn rerank_routes() -> Router<Arc<App>> {
    Router::new()
        .route("/v1/rerank", post(openai::rerank))
        .route("/v2/rerank", post(openai::rerank_v2))
        .route("/compatible-api/v1/reranks", post(openai::rerank))
}

/// What two dialects have at one path.
fn model_routes() -> Router<Arc<App>> {
    Router::new().route("/v1/models", get(models::list)).route("/v1/models/{*id}", get(models::get))
}

fn anthropic_routes() -> Router<Arc<App>> {
    Router::new()
        .route("/v1/messages", post(anthropic::messages))
        .route("/v1/messages/count_tokens", post(anthropic::count_tokens))
}

fn dashscope_routes() -> Router<Arc<App>> {
    Router::new()
        .route("/api/v1/services/aigc/text-generation/generation", post(dashscope::generation))
        .route(
            "/api/v1/services/aigc/multimodal-generation/generation",
            post(dashscope::multimodal_generation),
        )
        .route(
            "/api/v1/services/embeddings/text-embedding/text-embedding",
            post(dashscope::text_embedding),
        )
        .route("/api/v1/services/rerank/text-rerank/text-rerank", post(dashscope::text_rerank))
        .route("/api/v1/tokenizer", post(dashscope::tokenizer))
        .route("/api/v1/models", get(dashscope::list_models))
        .route("/api/v1/tasks", get(dashscope::list_tasks))
        // As it is documented.
        .route("/api/v1/tasks/", get(dashscope::list_tasks))
        .route("/api/v1/tasks/{id}", get(dashscope::get_task))
        .route("/api/v1/tasks/{id}/cancel", post(dashscope::cancel_task))
        .route("/api/v1/files", get(dashscope::list_files).post(dashscope::create_files))
        .route("/api/v1/files/{id}", get(dashscope::get_file).delete(dashscope::delete_file))
}

fn ollama_routes() -> Router<Arc<App>> {
    Router::new()
        .route("/api/chat", post(ollama::chat))
        .route("/api/generate", post(ollama::generate))
        .route("/api/embed", post(ollama::embed))
        .route("/api/embeddings", post(ollama::embeddings))
        .route("/api/tags", get(ollama::tags))
        .route("/api/ps", get(ollama::ps))
        .route("/api/show", post(ollama::show))
        .route("/api/version", get(ollama::version))
}

/// What lines of batches may ask for, without the doors: who asks is known. The same handlers as in [`router`].
pub(crate) fn line_router(app: &Arc<App>) -> Router {
    Router::new()
        .route("/v1/chat/completions", post(openai::chat))
        .route("/v1/completions", post(openai::completions))
        .route("/v1/responses", post(openai::create_response))
        .route("/v1/embeddings", post(openai::embeddings))
        .route_layer(from_fn_with_state(Arc::clone(app), idempotency::layer))
        .fallback(not_found)
        .layer(DefaultBodyLimit::disable())
        .with_state(Arc::clone(app))
}

async fn not_found() -> ApiError {
    ApiError::new(Fault::NotFound, "unknown_url", "Unknown request URL. Please check it for typos.")
}

async fn method_not_allowed() -> ApiError {
    ApiError::new(
        Fault::MethodNotAllowed,
        "method_not_allowed",
        "This URL exists, but not with this method; see the `allow` header.",
    )
}
