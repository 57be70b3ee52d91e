//! The line that is typed: editing, history, several lines, /commands. Knows nothing of models.

use anyhow::Result;
use rustyline::completion::Completer;
use rustyline::error::ReadlineError;
use rustyline::highlight::Highlighter;
use rustyline::hint::Hinter;
use rustyline::history::MemHistory;
use rustyline::validate::{ValidationContext, ValidationResult, Validator};
use rustyline::{Context, Helper};

/// Lines of the history.
const HISTORY_LINES: usize = 1000;
/// Begins and ends a block of lines.
const FENCE: &str = "\"\"\"";
const COMMANDS: [&str; 6] = ["/help", "/clear", "/retry", "/system ", "/stats", "/exit"];

/// What the user entered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Input {
    Message(String),
    /// Without the slash, and what follows it.
    Command(String, String),
    /// An empty line, or one that was given up with Ctrl-C.
    Nothing,
    End,
}

/// Reads from the terminal.
pub(super) struct Editor(rustyline::Editor<LineHelper, MemHistory>);

impl Editor {
    pub(super) fn new() -> Result<Self> {
        let config = rustyline::Config::builder()
            .max_history_size(HISTORY_LINES)?
            .auto_add_history(true)
            .build();
        let history = MemHistory::with_config(&config);
        let mut editor = rustyline::Editor::with_history(config, history)?;
        editor.set_helper(Some(LineHelper));
        Ok(Self(editor))
    }

    pub(super) fn read(&mut self) -> Result<Input> {
        match self.0.readline(">>> ") {
            Ok(line) => Ok(parse(&line)),
            Err(ReadlineError::Interrupted) => Ok(Input::Nothing),
            Err(ReadlineError::Eof) => Ok(Input::End),
            Err(error) => Err(error.into()),
        }
    }
}

/// Takes the fences and continuation marks out.
fn parse(line: &str) -> Input {
    let trimmed = line.trim();
    if let Some(rest) = trimmed.strip_prefix(FENCE) {
        let text = rest.strip_suffix(FENCE).unwrap_or(rest).trim_matches('\n');
        return if text.is_empty() { Input::Nothing } else { Input::Message(text.to_owned()) };
    }
    if let Some(command) = trimmed.strip_prefix('/') {
        let (command, rest) = command.split_once(char::is_whitespace).unwrap_or((command, ""));
        // A path is a message, not a command.
        if !command.contains('/') {
            return Input::Command(command.to_lowercase(), rest.trim().to_owned());
        }
    }
    if trimmed.is_empty() {
        return Input::Nothing;
    }
    Input::Message(trimmed.replace("\\\n", "\n"))
}

/// Whether more lines belong to the input.
fn is_open(input: &str) -> bool {
    match input.trim_start().strip_prefix(FENCE) {
        Some(rest) => !rest.trim_end().ends_with(FENCE),
        None => input.ends_with('\\'),
    }
}

struct LineHelper;

impl Validator for LineHelper {
    fn validate(&self, context: &mut ValidationContext<'_>) -> rustyline::Result<ValidationResult> {
        let open = is_open(context.input());
        Ok(if open { ValidationResult::Incomplete } else { ValidationResult::Valid(None) })
    }
}

impl Completer for LineHelper {
    type Candidate = String;

    fn complete(
        &self,
        line: &str,
        pos: usize,
        _context: &Context<'_>,
    ) -> rustyline::Result<(usize, Vec<String>)> {
        let typed = line.get(..pos).unwrap_or(line);
        let fitting =
            COMMANDS.iter().filter(|name| typed.starts_with('/') && name.starts_with(typed));
        Ok((0, fitting.map(|name| (*name).to_owned()).collect()))
    }
}

impl Hinter for LineHelper {
    type Hint = String;
}

impl Highlighter for LineHelper {}

impl Helper for LineHelper {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inputs_parse() {
        let check = |line: &str, expected: Input| assert_eq!(parse(line), expected, "{line:?}");
        let message = |text: &str| Input::Message(text.to_owned());
        check("", Input::Nothing);
        check("  hello ", message("hello"));
        check("a\\\nb", message("a\nb"));
        check("\"\"\"\na\n\n/b\n\"\"\"", message("a\n\n/b"));
        check("\"\"\"\"\"\"", Input::Nothing);
        check("/Exit", Input::Command("exit".to_owned(), String::new()));
        check("/system  Be brief. ", Input::Command("system".to_owned(), "Be brief.".to_owned()));
        check("/usr/bin is a folder", message("/usr/bin is a folder"));
    }

    #[test]
    fn open_inputs_wait_for_more() {
        for open in ["a\\", "\"\"\"", "\"\"\"\na", "  \"\"\"a"] {
            assert!(is_open(open), "{open:?}");
        }
        for closed in ["a", "", "\"\"\"a\"\"\"", "\"\"\"\na\n\"\"\"\n", "a\\\nb"] {
            assert!(!is_open(closed), "{closed:?}");
        }
    }
}
