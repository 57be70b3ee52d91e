//! Numbers out of samples: percentiles, rates, goodput. Pure.

use std::time::Duration;

use serde::Serialize;

/// One request as its client saw it. Times are from the start of the run.
#[derive(Clone, Debug, Default)]
pub(super) struct Sample {
    /// Which part of a mixture it was.
    pub(super) class: usize,
    /// When it was due.
    pub(super) due: Duration,
    /// When it was sent: later than `due` only where the load generator itself was late.
    pub(super) sent: Duration,
    /// Arrival of each piece of text.
    pub(super) pieces: Vec<Duration>,
    /// When the stream ended.
    pub(super) ended: Duration,
    /// As the server counted them; where it does not say, the number of pieces.
    pub(super) output_tokens: u32,
    /// As the server counted them.
    pub(super) prompt_tokens: u32,
    /// Of those, from the prefix cache, as the server says.
    pub(super) cached_tokens: u32,
    /// Why it failed.
    pub(super) error: Option<String>,
}

impl Sample {
    /// From being due to the first piece of text.
    pub(super) fn time_to_first_token(&self) -> Option<Duration> {
        self.pieces.first().map(|first| first.saturating_sub(self.due))
    }

    /// Gaps between pieces of text.
    pub(super) fn gaps(&self) -> impl Iterator<Item = Duration> + '_ {
        self.pieces.windows(2).map(|pair| pair[1].saturating_sub(pair[0]))
    }

    /// Mean time of a further token; zero where there is none.
    pub(super) fn time_per_token(&self) -> Option<Duration> {
        let decoding = self.pieces.last()?.saturating_sub(*self.pieces.first()?);
        Some(decoding / self.output_tokens.saturating_sub(1).max(1))
    }

    /// Whether it kept what a person expects.
    pub(super) fn is_good(&self, target: &Target) -> bool {
        let within = |time: Option<Duration>, most| time.is_some_and(|time| time <= most);
        self.error.is_none()
            && within(self.time_to_first_token(), target.first_token)
            && within(self.time_per_token(), target.per_token)
    }
}

/// What counts as served well: the targets of goodput.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Target {
    /// Longest time to the first token.
    pub(super) first_token: Duration,
    /// Longest mean time per further token.
    pub(super) per_token: Duration,
}

/// Percentiles of a set of durations, milliseconds.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(super) struct Percentiles {
    pub(super) p50_ms: f64,
    pub(super) p95_ms: f64,
    pub(super) p99_ms: f64,
    pub(super) max_ms: f64,
}

impl Percentiles {
    /// Nearest-rank percentiles; zeros where there is nothing.
    pub(super) fn of(durations: impl Iterator<Item = Duration>) -> Self {
        let mut sorted: Vec<f64> = durations.map(|duration| duration.as_secs_f64() * 1e3).collect();
        sorted.sort_by(f64::total_cmp);
        let at = |share: f64| {
            let rank = (share * sorted.len() as f64).ceil() as usize;
            sorted.get(rank.saturating_sub(1)).copied().unwrap_or(0.0)
        };
        Self { p50_ms: at(0.5), p95_ms: at(0.95), p99_ms: at(0.99), max_ms: at(1.0) }
    }
}

/// One line of the table.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Summary {
    /// What was asked of the server: "8 users", "2.0 requests/s".
    pub(super) load: String,
    pub(super) requests: usize,
    pub(super) failed: usize,
    pub(super) seconds: f64,
    pub(super) prompt_tokens: u64,
    pub(super) cached_tokens: u64,
    pub(super) output_tokens: u64,
    /// Output tokens of all requests over the time from the first request to the last answer.
    pub(super) output_tokens_per_s: f64,
    pub(super) requests_per_s: f64,
    /// Requests a second that kept both targets, and their share of all.
    pub(super) goodput_per_s: f64,
    pub(super) good_share: f64,
    pub(super) first_token: Percentiles,
    pub(super) gap: Percentiles,
    /// Mean time of a further token, of each request.
    pub(super) per_token: Percentiles,
    pub(super) whole: Percentiles,
    /// How late the load generator itself was, at worst: a large number means the figures understate the load.
    pub(super) generator_late_ms: f64,
}

impl Summary {
    /// Sums up one run.
    pub(super) fn of(load: String, samples: &[Sample], target: &Target) -> Self {
        let started = samples.iter().map(|sample| sample.sent).min().unwrap_or_default();
        let ended = samples.iter().map(|sample| sample.ended).max().unwrap_or_default();
        let seconds = ended.saturating_sub(started).as_secs_f64().max(1e-9);
        let total = |count: fn(&Sample) -> u32| {
            samples.iter().map(|sample| u64::from(count(sample))).sum::<u64>()
        };
        let output_tokens = total(|sample| sample.output_tokens);
        let good = samples.iter().filter(|sample| sample.is_good(target)).count();
        let late = samples
            .iter()
            .map(|sample| sample.sent.saturating_sub(sample.due))
            .max()
            .unwrap_or_default();
        Self {
            load,
            requests: samples.len(),
            failed: samples.iter().filter(|sample| sample.error.is_some()).count(),
            seconds,
            prompt_tokens: total(|sample| sample.prompt_tokens),
            cached_tokens: total(|sample| sample.cached_tokens),
            output_tokens,
            output_tokens_per_s: output_tokens as f64 / seconds,
            requests_per_s: samples.len() as f64 / seconds,
            goodput_per_s: good as f64 / seconds,
            good_share: good as f64 / samples.len().max(1) as f64,
            first_token: Percentiles::of(samples.iter().filter_map(Sample::time_to_first_token)),
            gap: Percentiles::of(samples.iter().flat_map(Sample::gaps)),
            per_token: Percentiles::of(samples.iter().filter_map(Sample::time_per_token)),
            whole: Percentiles::of(
                samples.iter().map(|sample| sample.ended.saturating_sub(sample.due)),
            ),
            generator_late_ms: late.as_secs_f64() * 1e3,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Percentiles, Sample, Summary, Target};

    fn milliseconds(values: &[u64]) -> Vec<Duration> {
        values.iter().copied().map(Duration::from_millis).collect()
    }

    fn sample(due: u64, pieces: &[u64]) -> Sample {
        Sample {
            class: 0,
            due: Duration::from_millis(due),
            sent: Duration::from_millis(due),
            pieces: milliseconds(pieces),
            ended: Duration::from_millis(*pieces.last().unwrap_or(&due)),
            output_tokens: pieces.len() as u32,
            prompt_tokens: 10,
            cached_tokens: 4,
            error: None,
        }
    }

    #[test]
    fn percentiles_are_nearest_rank() {
        let percentiles = Percentiles::of((1..=100).map(Duration::from_millis));
        assert_eq!(
            [percentiles.p50_ms, percentiles.p95_ms, percentiles.p99_ms, percentiles.max_ms],
            [50.0, 95.0, 99.0, 100.0]
        );
        assert_eq!(Percentiles::of(std::iter::empty()).max_ms, 0.0);
    }

    #[test]
    fn a_summary_adds_up() {
        let target = Target {
            first_token: Duration::from_millis(150),
            per_token: Duration::from_millis(60),
        };
        let samples = [sample(0, &[100, 150, 200]), sample(500, &[1000, 1500])];
        let summary = Summary::of("2 users".to_owned(), &samples, &target);
        assert_eq!((summary.requests, summary.output_tokens, summary.prompt_tokens), (2, 5, 20));
        assert!((summary.seconds - 1.5).abs() < 1e-9);
        assert!(
            (summary.goodput_per_s - 1.0 / 1.5).abs() < 1e-9,
            "only the first kept the targets"
        );
        assert_eq!(summary.gap.max_ms, 500.0);
    }

    #[test]
    fn a_request_is_good_only_if_it_kept_everything() {
        let target = Target {
            first_token: Duration::from_millis(100),
            per_token: Duration::from_millis(50),
        };
        let failed = Sample { error: Some("reset".to_owned()), ..sample(0, &[50, 100]) };
        for (sample, expected) in [
            (sample(0, &[100, 150, 200]), true),
            (sample(0, &[101, 151]), false),
            (sample(0, &[50, 60, 151]), false),
            (sample(10, &[105, 106]), true),
            (sample(0, &[100]), true),
            (sample(0, &[]), false),
            (failed, false),
        ] {
            assert_eq!(sample.is_good(&target), expected, "{sample:?}");
        }
    }

    #[test]
    fn percentiles_of_few_values_are_values() {
        for (values, expected) in [
            (vec![7], [7.0, 7.0, 7.0, 7.0]),
            (vec![9, 1], [1.0, 9.0, 9.0, 9.0]),
            (vec![3, 2, 1], [2.0, 3.0, 3.0, 3.0]),
        ] {
            let p = Percentiles::of(milliseconds(&values).into_iter());
            assert_eq!([p.p50_ms, p.p95_ms, p.p99_ms, p.max_ms], expected);
        }
    }
}
