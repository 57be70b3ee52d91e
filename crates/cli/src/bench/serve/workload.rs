//! What is asked, and when: prompts of a wanted length, arrivals of a wanted pattern, mixtures. Pure: the same seed gives
//! the same workload. Not the traces (`trace.rs`).

use std::fmt::{self, Write as _};
use std::str::FromStr;
use std::time::Duration;

/// A request to be.
#[derive(Clone, Debug)]
pub(super) struct Planned {
    /// When it is due, from the start of the run; ignored in a closed loop.
    pub(super) due: Duration,
    /// Which shared beginnings its prompt has, then its own text.
    pub(super) prompt: String,
    /// Tokens to generate.
    pub(super) output_tokens: u32,
    /// Which part of a mixture it is.
    pub(super) class: usize,
}

/// A small, seeded generator (SplitMix64): a workload must be the same on every machine.
#[derive(Clone, Debug)]
pub(super) struct Dice(u64);

impl Dice {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// Uniform in [0, 1).
    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// A pause between arrivals of a Poisson process.
    fn exponential(&mut self, rate_per_s: f64) -> Duration {
        Duration::from_secs_f64(-(1.0 - self.unit()).ln() / rate_per_s)
    }
}

/// Common words, nearly all of one token each in today's vocabularies.
const WORDS: [&str; 64] = [
    "time",
    "year",
    "people",
    "way",
    "day",
    "man",
    "thing",
    "woman",
    "life",
    "child",
    "world",
    "school",
    "state",
    "family",
    "student",
    "group",
    "country",
    "problem",
    "hand",
    "part",
    "place",
    "case",
    "week",
    "company",
    "system",
    "program",
    "question",
    "work",
    "government",
    "number",
    "night",
    "point",
    "home",
    "water",
    "room",
    "mother",
    "area",
    "money",
    "story",
    "fact",
    "month",
    "lot",
    "right",
    "study",
    "book",
    "eye",
    "job",
    "word",
    "business",
    "issue",
    "side",
    "kind",
    "head",
    "house",
    "service",
    "friend",
    "father",
    "power",
    "hour",
    "game",
    "line",
    "end",
    "member",
    "law",
];

/// `words` words that depend only on the seed.
pub(super) fn text(seed: u64, words: usize) -> String {
    let mut dice = Dice::new(seed);
    let mut text = String::with_capacity(words * 7);
    for index in 0..words {
        if index > 0 {
            text.push_str(if index % 16 == 0 { ".\n" } else { " " });
        }
        text.push_str(WORDS[(dice.next() % WORDS.len() as u64) as usize]);
    }
    text
}

/// Most tokens of one prompt or answer, and weight of one kind.
const MAX_LENGTH: usize = 1 << 20;

/// One kind of request: `[WEIGHT*]PROMPT[+SHARED]/OUTPUT`, in tokens (as words: about one token each). `3*200+1000/64` is
/// three shares of requests with 200 words of their own after 1,000 that all of this kind begin with, answered in 64.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Kind {
    /// Share among the kinds of a mixture.
    pub(super) weight: u32,
    /// Words of its own.
    pub(super) prompt: usize,
    /// Words before, the same for all of the kind.
    pub(super) shared_prefix: usize,
    /// Tokens of the answer.
    pub(super) output: u32,
}

impl FromStr for Kind {
    type Err = String;

    fn from_str(given: &str) -> Result<Self, String> {
        let number = |text: &str| text.trim().parse().ok().filter(|n| *n <= MAX_LENGTH);
        let parse = || {
            let (weight, rest) = given.split_once('*').unwrap_or(("1", given));
            let (prompt, output) = rest.split_once('/')?;
            let (prompt, shared) = prompt.split_once('+').unwrap_or((prompt, "0"));
            Some(Self {
                weight: u32::try_from(number(weight)?).ok()?,
                prompt: number(prompt)?,
                shared_prefix: number(shared)?,
                output: u32::try_from(number(output)?).ok()?,
            })
        };
        parse().filter(|kind| kind.weight > 0 && kind.output > 0).ok_or_else(|| {
            format!("expected [WEIGHT*]PROMPT[+SHARED]/OUTPUT, as in 3*200+1000/64; the most is {MAX_LENGTH}")
        })
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.shared_prefix {
            0 => write!(formatter, "{} → {}", self.prompt, self.output),
            shared => write!(formatter, "{shared} shared + {} → {}", self.prompt, self.output),
        }
    }
}

/// `count` requests, each of one of the `kinds` by their weights; due by a Poisson process where a rate is given, else
/// all at once.
pub(super) fn synthetic(
    seed: u64,
    count: usize,
    kinds: &[Kind],
    rate_per_s: Option<f64>,
) -> Vec<Planned> {
    let mut dice = Dice::new(seed);
    let prefix = |class: usize, kind: &Kind| {
        text(seed ^ 0x5EED ^ ((class as u64) << 32), kind.shared_prefix)
    };
    let prefixes: Vec<String> =
        kinds.iter().enumerate().map(|(class, kind)| prefix(class, kind)).collect();
    let mut due = Duration::ZERO;
    let mut planned = Vec::with_capacity(count);
    for _ in 0..count {
        if let Some(rate) = rate_per_s {
            due += dice.exponential(rate);
        }
        let class = choose(kinds, dice.unit());
        let Some(kind) = kinds.get(class) else { break };
        let own = text(dice.next(), kind.prompt);
        let prompt = format!("{}\n{own}", prefixes[class]);
        planned.push(Planned { due, prompt, output_tokens: kind.output, class });
    }
    planned
}

/// The kind on which a point in [0, 1) falls.
fn choose(kinds: &[Kind], point: f64) -> usize {
    let all: u64 = kinds.iter().map(|kind| u64::from(kind.weight)).sum();
    let mut left = point * all as f64;
    for (class, kind) in kinds.iter().enumerate() {
        left -= f64::from(kind.weight);
        if left < 0.0 {
            return class;
        }
    }
    kinds.len().saturating_sub(1)
}

/// A request to repeat a made-up file of `lines` lines with one name changed: what an editor's assistant is asked, and
/// what speculation from the prompt's own text makes fast.
pub(super) fn code_edit(seed: u64, lines: usize) -> Planned {
    let mut dice = Dice::new(seed);
    let mut word = || WORDS[(dice.next() % WORDS.len() as u64) as usize];
    let mut file = String::new();
    for line in 0..lines {
        // Writing to a string cannot fail.
        let _ = match line % 5 {
            0 => writeln!(file, "def {}_{}(items, limit):", word(), word()),
            1 => writeln!(file, "    {} = [item for item in items if item.{}]", word(), word()),
            2 => writeln!(file, "    {}_total = sum(item.{} for item in items)", word(), word()),
            3 => writeln!(file, "    return min(limit, {} + {})", word(), line),
            _ => writeln!(file),
        };
    }
    let prompt = format!(
        "Rename every `limit` to `maximum` in this Python file. Answer with the whole file and nothing else.\n\n\
         ```python\n{file}```"
    );
    // About eight tokens a line.
    let output_tokens = u32::try_from(8 * lines).unwrap_or(u32::MAX);
    Planned { due: Duration::ZERO, prompt, output_tokens, class: 0 }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Kind, choose, code_edit, synthetic, text};

    fn kind(text: &str) -> Kind {
        text.parse().unwrap()
    }

    #[test]
    fn the_same_seed_gives_the_same_words() {
        assert_eq!(text(7, 100), text(7, 100));
        assert_ne!(text(7, 100), text(8, 100));
        assert_eq!(text(7, 100).split_whitespace().count(), 100);
    }

    #[test]
    fn kinds_are_read_or_refused() {
        let expected = Kind { weight: 3, prompt: 200, shared_prefix: 1000, output: 64 };
        assert_eq!(kind("3*200+1000/64"), expected);
        let plain = Kind { weight: 1, prompt: 128, shared_prefix: 0, output: 8 };
        assert_eq!(kind("128/8"), plain);
        for bad in
            ["", "128", "0*1/1", "1/0", "-1/1", "1/99999999999", "9999999/1", "1*2*3/4", "a/b"]
        {
            assert!(bad.parse::<Kind>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_poisson_process_has_its_rate_and_its_spread() {
        let planned = synthetic(1, 4000, &[kind("8/5")], Some(20.0));
        let rate = 4000.0 / planned[3999].due.as_secs_f64();
        assert!((rate - 20.0).abs() < 1.0, "{rate}");
        // Of an exponential, 1 − 1/e lie below the mean.
        let pauses = planned.windows(2).map(|pair| pair[1].due - pair[0].due);
        let short = pauses.filter(|pause| *pause < Duration::from_millis(50)).count();
        assert!((short as f64 / 3999.0 - 0.632).abs() < 0.02, "{short}");
        let again = synthetic(1, 4000, &[kind("8/5")], Some(20.0));
        assert_eq!(planned[3999].due, again[3999].due);
        assert_ne!(planned[9].due, synthetic(2, 10, &[kind("8/5")], Some(20.0))[9].due);
    }

    #[test]
    fn a_mixture_keeps_its_weights_and_its_prefixes() {
        let kinds = [kind("3*4+6/5"), kind("1*9+2/7")];
        let planned = synthetic(1, 4000, &kinds, None);
        let second = planned.iter().filter(|planned| planned.class == 1).count();
        assert!((second as f64 / 4000.0 - 0.25).abs() < 0.03, "{second}");
        let of = |class: usize| planned.iter().filter(move |planned| planned.class == class);
        for (class, shared, words, output) in [(0, 6, 10, 5), (1, 2, 11, 7)] {
            let prompts: Vec<Vec<&str>> =
                of(class).map(|planned| planned.prompt.split_whitespace().collect()).collect();
            assert!(prompts.iter().all(|prompt| prompt.len() == words));
            assert!(prompts.iter().all(|prompt| prompt[..shared] == prompts[0][..shared]));
            assert!(of(class).all(|planned| planned.output_tokens == output));
        }
        assert_ne!(planned[0].prompt, planned[1].prompt);
        assert_eq!((choose(&kinds, 0.0), choose(&kinds, 0.999)), (0, 1));
    }

    #[test]
    fn a_code_edit_has_its_lines() {
        let planned = code_edit(1, 150);
        assert_eq!(planned.prompt.lines().count(), 150 + 4);
        assert_ne!(planned.prompt, code_edit(2, 150).prompt);
    }
}
