//! How well answers follow JSON schemas, over a file of them (a JSON object with `id` and `schema` in each line): which
//! schemas are honoured, which refused and by what keyword, whether each finished answer validates with an independent
//! validator, and how long masks take. Ends with an error if an answer is wrong, a bound of time is broken or fewer than
//! nine of ten schemas are honoured.
//!
//! `structured_output MODEL SCHEMAS [--scribble N | --users N] [--max-tokens N] [--every N] [--threads N]`
//!
//! Without `--users` no model runs: each grammar is compiled and followed by `N` scribblers, who take any allowed token,
//! preferring those that end something.

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Write as _;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use futures_core::Stream;
use mintage_engine::{
    CpuEngine, CpuEngineConfig, Decoder, DecoderOptions, KvSize, SchedulerConfig, WeightStorage,
};
use mintage_kernels::{KvFormat, available_threads};
use mintage_model::{
    ChatOptions, Engine, Event, EventStream, FinishReason, GenerateRequest, Grammar,
    GrammarCompiler, GrammarError, GrammarFault, GrammarLimits, GrammarSpec, GrammarState,
    ModelFile, SamplingParams, TextModel, TokenId, TokenMask,
};
use serde_json::Value as Json;

/// Bytes of a schema that the model is shown: it need not know it, the mask does.
const SHOWN_BYTES: usize = 400;
/// What a compiled grammar may take.
const MAX_COMPILE: Duration = Duration::from_secs(5);

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let usage = "usage: structured_output MODEL SCHEMAS [--scribble N | --users N] [--max-tokens N] [--every N] [--threads N]";
    let (path, schemas) = (args.first().context(usage)?, args.get(1).context(usage)?);
    let option = |name: &str, default: usize| -> Result<usize> {
        let at = args.iter().position(|arg| arg == name);
        Ok(at.and_then(|at| args.get(at + 1)).map_or(Ok(default), |text| text.parse())?)
    };
    let every = option("--every", 1)?.max(1);
    let max_tokens = option("--max-tokens", 256)?;
    let file = ModelFile::open(path.as_ref())?;
    let text = Arc::new(TextModel::from_model_file(&file)?);
    let schemas = read_schemas(schemas, every)?;
    let mut report = Report::default();
    let cases = compile_all(&text, schemas, &mut report);
    let users = option("--users", 0)?;
    if users == 0 {
        for case in &cases {
            for seed in 0..option("--scribble", 1)? {
                let scribbled = scribble(&text, case, seed as u64, max_tokens)?;
                report.judge(case, scribbled);
            }
        }
    } else {
        let threads = option("--threads", available_threads())?;
        generate_all(&file, &text, &cases, users, max_tokens as u32, threads, &mut report)?;
    }
    report.print()
}

/// A schema that is honoured.
struct Case {
    id: String,
    schema: Json,
    grammar: Arc<Timed>,
}

fn read_schemas(path: &str, every: usize) -> Result<Vec<(String, Json)>> {
    let lines = std::fs::read_to_string(path).with_context(|| path.to_owned())?;
    let parse = |line: &str| -> Result<(String, Json)> {
        let mut line: Json = serde_json::from_str(line)?;
        Ok((line["id"].as_str().unwrap_or_default().to_owned(), line["schema"].take()))
    };
    lines.lines().step_by(every).map(parse).collect()
}

fn compile_all(
    text: &Arc<TextModel>,
    schemas: Vec<(String, Json)>,
    report: &mut Report,
) -> Vec<Case> {
    let limits = GrammarLimits { compile_timeout: MAX_COMPILE, ..GrammarLimits::default() };
    let compiler = GrammarCompiler::new(Arc::clone(text), limits);
    let start = Instant::now();
    drop(compiler.compile(&GrammarSpec::JsonObject));
    println!("the vocabulary took {:.0} ms", start.elapsed().as_secs_f64() * 1e3);
    let mut cases = Vec::new();
    report.schemas = schemas.len();
    for (id, schema) in schemas {
        let start = Instant::now();
        let compiled = compiler.compile(&GrammarSpec::JsonSchema(schema.clone()));
        report.compile_ms.push(start.elapsed().as_secs_f64() * 1e3);
        match compiled {
            Ok(grammar) => {
                let grammar = Arc::new(Timed { grammar, masks: Arc::clone(&report.masks) });
                cases.push(Case { id, schema, grammar });
            }
            Err(error) => report.refuse(&id, &error),
        }
    }
    cases
}

/// A grammar whose masks are timed.
#[derive(Debug)]
struct Timed {
    grammar: Arc<dyn Grammar>,
    masks: Arc<Mutex<Masks>>,
}

#[derive(Debug, Default)]
struct Masks {
    us: Vec<f64>,
    forced: u64,
    starts_us: Vec<f64>,
}

#[derive(Debug)]
struct TimedState {
    state: Box<dyn GrammarState>,
    masks: Arc<Mutex<Masks>>,
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Grammar for Timed {
    fn start(&self) -> Result<Box<dyn GrammarState>, GrammarFault> {
        let start = Instant::now();
        let state = self.grammar.start()?;
        locked(&self.masks).starts_us.push(start.elapsed().as_secs_f64() * 1e6);
        Ok(Box::new(TimedState { state, masks: Arc::clone(&self.masks) }))
    }
}

impl GrammarState for TimedState {
    fn forced(&mut self) -> Result<Option<TokenId>, GrammarFault> {
        let forced = self.state.forced();
        locked(&self.masks).forced += u64::from(matches!(forced, Ok(Some(_))));
        forced
    }

    fn mask(&mut self) -> Result<&TokenMask, GrammarFault> {
        let start = Instant::now();
        let mask = self.state.mask();
        locked(&self.masks).us.push(start.elapsed().as_secs_f64() * 1e6);
        mask
    }

    fn valid_prefix(&mut self, tokens: &[TokenId]) -> usize {
        self.state.valid_prefix(tokens)
    }

    fn accept(&mut self, token: TokenId) -> Result<(), GrammarFault> {
        self.state.accept(token)
    }

    fn has_ended(&self) -> bool {
        self.state.has_ended()
    }
}

/// How an answer ended.
enum Ending {
    /// By the grammar.
    Finished(String),
    /// At the limit of tokens.
    Cut,
    Failed(String),
}

#[derive(Default)]
struct Report {
    schemas: usize,
    refused: BTreeMap<String, Vec<String>>,
    too_slow: Vec<String>,
    compile_ms: Vec<f64>,
    masks: Arc<Mutex<Masks>>,
    valid: usize,
    cut: usize,
    wrong: Vec<String>,
    failed: BTreeMap<String, Vec<String>>,
    unjudged: usize,
    seconds: f64,
}

impl Report {
    fn refuse(&mut self, id: &str, error: &GrammarError) {
        match error {
            GrammarError::Keyword { keyword, reason, .. } => {
                let why = if reason == "it is not supported" {
                    String::new()
                } else {
                    format!(": {reason}")
                };
                self.refused.entry(format!("{keyword}{why}")).or_default().push(id.to_owned());
            }
            GrammarError::TooSlow { .. } | GrammarError::Busy => self.too_slow.push(id.to_owned()),
            other => self.refused.entry(format!("- {other}")).or_default().push(id.to_owned()),
        }
    }

    /// Holds a finished answer to the schema as it was given.
    fn judge(&mut self, case: &Case, ending: Ending) {
        let text = match ending {
            Ending::Finished(text) => text,
            Ending::Cut => return self.cut += 1,
            Ending::Failed(error) => {
                return self.failed.entry(error).or_default().push(case.id.clone());
            }
        };
        let Ok(validator) = jsonschema::options().should_validate_formats(true).build(&case.schema)
        else {
            return self.unjudged += 1;
        };
        let verdict = match serde_json::from_str::<Json>(&readable(&text)) {
            Err(error) => Some(format!("not JSON: {error}")),
            Ok(value) => validator.validate(&value).err().map(|error| {
                format!("{error} at {} by {}", error.instance_path(), error.schema_path())
            }),
        };
        match verdict {
            None => self.valid += 1,
            Some(why) => {
                let shown: String = text.chars().take(300).collect();
                self.wrong.push(format!("{}: {why}\n    {shown}", case.id));
            }
        }
    }

    fn print(&mut self) -> Result<()> {
        let refused: usize = self.refused.values().map(Vec::len).sum();
        let honoured = self.schemas - refused - self.too_slow.len();
        let share = 100.0 * honoured as f64 / self.schemas.max(1) as f64;
        println!(
            "{honoured} of {} schemas honoured ({share:.1} %), {refused} refused:",
            self.schemas
        );
        let mut refused: Vec<_> = self.refused.iter().collect();
        refused.sort_by_key(|(_, ids)| std::cmp::Reverse(ids.len()));
        for (why, ids) in refused {
            println!("  {:4} {why} ({})", ids.len(), ids.first().map_or("", String::as_str));
        }
        println!("over the time for compiling: {} {:?}", self.too_slow.len(), self.too_slow);
        println!("compiling, ms: {}", percentiles(&mut self.compile_ms));
        let mut masks = locked(&self.masks);
        let forced = masks.forced;
        println!("start of an answer, µs: {}", percentiles(&mut masks.starts_us));
        println!("masks, µs: {}; {forced} tokens were forced instead", percentiles(&mut masks.us));
        println!(
            "answers: {} finished and valid, {} wrong, {} cut at the limit of tokens, {} whose schema the validator does not take; {:.0} s",
            self.valid,
            self.wrong.len(),
            self.cut,
            self.unjudged,
            self.seconds
        );
        for (why, ids) in &self.failed {
            println!("  failed: {:4} {why} ({ids:?})", ids.len());
        }
        for wrong in &self.wrong {
            println!("  wrong: {wrong}");
        }
        if !self.wrong.is_empty() || !self.too_slow.is_empty() || share < 90.0 {
            bail!("not what was promised");
        }
        Ok(())
    }
}

/// The text with numbers that no double holds, such as `1e999`, cut down: JSON allows them, this reader does not.
fn readable(text: &str) -> String {
    let mut out = String::new();
    let (mut rest, mut in_string) = (text, false);
    while let Some(next) = rest.chars().next() {
        let number = rest.find(|c: char| !matches!(c, '0'..='9' | '+' | '-' | '.' | 'e' | 'E'));
        let length = match next {
            '0'..='9' | '-' if !in_string => number.unwrap_or(rest.len()),
            '\\' if in_string => 2,
            _ => next.len_utf8(),
        };
        in_string ^= next == '"';
        let (piece, after) = rest.split_at(length.min(rest.len()));
        let endless = piece.len() > 1 && piece.parse::<f64>().is_ok_and(f64::is_infinite);
        out.push_str(if endless { "1e308" } else { piece });
        rest = after;
    }
    out
}

fn percentiles(of: &mut [f64]) -> String {
    of.sort_by(f64::total_cmp);
    let at = |share: f64| of.get((share * of.len() as f64) as usize).or(of.last()).copied();
    let mut out = format!("{} of them", of.len());
    for (name, share) in [("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p99.9", 0.999), ("max", 1.0)]
    {
        let _ = write!(out, ", {name} {:.1}", at(share).unwrap_or(0.0));
    }
    out
}

/// Follows a grammar at random.
fn scribble(text: &TextModel, case: &Case, seed: u64, max_tokens: usize) -> Result<Ending> {
    let mut state = case.grammar.start()?;
    let mut dice = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ case.id.len() as u64;
    let mut roll = move || {
        dice = dice.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (dice ^ (dice >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        (z ^ (z >> 31)) as usize
    };
    let enders: Vec<TokenId> = ["\"", "}", "]", "\"}", "\"]"]
        .iter()
        .flat_map(|word| text.tokenizer().encode(word, mintage_model::SpecialTokens::AsText))
        .chain(text.end_of_turn_ids().iter().copied())
        .collect();
    let mut said = Vec::new();
    for _ in 0..max_tokens {
        let next = match state.forced() {
            Ok(Some(token)) => token,
            Ok(None) => {
                let mask = match state.mask() {
                    Ok(mask) => mask,
                    Err(fault) => return Ok(Ending::Failed(fault.to_string())),
                };
                let allowed: Vec<TokenId> = (0..text.tokenizer().vocab_size() as TokenId)
                    .filter(|&t| mask.allows(t))
                    .collect();
                let ends: Vec<_> = enders.iter().copied().filter(|&t| mask.allows(t)).collect();
                if !ends.is_empty() && roll() % 3 > 0 {
                    ends[roll() % ends.len()]
                } else {
                    allowed[roll() % allowed.len().max(1)]
                }
            }
            Err(fault) => return Ok(Ending::Failed(fault.to_string())),
        };
        if let Err(fault) = state.accept(next) {
            return Ok(Ending::Failed(fault.to_string()));
        }
        if state.has_ended() {
            return Ok(Ending::Finished(text.tokenizer().decode(&said, true)));
        }
        said.push(next);
    }
    Ok(Ending::Cut)
}

struct Unpark(std::thread::Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Lets the model write an answer to each schema, `users` at a time.
fn generate_all(
    file: &ModelFile,
    text: &Arc<TextModel>,
    cases: &[Case],
    users: usize,
    max_tokens: u32,
    threads: usize,
    report: &mut Report,
) -> Result<()> {
    let options = DecoderOptions {
        threads,
        kv_format: KvFormat::F16,
        kv_size: KvSize::Pages(1200),
        weights: WeightStorage::AsStored,
    };
    let decoder = Decoder::load(file, &options, &mut |_| {})?;
    let scheduler = SchedulerConfig { max_drafts: 8, ..SchedulerConfig::default() };
    let config = CpuEngineConfig { scheduler, ..CpuEngineConfig::default() };
    let engine = CpuEngine::start("structured".to_owned(), Box::new(decoder), config)?;
    let start = Instant::now();
    let queue: Mutex<VecDeque<&Case>> = Mutex::new(cases.iter().collect());
    let done: Mutex<Vec<(&Case, Ending)>> = Mutex::default();
    std::thread::scope(|scope| {
        for _ in 0..users {
            scope.spawn(|| {
                while let Some(case) = { locked(&queue).pop_front() } {
                    let ending = answer(&engine, text, case, max_tokens)
                        .unwrap_or_else(|error| Ending::Failed(error.to_string()));
                    let mut done = locked(&done);
                    done.push((case, ending));
                    if done.len().is_multiple_of(50) {
                        println!("{} answers, {:.0} s", done.len(), start.elapsed().as_secs_f64());
                    }
                }
            });
        }
    });
    report.seconds = start.elapsed().as_secs_f64();
    let load = engine.load();
    println!(
        "{} tokens forced without a step, {} of {} drafts accepted, {} steps",
        load.forced_tokens, load.accepted_draft_tokens, load.draft_tokens, load.steps
    );
    for (case, ending) in done.into_inner().unwrap_or_else(PoisonError::into_inner) {
        report.judge(case, ending);
    }
    Ok(())
}

fn answer(engine: &CpuEngine, text: &TextModel, case: &Case, max_tokens: u32) -> Result<Ending> {
    let schema = case.schema.to_string();
    let shown: String = schema.chars().take(SHOWN_BYTES).collect();
    let question =
        format!("Write a short example of JSON data for this schema, nothing else.\n{shown}");
    let messages = [serde_json::json!({"role": "user", "content": question})];
    let options = ChatOptions { add_generation_prompt: true, ..ChatOptions::default() };
    let prompt = text.encode_chat(&messages, None, &options)?;
    let seed = case.id.bytes().fold(7, |seed: u64, byte| seed.wrapping_mul(31) + u64::from(byte));
    let grammar: Arc<dyn Grammar> = Arc::clone(&case.grammar) as _;
    let stream = engine.submit(GenerateRequest {
        prompt: prompt.into(),
        max_new_tokens: max_tokens,
        sampling: SamplingParams { seed, ..SamplingParams::default() },
        stop_token_ids: Arc::clone(text.end_of_turn_ids()),
        grammar: Some(grammar),
        ..GenerateRequest::default()
    })?;
    let (mut said, reason) = read(stream);
    Ok(match reason {
        FinishReason::Stop(_) => {
            said.pop();
            Ending::Finished(text.tokenizer().decode(&said, true))
        }
        FinishReason::Length => Ending::Cut,
        other => Ending::Failed(format!("{other:?}")),
    })
}

fn read(stream: EventStream) -> (Vec<TokenId>, FinishReason) {
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut stream = pin!(stream);
    let mut said = Vec::new();
    loop {
        match stream.as_mut().poll_next(&mut Context::from_waker(&waker)) {
            Poll::Pending => std::thread::park(),
            Poll::Ready(Some(Event::Token(token))) => said.push(token.id),
            Poll::Ready(Some(Event::Finished(finish))) => return (said, finish.reason),
            Poll::Ready(Some(_)) => {}
            Poll::Ready(None) => return (said, FinishReason::Cancelled),
        }
    }
}
