//! Speed of the whole engine, scheduler and sampler included: users at once, a long prompt that arrives while others
//! are being answered, users who share one new prefix. Figures mean something only beside a peer's in the same run.
//!
//! `serving_bench MODEL [THREADS]`

use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use futures_core::Stream;
use mintage_engine::{CpuEngine, CpuEngineConfig, Decoder, DecoderOptions, KvSize, WeightStorage};
use mintage_kernels::{KvFormat, available_threads};
use mintage_model::{
    Engine, Event, EventStream, Finish, GenerateRequest, ModelFile, SamplingParams, TokenId,
};

struct Unpark(std::thread::Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let path = args.next().context("usage: serving_bench MODEL [THREADS]")?;
    let threads = args.next().map_or(Ok(available_threads()), |text| text.parse())?;
    let options = DecoderOptions {
        threads,
        kv_format: KvFormat::F16,
        kv_size: KvSize::Pages(600),
        weights: WeightStorage::AsStored,
    };
    let decoder = Decoder::load(&ModelFile::open(path.as_ref())?, &options, &mut |_| {})?;
    let engine =
        CpuEngine::start("bench".to_owned(), Box::new(decoder), CpuEngineConfig::default())?;
    run(&engine, vec![request(999, 64, 8)])?;
    for users in [1, 2, 4, 8, 16] {
        users_at_once(&engine, users)?;
    }
    shared_prefix(&engine, 8)?;
    let alone = run(&engine, vec![request(70, 2000, 1)])?;
    long_prompt(&engine, alone[0].finish.timings.total)
}

fn prompt(seed: u32, length: u32) -> Vec<TokenId> {
    (0..length).map(|i| (i * 7919 + seed * 104_729 + 17) % 40_000).collect()
}

fn request(seed: u32, prompt_tokens: u32, max_new_tokens: u32) -> GenerateRequest {
    GenerateRequest {
        prompt: prompt(seed, prompt_tokens).into(),
        max_new_tokens,
        tenant: seed.into(),
        sampling: SamplingParams { temperature: 0.0, ..SamplingParams::default() },
        ..GenerateRequest::default()
    }
}

/// What a reader saw.
struct Seen {
    finish: Finish,
    /// Gaps between tokens.
    gaps: Vec<Duration>,
}

fn read(stream: EventStream) -> Option<Seen> {
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut stream = pin!(stream);
    let (mut gaps, mut last) = (Vec::new(), None);
    loop {
        match stream.as_mut().poll_next(&mut Context::from_waker(&waker)) {
            Poll::Pending => std::thread::park(),
            Poll::Ready(Some(Event::Token(_))) => {
                let now = Instant::now();
                gaps.extend(last.map(|last| now - last));
                last = Some(now);
            }
            Poll::Ready(Some(Event::Finished(finish))) => return Some(Seen { finish, gaps }),
            Poll::Ready(Some(Event::Prefilled { .. } | Event::Vector(_))) => {}
            Poll::Ready(None) => return None,
        }
    }
}

/// Reads all answers, each on a thread of its own.
fn run(engine: &CpuEngine, requests: Vec<GenerateRequest>) -> Result<Vec<Seen>> {
    let streams = requests
        .into_iter()
        .map(|request| engine.submit(request))
        .collect::<Result<Vec<_>, _>>()?;
    let readers: Vec<_> =
        streams.into_iter().map(|stream| std::thread::spawn(move || read(stream))).collect();
    readers
        .into_iter()
        .map(|reader| reader.join().ok().flatten().context("a reader failed"))
        .collect()
}

fn users_at_once(engine: &CpuEngine, users: u32) -> Result<()> {
    let before = engine.load();
    let start = Instant::now();
    let requests = (0..users).map(|user| request(users * 100 + user, 32, 64)).collect();
    let seen = run(engine, requests)?;
    let seconds = start.elapsed().as_secs_f64();
    let tokens: u32 = seen.iter().map(|seen| seen.finish.usage.output_tokens).sum();
    let after = engine.load();
    let step = (after.step_time - before.step_time).as_secs_f64();
    let forward = (after.forward_time - before.forward_time).as_secs_f64();
    println!(
        "{users:2} users, 32 + 64 tokens: {:7.1} tok/s in all; not in the forward pass {:.1} % of steps, {:.1} % of all",
        f64::from(tokens) / seconds,
        100.0 * (1.0 - forward / step),
        100.0 * (1.0 - forward / seconds),
    );
    Ok(())
}

fn shared_prefix(engine: &CpuEngine, users: u32) -> Result<()> {
    let start = Instant::now();
    let with = |user| {
        let tokens = [prompt(4242, 1300), prompt(5000 + user, 20)].concat();
        GenerateRequest { prompt: tokens.into(), ..request(user, 1, 16) }
    };
    let seen = run(engine, (0..users).map(with).collect())?;
    let mut first: Vec<_> =
        seen.iter().filter_map(|seen| seen.finish.timings.first_token).collect();
    first.sort();
    println!(
        "{users} users share a new prefix of 1300 tokens: {:.2} s in all, median TTFT {:.2} s",
        start.elapsed().as_secs_f64(),
        first[first.len() / 2].as_secs_f64()
    );
    Ok(())
}

fn long_prompt(engine: &CpuEngine, alone: Duration) -> Result<()> {
    let streams = (0..3)
        .map(|user| engine.submit(request(8000 + user, 32, 200)))
        .collect::<Result<Vec<_>, _>>()?;
    let readers: Vec<_> =
        streams.into_iter().map(|stream| std::thread::spawn(move || read(stream))).collect();
    std::thread::sleep(Duration::from_millis(1000));
    let newcomer = run(engine, vec![request(71, 2000, 1)])?;
    let mut gaps = Vec::new();
    for reader in readers {
        gaps.extend(reader.join().ok().flatten().context("a reader failed")?.gaps);
    }
    gaps.sort();
    let at = |share: f64| gaps[((gaps.len() - 1) as f64 * share) as usize].as_secs_f64() * 1000.0;
    let first = newcomer[0].finish.timings.total.as_secs_f64();
    println!(
        "3 users, a prompt of 2000 tokens arrives: gaps p50 {:.0}, p95 {:.0}, largest {:.0} ms; its TTFT {first:.2} s, alone {:.2} s",
        at(0.5),
        at(0.95),
        at(1.0),
        alone.as_secs_f64()
    );
    Ok(())
}
