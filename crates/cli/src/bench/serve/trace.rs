//! Traces of real services as workloads: the Azure LLM inference CSV and Mooncake's JSONL. Pure: text in, requests out.
//!
//! Invariant: whatever the file holds, there is an error that names its line, or a bounded list of requests in the order
//! in which they are due, the first at 0.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use super::workload::{Planned, text};

/// Tokens a block of the Mooncake trace stands for.
const MOONCAKE_BLOCK_TOKENS: u64 = 512;
/// Longest prompt or answer after scaling, tokens.
const MAX_TOKENS: u64 = 1 << 20;
/// Longest prompts of a replay together, tokens: about 1.5 GB of text.
const MAX_ALL_TOKENS: u64 = 1 << 28;
/// Latest arrival of a replay.
const MAX_DUE: Duration = Duration::from_secs(30 * 86_400);

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
    fn check(self) -> Result<()> {
        for (option, value) in [("--time-scale", self.time), ("--length-scale", self.length)] {
            ensure!(
                (1e-6..=1e6).contains(&value),
                "`{option}` takes a factor between 0.000001 and 1000000, not {value}"
            );
        }
        ensure!(self.requests > 0, "`--requests` must be at least 1");
        Ok(())
    }

    /// At least 1; an error where the result is longer than any model takes.
    fn tokens(self, tokens: u64) -> Result<u64> {
        let scaled = (tokens as f64 * self.length).round().max(1.0);
        ensure!(
            scaled <= MAX_TOKENS as f64,
            "{tokens} tokens × {} are more than {MAX_TOKENS}",
            self.length
        );
        Ok(scaled as u64)
    }
}

/// One line of a trace.
#[derive(Debug, PartialEq)]
struct Arrival {
    at: Duration,
    prompt_tokens: u64,
    output_tokens: u64,
    /// Blocks that requests with the same ids share.
    blocks: Vec<u64>,
}

/// Reads a trace: the Azure LLM inference CSV (`TIMESTAMP,ContextTokens,GeneratedTokens`) or Mooncake's JSONL
/// (`timestamp` in ms, `input_length`, `output_length`, `hash_ids` of 512-token blocks, which keep their sharing).
pub(super) fn read(content: &str, scale: Scale) -> Result<Vec<Planned>> {
    scale.check()?;
    let content = content.trim_start_matches('\u{feff}');
    let is_jsonl = content.trim_start().starts_with('{');
    let mut lines = content.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    if !is_jsonl {
        let header = lines.next().map_or("", |(_, line)| line);
        ensure!(
            header.trim_end().eq_ignore_ascii_case("TIMESTAMP,ContextTokens,GeneratedTokens"),
            "not a trace that is known: expected Mooncake's JSONL or a CSV that begins \
             `TIMESTAMP,ContextTokens,GeneratedTokens`, found `{header:.80}`"
        );
    }
    let (mut planned, mut all_tokens) = (Vec::new(), 0_u64);
    for (index, line) in lines.take(scale.requests) {
        let arrival = if is_jsonl { mooncake(line) } else { azure(line) };
        let request = arrival
            .and_then(|arrival| {
                all_tokens += scale.tokens(arrival.prompt_tokens)?;
                ensure!(
                    all_tokens <= MAX_ALL_TOKENS,
                    "prompts of more than {MAX_ALL_TOKENS} tokens"
                );
                plan(index as u64, &arrival, scale)
            })
            .with_context(|| format!("line {} of the trace: `{line:.120}`", index + 1))?;
        planned.push(request);
    }
    let first =
        planned.iter().map(|request| request.due).min().context("the trace holds no request")?;
    for request in &mut planned {
        let since_first = request.due.saturating_sub(first).as_secs_f64() * scale.time;
        request.due = Duration::try_from_secs_f64(since_first).unwrap_or(MAX_DUE);
        ensure!(request.due < MAX_DUE, "the trace spans more than 30 days at this `--time-scale`");
    }
    planned.sort_by_key(|request| request.due);
    Ok(planned)
}

/// Prompt words that stand for an arrival: shared blocks first, then words of its own.
fn plan(index: u64, arrival: &Arrival, scale: Scale) -> Result<Planned> {
    let block_words = scale.tokens(MOONCAKE_BLOCK_TOKENS)?;
    let mut left = scale.tokens(arrival.prompt_tokens)?;
    let mut prompt = String::new();
    for id in &arrival.blocks {
        let words = left.min(block_words);
        if words == 0 {
            break;
        }
        prompt.push_str(&text(id.wrapping_add(1), words as usize));
        prompt.push('\n');
        left -= words;
    }
    prompt.push_str(&text(index << 32, left as usize));
    let output_tokens = u32::try_from(scale.tokens(arrival.output_tokens)?)?;
    Ok(Planned { due: arrival.at, prompt, output_tokens, class: 0 })
}

fn mooncake(line: &str) -> Result<Arrival> {
    #[derive(serde::Deserialize)]
    struct Line {
        timestamp: u64,
        input_length: u64,
        output_length: u64,
        #[serde(default)]
        hash_ids: Vec<u64>,
    }
    let line: Line = serde_json::from_str(line)?;
    Ok(Arrival {
        at: Duration::from_millis(line.timestamp),
        prompt_tokens: line.input_length,
        output_tokens: line.output_length,
        blocks: line.hash_ids,
    })
}

fn azure(line: &str) -> Result<Arrival> {
    let mut fields = line.split(',').map(str::trim);
    let mut next = |what| fields.next().with_context(|| format!("no {what}"));
    let at = since_epoch(next("TIMESTAMP")?).context("not a time as in 2023-11-16 18:17:03.97")?;
    let prompt_tokens = next("ContextTokens")?.parse().context("ContextTokens")?;
    let output_tokens = next("GeneratedTokens")?.parse().context("GeneratedTokens")?;
    if let Some(extra) = fields.next() {
        bail!("a field too many: `{extra:.40}`");
    }
    Ok(Arrival { at, prompt_tokens, output_tokens, blocks: Vec::new() })
}

/// `2023-11-16 18:17:03.9799600`, or with `+00:00` as newer traces have it → time since 1970.
fn since_epoch(stamp: &str) -> Option<Duration> {
    let stamp = stamp.strip_suffix("+00:00").or(stamp.strip_suffix('Z')).unwrap_or(stamp);
    let (date, time) = stamp.split_once([' ', 'T'])?;
    let mut date = date.split('-').map(|part| part.parse::<u64>().ok());
    let (year, month, day) = (date.next()??, date.next()??, date.next()??);
    let mut parts = time.split(':');
    let hours: u64 = parts.next()?.parse().ok()?;
    let minutes: u64 = parts.next()?.parse().ok()?;
    let seconds: f64 = parts.next()?.parse().ok()?;
    let in_range = (1970..=9999).contains(&year)
        && (1..=12).contains(&month)
        && (1..=31).contains(&day)
        && hours < 24
        && minutes < 60
        && (0.0..61.0).contains(&seconds)
        && date.next().is_none()
        && parts.next().is_none();
    in_range.then(|| {
        let whole = days_since_epoch(year, month, day) * 86_400 + hours * 3600 + minutes * 60;
        Duration::from_secs(whole) + Duration::from_secs_f64(seconds)
    })
}

/// Days of the Gregorian calendar since 1970: years are counted from March, so that the leap day is the last of its year.
fn days_since_epoch(year: u64, month: u64, day: u64) -> u64 {
    let year = if month <= 2 { year - 1 } else { year };
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    365 * year + year / 4 - year / 100 + year / 400 + day_of_year - 719_468
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Scale, days_since_epoch, read};

    const HEADER: &str = "TIMESTAMP,ContextTokens,GeneratedTokens\n";

    fn scale(time: f64, length: f64) -> Scale {
        Scale { time, length, requests: 10 }
    }

    #[test]
    fn both_traces_are_read_and_scaled() {
        let azure = format!(
            "{HEADER}2023-11-16 23:59:59.50,100,10\r\n\n2023-11-17 00:00:01.50+00:00,50,20\n"
        );
        let planned = read(&azure, scale(0.5, 0.1)).unwrap();
        assert_eq!(planned[1].due, Duration::from_secs(1), "over midnight");
        assert_eq!(
            (planned[0].prompt.split_whitespace().count(), planned[1].output_tokens),
            (10, 2)
        );
        let mooncake = "{\"timestamp\": 1000, \"input_length\": 1000, \"output_length\": 50, \"hash_ids\": [0, 1]}\n\
                        {\"timestamp\": 3000, \"input_length\": 1000, \"output_length\": 50, \"hash_ids\": [0, 2]}";
        let planned = read(mooncake, scale(0.5, 0.1)).unwrap();
        assert_eq!(planned[1].due, Duration::from_secs(1));
        let blocks: Vec<Vec<&str>> =
            planned.iter().map(|planned| planned.prompt.split_whitespace().collect()).collect();
        assert_eq!(blocks[0].len(), 100);
        assert_eq!(blocks[0][..51], blocks[1][..51], "the first block is shared");
        assert_ne!(blocks[0][51..], blocks[1][51..]);
    }

    #[test]
    fn requests_come_in_the_order_of_their_times() {
        let azure = format!(
            "{HEADER}2023-11-16 00:00:09,1,1\n2023-11-16 00:00:04,2,2\n2023-11-16 00:00:05,3,3\n"
        );
        let planned = read(&azure, scale(1.0, 1.0)).unwrap();
        let order: Vec<(u64, u32)> =
            planned.iter().map(|p| (p.due.as_secs(), p.output_tokens)).collect();
        assert_eq!(order, [(0, 2), (1, 3), (5, 1)]);
        let one = read(&azure, Scale { requests: 1, ..scale(1.0, 1.0) }).unwrap();
        assert_eq!(one.len(), 1);
    }

    #[test]
    fn a_bad_trace_names_its_line() {
        let line = |line: &str| format!("{HEADER}2023-11-16 18:17:03.50,1,1\n{line}\n");
        let json = |line: &str| {
            format!("{{\"timestamp\":0,\"input_length\":1,\"output_length\":1}}\n{line}")
        };
        for (content, expected) in [
            ("nonsense".to_owned(), "not a trace"),
            (String::new(), "not a trace"),
            (HEADER.to_owned(), "no request"),
            (line("2023-11-16 18:17:03.50,x,10"), "line 3"),
            (line("2023-11-16 18:17:03.50,-1,10"), "line 3"),
            (line("2023-11-16 18:17:03.50,1"), "no GeneratedTokens"),
            (line("2023-11-16 18:17:03.50,1,1,1"), "too many"),
            (line("2023-11-16 18:17:inf,1,1"), "line 3"),
            (line("2023-11-16 18:17:NaN,1,1"), "line 3"),
            (line("2023-11-16 99999999999999999999:0:0,1,1"), "line 3"),
            (line("2023-11-16 18446744073709551615:0:0,1,1"), "line 3"),
            (line("0000-00-00 00:00:00,1,1"), "line 3"),
            (line("9999-12-31 23:59:60,1,1"), "30 days"),
            (line("2023-11-16 18:17:03,18446744073709551615,1"), "line 3"),
            (line("2023-11-16 18:17:03,1,1048577"), "line 3"),
            (line(&"é".repeat(400)), "line 3"),
            (json("{\"timestamp\": 1}"), "line 2"),
            (json("{\"timestamp\": -1, \"input_length\": 1, \"output_length\": 1}"), "line 2"),
            (
                json(
                    "{\"timestamp\": 18446744073709551615, \"input_length\": 1, \"output_length\": 1}",
                ),
                "30 days",
            ),
            (json("{\"timestamp\": 1, \"input_length\": 1e99, \"output_length\": 1}"), "line 2"),
            (json("[[[["), "line 2"),
        ] {
            let error = format!("{:#}", read(&content, scale(1.0, 1.0)).unwrap_err());
            assert!(error.contains(expected), "{content:.80}: {error}");
        }
        for (bad, option) in [
            (scale(f64::NAN, 1.0), "--time-scale"),
            (scale(-1.0, 1.0), "--time-scale"),
            (scale(1.0, f64::INFINITY), "--length-scale"),
            (scale(1.0, 0.0), "--length-scale"),
            (Scale { requests: 0, ..scale(1.0, 1.0) }, "--requests"),
        ] {
            let error = read(&line("2023-11-16 18:17:03,1,1"), bad).unwrap_err().to_string();
            assert!(error.contains(option), "{error}");
        }
    }

    #[test]
    fn a_prompt_never_has_more_words_than_its_line_says() {
        let many = "{\"timestamp\":0,\"input_length\":700,\"output_length\":1,\"hash_ids\":[7,8,9,18446744073709551615]}";
        let planned = read(many, scale(1.0, 1.0)).unwrap();
        assert_eq!(planned[0].prompt.split_whitespace().count(), 700);
    }

    #[test]
    fn the_calendar_has_leap_years() {
        for (date, expected) in [
            ((1970, 1, 1), 0),
            ((1972, 2, 29), 789),
            ((1972, 3, 1), 790),
            ((2000, 2, 29), 11_016),
            ((2023, 11, 16), 19_677),
        ] {
            assert_eq!(days_since_epoch(date.0, date.1, date.2), expected, "{date:?}");
        }
    }
}
