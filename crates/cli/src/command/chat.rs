//! `mintage chat`: talk to a model in the terminal, with the engine in this process. No server, no key.

mod conversation;
mod editor;

use std::io::{IsTerminal as _, Read as _, Write as _};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::Args;
use futures_util::StreamExt as _;
use mintage_hub::ModelRef;
use mintage_model::{
    Engine, Event, Finish, FinishReason, GenerateRequest, GenerationDefaults, SamplingParams,
};

use crate::command::up::EngineArgs;
use crate::config::Settings;
use crate::load::{self, LoadedModel};
use crate::models::{self, DEFAULT_MODEL};
use conversation::Conversation;
use editor::{Editor, Input};

/// Temperature where neither the user nor the model names one.
const DEFAULT_TEMPERATURE: f32 = 0.7;
/// Bytes of the longest prompt from standard input.
const PROMPT_BYTES_MAX: u64 = 16 << 20;

const EXAMPLES: &str = "\
Examples:
  mintage chat
  mintage chat qwen2.5-coder:1.5b --system 'Answer in one sentence.'
  mintage chat --prompt 'Write a regex for ISO dates.'
  git diff | mintage chat --system 'Write a commit message for this diff.'

In the conversation: a line that ends in \\ goes on, \"\"\" begins and ends a block of lines, /help lists the commands,
Ctrl-C stops an answer, Ctrl-D ends.";

const HELP: &str = "\
/help          this
/clear         forget the conversation
/retry         another answer to the last message
/system TEXT   a new system prompt, and a new conversation; without TEXT none
/stats         tokens and speed of the last answer
/exit          end (or Ctrl-D)
A line that ends in \\ goes on; \"\"\" begins and ends a block of lines; Ctrl-C stops an answer.
";

/// Talk to a model in the terminal
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct ChatArgs {
    /// A name, a file or a folder
    #[arg(default_value = DEFAULT_MODEL)]
    model: ModelRef,
    /// Answer this and end; standard input that is no terminal does the same
    #[arg(long, short, value_name = "TEXT")]
    prompt: Option<String>,
    /// The system prompt
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    /// 0 always takes the likeliest token [default: the model's, or 0.7]
    #[arg(long, value_name = "T")]
    temperature: Option<f32>,
    /// Tokens of the longest answer [default: what the context holds]
    #[arg(long, value_name = "N")]
    max_tokens: Option<u32>,
    /// The same seed gives the same answers [default: from the clock]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Let this smaller model of the same vocabulary guess tokens for it
    #[arg(long, value_name = "NAME|FILE")]
    draft: Option<ModelRef>,
    #[command(flatten)]
    engine: EngineArgs,
}

/// One chat: model, settings, and what was said.
struct Chat {
    runtime: tokio::runtime::Runtime,
    model: LoadedModel,
    sampling: SamplingParams,
    max_tokens: Option<u32>,
    conversation: Conversation,
    last: Option<Finish>,
}

pub(crate) fn run(mut settings: Settings, args: &ChatArgs) -> Result<()> {
    args.engine.apply(&mut settings);
    let prompt = one_prompt(args)?;
    let resolved = models::resolve(&settings, &args.model)?;
    let draft = args.draft.as_ref().map(|draft| models::resolve(&settings, draft)).transpose()?;
    let name = resolved.name.as_str();
    let model = load::engine(&settings.engine, &resolved, draft.as_ref(), name)?;
    if model.text.template().is_none() {
        bail!(
            "`{}` has no chat template: it is a base model, which continues text but does not chat",
            resolved.name
        );
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut chat = Chat {
        runtime,
        sampling: sampling(args, &model.defaults),
        model,
        max_tokens: args.max_tokens,
        conversation: Conversation::new(args.system.clone()),
        last: None,
    };
    match prompt {
        Some(prompt) => {
            chat.conversation.say(prompt);
            let finish = chat.answer()?;
            if let FinishReason::Fault(fault) = finish {
                bail!("the answer broke off: {fault}");
            }
            Ok(())
        }
        None => {
            let seconds = chat.model.took.as_secs_f64();
            println!(
                "{}, loaded in {seconds:.1} s. /help lists the commands, Ctrl-D ends.",
                resolved.name
            );
            converse(&mut chat)
        }
    }
}

/// The prompt of a chat that has only one.
fn one_prompt(args: &ChatArgs) -> Result<Option<String>> {
    if args.prompt.is_some() || std::io::stdin().is_terminal() {
        return Ok(args.prompt.clone());
    }
    let mut text = String::new();
    let read = std::io::stdin().lock().take(PROMPT_BYTES_MAX + 1).read_to_string(&mut text);
    read.context("standard input is not a readable UTF-8 text")?;
    if text.len() as u64 > PROMPT_BYTES_MAX {
        bail!("standard input has more than {PROMPT_BYTES_MAX} bytes");
    }
    if text.trim().is_empty() {
        bail!("standard input is empty; give a prompt there or with `--prompt TEXT`");
    }
    Ok(Some(text))
}

fn sampling(args: &ChatArgs, defaults: &GenerationDefaults) -> SamplingParams {
    let clock = || {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        // Any bits will do.
        now.map_or(0, |now| now.as_nanos() as u64)
    };
    let fallback = SamplingParams::default();
    SamplingParams {
        temperature: args.temperature.or(defaults.temperature).unwrap_or(DEFAULT_TEMPERATURE),
        top_k: defaults.top_k.unwrap_or(fallback.top_k),
        top_p: defaults.top_p.unwrap_or(fallback.top_p),
        min_p: defaults.min_p.unwrap_or(fallback.min_p),
        repetition_penalty: defaults.repetition_penalty.unwrap_or(fallback.repetition_penalty),
        seed: args.seed.unwrap_or_else(clock),
        ..fallback
    }
}

fn converse(chat: &mut Chat) -> Result<()> {
    let mut editor = Editor::new()?;
    loop {
        match editor.read()? {
            Input::End => return Ok(()),
            Input::Nothing => {}
            Input::Message(text) => {
                chat.conversation.say(text);
                chat.answer_or_complain();
            }
            Input::Command(command, rest) => match command.as_str() {
                "help" | "?" => print!("{HELP}"),
                "exit" | "quit" | "bye" => return Ok(()),
                "clear" => {
                    chat.conversation.clear();
                    println!("forgotten");
                }
                "system" => {
                    let system = (!rest.is_empty()).then_some(rest);
                    chat.conversation = Conversation::new(system);
                    println!("a new conversation");
                }
                "retry" => {
                    if chat.conversation.take_back_answer() {
                        chat.sampling.seed = chat.sampling.seed.wrapping_add(1);
                        chat.answer_or_complain();
                    } else {
                        println!("nothing has been said yet");
                    }
                }
                "stats" => chat.print_statistics(),
                _ => println!("no command `/{command}`; /help lists them"),
            },
        }
    }
}

impl Chat {
    /// In a conversation a failed answer is no reason to end.
    fn answer_or_complain(&mut self) {
        match self.answer() {
            Ok(FinishReason::Fault(fault)) => println!("(the answer broke off: {fault})"),
            Ok(FinishReason::Cancelled) => println!("(stopped)"),
            Ok(FinishReason::Length) => println!("(the answer is as long as is allowed)"),
            Ok(_) => {}
            Err(error) => {
                self.conversation.take_back_message();
                println!("({error:#})");
            }
        }
    }

    /// Computes, prints and remembers one answer.
    fn answer(&mut self) -> Result<FinishReason> {
        let context = self.model.engine.info().context_length;
        let (prompt, forgotten) = self.conversation.prompt(&self.model.text, context)?;
        if forgotten > 0 {
            eprintln!("(the context is full: the oldest {forgotten} messages are forgotten)");
        }
        let room = context.saturating_sub(u32::try_from(prompt.len()).unwrap_or(u32::MAX));
        let request = GenerateRequest {
            request_id: "chat".to_owned(),
            prompt: prompt.into(),
            max_new_tokens: self.max_tokens.unwrap_or(room).min(room).max(1),
            sampling: self.sampling.clone(),
            stop_token_ids: Arc::clone(self.model.text.end_of_turn_ids()),
            ..GenerateRequest::default()
        };
        let (answer, finish) = self.runtime.block_on(stream(&self.model, request))?;
        self.conversation.answered(answer);
        let reason = finish.reason.clone();
        self.last = Some(finish);
        Ok(reason)
    }

    fn print_statistics(&self) {
        let Some(finish) = &self.last else {
            println!("nothing has been answered yet");
            return;
        };
        let (usage, timings) = (&finish.usage, &finish.timings);
        let first = timings.first_token.unwrap_or(timings.total);
        let decode = timings.total.saturating_sub(first).as_secs_f64().max(1e-9);
        println!(
            "prompt {} tokens, {} of them cached; first token after {:.2} s; answer {} tokens, {:.1} tokens/s",
            usage.prompt_tokens,
            usage.cached_tokens,
            first.as_secs_f64(),
            usage.output_tokens,
            f64::from(usage.output_tokens.saturating_sub(1)) / decode
        );
    }
}

/// Prints an answer while it comes; Ctrl-C stops it, and it alone.
async fn stream(model: &LoadedModel, request: GenerateRequest) -> Result<(String, Finish)> {
    let stop = Arc::clone(&request.stop_token_ids);
    let mut events = model.engine.submit(request)?;
    let mut decoder = model.text.tokenizer().stream(true);
    let mut answer = String::new();
    let mut out = std::io::stdout();
    let mut interrupted = std::pin::pin!(tokio::signal::ctrl_c());
    let mut watching = true;
    let started = Instant::now();
    loop {
        let event = tokio::select! {
            event = events.next() => event,
            heard = &mut interrupted, if watching => {
                watching = false;
                if heard.is_ok() {
                    events.cancel();
                }
                continue;
            }
        };
        let piece = match event {
            Some(Event::Prefilled { .. }) => {
                tracing::debug!(after_s = started.elapsed().as_secs_f64(), "prompt computed");
                continue;
            }
            Some(Event::Vector(_)) => continue,
            Some(Event::Token(token)) if stop.contains(&token.id) => continue,
            Some(Event::Token(token)) => decoder.push(token.id),
            Some(Event::Finished(finish)) => {
                let rest = decoder.finish();
                answer.push_str(&rest);
                writeln!(out, "{rest}")?;
                return Ok((answer, finish));
            }
            None => bail!("the engine ended without a word"),
        };
        answer.push_str(&piece);
        out.write_all(harmless(&piece).as_bytes())?;
        out.flush()?;
    }
}

/// What a model says must not drive the terminal: control characters other than newline and tab are left out.
fn harmless(text: &str) -> String {
    text.chars().filter(|c| !c.is_control() || matches!(c, '\n' | '\t')).collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn answers_cannot_drive_the_terminal() {
        assert_eq!(super::harmless("a\u{1b}[2Jb\n\tc\r\u{7}猫"), "a[2Jb\n\tc猫");
    }
}
