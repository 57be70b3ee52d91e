//! Draws the events of a pull: a bar on a terminal, a few plain lines elsewhere.

use std::io::IsTerminal as _;
use std::sync::Mutex;

use indicatif::{ProgressBar, ProgressStyle};
use mintage_hub::{Progress, PullEvent};

use crate::output;

/// A line for each of so many shares of a download, where there is no terminal.
const PLAIN_STEPS: u64 = 10;

/// Draws to standard error.
pub(crate) struct PullProgress {
    state: Mutex<State>,
}

struct State {
    bar: Option<ProgressBar>,
    terminal: bool,
    bytes: u64,
    next_line_at: u64,
}

impl PullProgress {
    /// For one command.
    pub(crate) fn new() -> Self {
        let terminal = std::io::stderr().is_terminal();
        let state = State { bar: None, terminal, bytes: 0, next_line_at: 0 };
        Self { state: Mutex::new(state) }
    }
}

impl Progress for PullProgress {
    fn event(&self, event: PullEvent<'_>) {
        // A poisoned lock means that drawing panicked elsewhere; the download matters more.
        if let Ok(mut state) = self.state.lock() {
            state.draw(event);
        }
    }
}

impl State {
    fn draw(&mut self, event: PullEvent<'_>) {
        match event {
            PullEvent::Waiting { model } => {
                self.line(&format!("another process is pulling {model}; waiting for it"));
            }
            PullEvent::Trying { source } => self.line(&format!("fetching from {source}")),
            PullEvent::SourceFailed { source, reason } => {
                self.end_bar();
                self.line(&format!("{source}: {reason}"));
            }
            PullEvent::Started { file, bytes, at } => self.begin(file, "", bytes.unwrap_or(0), at),
            PullEvent::Verifying { file, bytes } => self.begin(file, "verifying ", bytes, 0),
            PullEvent::At { at } => self.advance(at),
            PullEvent::Finished { file } => {
                self.end_bar();
                self.line(&format!("{file}: SHA-256 verified"));
            }
        }
    }

    fn begin(&mut self, file: &str, what: &str, bytes: u64, at: u64) {
        self.end_bar();
        self.bytes = bytes;
        self.next_line_at = 0;
        if self.terminal {
            let bar = ProgressBar::new(bytes);
            let template = "{prefix}{msg}  {bar:28}  {binary_bytes} / {binary_total_bytes}  {binary_bytes_per_sec}  {eta}";
            if let Ok(style) = ProgressStyle::with_template(template) {
                bar.set_style(style.progress_chars("━━─"));
            }
            bar.set_prefix(what.to_owned());
            bar.set_message(file.to_owned());
            bar.set_position(at);
            bar.reset_eta();
            self.bar = Some(bar);
        } else if at > 0 {
            let (at, bytes) = (output::bytes(at), output::bytes(bytes));
            self.line(&format!("{what}{file}: going on at {at} of {bytes}"));
        } else {
            self.line(&format!("{what}{file}: {}", output::bytes(bytes)));
        }
    }

    fn advance(&mut self, at: u64) {
        if let Some(bar) = &self.bar {
            bar.set_position(at);
        } else if !self.terminal && self.bytes > 0 {
            let step = (self.bytes / PLAIN_STEPS).max(1);
            if self.next_line_at == 0 {
                self.next_line_at = (at / step + 1) * step;
            } else if at >= self.next_line_at && at < self.bytes {
                self.line(&format!("  {} %", at * 100 / self.bytes));
                self.next_line_at = (at / step + 1) * step;
            }
        }
    }

    fn end_bar(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }

    fn line(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.println(text),
            None => eprintln!("{text}"),
        }
    }
}
