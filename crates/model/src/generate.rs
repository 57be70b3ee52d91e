//! What is asked of an engine and what comes back: tokens in, events out. No text, no money, no HTTP.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::grammar::{Grammar, GrammarFault};

/// Index into a model's vocabulary.
pub type TokenId = u32;

/// Salt of the prefix cache: requests share cached pages only within one domain.
///
/// The gateway derives it from the tenant with a server-side key, so that neither a hit nor its timing tells one
/// tenant what another has asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct CacheDomain(pub [u8; 16]);

/// Whether someone is waiting for the answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Priority {
    /// Somebody waits.
    #[default]
    Online,
    /// Work for idle time; never delays online requests, and is preempted first.
    Batch,
}

/// One prompt to continue.
#[derive(Clone, Debug)]
pub struct GenerateRequest {
    /// For logs and traces only.
    pub request_id: String,
    /// The whole prompt, template applied; at least one token.
    pub prompt: Arc<[TokenId]>,
    /// Upper bound of sampled tokens, at least 1 (0 computes the prompt only: for prompt logprobs, or its vector).
    pub max_new_tokens: u32,
    /// How the next token is chosen.
    pub sampling: SamplingParams,
    /// Tokens that end the answer. The ending token is counted and reported in [`FinishReason::Stop`], and is the last
    /// [`Event::Token`].
    pub stop_token_ids: Arc<[TokenId]>,
    /// What the answer must look like. A token that ends it by the grammar ends it like one of `stop_token_ids`.
    pub grammar: Option<Arc<dyn Grammar>>,
    /// Tokens that the answer probably repeats: guesses are made from them, and nothing is changed by them. Empty where
    /// nothing is known.
    pub prediction: Arc<[TokenId]>,
    /// Report the chosen token's log-probability and this many alternatives with each token.
    pub logprobs: Option<u8>,
    /// Report log-probabilities of the prompt's own tokens, with this many alternatives.
    pub prompt_logprobs: Option<u8>,
    /// Whose cached prefixes may be reused, and who may reuse this request's.
    pub cache_domain: CacheDomain,
    /// Whose fair share of the engine this request draws on.
    pub tenant: u64,
    /// How large that share is among those of other tenants, at least 1.
    pub weight: u32,
    /// Online or batch.
    pub priority: Priority,
    /// When the request is dropped unfinished with [`FinishReason::Deadline`].
    pub deadline: Option<Instant>,
}

impl Default for GenerateRequest {
    /// An empty prompt (which every engine refuses) and one token of default sampling: for `..` in literals.
    fn default() -> Self {
        Self {
            request_id: String::new(),
            prompt: Arc::from([]),
            max_new_tokens: 1,
            sampling: SamplingParams::default(),
            stop_token_ids: Arc::from([]),
            grammar: None,
            prediction: Arc::from([]),
            logprobs: None,
            prompt_logprobs: None,
            cache_domain: CacheDomain::default(),
            tenant: 0,
            weight: 1,
            priority: Priority::default(),
            deadline: None,
        }
    }
}

/// How the next token is chosen from the logits. The order of the steps is fixed and documented with the sampler.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingParams {
    /// 0 means greedy: the highest logit, the lowest id among equals.
    pub temperature: f32,
    /// Keep the `top_k` most likely tokens; 0 keeps all.
    pub top_k: u32,
    /// Keep the smallest set whose probability reaches `top_p`; 1 keeps all.
    pub top_p: f32,
    /// Keep tokens at least `min_p` times as likely as the likeliest; 0 keeps all.
    pub min_p: f32,
    /// Locally typical sampling; 1 keeps all.
    pub typical_p: f32,
    /// Divides positive and multiplies negative logits of tokens seen in prompt or output; 1 is off.
    pub repetition_penalty: f32,
    /// Subtracted once for each occurrence of a token in the output.
    pub frequency_penalty: f32,
    /// Subtracted once for each token that occurs in the output.
    pub presence_penalty: f32,
    /// Added to logits.
    pub logit_bias: Vec<(TokenId, f32)>,
    /// Same seed, same prompt, same parameters: same tokens, whoever shares the batch.
    pub seed: u64,
}

impl Default for SamplingParams {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            typical_p: 1.0,
            repetition_penalty: 1.0,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            logit_bias: Vec::new(),
            seed: 0,
        }
    }
}

/// A token and the natural logarithm of its probability.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TokenLogprob {
    /// The token.
    pub id: TokenId,
    /// ln p under the model's own distribution: before temperature, penalties and truncation.
    pub logprob: f32,
}

/// One sampled token.
#[derive(Clone, Debug, PartialEq)]
pub struct SampledToken {
    /// The token.
    pub id: TokenId,
    /// Its log-probability, where asked for.
    pub logprob: Option<f32>,
    /// The likeliest alternatives, best first, where asked for.
    pub top: Vec<TokenLogprob>,
}

/// What an engine reports, in this order: `Prefilled`, any number of `Token`, `Finished`. One that makes vectors says
/// `Vector` in place of tokens.
///
/// A request that ends before its prompt was computed sends only `Finished`.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// The prompt is computed.
    Prefilled {
        /// How many of its tokens came from the prefix cache.
        cached_tokens: u32,
        /// One entry per prompt token where asked for; the first token has no probability, so its `logprob` is `None`.
        prompt_logprobs: Option<Vec<SampledToken>>,
    },
    /// A token was sampled.
    Token(SampledToken),
    /// The prompt's vector: an embedding of length 1, or a score as its only element.
    Vector(Arc<[f32]>),
    /// The last event.
    Finished(Finish),
}

/// How a request ended and what it cost.
#[derive(Clone, Debug, PartialEq)]
pub struct Finish {
    /// Why it ended.
    pub reason: FinishReason,
    /// The one count of its tokens: everything billed derives from this.
    pub usage: Usage,
    /// When things happened.
    pub timings: Timings,
}

/// Why a request ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// One of its `stop_token_ids` was sampled, or a token that its grammar ends with.
    Stop(TokenId),
    /// `max_new_tokens` were sampled, or the context is full.
    Length,
    /// The caller cancelled or dropped the stream.
    Cancelled,
    /// Its deadline passed.
    Deadline,
    /// The engine failed; the request may be retried.
    Fault(EngineFault),
}

/// A failure that ended a request.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EngineFault {
    /// The engine stopped while the request ran.
    #[error("the engine shut down before the request finished")]
    ShutDown,
    /// The answer could not follow its grammar any further; retrying will not help.
    #[error(transparent)]
    Grammar(GrammarFault),
    /// An invariant did not hold. The text is for the log, not for the client.
    #[error("internal engine error: {0}")]
    Internal(String),
}

/// Tokens of one request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Tokens of the prompt, cached ones included.
    pub prompt_tokens: u32,
    /// Of those, tokens whose computation the prefix cache saved.
    pub cached_tokens: u32,
    /// Tokens sampled and committed; rejected drafts, recomputation after preemption and retries are not counted.
    pub output_tokens: u32,
}

/// Durations measured on the monotonic clock, from submission.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timings {
    /// Until the first step that computed something for the request.
    pub queued: Duration,
    /// Until the first token was sampled; `None` where none was.
    pub first_token: Option<Duration>,
    /// Until the end.
    pub total: Duration,
}
