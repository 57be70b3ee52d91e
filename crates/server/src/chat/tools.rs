//! Calls in the text of a model that writes them as Hermes and Qwen do: `<tool_call>{"name": …, "arguments": {…}}</tool_call>`.
//!
//! Pure: text in pieces in, events out. Not here: ids of calls, other formats, who decides that a call is wanted.
//! Invariants: what is no call comes back as text, whole; the arguments of a call that is not broken are valid JSON; the
//! joined events do not depend on how the text is cut, but for one thing: of a call that breaks in the middle, how much of
//! its arguments went out before does.

const OPEN: &str = "<tool_call>";
const CLOSE: &str = "</tool_call>";
/// Up to the arguments; a longer head is no call.
const MAX_HEAD_BYTES: usize = 1024;
/// Open objects and arrays in arguments, as `serde_json` bounds them.
const MAX_DEPTH: usize = 127;

/// What a piece of text turned out to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum CallEvent {
    Text(String),
    /// A call of this function begins.
    Begin(String),
    /// More of its arguments.
    Arguments(String),
    /// It is over; where it is no call after all, with all of its text.
    End(Option<String>),
}

#[derive(Debug)]
enum State {
    Text,
    Head,
    Arguments { closers: Vec<char>, in_string: bool, escaped: bool, begun_byte: usize },
    Tail,
}

/// Reads the calls of one answer.
#[derive(Debug)]
pub(crate) struct CallParser {
    /// Functions that can be called.
    names: Vec<String>,
    state: State,
    /// Text that is not understood yet.
    pending: String,
    /// All text of the call being read, marker included.
    raw: String,
    /// Blanks between calls are no text.
    after_call: bool,
}

enum Head {
    /// Name, and bytes before the arguments.
    Found(String, usize),
    More,
    Wrong,
}

impl CallParser {
    pub(crate) fn new(names: Vec<String>) -> Self {
        Self {
            names,
            state: State::Text,
            pending: String::new(),
            raw: String::new(),
            after_call: false,
        }
    }

    /// Takes the next piece.
    pub(crate) fn push(&mut self, piece: &str, out: &mut Vec<CallEvent>) {
        self.pending.push_str(piece);
        while self.step(out) {}
    }

    /// The answer is over.
    pub(crate) fn finish(&mut self, out: &mut Vec<CallEvent>) {
        let rest = std::mem::take(&mut self.pending);
        let raw = std::mem::take(&mut self.raw);
        match std::mem::replace(&mut self.state, State::Text) {
            State::Text if self.after_call && rest.trim().is_empty() => {}
            State::Text => text(rest, out),
            State::Head => text(raw + &rest, out),
            State::Arguments { .. } => out.push(CallEvent::End(Some(raw + &rest))),
            // The arguments are complete; only the closing marker was cut.
            State::Tail => out.push(CallEvent::End(None)),
        }
    }

    /// Whether there may be more to do with what is pending.
    fn step(&mut self, out: &mut Vec<CallEvent>) -> bool {
        match &self.state {
            State::Text => self.in_text(out),
            State::Head => self.in_head(out),
            State::Arguments { .. } => self.in_arguments(out),
            State::Tail => self.in_tail(out),
        }
    }

    fn in_text(&mut self, out: &mut Vec<CallEvent>) -> bool {
        if let Some(at) = self.pending.find(OPEN) {
            let rest = self.pending.split_off(at + OPEN.len());
            self.pending.truncate(at);
            let before = std::mem::replace(&mut self.pending, rest);
            if !(self.after_call && before.trim().is_empty()) {
                text(before, out);
            }
            self.raw = OPEN.to_owned();
            self.state = State::Head;
            return true;
        }
        let keep = (1..OPEN.len()).rev().find(|&k| self.pending.ends_with(&OPEN[..k])).unwrap_or(0);
        let release = self.pending.len() - keep;
        if self.after_call && self.pending[..release].trim().is_empty() {
            return false;
        }
        self.after_call = false;
        let rest = self.pending.split_off(release);
        text(std::mem::replace(&mut self.pending, rest), out);
        false
    }

    fn in_head(&mut self, out: &mut Vec<CallEvent>) -> bool {
        match head(&self.pending) {
            Head::Found(name, bytes) if self.names.contains(&name) => {
                let rest = self.pending.split_off(bytes);
                self.raw.push_str(&std::mem::replace(&mut self.pending, rest));
                let begun_byte = self.raw.len();
                out.push(CallEvent::Begin(name));
                let closers = Vec::new();
                self.state =
                    State::Arguments { closers, in_string: false, escaped: false, begun_byte };
                true
            }
            Head::More if self.pending.len() <= MAX_HEAD_BYTES => false,
            _ => {
                text(std::mem::take(&mut self.raw), out);
                self.after_call = false;
                self.state = State::Text;
                true
            }
        }
    }

    fn in_arguments(&mut self, out: &mut Vec<CallEvent>) -> bool {
        let State::Arguments { closers, in_string, escaped, begun_byte } = &mut self.state else {
            return false;
        };
        let mut end = self.pending.len();
        let (mut done, mut broken) = (false, false);
        for (at, c) in self.pending.char_indices() {
            match c {
                _ if *escaped => *escaped = false,
                '\\' if *in_string => *escaped = true,
                '"' => *in_string = !*in_string,
                _ if *in_string => {}
                '{' => closers.push('}'),
                '[' => closers.push(']'),
                '}' | ']' => broken = closers.pop() != Some(c),
                _ => {}
            }
            broken |= closers.len() > MAX_DEPTH;
            done = closers.is_empty();
            if done || broken {
                end = at + c.len_utf8();
                break;
            }
        }
        let rest = self.pending.split_off(end);
        let more = std::mem::replace(&mut self.pending, rest);
        self.raw.push_str(&more);
        let valid =
            || serde_json::from_str::<serde::de::IgnoredAny>(&self.raw[*begun_byte..]).is_ok();
        if broken || (done && !valid()) {
            self.end(Some(()), out);
            return true;
        }
        if !more.is_empty() {
            out.push(CallEvent::Arguments(more));
        }
        if done {
            self.state = State::Tail;
        }
        done
    }

    /// Behind the arguments: small models write a brace too few or too many, which changes nothing.
    fn in_tail(&mut self, out: &mut Vec<CallEvent>) -> bool {
        let rest = self.pending.trim_start_matches(|c: char| c.is_whitespace() || c == '}');
        let skipped = self.pending.len() - rest.len();
        self.raw.push_str(&self.pending[..skipped]);
        self.pending.drain(..skipped);
        if let Some(rest) = self.pending.strip_prefix(CLOSE) {
            self.pending = rest.to_owned();
            self.end(None, out);
            return true;
        }
        if CLOSE.starts_with(self.pending.as_str()) {
            return false;
        }
        self.end(Some(()), out);
        true
    }

    fn end(&mut self, broken: Option<()>, out: &mut Vec<CallEvent>) {
        let raw = std::mem::take(&mut self.raw);
        self.after_call = broken.is_none();
        self.state = State::Text;
        out.push(CallEvent::End(broken.map(|()| raw)));
    }
}

fn text(text: String, out: &mut Vec<CallEvent>) {
    if !text.is_empty() {
        out.push(CallEvent::Text(text));
    }
}

/// `{"name": "f", "arguments": ` before a `{`.
fn head(given: &str) -> Head {
    let mut rest = given;
    for expected in ["{", "\"name\"", ":"] {
        rest = match after(rest, expected) {
            Ok(rest) => rest,
            Err(head) => return head,
        };
    }
    rest = match after(rest, "\"") {
        Ok(rest) => rest,
        Err(head) => return head,
    };
    let Some((name, behind)) = rest.split_once('"') else { return Head::More };
    rest = match after(behind, ",") {
        Ok(rest) => rest,
        Err(head) => return head,
    };
    rest = match after(rest, "\"arguments\"") {
        Ok(rest) => rest,
        Err(Head::More) => return Head::More,
        Err(_) => match after(rest, "\"parameters\"") {
            Ok(rest) => rest,
            Err(head) => return head,
        },
    };
    match after(rest, ":").map(str::trim_start) {
        Ok("") => Head::More,
        Ok(rest) if rest.starts_with('{') => Head::Found(name.to_owned(), given.len() - rest.len()),
        Ok(_) => Head::Wrong,
        Err(head) => head,
    }
}

fn after<'a>(text: &'a str, expected: &str) -> Result<&'a str, Head> {
    let text = text.trim_start();
    match text.strip_prefix(expected) {
        Some(rest) => Ok(rest),
        None if expected.starts_with(text) => Err(Head::More),
        None => Err(Head::Wrong),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The joined events of a text that comes in pieces cut at these bytes.
    fn read(text: &str, cuts: &[usize]) -> Vec<CallEvent> {
        let mut parser = CallParser::new(vec!["f".into(), "g".into()]);
        let (mut out, mut from) = (Vec::new(), 0);
        for &cut in cuts.iter().chain([&text.len()]) {
            parser.push(&text[from..cut], &mut out);
            from = cut;
        }
        parser.finish(&mut out);
        let mut joined: Vec<CallEvent> = Vec::new();
        for event in out {
            match (joined.last_mut(), event) {
                (Some(CallEvent::Text(a)), CallEvent::Text(b))
                | (Some(CallEvent::Arguments(a)), CallEvent::Arguments(b)) => a.push_str(&b),
                (_, event) => joined.push(event),
            }
        }
        joined
    }

    fn shown(events: &[CallEvent]) -> String {
        let one = |event: &CallEvent| match event {
            CallEvent::Text(text) => format!("T({text})"),
            CallEvent::Begin(name) => format!("B({name})"),
            CallEvent::Arguments(text) => format!("A({text})"),
            CallEvent::End(None) => "E".to_owned(),
            CallEvent::End(Some(raw)) => format!("X({raw})"),
        };
        events.iter().map(one).collect()
    }

    #[test]
    fn calls_are_read_however_the_text_is_cut() {
        let call = r#"<tool_call>
{"name": "f", "arguments": {"a": "}\"[", "b": [1, {"ü": null}]}}
</tool_call>"#;
        let read_call = r#"B(f)A({"a": "}\"[", "b": [1, {"ü": null}]})E"#;
        for (text, expected) in [
            ("plain <tool text".to_owned(), "T(plain <tool text)".to_owned()),
            (call.to_owned(), read_call.to_owned()),
            (format!("Hi\n{call}\n{call}\n"), format!("T(Hi\n){read_call}{read_call}")),
            (format!("{call}\nBye"), format!("{read_call}T(\nBye)")),
            (call.replace("}}\n", "}\n"), read_call.to_owned()),
            (call.replace("}}\n", "}}}\n"), read_call.to_owned()),
            (call.replace("\n</tool_call>", ""), read_call.to_owned()),
            ("<tool_call>no</tool_call>".to_owned(), "T(<tool_call>no</tool_call>)".to_owned()),
            (call.replace("\"f\"", "\"h\""), format!("T({})", call.replace("\"f\"", "\"h\""))),
        ] {
            for a in (0..=text.len()).filter(|&a| text.is_char_boundary(a)) {
                for b in (a..=text.len()).filter(|&b| text.is_char_boundary(b)) {
                    assert_eq!(
                        shown(&read(&text, &[a, b])),
                        expected,
                        "{text:?} cut at {a} and {b}"
                    );
                }
            }
        }
    }

    #[test]
    fn what_is_no_json_is_no_call() {
        for arguments in ["{\"a\": True}", "{\"a\": [}", "{\"a\": 1"] {
            let text = format!("<tool_call>{{\"name\": \"f\", \"arguments\": {arguments}");
            let events = read(&text, &[]);
            assert_eq!(events.first(), Some(&CallEvent::Begin("f".into())), "{text}");
            assert_eq!(events.last(), Some(&CallEvent::End(Some(text.clone()))), "{text}");
        }
    }
}
