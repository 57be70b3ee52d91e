//! Counters, gauges and histograms in Prometheus' text format, under vLLM's names, so that its dashboards, llm-d's
//! picker and KEDA work unchanged.
//!
//! Labels are `model_name` and `engine`; never a tenant or a key: their number is unbounded.
//! Invariant: recording takes no lock and allocates nothing.

use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use mintage_model::{EngineLoad, Timings, Usage};

use crate::served::ModelSet;
use crate::upstream;

/// Of the answer to a scrape.
pub(crate) const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

// vLLM's own buckets, in seconds.
const TTFT_S: &[f64] = &[
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
    20.0, 40.0, 80.0, 160.0, 640.0, 2560.0,
];
const PER_TOKEN_S: &[f64] = &[
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0,
    40.0, 80.0,
];
const REQUEST_S: &[f64] = &[
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0,
    480.0, 960.0, 1920.0, 7680.0,
];
/// Tokens of a request: 1, 2, 5 times powers of ten.
const TOKENS: &[f64] = &[
    1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0, 5000.0, 10_000.0,
    20_000.0, 50_000.0, 100_000.0, 200_000.0,
];

/// How a request to an engine ended, as vLLM's `finished_reason` says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// A stop token or a stop string.
    Stop,
    /// A limit.
    Length,
    /// The client left.
    Abort,
    /// A fault of ours or a deadline.
    Error,
}

impl Outcome {
    const ALL: [Self; 4] = [Self::Stop, Self::Length, Self::Abort, Self::Error];

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::Abort => "abort",
            Self::Error => "error",
        }
    }
}

/// Cumulative counts are made when rendering; here each bucket stands alone, the last one being `+Inf`.
struct Histogram {
    bounds: &'static [f64],
    counts: Box<[AtomicU64]>,
    /// In millionths, which makes the sum exact to add and good for 500,000 years of seconds.
    sum_micros: AtomicU64,
}

impl Histogram {
    fn new(bounds: &'static [f64]) -> Self {
        let counts = (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect();
        Self { bounds, counts, sum_micros: AtomicU64::new(0) }
    }

    fn observe(&self, value: f64) {
        let bucket = self.bounds.partition_point(|bound| *bound < value);
        if let Some(count) = self.counts.get(bucket) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        // Saturating by definition of `as`; negative values do not occur.
        self.sum_micros.fetch_add((value * 1e6).round() as u64, Ordering::Relaxed);
    }

    fn seconds(&self, value: Duration) {
        self.observe(value.as_secs_f64());
    }

    fn render(&self, out: &mut String, name: &str, labels: &str) {
        let mut total = 0;
        for (i, count) in self.counts.iter().enumerate() {
            total += count.load(Ordering::Relaxed);
            let bound = self.bounds.get(i).map_or_else(|| "+Inf".to_owned(), |b| format!("{b:?}"));
            line(out, &format!("{name}_bucket"), &format!("{labels},le=\"{bound}\""), total);
        }
        let sum = self.sum_micros.load(Ordering::Relaxed) as f64 / 1e6;
        line(out, &format!("{name}_sum"), labels, sum);
        line(out, &format!("{name}_count"), labels, total);
    }
}

/// What one model's requests amount to.
pub(crate) struct ModelMetrics {
    labels: String,
    prompt_tokens: AtomicU64,
    generation_tokens: AtomicU64,
    cached_tokens: AtomicU64,
    success: [AtomicU64; Outcome::ALL.len()],
    time_to_first_token: Histogram,
    inter_token_latency: Histogram,
    time_per_output_token: Histogram,
    e2e_latency: Histogram,
    queue_time: Histogram,
    inference_time: Histogram,
    prefill_time: Histogram,
    decode_time: Histogram,
    request_prompt_tokens: Histogram,
    request_generation_tokens: Histogram,
    request_max_tokens: Histogram,
}

impl ModelMetrics {
    fn new(model: &str) -> Self {
        Self {
            labels: format!("model_name=\"{}\",engine=\"0\"", escaped(model)),
            prompt_tokens: AtomicU64::new(0),
            generation_tokens: AtomicU64::new(0),
            cached_tokens: AtomicU64::new(0),
            success: std::array::from_fn(|_| AtomicU64::new(0)),
            time_to_first_token: Histogram::new(TTFT_S),
            inter_token_latency: Histogram::new(PER_TOKEN_S),
            time_per_output_token: Histogram::new(PER_TOKEN_S),
            e2e_latency: Histogram::new(REQUEST_S),
            queue_time: Histogram::new(REQUEST_S),
            inference_time: Histogram::new(REQUEST_S),
            prefill_time: Histogram::new(REQUEST_S),
            decode_time: Histogram::new(REQUEST_S),
            request_prompt_tokens: Histogram::new(TOKENS),
            request_generation_tokens: Histogram::new(TOKENS),
            request_max_tokens: Histogram::new(TOKENS),
        }
    }

    /// A request was taken by the engine.
    pub(crate) fn submitted(&self, max_new_tokens: u32) {
        self.request_max_tokens.observe(f64::from(max_new_tokens));
    }

    /// The first token arrived, so long after the request did.
    pub(crate) fn first_token(&self, since_arrival: Duration) {
        self.time_to_first_token.seconds(since_arrival);
    }

    /// Another token arrived, so long after the one before.
    pub(crate) fn next_token(&self, since_last: Duration) {
        self.inter_token_latency.seconds(since_last);
    }

    /// The one place where a request's usage is counted.
    pub(crate) fn finished(
        &self,
        outcome: Outcome,
        usage: Usage,
        timings: Timings,
        since_arrival: Duration,
    ) {
        self.prompt_tokens.fetch_add(u64::from(usage.prompt_tokens), Ordering::Relaxed);
        self.cached_tokens.fetch_add(u64::from(usage.cached_tokens), Ordering::Relaxed);
        self.generation_tokens.fetch_add(u64::from(usage.output_tokens), Ordering::Relaxed);
        self.success[outcome as usize].fetch_add(1, Ordering::Relaxed);
        self.request_prompt_tokens.observe(f64::from(usage.prompt_tokens));
        self.request_generation_tokens.observe(f64::from(usage.output_tokens));
        self.e2e_latency.seconds(since_arrival);
        self.queue_time.seconds(timings.queued);
        self.inference_time.seconds(timings.total.saturating_sub(timings.queued));
        if let Some(first) = timings.first_token {
            let decode = timings.total.saturating_sub(first);
            self.prefill_time.seconds(first.saturating_sub(timings.queued));
            self.decode_time.seconds(decode);
            if usage.output_tokens > 1 {
                let per_token = decode.as_secs_f64() / f64::from(usage.output_tokens - 1);
                self.time_per_output_token.observe(per_token);
            }
        }
    }

    fn histograms(&self) -> [(&'static str, &'static str, &Histogram); 11] {
        [
            (
                "vllm:time_to_first_token_seconds",
                "From a request's arrival to its first token.",
                &self.time_to_first_token,
            ),
            (
                "vllm:inter_token_latency_seconds",
                "Between two tokens of a request.",
                &self.inter_token_latency,
            ),
            (
                "vllm:request_time_per_output_token_seconds",
                "Mean time of a request's tokens after the first.",
                &self.time_per_output_token,
            ),
            (
                "vllm:e2e_request_latency_seconds",
                "From a request's arrival to its end.",
                &self.e2e_latency,
            ),
            ("vllm:request_queue_time_seconds", "Until the first computation.", &self.queue_time),
            (
                "vllm:request_inference_time_seconds",
                "From the first computation to the end.",
                &self.inference_time,
            ),
            (
                "vllm:request_prefill_time_seconds",
                "From the first computation to the first token.",
                &self.prefill_time,
            ),
            (
                "vllm:request_decode_time_seconds",
                "From the first token to the end.",
                &self.decode_time,
            ),
            (
                "vllm:request_prompt_tokens",
                "Prompt tokens of a request.",
                &self.request_prompt_tokens,
            ),
            (
                "vllm:request_generation_tokens",
                "Sampled tokens of a request.",
                &self.request_generation_tokens,
            ),
            (
                "vllm:request_params_max_tokens",
                "The limit a request set.",
                &self.request_max_tokens,
            ),
        ]
    }
}

/// Why a request was refused before it reached an engine.
const REFUSALS: [&str; 7] = [
    "concurrency",
    "queue_full",
    "shutting_down",
    "unauthenticated",
    "payment",
    "rate_limit",
    "ledger",
];

/// All that is counted.
pub(crate) struct Metrics {
    models: Vec<Arc<ModelMetrics>>,
    names: Vec<String>,
    refused: [AtomicU64; REFUSALS.len()],
}

impl Metrics {
    /// Of models of ours, then of other services.
    pub(crate) fn new(models: &ModelSet) -> Self {
        let own = models.all().iter().map(|model| model.name.clone());
        let own = own.chain(models.all_vectors().iter().map(|model| model.name.clone()));
        let remote = models.remotes().iter().map(|remote| remote.config.name.clone());
        let names: Vec<String> = own.chain(remote).collect();
        Self {
            models: names.iter().map(|name| Arc::new(ModelMetrics::new(name))).collect(),
            names,
            refused: std::array::from_fn(|_| AtomicU64::new(0)),
        }
    }

    pub(crate) fn of(&self, model: &str) -> Option<Arc<ModelMetrics>> {
        let index = self.names.iter().position(|name| name == model)?;
        self.models.get(index).cloned()
    }

    /// `reason` is one of [`REFUSALS`].
    pub(crate) fn refused(&self, reason: &str) {
        if let Some(index) = REFUSALS.iter().position(|r| *r == reason) {
            self.refused[index].fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The whole page. `models` are those it was made with.
    pub(crate) fn render(&self, models: &ModelSet) -> String {
        let mut out = String::with_capacity(16 << 10);
        let own = models.engines().map(|engine| engine.load());
        let remote = models.remotes().iter().map(|remote| EngineLoad {
            running: u32::try_from(remote.in_flight()).unwrap_or(u32::MAX),
            ..EngineLoad::default()
        });
        let loads: Vec<(&ModelMetrics, EngineLoad)> =
            self.models.iter().map(AsRef::as_ref).zip(own.chain(remote)).collect();
        self.render_gauges(&mut out, &loads);
        self.render_counters(&mut out, &loads);
        // One family after the other, as the format demands, so models are the inner loop.
        let families = self.models.first().map_or(0, |m| m.histograms().len());
        for family in 0..families {
            for (i, model) in self.models.iter().enumerate() {
                let (name, help, histogram) = model.histograms()[family];
                if i == 0 {
                    head(&mut out, name, "histogram", help);
                }
                histogram.render(&mut out, name, &model.labels);
            }
        }
        head(
            &mut out,
            "mintage_requests_refused_total",
            "counter",
            "Requests refused before they reached an engine.",
        );
        for (reason, count) in REFUSALS.iter().zip(&self.refused) {
            let labels = format!("reason=\"{reason}\"");
            line(
                &mut out,
                "mintage_requests_refused_total",
                &labels,
                count.load(Ordering::Relaxed),
            );
        }
        out.push_str(&upstream::render(models.remotes()));
        out
    }

    fn render_gauges(&self, out: &mut String, loads: &[(&ModelMetrics, EngineLoad)]) {
        type Read = fn(&EngineLoad) -> f64;
        let gauges: [(&str, &str, Read); 3] = [
            ("vllm:num_requests_running", "Requests being computed.", |l| f64::from(l.running)),
            ("vllm:num_requests_waiting", "Requests queued.", |l| f64::from(l.waiting)),
            ("vllm:kv_cache_usage_perc", "Share of the KV cache in use, 0 to 1.", |l| {
                let used = l.kv_pages_total.saturating_sub(l.kv_pages_free);
                f64::from(used) / f64::from(l.kv_pages_total.max(1))
            }),
        ];
        for (name, help, read) in gauges {
            head(out, name, "gauge", help);
            for (model, load) in loads {
                line(out, name, &model.labels, read(load));
            }
        }
        let name = "vllm:num_requests_waiting_by_reason";
        head(out, name, "gauge", "Requests queued, by what they wait for.");
        for (model, load) in loads {
            line(out, name, &format!("{},reason=\"capacity\"", model.labels), load.waiting);
        }
    }

    fn render_counters(&self, out: &mut String, loads: &[(&ModelMetrics, EngineLoad)]) {
        type Read = fn(&ModelMetrics, &EngineLoad) -> u64;
        let counters: [(&str, &str, Read); 11] = [
            ("vllm:prompt_tokens_total", "Prompt tokens of finished requests.", |m, _| {
                m.prompt_tokens.load(Ordering::Relaxed)
            }),
            (
                "vllm:prompt_tokens_cached_total",
                "Of those, taken from the prefix cache.",
                |m, _| m.cached_tokens.load(Ordering::Relaxed),
            ),
            ("vllm:generation_tokens_total", "Sampled tokens of finished requests.", |m, _| {
                m.generation_tokens.load(Ordering::Relaxed)
            }),
            (
                "vllm:prefix_cache_queries_total",
                "Prompt tokens looked up in the prefix cache.",
                |_, l| l.prefix_cache_queries,
            ),
            ("vllm:prefix_cache_hits_total", "Prompt tokens found there.", |_, l| {
                l.prefix_cache_hits
            }),
            (
                "vllm:num_preemptions_total",
                "Requests that lost their pages and were resumed.",
                |_, l| l.preemptions,
            ),
            ("vllm:spec_decode_num_draft_tokens_total", "Draft tokens proposed.", |_, l| {
                l.draft_tokens
            }),
            ("vllm:spec_decode_num_accepted_tokens_total", "Draft tokens accepted.", |_, l| {
                l.accepted_draft_tokens
            }),
            (
                "mintage_forced_tokens_total",
                "Tokens that a grammar forced: no sampling, no step of their own.",
                |_, l| l.forced_tokens,
            ),
            (
                "mintage_engine_integrity_checks_total",
                "Times the idle engine verified its invariants.",
                |_, l| l.integrity_checks,
            ),
            ("mintage_engine_integrity_failures_total", "Times one of them was broken.", |_, l| {
                l.integrity_failures
            }),
        ];
        for (name, help, read) in counters {
            head(out, name, "counter", help);
            for (model, load) in loads {
                line(out, name, &model.labels, read(model, load));
            }
        }
        let name = "vllm:request_success_total";
        head(out, name, "counter", "Finished requests, by how they ended.");
        for (model, _) in loads {
            for outcome in Outcome::ALL {
                let labels = format!("{},finished_reason=\"{}\"", model.labels, outcome.as_str());
                line(out, name, &labels, model.success[outcome as usize].load(Ordering::Relaxed));
            }
        }
    }
}

fn head(out: &mut String, name: &str, kind: &str, help: &str) {
    // Writing to a String does not fail.
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

fn line(out: &mut String, name: &str, labels: &str, value: impl std::fmt::Display) {
    let _ = writeln!(out, "{name}{{{labels}}} {value}");
}

/// A label's value, as the format wants it.
pub(crate) fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_cumulative_and_inclusive() {
        let histogram = Histogram::new(&[1.0, 2.0, 5.0]);
        for value in [0.5, 1.0, 1.5, 5.0, 9.0] {
            histogram.observe(value);
        }
        let mut out = String::new();
        histogram.render(&mut out, "h", "m=\"x\"");
        let expected = "h_bucket{m=\"x\",le=\"1.0\"} 2\nh_bucket{m=\"x\",le=\"2.0\"} 3\n\
                        h_bucket{m=\"x\",le=\"5.0\"} 4\nh_bucket{m=\"x\",le=\"+Inf\"} 5\n\
                        h_sum{m=\"x\"} 17\nh_count{m=\"x\"} 5\n";
        assert_eq!(out, expected);
    }

    #[test]
    fn a_models_name_cannot_break_the_format() {
        assert_eq!(escaped("a\"b\\c\nd"), "a\\\"b\\\\c\\nd");
    }
}
