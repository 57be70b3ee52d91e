//! Calls of tools in the text of an answer, in the way that the model's chat template shows them.
//!
//! Pure: text in pieces in, events out. Each format is a small machine of its own ([`Machine`]); what they share (where a
//! call may begin, what becomes of one that breaks) is here. Not here: ids of calls, whether a call is wanted, and what
//! keeps a model to the form (`grammar`).
//!
//! Invariants: what is no call comes back as text, whole; the arguments of a call that is not broken are a valid JSON
//! object; the joined events do not depend on how the text is cut, but for one thing: of a call that breaks in the middle,
//! how much of its arguments went out before does.

mod coder;
mod constrained;
mod hermes;
mod llama;
mod mistral;
mod object;

use std::fmt::Debug;
use std::sync::Arc;

use serde_json::Value as Json;

use self::coder::Coder;
use self::hermes::Hermes;
use self::llama::Llama;
use self::mistral::Mistral;

/// How a model writes calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallFormat {
    /// Hermes, Qwen2.5, Qwen3: `<tool_call>{"name": …, "arguments": {…}}</tool_call>`.
    Hermes,
    /// Qwen3-Coder: `<tool_call><function=NAME><parameter=P>VALUE</parameter></function></tool_call>`.
    QwenCoder,
    /// Llama 3: an answer that is `{"name": …, "parameters": {…}}`, or has it behind `<|python_tag|>`.
    Llama,
    /// Mistral: `[TOOL_CALLS][{"name": …, "arguments": {…}}]`.
    Mistral,
    /// Mistral since its eleventh tokenizer: `[TOOL_CALLS]NAME[ARGS]{…}`.
    MistralNamed,
}

impl CallFormat {
    /// The format that a chat template shows its model; `None` where it shows none that is known here.
    #[must_use]
    pub fn of_template(source: &str) -> Option<Self> {
        if source.contains("[TOOL_CALLS]") {
            let named = source.contains("[ARGS]");
            return Some(if named { Self::MistralNamed } else { Self::Mistral });
        }
        if source.contains("<function=") && source.contains("<parameter=") {
            return Some(Self::QwenCoder);
        }
        // GLM's templates have the tag and something else in it.
        if source.contains("<tool_call>") && !source.contains("<arg_key>") {
            return Some(Self::Hermes);
        }
        let llama = source.contains("<|python_tag|>")
            || (source.contains("<|start_header_id|>") && source.contains("\"parameters\": "));
        llama.then_some(Self::Llama)
    }

    /// How long an id of a call must be for the template to take it back with its result: letters and digits only.
    #[must_use]
    pub fn id_length(self) -> Option<usize> {
        matches!(self, Self::Mistral | Self::MistralNamed).then_some(9)
    }

    /// Texts that a call begins with, or that stand in it: where a vocabulary has them as control tokens, their text
    /// counts.
    #[must_use]
    pub fn markers(self) -> &'static [&'static str] {
        match self {
            Self::Hermes | Self::QwenCoder => &["<tool_call>", "</tool_call>"],
            Self::Llama => &["<|python_tag|>"],
            Self::Mistral | Self::MistralNamed => &["[TOOL_CALLS]", "[CALL_ID]", "[ARGS]"],
        }
    }

    /// What may begin a call anywhere. None is the beginning of another.
    fn openers(self, reading: Reading) -> &'static [&'static str] {
        let template_only = reading == Reading::Template;
        match self {
            Self::Hermes | Self::QwenCoder if template_only => &["<tool_call>"],
            Self::Hermes => hermes::OPENERS,
            Self::QwenCoder => &["<tool_call>", "<function="],
            Self::Llama => &["<|python_tag|>"],
            Self::Mistral | Self::MistralNamed => &["[TOOL_CALLS]"],
        }
    }

    /// Whether an object that stands for itself is a call: at the beginning of an answer, or behind another call.
    fn has_bare_calls(self, reading: Reading) -> bool {
        self == Self::Llama || (self == Self::Hermes && reading != Reading::Template)
    }

    /// What stands between calls and is no text.
    fn is_blank(self, c: char) -> bool {
        c.is_whitespace() || (self == Self::Llama && c == ';')
    }

    fn machine(self, opener: &str, reading: Reading) -> Box<dyn Machine> {
        match self {
            Self::Hermes => Box::new(Hermes::new(opener, reading == Reading::Ordered)),
            Self::QwenCoder => Box::new(Coder::new(opener)),
            Self::Llama => Box::new(Llama::default()),
            Self::Mistral | Self::MistralNamed => Box::new(Mistral::default()),
        }
    }
}

/// What is taken for a call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Reading {
    /// What looks like one: models do not always write what their template shows.
    #[default]
    Lenient,
    /// Only what the template shows: a grammar keeps the model's calls to that.
    Template,
    /// An object that names a tool, then its arguments, wherever it stands: a grammar keeps those to the tool's schema.
    Ordered,
}

/// A function that the model may call.
#[derive(Clone, Debug, PartialEq)]
pub struct CallTool {
    /// As the model writes it.
    pub name: String,
    /// The JSON schema of its arguments; `Null` where none was given.
    pub parameters: Json,
}

/// What a piece of text turned out to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CallEvent {
    /// Text of the answer.
    Text(String),
    /// A call of this function begins.
    Begin(String),
    /// More of its arguments: JSON as text.
    Arguments(String),
    /// It is over; where it is no call after all, with all of its text.
    End(Option<String>),
}

/// What a machine says of what it has read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// Nothing yet: more text is needed.
    More,
    /// A call is whole. The machine goes on.
    Call,
    /// Calls are over here: what follows is text.
    Over,
    /// This is no call.
    Broken,
}

/// Reads calls from the opener on.
trait Machine: Debug + Send {
    /// Reads from the front of `text` and says how many bytes it took. With [`Verdict::More`] what was not taken comes
    /// again, with more behind it.
    fn read(
        &mut self,
        text: &str,
        tools: &[CallTool],
        out: &mut Vec<CallEvent>,
    ) -> (usize, Verdict);

    /// A call began and is not whole.
    fn is_inside(&self) -> bool;

    /// No call is under way: the last one is whole, and only what closes it may be missing.
    fn is_between(&self) -> bool;
}

/// Reads the calls of one answer.
#[derive(Debug)]
pub struct CallReader {
    format: CallFormat,
    tools: Arc<[CallTool]>,
    reading: Reading,
    /// What reads the call under way; `None` in text.
    machine: Option<Box<dyn Machine>>,
    /// Text that is not understood yet.
    pending: String,
    /// All text of the call being read, opener included.
    raw: String,
    /// Nothing but blanks came since the beginning, or since a call.
    only_blanks: bool,
    /// A call came already.
    after_call: bool,
}

impl CallReader {
    /// A reader at the beginning of an answer.
    #[must_use]
    pub fn new(format: CallFormat, tools: Arc<[CallTool]>) -> Self {
        Self {
            format,
            tools,
            reading: Reading::Lenient,
            machine: None,
            pending: String::new(),
            raw: String::new(),
            only_blanks: true,
            after_call: false,
        }
    }

    /// The same, which takes other things for calls.
    #[must_use]
    pub fn reading(self, reading: Reading) -> Self {
        Self { reading, ..self }
    }

    /// Takes the next piece.
    pub fn push(&mut self, piece: &str, out: &mut Vec<CallEvent>) {
        self.pending.push_str(piece);
        while self.step(out) {}
    }

    /// The answer is over.
    pub fn finish(&mut self, out: &mut Vec<CallEvent>) {
        let rest = std::mem::take(&mut self.pending);
        let raw = std::mem::take(&mut self.raw);
        match self.machine.take() {
            None if self.after_call && self.only_blanks => {}
            None => text(rest, out),
            // The arguments are complete; only what closes them was cut.
            Some(machine) if machine.is_between() => {}
            Some(machine) if machine.is_inside() => out.push(CallEvent::End(Some(raw + &rest))),
            Some(_) => text(raw + &rest, out),
        }
    }

    /// Whether there may be more to do with what is pending.
    fn step(&mut self, out: &mut Vec<CallEvent>) -> bool {
        let Some(machine) = &mut self.machine else { return self.in_text(out) };
        let (taken, verdict) = machine.read(&self.pending, &self.tools, out);
        let rest = self.pending.split_off(taken);
        self.raw.push_str(&std::mem::replace(&mut self.pending, rest));
        match verdict {
            Verdict::More => return false,
            Verdict::Call => {
                self.raw.clear();
                out.push(CallEvent::End(None));
            }
            Verdict::Over => {
                self.raw.clear();
                self.machine = None;
                (self.only_blanks, self.after_call) = (true, true);
            }
            Verdict::Broken => {
                let raw = std::mem::take(&mut self.raw);
                match machine.is_inside() {
                    true => out.push(CallEvent::End(Some(raw))),
                    false => text(raw, out),
                }
                self.machine = None;
                self.only_blanks = false;
            }
        }
        true
    }

    fn in_text(&mut self, out: &mut Vec<CallEvent>) -> bool {
        let blanks =
            self.pending.len() - self.pending.trim_start_matches(|c| self.format.is_blank(c)).len();
        let bare = self.only_blanks
            && self.format.has_bare_calls(self.reading)
            && self.pending.get(blanks..).is_some_and(|rest| rest.starts_with('{'));
        let opener = match bare {
            true => Some((blanks, "")),
            false => self.first_opener(),
        };
        if let Some((at, opener)) = opener {
            let rest = self.pending.split_off(at + opener.len());
            self.pending.truncate(at);
            let before = std::mem::replace(&mut self.pending, rest);
            // Blanks before a call are no text, unless it is none.
            if self.only_blanks && at == blanks {
                self.raw = before + opener;
            } else {
                text(before, out);
                self.raw = opener.to_owned();
            }
            self.machine = Some(self.format.machine(opener, self.reading));
            return true;
        }
        let release = self.pending.len() - self.held_bytes();
        if self.only_blanks && release <= blanks {
            return false;
        }
        self.only_blanks = false;
        let rest = self.pending.split_off(release);
        text(std::mem::replace(&mut self.pending, rest), out);
        false
    }

    /// The first opener in what is pending, and where it stands.
    fn first_opener(&self) -> Option<(usize, &'static str)> {
        let openers = self.format.openers(self.reading).iter();
        openers.filter_map(|opener| Some((self.pending.find(opener)?, *opener))).min()
    }

    /// Bytes at the end of what is pending with which an opener begins.
    fn held_bytes(&self) -> usize {
        let openers = self.format.openers(self.reading).iter();
        openers.map(|opener| begun_bytes(&self.pending, opener)).max().unwrap_or(0)
    }
}

/// How many bytes at the end of `text` are the beginning of `literal`, which is not there as a whole.
fn begun_bytes(text: &str, literal: &str) -> usize {
    let (text, literal) = (text.as_bytes(), literal.as_bytes());
    let most = text.len().min(literal.len().saturating_sub(1));
    (1..=most).rev().find(|&k| text.ends_with(&literal[..k])).unwrap_or(0)
}

fn text(text: String, out: &mut Vec<CallEvent>) {
    if !text.is_empty() {
        out.push(CallEvent::Text(text));
    }
}
