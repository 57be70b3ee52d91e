//! The ways to load a server: a closed loop of users, arrivals of their own accord, and situations that hurt. Not what is
//! asked (`workload.rs`) and not which rate comes next (`ramp.rs`).

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use tokio::task::JoinSet;

use super::client::Client;
use super::statistics::Sample;
use super::workload::{self, Kind, Planned};

/// When the stranger of a stall comes: the others have long been reading.
const STALL_ARRIVAL: Duration = Duration::from_secs(3);
/// How long the others go on reading after the stranger's first token.
const STALL_REST: Duration = Duration::from_millis(500);
/// Tokens that they may read: enough for servers ten times as fast as ours.
const STALL_OUTPUT: u32 = 1500;

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
    /// From the start: the newcomer's arrival, its first token, and each token of each of the others, for the plot.
    #[serde(skip)]
    pub(super) arrival: Duration,
    #[serde(skip)]
    pub(super) first: Duration,
    #[serde(skip)]
    pub(super) streams: Vec<Vec<Duration>>,
}

/// `users` read long answers; in the middle a stranger asks with a prompt of `words` words.
pub(super) async fn stall(client: &Client, seed: u64, users: usize, words: usize) -> Result<Stall> {
    let stranger = |seed: u64| Planned {
        due: Duration::ZERO,
        prompt: workload::text(seed, words),
        output_tokens: 4,
        class: 0,
    };
    let alone = client.ask(&stranger(seed), Instant::now(), Duration::ZERO).await;
    let started = Instant::now();
    let kind = Kind { weight: 1, prompt: 32, shared_prefix: 0, output: STALL_OUTPUT };
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let mut tasks = JoinSet::new();
    for request in workload::synthetic(seed.wrapping_add(1), users, &[kind], None) {
        let (client, mut stopped) = (client.clone(), stopped.clone());
        tasks.spawn(async move {
            let stop = async move {
                // A sender that is gone has nothing more to wait for either.
                let _ = stopped.wait_for(|stopped| *stopped).await;
            };
            client.ask_until(&request, started, Duration::ZERO, stop).await
        });
    }
    tokio::time::sleep_until((started + STALL_ARRIVAL).into()).await;
    let newcomer = client.ask(&stranger(seed.wrapping_add(2)), started, STALL_ARRIVAL).await;
    tokio::time::sleep(STALL_REST).await;
    let _ = stop.send(true);
    let answers = tasks.join_all().await;
    for sample in answers.iter().chain([&alone, &newcomer]) {
        if let Some(error) = &sample.error {
            bail!("a request failed: {error}");
        }
    }
    let first = newcomer.pieces.first().copied().unwrap_or(newcomer.ended);
    ensure!(
        answers.iter().all(|answer| answer.ended > first),
        "an answer of {STALL_OUTPUT} tokens ended before the newcomer's first token: nothing to measure"
    );
    let milliseconds =
        |duration: Option<Duration>| duration.unwrap_or_default().as_secs_f64() * 1e3;
    Ok(Stall {
        users,
        largest_gap_ms: milliseconds(largest_gap(&answers, STALL_ARRIVAL, first)),
        largest_gap_before_ms: milliseconds(largest_gap(
            &answers,
            Duration::from_secs(1),
            STALL_ARRIVAL,
        )),
        newcomer_ms: milliseconds(newcomer.time_to_first_token()),
        newcomer_alone_ms: milliseconds(alone.time_to_first_token()),
        arrival: STALL_ARRIVAL,
        first,
        streams: answers.into_iter().map(|answer| answer.pieces).collect(),
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
    let kind = Kind { weight: 1, prompt: 24, shared_prefix: words, output: 32 };
    open_loop(client, workload::synthetic(seed, users, &[kind], None)).await
}

/// One user asks for a file of `lines` lines with a small change, three times with other files.
pub(super) async fn code_edit(client: &Client, seed: u64, lines: usize) -> Vec<Sample> {
    let planned = (0..3).map(|turn| workload::code_edit(seed.wrapping_add(turn), lines));
    closed_loop(client, planned.collect(), 1).await
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::statistics::Sample;
    use super::largest_gap;

    #[test]
    fn a_gap_counts_where_it_touches_the_window() {
        let at = |ms: u64| Duration::from_millis(ms);
        let pieces = vec![at(10), at(20), at(520), at(530), at(1530)];
        let sample = Sample { pieces, ended: at(1530), output_tokens: 5, ..Sample::default() };
        assert_eq!(largest_gap(std::slice::from_ref(&sample), at(500), at(525)), Some(at(500)));
        assert_eq!(largest_gap(std::slice::from_ref(&sample), at(0), at(2000)), Some(at(1000)));
        assert_eq!(largest_gap(&[sample], at(2000), at(3000)), None);
    }
}
