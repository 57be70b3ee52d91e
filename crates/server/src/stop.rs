//! Finding stop strings in text that arrives in pieces. Pure.
//!
//! Invariants: what was released never contains a stop string nor the beginning of one that is then completed; the
//! outcome does not depend on how the text is cut into pieces; at most one byte less than the longest stop string is
//! held back.

/// Watches for the stop strings of one answer.
#[derive(Debug)]
pub(crate) struct StopMatcher {
    stops: Vec<String>,
    /// Text that may be the beginning of a stop string.
    held: String,
}

/// What to do after a piece of text.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Released {
    /// This much is safe to show.
    Text(String),
    /// This stop string is complete: this much text comes before it, and nothing after.
    Stopped { text: String, stop: String },
}

impl StopMatcher {
    /// Empty stop strings are ignored: they would match before the first character.
    pub(crate) fn new(mut stops: Vec<String>) -> Self {
        stops.retain(|stop| !stop.is_empty());
        Self { stops, held: String::new() }
    }

    /// Takes the next piece. After `Stopped` nothing more may be pushed.
    pub(crate) fn push(&mut self, piece: &str) -> Released {
        if self.stops.is_empty() {
            return Released::Text(piece.to_owned());
        }
        self.held.push_str(piece);
        if let Some((start, stop)) = self.first_match() {
            let stop = stop.to_owned();
            self.held.truncate(start);
            return Released::Stopped { text: std::mem::take(&mut self.held), stop };
        }
        let keep = self.partial_bytes();
        let rest = self.held.split_off(self.held.len() - keep);
        Released::Text(std::mem::replace(&mut self.held, rest))
    }

    /// The answer is over: what was held back was no stop string.
    pub(crate) fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// Whether text is held back.
    pub(crate) fn holds_text(&self) -> bool {
        !self.held.is_empty()
    }

    /// The match that is completed first, and where it starts; of those, the longest.
    fn first_match(&self) -> Option<(usize, &str)> {
        let ends = self.stops.iter().filter_map(|stop| {
            let start = self.held.find(stop.as_str())?;
            Some((start + stop.len(), start, stop.as_str()))
        });
        ends.min().map(|(_, start, stop)| (start, stop))
    }

    /// Bytes of the longest end of `held` with which a stop string begins. It starts on a character's boundary, because
    /// a stop string does.
    fn partial_bytes(&self) -> usize {
        let held = self.held.as_bytes();
        let longest = |stop: &String| {
            let most = held.len().min(stop.len() - 1);
            (1..=most).rev().find(|&k| held.ends_with(&stop.as_bytes()[..k])).unwrap_or(0)
        };
        self.stops.iter().map(longest).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Feeds the text cut at every multiple of `chars` characters.
    fn run(stops: &[&str], text: &str, chars: usize) -> (String, bool) {
        let mut matcher = StopMatcher::new(stops.iter().map(|s| (*s).to_owned()).collect());
        let mut out = String::new();
        let all: Vec<char> = text.chars().collect();
        for piece in all.chunks(chars) {
            match matcher.push(&piece.iter().collect::<String>()) {
                Released::Text(text) => out.push_str(&text),
                Released::Stopped { text, .. } => return (out + &text, true),
            }
        }
        (out + &matcher.finish(), false)
    }

    #[test]
    fn the_cut_does_not_depend_on_the_pieces() {
        for (stops, text, expected, stopped) in [
            (&["END"][..], "one END two", "one ", true),
            (&["END"], "one EN", "one EN", false),
            (&["END"], "EENEND", "EEN", true),
            (&["aab"], "aaaab", "aa", true),
            (&["abc", "b"], "xabc", "xa", true),
            (&["b", "ab"], "xab", "x", true),
            (&["\n\n", "Human:"], "Hi\nHuman: x", "Hi\n", true),
            (&["。好"], "你好。你。好的", "你好。你", true),
            (&["👩‍💻"], "a👩‍🔬b👩‍💻c", "a👩‍🔬b", true),
            (&[], "anything", "anything", false),
            (&["x"], "x", "", true),
        ] {
            for chars in 1..=text.chars().count() {
                let (out, hit) = run(stops, text, chars);
                assert_eq!(
                    (out.as_str(), hit),
                    (expected, stopped),
                    "{stops:?} {text:?} by {chars}"
                );
            }
        }
    }

    #[test]
    fn little_is_held_back() {
        let mut matcher = StopMatcher::new(vec!["aaaaaaab".into()]);
        for _ in 0..1000 {
            matcher.push("a");
            assert!(matcher.held.len() < 8);
        }
        assert!(matcher.holds_text());
    }
}
