//! The ways to load a server: a closed loop of users, arrivals of their own accord, a ramp, and three situations that
//! hurt: a stranger's long prompt, one new prefix for many, nothing at all.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::Result;
use tokio::task::JoinSet;

use super::client::Client;
use super::statistics::Sample;
use super::workload::{self, Lengths, Planned};

/// `users` users who each ask again as soon as they are answered, until every request is done.
pub(super) async fn closed_loop(
    client: &Client,
    planned: Vec<Planned>,
    users: usize,
) -> Vec<Sample> {
    let started = Instant::now();
    let planned = Arc::new(planned);
    let next = Arc::new(AtomicUsize::new(0));
    let mut tasks = JoinSet::new();
    for _ in 0..users {
        let (client, planned, next) = (client.clone(), planned.clone(), next.clone());
        tasks.spawn(async move {
            let mut samples = Vec::new();
            while let Some(request) = planned.get(next.fetch_add(1, Ordering::Relaxed)) {
                samples.push(client.ask(request, started, started.elapsed()).await);
            }
            samples
        });
    }
    tasks.join_all().await.into_iter().flatten().collect()
}

/// Each request is sent when it is due, whatever became of the others.
pub(super) async fn open_loop(client: &Client, planned: Vec<Planned>) -> Vec<Sample> {
    let started = Instant::now();
    let mut tasks = JoinSet::new();
    for request in planned {
        tokio::time::sleep_until((started + request.due).into()).await;
        let client = client.clone();
        tasks.spawn(async move { client.ask(&request, started, request.due).await });
    }
    tasks.join_all().await
}

/// What happened while a stranger's long prompt arrived.
#[derive(Clone, Debug, serde::Serialize)]
pub(super) struct Stall {
    /// Users who were being answered.
    pub(super) users: usize,
    /// Longest gap in their streams while the newcomer's prompt was computed.
    pub(super) largest_gap_ms: f64,
    /// Longest gap in their streams before.
    pub(super) largest_gap_before_ms: f64,
    /// The newcomer's time to first token.
    pub(super) newcomer_ms: f64,
    /// The same prompt length on an idle server.
    pub(super) newcomer_alone_ms: f64,
}

/// `users` read long answers; in the middle a stranger asks with a prompt of `words` words.
pub(super) async fn stall(client: &Client, seed: u64, users: usize, words: usize) -> Result<Stall> {
    let stranger = |seed: u64| Planned {
        due: Duration::ZERO,
        prompt: workload::text(seed, words),
        output_tokens: 4,
    };
    let alone = client.ask(&stranger(seed), Instant::now(), Duration::ZERO).await;
    let started = Instant::now();
    let lengths = Lengths { prompt: 32, shared_prefix: 0, output: 400 };
    let mut tasks = JoinSet::new();
    for request in workload::synthetic(seed + 1, users, lengths, None) {
        let client = client.clone();
        tasks.spawn(async move { client.ask(&request, started, Duration::ZERO).await });
    }
    let arrival = Duration::from_secs(3);
    tokio::time::sleep_until((started + arrival).into()).await;
    let newcomer = client.ask(&stranger(seed + 2), started, arrival).await;
    let first = newcomer.pieces.first().copied().unwrap_or(newcomer.ended);
    let answers = tasks.join_all().await;
    for sample in answers.iter().chain([&alone, &newcomer]) {
        if let Some(error) = &sample.error {
            anyhow::bail!("a request failed: {error}");
        }
    }
    let milliseconds =
        |duration: Option<Duration>| duration.unwrap_or_default().as_secs_f64() * 1e3;
    Ok(Stall {
        users,
        largest_gap_ms: milliseconds(largest_gap(&answers, arrival, first)),
        largest_gap_before_ms: milliseconds(largest_gap(&answers, Duration::from_secs(1), arrival)),
        newcomer_ms: milliseconds(newcomer.time_to_first_token()),
        newcomer_alone_ms: milliseconds(alone.time_to_first_token()),
    })
}

/// The longest gap that touches the time from `from` to `to`.
fn largest_gap(samples: &[Sample], from: Duration, to: Duration) -> Option<Duration> {
    let touching = |pair: &&[Duration]| pair[1] > from && pair[0] < to;
    let gaps = samples
        .iter()
        .flat_map(|sample| sample.pieces.windows(2).filter(touching).map(|pair| pair[1] - pair[0]));
    gaps.max()
}

/// `users` arrive together with one system prompt of `words` words that the server has not seen.
pub(super) async fn shared_prompt(
    client: &Client,
    seed: u64,
    users: usize,
    words: usize,
) -> Vec<Sample> {
    let lengths = Lengths { prompt: words + 24, shared_prefix: words, output: 32 };
    open_loop(client, workload::synthetic(seed, users, lengths, None)).await
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::statistics::Sample;
    use super::largest_gap;

    #[test]
    fn a_gap_counts_where_it_touches_the_window() {
        let at = |ms: u64| Duration::from_millis(ms);
        let sample = Sample {
            due: at(0),
            sent: at(0),
            pieces: vec![at(10), at(20), at(520), at(530), at(1530)],
            ended: at(1530),
            output_tokens: 5,
            prompt_tokens: 1,
            cached_tokens: 0,
            error: None,
        };
        assert_eq!(largest_gap(std::slice::from_ref(&sample), at(500), at(525)), Some(at(500)));
        assert_eq!(largest_gap(std::slice::from_ref(&sample), at(0), at(2000)), Some(at(1000)));
        assert_eq!(largest_gap(&[sample], at(2000), at(3000)), None);
    }
}
