//! From a parsed request to running choices: find who answers, check the context, submit every choice to an engine, or
//! the whole to another service.
//!
//! Not here: text to tokens (the endpoints' business) and the wire format.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::Request;
use axum::http::{HeaderMap, header};
use futures_util::StreamExt;
use futures_util::stream::{BoxStream, SelectAll};
use mintage_ledger::limits::Standings;
use mintage_ledger::{KeptAnswer, TokenUsage};
use mintage_model::{
    GenerateRequest, Grammar, Priority, SubmitError, Thinking, TokenId, VectorTask,
};
use tokio::sync::{oneshot, watch};

use crate::answer::{Calls, Choice, ChoiceOptions, Part};
use crate::app::{Admission, App, Phase};
use crate::auth::Caller;
use crate::batch::BatchLine;
use crate::body::read_json;
use crate::chat::Route;
use crate::error::{ApiError, Fault};
use crate::fields::shortened;
use crate::idempotency::Keeping;
use crate::metered::{Meter, RequestFacts, Settling};
use crate::options::{Options, choice_seed};
use crate::request_id::{RequestId, random_hex};
use crate::served::{ModelSet, ServedModel, Target};
use crate::till::{Admitted, Arrival, Settled, unix_ms};
use crate::upstream::{Bounds, Relay};

/// How long a request asks for money and shares of limits that other gateways have.
const COVER_TIMEOUT: Duration = Duration::from_secs(5);
/// Kept of what a client program calls itself.
const MAX_CLIENT_CHARS: usize = 96;

/// A request for tokens before its body was understood.
pub(crate) struct Incoming {
    pub(crate) admission: Admission,
    pub(crate) caller: Caller,
    pub(crate) request_id: String,
    /// The client program as it names itself, for the record.
    pub(crate) client: Arc<str>,
    pub(crate) arrival: Instant,
    pub(crate) body: axum::body::Bytes,
    /// Where the answer is to be kept for repetitions.
    pub(crate) keeping: Option<Keeping>,
    /// The line of a batch that it is.
    pub(crate) line: Option<BatchLine>,
}

impl Incoming {
    /// Lets the request in and reads its body.
    pub(crate) async fn read(app: &App, request: Request) -> Result<Self, ApiError> {
        let arrival = Instant::now();
        let (parts, body) = request.into_parts();
        let line = parts.extensions.get::<BatchLine>().cloned();
        let admission = if line.is_some() { Admission::of_batch() } else { app.admit()? };
        // The auth layer put it there; without it nothing runs.
        let caller = parts
            .extensions
            .get::<Caller>()
            .cloned()
            .ok_or_else(|| ApiError::internal("a protected handler ran without a caller"))?;
        let request_id = parts.extensions.get::<RequestId>().map(|id| id.0.clone());
        let limits = &app.limits;
        let body =
            read_json(&parts.headers, body, limits.max_body_bytes, limits.body_timeout).await?;
        let request_id = request_id.unwrap_or_default();
        let client = client_name(&parts.headers);
        let keeping = parts.extensions.get::<Keeping>().cloned();
        Ok(Self { admission, caller, request_id, client, arrival, body, keeping, line })
    }
}

/// The header `user-agent` in harmless characters, cut to [`MAX_CLIENT_CHARS`]; empty where there is none.
fn client_name(headers: &HeaderMap) -> Arc<str> {
    let Some(value) = headers.get(header::USER_AGENT) else { return Arc::default() };
    let harmless = |byte: &u8| match byte {
        b' '..=b'~' => char::from(*byte),
        _ => '?',
    };
    value.as_bytes().iter().take(MAX_CLIENT_CHARS).map(harmless).collect::<String>().into()
}

/// The model of ours with this name: for what needs an engine or its tokenizer.
pub(crate) fn find_model(models: &ModelSet, name: &str) -> Result<Arc<ServedModel>, ApiError> {
    match models.get(name) {
        Some(model) => Ok(Arc::clone(model)),
        None => Err(no_tokens(models, name)),
    }
}

/// Why nothing of this name says tokens here.
fn no_tokens(models: &ModelSet, name: &str) -> ApiError {
    let what = match models.vector_task(name) {
        Some(VectorTask::Embed) => {
            "makes embeddings and says nothing; ask it through `/v1/embeddings`"
        }
        Some(VectorTask::Rerank) => "scores documents; ask it through `/v1/rerank`",
        None if models.knows(name) => return not_here(name),
        None => return no_model(name),
    };
    let message = format!("The model `{}` {what}.", shortened(name));
    ApiError::field("model", "unsupported_model", message)
}

/// Nothing answers to the name.
pub(crate) fn no_model(name: &str) -> ApiError {
    let message = format!("The model `{}` does not exist.", shortened(name));
    let error = ApiError::new(Fault::NotFound, "model_not_found", message);
    ApiError { param: Some("model".to_owned()), ..error }
}

/// What only a model of ours can do.
pub(crate) fn not_here(name: &str) -> ApiError {
    let name = shortened(name);
    let message =
        format!("`model`: another service answers for `{name}`, so its tokens are not known here.");
    ApiError::field("model", "unsupported_model", message)
}

/// Who answers to a name: the first of them, and those that stand in for it.
pub(crate) fn find_targets(
    models: &ModelSet,
    name: &str,
    id: &str,
) -> Result<(Target, Vec<Target>), ApiError> {
    let mut targets = models.targets(name, id);
    if targets.is_empty() {
        return Err(no_tokens(models, name));
    }
    let first = targets.remove(0);
    Ok((first, targets))
}

/// Makes the same job for another target. The last ones are those that stand in for it in turn.
type Again = dyn Fn(&App, Target, Vec<Target>) -> Result<Job, ApiError> + Send + Sync;

/// Who may answer where a target cannot.
pub(crate) struct Elsewhere {
    pub(crate) targets: Vec<Target>,
    pub(crate) again: Arc<Again>,
}

/// What is to be computed.
pub(crate) struct Job {
    /// Of the answer, as the client sees it.
    pub(crate) id: String,
    /// As the client named the model.
    pub(crate) asked: String,
    pub(crate) target: Target,
    /// Where another target may answer instead.
    pub(crate) elsewhere: Option<Elsewhere>,
    /// What another service is asked; `None` of models of ours.
    pub(crate) relay: Option<Relay>,
    /// Empty where another service reads them. Each continued `options.n` times.
    pub(crate) prompts: Vec<Arc<[TokenId]>>,
    /// Tokens that end a choice.
    pub(crate) stop_token_ids: Arc<[TokenId]>,
    /// `None`: as many as fit.
    pub(crate) max_tokens: Option<u32>,
    /// For refusals.
    pub(crate) max_tokens_field: &'static str,
    /// What a choice must look like.
    pub(crate) grammar: Option<Arc<dyn Grammar>>,
    /// The calls to look for in the answer.
    pub(crate) calls: Option<Calls>,
    /// What tells thinking from the answer, where the model may think.
    pub(crate) thinking: Option<Thinking>,
    pub(crate) logprobs: Option<u8>,
    pub(crate) prompt_logprobs: Option<u8>,
    pub(crate) options: Options,
    /// The answer is sent as it grows.
    pub(crate) stream: bool,
    /// Dialect and route, for the record.
    pub(crate) protocol: &'static str,
}

impl Job {
    /// The tokens that end a choice: the model's, unless ignored, and the request's.
    pub(crate) fn stop_tokens(
        model: &ServedModel,
        options: &Options,
    ) -> Result<Arc<[TokenId]>, ApiError> {
        let mut ids = options.stop_token_ids.clone();
        // Checked here, where the request's own order still holds.
        let vocab_size = model.engine.info().vocab_size;
        if let Some((i, id)) = ids.iter().enumerate().find(|(_, id)| **id >= vocab_size) {
            let name = format!("stop_token_ids[{i}]");
            let message = format!("`{name}` must be below {vocab_size}, not {id}.");
            return Err(ApiError::field(name, "invalid_value", message));
        }
        if !options.ignore_eos {
            ids.extend(&model.defaults.eos);
            ids.extend(model.text.end_of_turn_ids().iter());
        }
        ids.sort_unstable();
        ids.dedup();
        Ok(ids.into())
    }

    /// One that another service answers: what only an engine needs is empty.
    pub(crate) fn relayed(id: String, asked: &str, relay: Relay, route: Route) -> Self {
        Self {
            id,
            asked: asked.to_owned(),
            target: Target::Remote(Arc::clone(&relay.remote)),
            elsewhere: None,
            relay: Some(relay),
            prompts: Vec::new(),
            stop_token_ids: Arc::from([]),
            max_tokens: None,
            max_tokens_field: "max_tokens",
            grammar: None,
            calls: None,
            thinking: None,
            logprobs: None,
            prompt_logprobs: None,
            options: Options::default(),
            stream: false,
            protocol: route.protocol,
        }
    }

    /// The name that answers, prices and records know.
    pub(crate) fn model_name(&self) -> &str {
        self.target.name()
    }

    /// Choices of all prompts.
    pub(crate) fn choices(&self) -> u32 {
        let own = || u32::try_from(self.prompts.len()).unwrap_or(u32::MAX);
        match &self.relay {
            Some(relay) => relay.ask.choices,
            None => own().saturating_mul(self.options.n),
        }
    }

    fn own(&self) -> Result<&Arc<ServedModel>, ApiError> {
        match &self.target {
            Target::Own(model) => Ok(model),
            Target::Remote(_) => Err(ApiError::internal("a service has no engine")),
        }
    }

    /// The same job for the next target, where this one's failure is no reason to give up.
    pub(crate) fn next(&mut self, app: &App, error: &ApiError) -> Option<Result<Job, ApiError>> {
        if !error.may_do_elsewhere() {
            return None;
        }
        let Elsewhere { mut targets, again } = self.elsewhere.take()?;
        let next = (!targets.is_empty()).then(|| targets.remove(0))?;
        tracing::info!(
            from = self.model_name(),
            to = next.name(),
            why = error.code,
            "answered elsewhere"
        );
        Some(again(app, next, targets))
    }

    /// How many tokens may follow a prompt of this length.
    fn max_new_tokens(&self, app: &App, prompt_tokens: usize) -> Result<u32, ApiError> {
        let context_length = self.own()?.engine.info().context_length;
        let prompt_tokens = u32::try_from(prompt_tokens).unwrap_or(u32::MAX);
        let room = context_length.saturating_sub(prompt_tokens);
        let cap = app.limits.max_output_tokens.unwrap_or(u32::MAX);
        match self.max_tokens {
            Some(0) if prompt_tokens <= context_length => Ok(0),
            Some(asked) if asked > cap => {
                let field = self.max_tokens_field;
                let message = format!("`{field}` is limited to {cap} by the server, not {asked}.");
                Err(ApiError::field(field, "invalid_value", message))
            }
            Some(asked) if asked <= room => Ok(asked),
            Some(asked) => {
                let param = Some(self.max_tokens_field);
                Err(ApiError::context(param, prompt_tokens, Some(asked), context_length))
            }
            None if room == 0 => Err(ApiError::context(None, prompt_tokens, None, context_length)),
            None => Ok(room.min(cap)),
        }
    }

    /// The most tokens that all choices can use, prompts included.
    fn most_tokens(&self, app: &App) -> u64 {
        if let Some(relay) = &self.relay {
            return relay.bounds.prompt.saturating_add(relay.bounds.all_output());
        }
        let most = |prompt: &Arc<[TokenId]>| {
            // A prompt that does not fit is refused when it is submitted.
            let output = self.max_new_tokens(app, prompt.len()).unwrap_or(0);
            prompt.len() as u64 + u64::from(output) * u64::from(self.options.n)
        };
        self.prompts.iter().map(most).sum()
    }

    /// Submits, again whenever the money or the share of a limit that is missing came in from other gateways.
    pub(crate) async fn submit_covered(
        &self,
        app: &App,
        incoming: &Incoming,
    ) -> Result<Choices, ApiError> {
        let submit = || self.submit(app, incoming);
        let most = self.most_tokens(app);
        let mut choices = covered(app, incoming, self.model_name(), most, submit).await?;
        choices.opened().await?;
        Ok(choices)
    }

    fn submit(&self, app: &App, incoming: &Incoming) -> Result<Choices, ApiError> {
        match &self.relay {
            Some(relay) => self.submit_remote(app, incoming, relay),
            None => self.submit_own(app, incoming),
        }
    }

    /// Hands the request to another service; whether that answers shows later.
    fn submit_remote(
        &self,
        app: &App,
        incoming: &Incoming,
        relay: &Relay,
    ) -> Result<Choices, ApiError> {
        let Bounds { prompt, output, .. } = relay.bounds;
        let admitted = self.admit(app, incoming, prompt, output)?;
        let (standings, meter) = self.meter(app, incoming, admitted)?;
        let limit = app.limits.request_timeout;
        let deadline = deadline(app, incoming);
        let (opening, relaying) = relay.clone().start(&meter, deadline, limit.as_secs());
        let ending = Ending::new(app, incoming);
        Ok(Choices { all: relaying.boxed(), opening: Some(opening), meter, standings, ending })
    }

    fn meter(
        &self,
        app: &App,
        incoming: &Incoming,
        admitted: Admitted,
    ) -> Result<(Standings, Meter), ApiError> {
        let metrics = app.metrics.of(self.model_name());
        let metrics = metrics.ok_or_else(|| ApiError::internal("a model without metrics"))?;
        let facts = RequestFacts {
            request_id: incoming.request_id.clone(),
            response_id: self.id.clone(),
            principal: Arc::clone(&incoming.caller.principal),
            model: self.model_name().to_owned(),
            arrival: incoming.arrival,
            streamed: self.stream,
            batch: incoming.line.is_some(),
            n: self.options.n,
        };
        let standings = admitted.standings;
        Ok((standings, Meter::new(facts, admitted, metrics, app.settling.clone())))
    }

    /// Submits all choices; if one is refused, those already taken are cancelled (and settled) by being dropped.
    fn submit_own(&self, app: &App, incoming: &Incoming) -> Result<Choices, ApiError> {
        let model = self.own()?;
        let limits: Vec<u32> = self
            .prompts
            .iter()
            .map(|prompt| self.max_new_tokens(app, prompt.len()))
            .collect::<Result<_, _>>()?;
        let prompt_tokens = self.prompts.iter().map(|prompt| prompt.len() as u64).sum();
        let most = limits.iter().copied().max().unwrap_or(0);
        let admitted = self.admit(app, incoming, prompt_tokens, most)?;
        let (standings, meter) = self.meter(app, incoming, admitted)?;
        let options = ChoiceOptions {
            stops: self.options.stops.clone(),
            stop_token_ids: Arc::clone(&self.stop_token_ids),
            wants_entries: self.logprobs.is_some() || self.options.return_token_ids,
            request_timeout_s: app.limits.request_timeout.as_secs(),
            calls: self.calls.clone(),
            thinking: self.thinking,
        };
        let base = self.base_request(app, incoming, model)?;
        let mut all = SelectAll::new();
        let mut index = 0;
        for (prompt, max_new_tokens) in self.prompts.iter().zip(limits) {
            for _ in 0..self.options.n {
                let mut request = base.clone();
                request.request_id = format!("{}-{index}", self.id);
                request.prompt = Arc::clone(prompt);
                request.max_new_tokens = max_new_tokens;
                request.sampling.seed = choice_seed(base.sampling.seed, index);
                let engine = model.engine.as_ref();
                let events =
                    meter.submit(engine, index, request, self.thinking).map_err(|error| {
                        meter.forgive();
                        if matches!(error, SubmitError::QueueFull { .. }) {
                            app.metrics.refused("queue_full");
                        }
                        ApiError::refused(error)
                    })?;
                let text_model = Arc::clone(&model.text);
                all.push(Choice::new(index, text_model, events, options.clone()));
                index += 1;
            }
        }
        let ending = Ending::new(app, incoming);
        Ok(Choices { all: all.boxed(), opening: None, meter, standings, ending })
    }

    /// Limits, budgets and money let the request in, or say why not.
    fn admit(
        &self,
        app: &App,
        incoming: &Incoming,
        prompt_tokens: u64,
        max_output_tokens: u32,
    ) -> Result<Admitted, ApiError> {
        let name = self.model_name();
        let arrival = Arrival {
            response_id: self.id.as_str().into(),
            model: name.into(),
            model_digest: Arc::clone(self.target.digest()),
            metered_by: self.target.metered_by(),
            protocol: self.protocol,
            client: Arc::clone(&incoming.client),
            prompt_tokens,
            max_output_tokens: max_output_tokens.into(),
            choices: self.choices(),
            batch: incoming.line.is_some(),
        };
        admit(app, incoming, &self.asked, &arrival)
    }

    /// What all choices share.
    fn base_request(
        &self,
        app: &App,
        incoming: &Incoming,
        model: &ServedModel,
    ) -> Result<GenerateRequest, ApiError> {
        let mut random = [0; 8];
        getrandom::fill(&mut random)
            .map_err(|e| ApiError::internal(format!("no random numbers: {e}")))?;
        let random = u64::from_le_bytes(random);
        Ok(GenerateRequest {
            sampling: self.options.sampling(&model.defaults, random),
            stop_token_ids: Arc::clone(&self.stop_token_ids),
            grammar: self.grammar.clone(),
            prediction: Arc::clone(&self.options.prediction),
            logprobs: self.logprobs,
            prompt_logprobs: self.prompt_logprobs,
            ..base_request(app, incoming)
        })
    }
}

/// When a request must be over.
pub(crate) fn deadline(app: &App, incoming: &Incoming) -> Instant {
    match &incoming.line {
        Some(line) => line.deadline,
        None => incoming.arrival + app.limits.request_timeout,
    }
}

/// Who asks, and how urgent it is; the rest is for who fills it in.
pub(crate) fn base_request(app: &App, incoming: &Incoming) -> GenerateRequest {
    GenerateRequest {
        cache_domain: app.gateway.cache_domain(incoming.caller.project()),
        tenant: app.gateway.fair_share(&incoming.caller.principal.organisation),
        weight: incoming.caller.principal.weight,
        priority: if incoming.line.is_some() { Priority::Batch } else { Priority::Online },
        deadline: Some(deadline(app, incoming)),
        ..GenerateRequest::default()
    }
}

/// A key may be made for some models only. `asked`: as the client named the model.
pub(crate) fn check_model_scope(caller: &Caller, asked: &str, name: &str) -> Result<(), ApiError> {
    let scopes = &caller.principal.scopes;
    if scopes.allows_model(name) || scopes.allows_model(asked) {
        return Ok(());
    }
    let message = format!("This key is not made for the model `{name}`.");
    let error = ApiError::new(Fault::Forbidden, "insufficient_scope", message);
    Err(ApiError { param: Some("model".to_owned()), ..error })
}

/// Limits, budgets and money let the request in, or say why not. `asked`: as the client named the model.
pub(crate) fn admit(
    app: &App,
    incoming: &Incoming,
    asked: &str,
    arrival: &Arrival,
) -> Result<Admitted, ApiError> {
    let principal = &incoming.caller.principal;
    check_model_scope(&incoming.caller, asked, &arrival.model)?;
    app.till.admit(principal, arrival).inspect_err(|error| {
        app.metrics.refused(match error.fault {
            Fault::Payment => "payment",
            Fault::RateLimited => "rate_limit",
            _ => "ledger",
        });
    })
}

/// Submits, again whenever the money or the share of a limit that is missing came in from other gateways. `tokens`: the
/// most that it can use.
pub(crate) async fn covered<T>(
    app: &App,
    incoming: &Incoming,
    model: &str,
    tokens: u64,
    submit: impl Fn() -> Result<T, ApiError>,
) -> Result<T, ApiError> {
    let principal = &incoming.caller.principal;
    if app.till.is_shared() {
        app.till.prepare(principal, model, tokens).await;
    }
    let end = Instant::now() + COVER_TIMEOUT;
    loop {
        match submit() {
            Err(mut error) => {
                let is_covered = app.till.cover(principal, &mut error).await;
                if !is_covered || Instant::now() > end {
                    return Err(error);
                }
            }
            submitted => return submitted,
        }
    }
}

/// The running choices of one request, as one stream of parts.
pub(crate) struct Choices {
    all: BoxStream<'static, Result<(u32, Part), ApiError>>,
    /// Whether another service answers; `None` once it does, and of models of ours.
    opening: Option<oneshot::Receiver<Result<(), ApiError>>>,
    meter: Meter,
    /// How the tightest limits stood when the request was let in.
    pub(crate) standings: Standings,
    ending: Ending,
}

/// What ends a request that still runs.
#[derive(Clone)]
pub(crate) struct Ending {
    phase: watch::Receiver<Phase>,
    line: Option<BatchLine>,
}

impl Ending {
    pub(crate) fn new(app: &App, incoming: &Incoming) -> Self {
        Self { phase: app.phase.subscribe(), line: incoming.line.clone() }
    }

    /// Why it must end, once it must.
    pub(crate) async fn reached(self) -> ApiError {
        match self.line {
            // A line of a batch waits for nobody: it is computed again.
            Some(line) => line.stopped().await,
            None => {
                App::ending(self.phase).await;
                ApiError::shutting_down()
            }
        }
    }
}

impl Choices {
    /// Resolves once an answer has begun, or with why it did not.
    async fn opened(&mut self) -> Result<(), ApiError> {
        let Some(opening) = self.opening.take() else { return Ok(()) };
        tokio::select! {
            biased;
            // A task that is gone without a word went with the server.
            opened = opening => opened.unwrap_or_else(|_| Err(ApiError::shutting_down())),
            error = self.ending.clone().reached() => {
                // What comes after all is nobody's, and may be computed and billed again.
                self.forgive();
                Err(error)
            }
        }
    }

    /// The next part of any choice; `None` after all have ended; an error when a choice broke or the server must end the
    /// request. Dropping the future loses nothing.
    pub(crate) async fn next(&mut self) -> Option<Result<(u32, Part), ApiError>> {
        tokio::select! {
            biased;
            part = self.all.next() => part,
            error = self.ending.clone().reached() => Some(Err(error)),
        }
    }

    /// What the choices used so far: the prompt once it is computed, and the tokens that were read.
    pub(crate) fn so_far(&self) -> TokenUsage {
        self.meter.so_far()
    }

    /// Posts what the choices used, once all have ended.
    pub(crate) fn settle(
        &self,
        answer: impl FnOnce(&Settled) -> Result<Option<KeptAnswer>, ApiError>,
    ) -> Result<Settling, ApiError> {
        self.meter.settle(answer)
    }

    /// The client gets an error instead of an answer: it costs nothing.
    pub(crate) fn forgive(&self) {
        self.meter.forgive();
    }
}

/// `chatcmpl-…`, `cmpl-…`: unique, whatever request id the client chose; later ones are greater, which keeps an index
/// over them small.
pub(crate) fn response_id(prefix: &str) -> String {
    format!("{prefix}{:012x}{}", unix_ms(), random_hex())
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    #[test]
    fn what_clients_call_themselves_is_kept_harmless_and_short() {
        for (given, kept) in [
            (None, String::new()),
            (Some("openai-python/2.8"), "openai-python/2.8".to_owned()),
            (Some("a\tb\u{e9}c"), "a?b??c".to_owned()),
            (Some(&*"x".repeat(300)), "x".repeat(MAX_CLIENT_CHARS)),
        ] {
            let mut headers = HeaderMap::new();
            if let Some(given) = given {
                let value = HeaderValue::from_bytes(given.as_bytes()).unwrap();
                headers.insert(header::USER_AGENT, value);
            }
            assert_eq!(&*client_name(&headers), kept);
        }
    }
}
