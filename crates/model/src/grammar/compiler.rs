//! From what is asked to a grammar that an engine can follow, within bounds of size, time and memory.
//!
//! It blocks: never on an engine's thread, nor on one that serves others. What runs past its time is abandoned on a
//! thread of its own, of which there are only so many; llguidance's own limits end it.

use std::sync::mpsc;
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use llguidance::api::{GrammarInit, ParserLimits, TopLevelGrammar};
use llguidance::earley::SlicedBiasComputer;
use llguidance::toktrie::InferenceCapabilities;
use llguidance::{Logger, Matcher, ParserFactory};

use super::cache::GrammarCache;
use super::composed::Composer;
use super::state::{Compiled, first_line, is_limit};
use super::thinking::AfterThinking;
use super::vocabulary::{Vocabulary, end_tokens};
use super::{Grammar, GrammarError, GrammarSpec, gbnf, schema};
use crate::TokenId;
use crate::text_model::TextModel;
use crate::thinking::Thinking;

/// Stack of a compiling thread: schemas nest, and are compiled by recursion. Reserved, not used, until needed.
const STACK_BYTES: usize = 64 << 20;
/// States of one answer's lexer, about 2 kB each.
const MAX_LEXER_STATES: usize = 5_000;
/// Symbols in productions.
const MAX_GRAMMAR_SYMBOLS: usize = 100_000;
/// Texts of a choice.
const MAX_CHOICES: usize = 10_000;

/// Bounds of what is compiled and kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GrammarLimits {
    /// Bytes of a grammar as given; a schema's are those of its compact JSON.
    pub max_bytes: usize,
    /// How long compiling may take, with waiting for its turn.
    pub compile_timeout: Duration,
    /// Grammars compiled at once.
    pub max_compiling: usize,
    /// Compiled grammars that are kept.
    pub cache_entries: usize,
    /// Bytes of what they were compiled from.
    pub cache_bytes: usize,
}

impl Default for GrammarLimits {
    fn default() -> Self {
        Self {
            max_bytes: 256 << 10,
            compile_timeout: Duration::from_secs(5),
            max_compiling: 4,
            cache_entries: 64,
            cache_bytes: 2 << 20,
        }
    }
}

/// Compiles the grammars of one model's answers.
pub struct GrammarCompiler {
    text: Arc<TextModel>,
    limits: GrammarLimits,
    /// Made when the first grammar is asked for: it takes some hundred milliseconds and tens of megabytes.
    tools: OnceLock<Result<Arc<Tools>, GrammarError>>,
    cache: Mutex<GrammarCache>,
    compiling: Arc<Places>,
}

/// What all grammars of a model share.
struct Tools {
    factory: ParserFactory,
    ends: Vec<TokenId>,
    text: Arc<TextModel>,
}

/// How many threads compile.
#[derive(Default)]
struct Places {
    taken: Mutex<usize>,
    freed: Condvar,
}

/// A place among the compiling threads, given back when dropped.
struct Place(Arc<Places>);

impl Drop for Place {
    fn drop(&mut self) {
        *self.0.taken.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        self.0.freed.notify_one();
    }
}

impl std::fmt::Debug for GrammarCompiler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GrammarCompiler").field("limits", &self.limits).finish_non_exhaustive()
    }
}

impl GrammarCompiler {
    /// A compiler for the vocabulary of `text`; nothing is built before the first grammar.
    #[must_use]
    pub fn new(text: Arc<TextModel>, limits: GrammarLimits) -> Self {
        let cache = GrammarCache::new(limits.cache_entries, limits.cache_bytes);
        Self {
            text,
            limits,
            tools: OnceLock::new(),
            cache: Mutex::new(cache),
            compiling: Arc::default(),
        }
    }

    /// The grammar for `spec`: from the cache, or compiled within the limits. Blocks.
    ///
    /// # Errors
    /// [`GrammarError`] names the keyword, the place or the limit.
    pub fn compile(&self, spec: &GrammarSpec) -> Result<Arc<dyn Grammar>, GrammarError> {
        let kind = spec.kind();
        let bytes = spec.bytes();
        if bytes > self.limits.max_bytes {
            let limit = self.limits.max_bytes;
            return Err(GrammarError::TooLarge { kind, given: bytes, limit, unit: "bytes" });
        }
        if let Some(grammar) = self.cached(spec) {
            return Ok(grammar);
        }
        let deadline = Instant::now() + self.limits.compile_timeout;
        let place = self.take_place()?;
        let tools = self.tools.get_or_init(|| Tools::new(&self.text).map(Arc::new)).clone()?;
        let asked = spec.clone();
        let (sender, receiver) = mpsc::sync_channel(1);
        let compile = move || {
            let compiled = tools.compile(&asked);
            drop(place);
            // Whoever asked may have given up.
            drop(sender.send(compiled));
        };
        std::thread::Builder::new()
            .name("grammar-compiler".to_owned())
            .stack_size(STACK_BYTES)
            .spawn(compile)
            .map_err(|error| GrammarError::Internal(format!("no thread: {error}")))?;
        let compiled =
            match receiver.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(compiled) => compiled?,
                Err(mpsc::RecvTimeoutError::Timeout) => {
                    let limit_ms = self.limits.compile_timeout.as_millis() as u64;
                    return Err(GrammarError::TooSlow { kind, limit_ms });
                }
                Err(mpsc::RecvTimeoutError::Disconnected) => {
                    return Err(GrammarError::Internal(format!("compiling a {kind} panicked")));
                }
            };
        let grammar: Arc<dyn Grammar> = Arc::new(compiled);
        self.cache().insert(spec.digest(), Arc::clone(&grammar), bytes);
        Ok(grammar)
    }

    /// The grammar for `spec`, where it was compiled not long ago. Does not block.
    #[must_use]
    pub fn cached(&self, spec: &GrammarSpec) -> Option<Arc<dyn Grammar>> {
        self.cache().get(&spec.digest())
    }

    /// The grammar of answers that think first, with at most `budget` tokens (markers included, at least two), and then
    /// follow `then`; `thinking` is the beginning of an answer, `vocab_size` the engine's.
    #[must_use]
    pub fn after_thinking(
        &self,
        thinking: Thinking,
        budget: Option<u32>,
        then: Option<Arc<dyn Grammar>>,
        vocab_size: u32,
    ) -> Arc<dyn Grammar> {
        let ends = end_tokens(&self.text);
        let vocab_size = vocab_size as usize;
        Arc::new(AfterThinking { thinking, budget, then, ends, vocab_size })
    }

    fn cache(&self) -> std::sync::MutexGuard<'_, GrammarCache> {
        // Nothing panics while it holds the lock.
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take_place(&self) -> Result<Place, GrammarError> {
        let places = &self.compiling;
        let taken = places.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let most = self.limits.max_compiling;
        let waited = places
            .freed
            .wait_timeout_while(taken, self.limits.compile_timeout, |taken| *taken >= most);
        let (mut taken, waited) = waited.unwrap_or_else(PoisonError::into_inner);
        if waited.timed_out() {
            return Err(GrammarError::Busy);
        }
        *taken += 1;
        Ok(Place(Arc::clone(places)))
    }
}

impl Tools {
    fn new(text: &Arc<TextModel>) -> Result<Self, GrammarError> {
        let vocabulary = Vocabulary::new(Arc::clone(text)).ok_or(GrammarError::Malformed {
            kind: "grammar",
            reason: "this model has no token that ends an answer".to_owned(),
        })?;
        let capabilities =
            InferenceCapabilities { ff_tokens: true, ..InferenceCapabilities::default() };
        let slices = SlicedBiasComputer::general_slices();
        let mut factory = ParserFactory::new(&(Arc::new(vocabulary) as _), capabilities, &slices)
            .map_err(|error| GrammarError::Internal(error.to_string()))?;
        factory.quiet();
        *factory.limits_mut() = ParserLimits {
            max_lexer_states: MAX_LEXER_STATES,
            max_grammar_size: MAX_GRAMMAR_SYMBOLS,
            verbose_errors: false,
            ..ParserLimits::default()
        };
        Ok(Self { factory, ends: end_tokens(text), text: Arc::clone(text) })
    }

    fn compile(&self, spec: &GrammarSpec) -> Result<Compiled, GrammarError> {
        let kind = spec.kind();
        let (grammar, notes) = top_level(spec, &self.text)?;
        let failed = |error: &dyn std::fmt::Display| explain(kind, &error.to_string(), &notes);
        let logger = Logger::new(0, 0);
        let parser = self
            .factory
            .create_parser_from_init_ext(
                GrammarInit::Serialized(grammar),
                logger,
                InferenceCapabilities { ff_tokens: true, ..InferenceCapabilities::default() },
                self.factory.limits().clone(),
            )
            .map_err(|error| failed(&error))?;
        let mut fresh = Matcher::new(Ok(parser));
        // A grammar that nothing matches is found here, not in the middle of an answer.
        if !fresh.is_stopped() {
            fresh.compute_mask().map_err(|error| failed(&error))?;
        }
        match fresh.get_error() {
            Some(error) => Err(failed(&error)),
            None => {
                let vocab_size = self.text.tokenizer().vocab_size();
                Ok(Compiled::new(fresh, self.ends.clone(), vocab_size))
            }
        }
    }
}

/// The grammar as llguidance takes it, and what was noted of a schema on the way.
fn top_level(
    spec: &GrammarSpec,
    text: &TextModel,
) -> Result<(TopLevelGrammar, schema::Notes), GrammarError> {
    let kind = spec.kind();
    let malformed = |reason: String| GrammarError::Malformed { kind, reason };
    let mut notes = schema::Notes::default();
    let grammar = match spec {
        GrammarSpec::JsonSchema(json) => {
            let (json, found) = schema::prepare(json)?;
            notes = found;
            TopLevelGrammar::from_json_schema(json)
        }
        GrammarSpec::JsonObject => {
            let (json, _) = schema::prepare(&serde_json::json!({"type": "object"}))?;
            TopLevelGrammar::from_json_schema(json)
        }
        GrammarSpec::Regex(text) => {
            regex_syntax::parse(text).map_err(|error| malformed(regex_error(&error)))?;
            TopLevelGrammar::from_regex(unanchored(text))
        }
        GrammarSpec::Calls { .. } => {
            let (lark, found) = Composer::new(text.tokenizer()).compose(spec)?;
            notes = found;
            TopLevelGrammar::from_lark(lark)
        }
        GrammarSpec::Choice(texts) => TopLevelGrammar::from_lark(choice(texts)?),
        GrammarSpec::Lark(text) => TopLevelGrammar::from_lark(text.clone()),
        GrammarSpec::Gbnf(text) => {
            TopLevelGrammar::from_lark(gbnf::to_lark(text).map_err(malformed)?)
        }
    };
    Ok((grammar, notes))
}

/// The whole text is matched anyway, and llguidance's expressions have no anchors.
fn unanchored(text: &str) -> &str {
    let text = text.strip_prefix('^').unwrap_or(text);
    match text.strip_suffix('$') {
        // An even number of backslashes leaves the dollar sign an anchor.
        Some(rest) if (rest.len() - rest.trim_end_matches('\\').len()) % 2 == 0 => rest,
        _ => text,
    }
}

fn regex_error(error: &regex_syntax::Error) -> String {
    match error {
        regex_syntax::Error::Parse(error) => {
            format!("{} at byte {}", error.kind(), error.span().start.offset)
        }
        regex_syntax::Error::Translate(error) => {
            format!("{} at byte {}", error.kind(), error.span().start.offset)
        }
        other => first_line(&other.to_string()),
    }
}

fn choice(texts: &[String]) -> Result<String, GrammarError> {
    let kind = "choice";
    if texts.is_empty() {
        return Err(GrammarError::Malformed { kind, reason: "it holds no text".to_owned() });
    }
    if texts.len() > MAX_CHOICES {
        return Err(GrammarError::TooLarge {
            kind,
            given: texts.len(),
            limit: MAX_CHOICES,
            unit: "texts",
        });
    }
    let quoted: Vec<String> = texts.iter().map(|text| gbnf::lark_string(text)).collect();
    Ok(format!("start: CHOICE\nCHOICE: {}\n", quoted.join(" | ")))
}

/// llguidance's refusal in our words.
fn explain(kind: &'static str, text: &str, notes: &schema::Notes) -> GrammarError {
    if text.starts_with("panic") {
        return GrammarError::Malformed {
            kind,
            reason: "the compiler of grammars fails on it".to_owned(),
        };
    }
    if let Some(error) = notes.explain(text) {
        return error;
    }
    let line = first_line(text.trim_end_matches("<non-verbose/>"));
    let reason = match is_limit(&line) {
        true => format!("it is too complex ({line})"),
        false => line,
    };
    GrammarError::Malformed { kind, reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_anchors_are_taken_off() {
        for (given, wanted) in
            [("^a$", "a"), ("a\\$", "a\\$"), ("a\\\\$", "a\\\\"), ("[$]", "[$]"), ("", "")]
        {
            assert_eq!(unanchored(given), wanted);
        }
    }
}
