//! What is asked, and when: prompts of a wanted length, arrivals of a wanted pattern, traces of real services. Pure:
//! the same seed gives the same workload.

use std::time::Duration;

use anyhow::{Context, Result, bail};

/// A request to be.
#[derive(Clone, Debug)]
pub(super) struct Planned {
    /// When it is due, from the start of the run; ignored in a closed loop.
    pub(super) due: Duration,
    /// Which shared beginnings its prompt has, then its own text.
    pub(super) prompt: String,
    /// Tokens to generate.
    pub(super) output_tokens: u32,
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

/// Lengths of a synthetic workload, tokens (as words: about one token each).
#[derive(Clone, Copy, Debug)]
pub(super) struct Lengths {
    pub(super) prompt: usize,
    pub(super) shared_prefix: usize,
    pub(super) output: u32,
}

/// `count` requests, due by a Poisson process where a rate is given, else all at once.
pub(super) fn synthetic(
    seed: u64,
    count: usize,
    lengths: Lengths,
    rate_per_s: Option<f64>,
) -> Vec<Planned> {
    let mut dice = Dice::new(seed);
    let prefix = text(seed ^ 0x5EED, lengths.shared_prefix);
    let mut due = Duration::ZERO;
    (0..count)
        .map(|_| {
            if let Some(rate) = rate_per_s {
                due += dice.exponential(rate);
            }
            let own = text(dice.next(), lengths.prompt.saturating_sub(lengths.shared_prefix));
            Planned { due, prompt: format!("{prefix}\n{own}"), output_tokens: lengths.output }
        })
        .collect()
}

/// How a trace is fitted to the machine at hand.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scale {
    /// Multiplies the time between arrivals.
    pub(super) time: f64,
    /// Multiplies prompt and output lengths.
    pub(super) length: f64,
    /// At most this many requests.
    pub(super) requests: usize,
}

impl Scale {
    fn tokens(&self, tokens: u64) -> usize {
        ((tokens as f64 * self.length).round() as usize).max(1)
    }
}

/// Tokens a block of the Mooncake trace stands for.
const MOONCAKE_BLOCK_TOKENS: u64 = 512;

/// Reads a trace: the Azure LLM inference CSV (`TIMESTAMP,ContextTokens,GeneratedTokens`) or Mooncake's JSONL
/// (`timestamp` in ms, `input_length`, `output_length`, `hash_ids` of 512-token blocks, which keep their sharing).
pub(super) fn trace(content: &str, scale: Scale) -> Result<Vec<Planned>> {
    let planned: Result<Vec<Planned>> = if content.trim_start().starts_with('{') {
        content
            .lines()
            .take(scale.requests)
            .enumerate()
            .map(|(index, line)| mooncake(index, line, scale))
            .collect()
    } else {
        azure(content, scale)
    };
    let mut planned = planned?;
    let first = planned.first().context("the trace holds no request")?.due;
    for request in &mut planned {
        request.due = request.due.saturating_sub(first).mul_f64(scale.time);
    }
    Ok(planned)
}

fn mooncake(index: usize, line: &str, scale: Scale) -> Result<Planned> {
    #[derive(serde::Deserialize)]
    struct Line {
        timestamp: u64,
        input_length: u64,
        output_length: u64,
        #[serde(default)]
        hash_ids: Vec<u64>,
    }
    let line: Line =
        serde_json::from_str(line).with_context(|| format!("line {} of the trace", index + 1))?;
    let block_words = scale.tokens(MOONCAKE_BLOCK_TOKENS);
    let mut left = scale.tokens(line.input_length);
    let mut prompt = String::new();
    for id in line.hash_ids {
        let words = left.min(block_words);
        prompt.push_str(&text(id.wrapping_add(1), words));
        prompt.push('\n');
        left -= words;
    }
    prompt.push_str(&text((index as u64) << 32, left));
    let output_tokens = u32::try_from(scale.tokens(line.output_length)).unwrap_or(u32::MAX);
    Ok(Planned { due: Duration::from_millis(line.timestamp), prompt, output_tokens })
}

fn azure(content: &str, scale: Scale) -> Result<Vec<Planned>> {
    let mut lines = content.lines();
    let header = lines.next().unwrap_or_default();
    if !header.starts_with("TIMESTAMP,ContextTokens,GeneratedTokens") {
        bail!(
            "not a trace that is known: expected Mooncake's JSONL or a CSV that begins `TIMESTAMP,ContextTokens,GeneratedTokens`, found `{:.80}`",
            header
        );
    }
    let request = |(index, line): (usize, &str)| -> Result<Planned> {
        let place = || format!("line {} of the trace: `{line}`", index + 2);
        let mut fields = line.split(',');
        let due = time_of_day(fields.next().unwrap_or_default()).with_context(place)?;
        let mut number =
            || fields.next().and_then(|field| field.trim().parse::<u64>().ok()).with_context(place);
        let (prompt_tokens, output_tokens) = (number()?, number()?);
        let output_tokens = u32::try_from(scale.tokens(output_tokens)).unwrap_or(u32::MAX);
        Ok(Planned { due, prompt: text(index as u64, scale.tokens(prompt_tokens)), output_tokens })
    };
    lines.filter(|line| !line.is_empty()).take(scale.requests).enumerate().map(request).collect()
}

/// `2023-11-16 18:17:03.9799600` → time since midnight; the traces span an hour.
fn time_of_day(stamp: &str) -> Option<Duration> {
    let (_, time) = stamp.trim().split_once(' ')?;
    let mut parts = time.split(':');
    let hours: u64 = parts.next()?.parse().ok()?;
    let minutes: u64 = parts.next()?.parse().ok()?;
    let seconds: f64 = parts.next()?.parse().ok()?;
    (seconds >= 0.0).then(|| {
        Duration::from_secs(hours * 3600 + minutes * 60) + Duration::from_secs_f64(seconds)
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Lengths, Scale, synthetic, text, trace};

    #[test]
    fn the_same_seed_gives_the_same_words() {
        assert_eq!(text(7, 100), text(7, 100));
        assert_ne!(text(7, 100), text(8, 100));
        assert_eq!(text(7, 100).split_whitespace().count(), 100);
    }

    #[test]
    fn a_poisson_process_has_its_rate() {
        let lengths = Lengths { prompt: 8, shared_prefix: 4, output: 5 };
        let planned = synthetic(1, 4000, lengths, Some(20.0));
        let rate = 4000.0 / planned[3999].due.as_secs_f64();
        assert!((rate - 20.0).abs() < 1.0, "{rate}");
        let prefix =
            |index: usize| planned[index].prompt.lines().next().unwrap_or_default().to_owned();
        assert_eq!(prefix(0), prefix(1));
        assert_ne!(planned[0].prompt, planned[1].prompt);
    }

    #[test]
    fn both_traces_are_read_and_scaled() {
        let scale = Scale { time: 0.5, length: 0.1, requests: 10 };
        let azure = "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:03.50,100,10\n2023-11-16 18:17:05.50,50,20\n";
        let planned = trace(azure, scale).unwrap();
        assert_eq!(planned[1].due, Duration::from_secs(1));
        assert_eq!(
            (planned[0].prompt.split_whitespace().count(), planned[1].output_tokens),
            (10, 2)
        );
        let mooncake = "{\"timestamp\": 1000, \"input_length\": 1000, \"output_length\": 50, \"hash_ids\": [0, 1]}\n\
                        {\"timestamp\": 3000, \"input_length\": 1000, \"output_length\": 50, \"hash_ids\": [0, 2]}";
        let planned = trace(mooncake, scale).unwrap();
        assert_eq!(planned[1].due, Duration::from_secs(1));
        let blocks: Vec<Vec<&str>> =
            planned.iter().map(|planned| planned.prompt.split_whitespace().collect()).collect();
        assert_eq!(blocks[0].len(), 100);
        assert_eq!(blocks[0][..51], blocks[1][..51], "the first block is shared");
        assert_ne!(blocks[0][51..], blocks[1][51..]);
    }

    #[test]
    fn a_bad_trace_names_its_line() {
        let scale = Scale { time: 1.0, length: 1.0, requests: 10 };
        for (content, expected) in [
            ("nonsense", "not a trace"),
            ("TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:03.50,x,10\n", "line 2"),
            ("{\"timestamp\": 1}", "line 1"),
            ("TIMESTAMP,ContextTokens,GeneratedTokens\n", "no request"),
        ] {
            let error = format!("{:#}", trace(content, scale).unwrap_err());
            assert!(error.contains(expected), "{error}");
        }
    }
}
