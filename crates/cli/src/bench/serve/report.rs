//! What one call measured, and its two plain forms: a table for the terminal and JSON for programs. The page for people is
//! in `html.rs`.

use std::fmt::Write as _;

use serde::Serialize;

use super::load::Stall;
use super::statistics::{Percentiles, Sample, Summary, Target};
use crate::output;

/// Lateness of the load generator that a reader must be told of, milliseconds.
const LATE_MS: f64 = 50.0;

/// Everything one call of `bench serve` measured.
#[derive(Serialize)]
pub(super) struct Report {
    pub(super) server: String,
    pub(super) model: String,
    pub(super) workload: String,
    pub(super) target: Target,
    pub(super) runs: Vec<Run>,
    pub(super) stalls: Vec<Stall>,
    /// The highest rate at which 90 % of the requests kept both targets, where a ramp looked for it.
    pub(super) limit_requests_per_s: Option<f64>,
}

/// One load, and what became of it.
#[derive(Serialize)]
pub(super) struct Run {
    #[serde(flatten)]
    pub(super) summary: Summary,
    /// The same by kind, where there is more than one.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) kinds: Vec<Summary>,
    #[serde(skip)]
    pub(super) load: Load,
    #[serde(rename = "each", serialize_with = "compact")]
    pub(super) samples: Vec<Sample>,
}

/// Where a run stands on a plot's axis.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Load {
    /// A closed loop of so many users.
    Users(usize),
    /// Poisson arrivals, requests a second.
    Rate(f64),
    /// Neither: a trace, a situation.
    Other,
}

impl Run {
    /// Sums up a run; `kinds` names the parts of its mixture.
    pub(super) fn new(
        name: String,
        load: Load,
        samples: Vec<Sample>,
        kinds: &[String],
        target: &Target,
    ) -> Self {
        let of_kind = |(class, kind): (usize, &String)| {
            let part: Vec<Sample> =
                samples.iter().filter(|sample| sample.class == class).cloned().collect();
            Summary::of(format!("· {kind}"), &part, target)
        };
        let parts = if kinds.len() > 1 {
            kinds.iter().enumerate().map(of_kind).collect()
        } else {
            Vec::new()
        };
        Self { summary: Summary::of(name, &samples, target), kinds: parts, load, samples }
    }
}

/// One request in JSON, times in milliseconds from the start of the run.
#[derive(Serialize)]
struct Request<'a> {
    kind: usize,
    due_ms: f64,
    sent_ms: f64,
    first_token_ms: Option<f64>,
    ended_ms: f64,
    prompt_tokens: u32,
    cached_tokens: u32,
    output_tokens: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a str>,
}

fn compact<S: serde::Serializer>(samples: &[Sample], serializer: S) -> Result<S::Ok, S::Error> {
    let milliseconds = |time: std::time::Duration| (time.as_secs_f64() * 1e6).round() / 1e3;
    serializer.collect_seq(samples.iter().map(|sample| Request {
        kind: sample.class,
        due_ms: milliseconds(sample.due),
        sent_ms: milliseconds(sample.sent),
        first_token_ms: sample.pieces.first().copied().map(milliseconds),
        ended_ms: milliseconds(sample.ended),
        prompt_tokens: sample.prompt_tokens,
        cached_tokens: sample.cached_tokens,
        output_tokens: sample.output_tokens,
        error: sample.error.as_deref(),
    }))
}

/// The columns of both tables.
pub(super) const COLUMNS: [&str; 10] = [
    "load",
    "requests",
    "failed",
    "tokens/s",
    "req/s",
    "goodput/s",
    "kept targets",
    "cached",
    "TTFT p50/p95/p99 ms",
    "gap p50/p95/p99 ms",
];

/// The cells of one run under [`COLUMNS`].
pub(super) fn cells(run: &Summary) -> Vec<String> {
    let three = |p: &Percentiles| format!("{:.0}/{:.0}/{:.0}", p.p50_ms, p.p95_ms, p.p99_ms);
    let cached = 100.0 * run.cached_tokens as f64 / (run.prompt_tokens.max(1)) as f64;
    vec![
        run.load.clone(),
        run.requests.to_string(),
        run.failed.to_string(),
        format!("{:.1}", run.output_tokens_per_s),
        format!("{:.2}", run.requests_per_s),
        format!("{:.2}", run.goodput_per_s),
        format!("{:.0} %", 100.0 * run.good_share),
        format!("{cached:.0} %"),
        three(&run.first_token),
        three(&run.gap),
    ]
}

impl Report {
    /// All rows of the table: runs, each followed by its kinds.
    pub(super) fn rows(&self) -> Vec<Vec<String>> {
        let summaries =
            self.runs.iter().flat_map(|run| std::iter::once(&run.summary).chain(&run.kinds));
        summaries.map(cells).collect()
    }

    /// Columns aligned for a terminal.
    pub(super) fn table(&self) -> String {
        let mut text = format!("{} · {} · {}\n", self.server, self.model, self.workload);
        if !self.runs.is_empty() {
            text.push_str(&output::table(&COLUMNS, &self.rows()));
            let _ = writeln!(
                text,
                "goodput: first token within {} ms, further ones within {} ms on average",
                self.target.first_token.as_millis(),
                self.target.per_token.as_millis()
            );
        }
        for remark in self.remarks() {
            let _ = writeln!(text, "{remark}");
        }
        text
    }

    /// What a table has no column for.
    pub(super) fn remarks(&self) -> Vec<String> {
        let mut remarks: Vec<String> = self.stalls.iter().map(stall_line).collect();
        if let Some(limit) = self.limit_requests_per_s {
            remarks.push(format!("limit: {limit:.2} requests/s kept the targets"));
        }
        for run in &self.runs {
            if run.summary.generator_late_ms > LATE_MS {
                remarks.push(format!(
                    "{}: requests were sent up to {:.0} ms late; this machine is too busy to load the server as asked",
                    run.summary.load, run.summary.generator_late_ms
                ));
            }
            if let Some(error) = run.samples.iter().find_map(|sample| sample.error.as_deref()) {
                remarks.push(format!("{}: the first failure: {error}", run.summary.load));
            }
        }
        remarks
    }
}

fn stall_line(stall: &Stall) -> String {
    format!(
        "{} users read, a long prompt arrives: largest gap {:.0} ms (before: {:.0} ms); its TTFT {:.0} ms, alone {:.0} ms ({:.2}×)",
        stall.users,
        stall.largest_gap_ms,
        stall.largest_gap_before_ms,
        stall.newcomer_ms,
        stall.newcomer_alone_ms,
        stall.newcomer_ms / stall.newcomer_alone_ms.max(1e-9),
    )
}

#[cfg(test)]
pub(super) mod tests {
    use std::time::Duration;

    use super::{Load, Report, Run};
    use crate::bench::serve::load::Stall;
    use crate::bench::serve::statistics::{Sample, Target};

    /// Two runs and a stall, with texts that would be markup.
    pub(crate) fn report() -> Report {
        let at = Duration::from_millis;
        let target = Target { first_token: at(1000), per_token: at(1000) };
        let sample = |class: usize, first: u64| Sample {
            class,
            pieces: vec![at(first), at(first + 40), at(first + 70)],
            ended: at(first + 71),
            output_tokens: 3,
            prompt_tokens: 10,
            cached_tokens: 5,
            error: (class == 1).then(|| "<b>reset</b>".to_owned()),
            ..Sample::default()
        };
        let run = |name: &str, load, first| {
            let kinds = ["8 → 3".to_owned(), "<i>".to_owned()];
            Run::new(
                name.to_owned(),
                load,
                vec![sample(0, first), sample(1, 2 * first)],
                &kinds,
                &target,
            )
        };
        let runs = vec![
            run("1 user", Load::Users(1), 100),
            run("2 users", Load::Users(2), 200),
            run("1 requests/s", Load::Rate(1.0), 300),
        ];
        let stall = Stall {
            users: 3,
            largest_gap_ms: 120.0,
            largest_gap_before_ms: 30.0,
            newcomer_ms: 300.0,
            newcomer_alone_ms: 200.0,
            arrival: at(3000),
            first: at(3300),
            streams: vec![vec![at(2900), at(2930), at(3050), at(3400)]],
        };
        Report {
            server: "http://x".to_owned(),
            model: "<script>alert(1)</script>".to_owned(),
            workload: "w".to_owned(),
            target,
            runs,
            stalls: vec![stall],
            limit_requests_per_s: Some(2.5),
        }
    }

    #[test]
    fn the_table_says_everything() {
        insta::assert_snapshot!(report().table());
    }

    #[test]
    fn json_keeps_each_request() {
        let json = serde_json::to_value(report()).unwrap();
        let run = &json["runs"][1];
        assert_eq!((run["load"].as_str(), run["failed"].as_u64()), (Some("2 users"), Some(1)));
        assert_eq!(run["each"][0]["first_token_ms"], 200.0);
        assert_eq!(run["each"][1]["error"], "<b>reset</b>");
        assert_eq!(run["kinds"][0]["requests"], 1);
        assert_eq!(json["stalls"][0]["largest_gap_ms"], 120.0);
    }
}
