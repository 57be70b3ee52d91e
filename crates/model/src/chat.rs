//! The chat template of a model: messages → the text of a prompt.
//!
//! A template is a Jinja program from the model file: not trusted to end, to be small, or to be polite, so it runs
//! with fuel, a recursion limit and a limit on its output, and can reach nothing but the values it is given. It is not
//! a request's business: no request field ever becomes a template.
//!
//! Invariants: the text equals what `apply_chat_template` of the package `transformers` renders, and characters that
//! came from a message are known as such, so that they never become control tokens (see [`RenderedPrompt`]).

mod functions;
mod protect;
mod pyformat;

use std::collections::BTreeMap;
use std::io::{self, Write};

use minijinja::value::Serde;
use minijinja::{AutoEscape, Environment, ErrorKind, Value, syntax::SyntaxConfig};
use serde_json::Value as Json;

use self::functions::Raised;
use self::protect::{ControlTexts, Level, Sentinel};
use crate::tokenizer::Tokenizer;

/// Source of a template; the longest published ones have about 20,000 bytes.
const MAX_TEMPLATE_BYTES: usize = 256 << 10;
/// A rendered prompt; far above any model's context.
const MAX_RENDERED_BYTES: usize = 32 << 20;
/// Nesting of messages, tools and options.
const MAX_DEPTH: usize = 64;
/// Steps that a render may take whatever its input: some 10 ms. One step also pays for 64 bytes.
const BASE_FUEL: u64 = 100_000;
/// Steps more for each message, tool and option.
const FUEL_PER_VALUE: u64 = 300;
/// Input bytes that allow for one step more.
const INPUT_BYTES_PER_FUEL: u64 = 4;
/// However much the input is.
const MAX_FUEL: u64 = 20_000_000;
/// Nested blocks, macros and calls.
const RECURSION_LIMIT: usize = 100;
const TEMPLATE_NAME: &str = "chat_template";

/// Why a template did not load or render.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TemplateError {
    /// The model file's fault: not a template that runs here.
    #[error("the model's chat template does not compile: {0}")]
    Syntax(String),
    /// The model file's fault.
    #[error("the model's chat template has {bytes} bytes, the limit is {limit}")]
    TemplateTooLong {
        /// Its length.
        bytes: usize,
        /// What it may have.
        limit: usize,
    },
    /// The request's fault: the template itself refuses these messages.
    #[error("the model's chat template refuses these messages: {0}")]
    Raised(String),
    /// The template met values it does not handle, usually messages of an unusual shape.
    #[error("the model's chat template fails on these messages: {0}")]
    Failed(String),
    /// The template does not end within its budget.
    #[error("the model's chat template needs more than {limit} steps for these messages")]
    OutOfFuel {
        /// The budget.
        limit: u64,
    },
    /// The prompt is longer than any context.
    #[error("the rendered prompt has more than {limit} bytes")]
    OutputTooLong {
        /// The limit.
        limit: usize,
    },
    /// The request's fault.
    #[error("messages, tools and options may be nested {limit} deep")]
    TooDeep {
        /// The limit.
        limit: usize,
    },
    /// The request's fault: no character is left to mark the text of its messages with.
    #[error("the messages use every private-use character")]
    NoSentinel,
    /// The template cuts messages apart at control tokens, so that what came from them cannot be told.
    #[error(
        "the messages contain the text of control tokens where the model's chat template inspects it; \
         remove texts such as `<|im_start|>` from the messages"
    )]
    ControlText,
}

/// What the caller chooses for one prompt.
#[derive(Clone, Debug)]
pub struct ChatOptions {
    /// End the prompt with the opening of the assistant's turn.
    pub add_generation_prompt: bool,
    /// More variables for the template, such as `enable_thinking`. The names that every template gets cannot be
    /// replaced.
    pub variables: serde_json::Map<String, Json>,
    /// What `strftime_now` says, in seconds since 1970, UTC; `None` leaves the function undefined.
    pub now_unix_s: Option<u64>,
}

impl Default for ChatOptions {
    fn default() -> Self {
        Self { add_generation_prompt: true, variables: serde_json::Map::new(), now_unix_s: None }
    }
}

/// The text of a prompt, and which of its characters could begin a control token although a message brought them.
///
/// How that is known: before rendering, a sentinel (a private-use character that occurs neither in the template nor in
/// anything the caller gave) is put behind each character of the caller's strings that could begin a control token.
/// Where it comes out again, that character is the caller's: [`Tokenizer::encode_protected`] reads it as text. The
/// sentinels are taken out, and the result is only used if it equals the rendering without sentinels, so that a
/// template which tests, trims or splits its messages renders as it would have. Where the two differ, fewer sentinels
/// are tried: first without those inside of added tokens that are not control tokens (`</think>`, which templates look
/// for), then only in the control tokens themselves. If all differ, the prompt is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RenderedPrompt {
    text: String,
    /// Byte offsets behind the protected characters, ascending.
    protected: Vec<usize>,
}

impl RenderedPrompt {
    /// What the model will read.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Its ids: the template's control tokens are tokens, everything from messages is text.
    #[must_use]
    pub fn encode(&self, tokenizer: &Tokenizer) -> Vec<crate::TokenId> {
        tokenizer.encode_protected(&self.text, &self.protected)
    }
}

/// A compiled chat template.
pub struct ChatTemplate {
    environment: Environment<'static>,
    source: String,
    control: ControlTexts,
    /// `bos_token`, `eos_token`
    token_texts: Vec<(&'static str, String)>,
}

impl ChatTemplate {
    /// Compiles the template of a model file. The tokenizer says which texts are control tokens.
    ///
    /// # Errors
    /// [`TemplateError::Syntax`] or [`TemplateError::TemplateTooLong`].
    pub fn new(source: &str, tokenizer: &Tokenizer) -> Result<Self, TemplateError> {
        if source.len() > MAX_TEMPLATE_BYTES {
            return Err(TemplateError::TemplateTooLong {
                bytes: source.len(),
                limit: MAX_TEMPLATE_BYTES,
            });
        }
        let syntax = |error: minijinja::Error| TemplateError::Syntax(error.to_string());
        let mut environment = Environment::new();
        // What `transformers` sets.
        let whitespace = SyntaxConfig::builder()
            .trim_blocks(true)
            .lstrip_blocks(true)
            .build()
            .map_err(syntax)?;
        environment.set_syntax(whitespace);
        environment.set_auto_escape_callback(|_| AutoEscape::None);
        environment.set_recursion_limit(RECURSION_LIMIT);
        functions::register(&mut environment);
        let text = functions::without_generation_tags(source);
        environment.add_template_owned(TEMPLATE_NAME, text).map_err(syntax)?;
        let named = [("bos_token", tokenizer.bos()), ("eos_token", tokenizer.eos())];
        let text_of = |id| Some(String::from_utf8_lossy(tokenizer.token_bytes(id?)?).into_owned());
        Ok(Self {
            environment,
            source: source.to_owned(),
            control: ControlTexts::new(tokenizer),
            token_texts: named
                .into_iter()
                .filter_map(|(name, id)| Some((name, text_of(id)?)))
                .collect(),
        })
    }

    /// The template's source.
    #[must_use]
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Renders messages and tools, each a JSON object as in OpenAI's API.
    ///
    /// # Errors
    /// Every [`TemplateError`] but those of [`ChatTemplate::new`].
    pub fn render(
        &self,
        messages: &[Json],
        tools: Option<&[Json]>,
        options: &ChatOptions,
    ) -> Result<RenderedPrompt, TemplateError> {
        let input = Input::new(messages, tools, options)?;
        let plain = self.run(&input, None)?;
        if !input.any_string(|text| self.control.may_begin_in(text)) {
            return Ok(RenderedPrompt { text: plain, protected: Vec::new() });
        }
        let sentinel = Sentinel::absent_from(|see| {
            see(&self.source);
            input.any_string(|text| {
                see(text);
                false
            });
        });
        let sentinel = sentinel.ok_or(TemplateError::NoSentinel)?;
        for level in Level::ALL {
            // A template that splits what it should not may also fail on the marked text; then try the next level.
            let Ok(marked) = self.run(&input, Some((level, sentinel))) else { continue };
            let (text, protected) = sentinel.take_out(&marked);
            if text == plain {
                return Ok(RenderedPrompt { text, protected });
            }
        }
        Err(TemplateError::ControlText)
    }

    fn run(
        &self,
        input: &Input<'_>,
        marks: Option<(Level, Sentinel)>,
    ) -> Result<String, TemplateError> {
        let mut context: BTreeMap<String, Value> = BTreeMap::new();
        let mark = |json: &Json, of_assistant: bool| match marks {
            Some((level, sentinel)) => {
                let keep_added = level.keeps_added(of_assistant);
                Value::from(Serde(self.control.mark(json, keep_added, level, sentinel)))
            }
            None => Value::from(Serde(json)),
        };
        for (name, value) in &input.options.variables {
            context.insert(name.clone(), mark(value, false));
        }
        for (name, text) in &self.token_texts {
            context.insert((*name).to_owned(), Value::from(text.as_str()));
        }
        let of_assistant =
            |message: &Json| message.get("role").and_then(Json::as_str) == Some("assistant");
        let messages: Vec<Value> =
            input.messages.iter().map(|m| mark(m, of_assistant(m))).collect();
        let tools = input
            .tools
            .map(|tools| Value::from(tools.iter().map(|t| mark(t, false)).collect::<Vec<_>>()));
        context.insert("messages".to_owned(), Value::from(messages));
        context.insert("tools".to_owned(), tools.unwrap_or(Value::from(())));
        context.insert("documents".to_owned(), Value::from(()));
        context.insert(
            "add_generation_prompt".to_owned(),
            Value::from(input.options.add_generation_prompt),
        );
        if let Some(now) = input.options.now_unix_s {
            context.insert("strftime_now".to_owned(), functions::strftime_now(now));
        }
        let keep = marks.map(|(_, sentinel)| sentinel.character());
        context.insert(
            "tojson_keeps".to_owned(),
            keep.map_or(Value::from(()), |c| Value::from(c.to_string())),
        );
        self.evaluate(context, input.fuel)
    }

    fn evaluate(
        &self,
        context: BTreeMap<String, Value>,
        fuel: u64,
    ) -> Result<String, TemplateError> {
        let failed = |error: minijinja::Error| TemplateError::Failed(error.to_string());
        // The budget belongs to an environment; cloning one copies a handful of reference counts.
        let mut environment = self.environment.clone();
        environment.set_fuel(Some(fuel));
        let template = environment.get_template(TEMPLATE_NAME).map_err(failed)?;
        let mut out = LimitedOutput { bytes: Vec::new(), overflow: false };
        let rendered =
            template.render_captured_to(Value::from_pairs(context), &mut out).map(|_| ());
        if out.overflow {
            return Err(TemplateError::OutputTooLong { limit: MAX_RENDERED_BYTES });
        }
        rendered.map_err(|error| match (Raised::find(&error), error.kind()) {
            (Some(message), _) => TemplateError::Raised(message),
            (None, ErrorKind::OutOfFuel) => TemplateError::OutOfFuel { limit: fuel },
            (None, _) => failed(error),
        })?;
        String::from_utf8(out.bytes).map_err(|error| TemplateError::Failed(error.to_string()))
    }
}

impl std::fmt::Debug for ChatTemplate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ChatTemplate").field("source", &self.source).finish_non_exhaustive()
    }
}

/// What a render is given, measured.
struct Input<'a> {
    messages: Vec<Json>,
    tools: Option<&'a [Json]>,
    options: &'a ChatOptions,
    fuel: u64,
}

impl<'a> Input<'a> {
    fn new(
        messages: &[Json],
        tools: Option<&'a [Json]>,
        options: &'a ChatOptions,
    ) -> Result<Self, TemplateError> {
        let messages = messages.iter().map(functions::with_reasoning_names).collect();
        let mut input = Self { messages, tools, options, fuel: 0 };
        let (mut values, mut bytes) = (0u64, 0u64);
        for json in input.roots() {
            measure(json, MAX_DEPTH, &mut values, &mut bytes)?;
        }
        let fuel = values.saturating_mul(FUEL_PER_VALUE) + bytes / INPUT_BYTES_PER_FUEL;
        input.fuel = BASE_FUEL.saturating_add(fuel).min(MAX_FUEL);
        Ok(input)
    }

    fn roots(&self) -> impl Iterator<Item = &Json> {
        self.messages.iter().chain(self.tools.unwrap_or(&[])).chain(self.options.variables.values())
    }

    /// Whether `test` holds for any string, keys included. The nesting has been checked.
    fn any_string(&self, mut test: impl FnMut(&str) -> bool) -> bool {
        self.roots().any(|json| protect::any_string(json, &mut test))
    }
}

/// Counts values and the bytes of strings, and refuses deep nesting.
fn measure(
    json: &Json,
    depth: usize,
    values: &mut u64,
    bytes: &mut u64,
) -> Result<(), TemplateError> {
    let depth = depth.checked_sub(1).ok_or(TemplateError::TooDeep { limit: MAX_DEPTH })?;
    *values += 1;
    match json {
        Json::String(text) => *bytes += text.len() as u64,
        Json::Array(items) => {
            for item in items {
                measure(item, depth, values, bytes)?;
            }
        }
        Json::Object(map) => {
            for (key, value) in map {
                *bytes += key.len() as u64;
                measure(value, depth, values, bytes)?;
            }
        }
        Json::Null | Json::Bool(_) | Json::Number(_) => {}
    }
    Ok(())
}

/// Collects a rendering up to its limit.
struct LimitedOutput {
    bytes: Vec<u8>,
    overflow: bool,
}

impl Write for LimitedOutput {
    fn write(&mut self, part: &[u8]) -> io::Result<usize> {
        if self.bytes.len().saturating_add(part.len()) > MAX_RENDERED_BYTES {
            self.overflow = true;
            return Err(io::Error::other("the output is too long"));
        }
        self.bytes.extend_from_slice(part);
        Ok(part.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
