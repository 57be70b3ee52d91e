//! Speed of attention beside this machine's own limits: decode at several contexts, prefill in chunks.
//!
//! Not a test: prints a table. `cargo run --release -p mintage-kernels --example attention_bench [threads [heads kv_heads dim]]`.
#![allow(unsafe_code, reason = "measures the limit of the vector unit")]

use mintage_kernels::{
    AttentionSequence, KvCache, KvFormat, PAGE_TOKENS, Pool, attention, available_threads,
};
use std::hint::black_box;
use std::time::Instant;

/// The best of as many runs as fit in a second, in seconds: on a shared machine the one that nobody disturbed.
fn best_seconds(pool: &Pool, mut work: impl FnMut()) -> f64 {
    work();
    let (begin, mut best) = (Instant::now(), f64::INFINITY);
    while begin.elapsed().as_secs_f64() < 1.0 {
        let start = seconds(pool);
        work();
        best = best.min(seconds(pool) - start);
    }
    best
}

/// A clock: with one thread that thread's own, which stands still while another process has the core.
fn seconds(pool: &Pool) -> f64 {
    #[cfg(target_os = "linux")]
    {
        let clock =
            if pool.threads() == 1 { libc::CLOCK_THREAD_CPUTIME_ID } else { libc::CLOCK_MONOTONIC };
        let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: `time` is a timespec to be written.
        unsafe { libc::clock_gettime(clock, &raw mut time) };
        time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
    }
    #[cfg(not(target_os = "linux"))]
    {
        let _ = pool;
        std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .map_or(0.0, |d| d.as_secs_f64())
    }
}

/// GB/s of summing a buffer much larger than the caches.
fn streaming_read(pool: &Pool) -> f64 {
    let data = vec![1u64; 16 << 20];
    let seconds = best_seconds(pool, || {
        pool.for_each(data.len(), 1 << 16, &|range| {
            black_box(data[range].iter().fold(0u64, |sum, v| sum ^ v));
        });
    });
    data.len() as f64 * 8.0 / seconds / 1e9
}

/// GFLOP/s of fused multiply-adds on registers.
fn fused_multiply_add(pool: &Pool) -> f64 {
    const TURNS: usize = 50_000;
    let seconds = best_seconds(pool, || pool.run(&|_| multiply_add(TURNS)));
    (pool.threads() * TURNS * 12 * 8 * 2) as f64 / seconds / 1e9
}

#[cfg(target_arch = "x86_64")]
fn multiply_add(turns: usize) {
    #[target_feature(enable = "avx2,fma")]
    fn inner(turns: usize) {
        use std::arch::x86_64::*;
        let (a, b) = (_mm256_set1_ps(black_box(0.999)), _mm256_set1_ps(black_box(0.001)));
        let mut sums = [a; 12];
        for _ in 0..turns {
            for sum in &mut sums {
                *sum = _mm256_fmadd_ps(*sum, a, b);
            }
        }
        black_box(sums);
    }
    if std::arch::is_x86_feature_detected!("fma") && std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: just asked for.
        unsafe { inner(turns) }
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn multiply_add(_turns: usize) {}

fn main() {
    let args: Vec<usize> = std::env::args().skip(1).filter_map(|a| a.parse().ok()).collect();
    match *args.as_slice() {
        [threads] => bench(threads, 14, 2, 64),
        [threads, heads, kv_heads, dim] => bench(threads, heads, kv_heads, dim),
        _ => bench(available_threads(), 14, 2, 64),
    }
}

fn bench(threads: usize, heads: usize, kv_heads: usize, dim: usize) {
    let pool = Pool::new(threads);
    println!("{heads} heads over {kv_heads} × {dim}, f16 cache, {} threads", pool.threads());
    let (read, fma) = (streaming_read(&pool), fused_multiply_add(&pool));
    println!("limits: streaming read {read:.1} GB/s, f32 FMA {fma:.0} GFLOP/s");
    // Several layers, so that the caches forget a layer's pages before they come again.
    let (layers, max_context) = (8, 32_768);
    let pages = max_context / PAGE_TOKENS;
    let mut cache = KvCache::new(KvFormat::F16, pages, layers, kv_heads, dim);
    let table: Vec<u32> = (0..pages as u32).map(|i| (i * 37) % pages as u32).collect();
    for layer in 0..layers {
        for token in 0..max_context {
            let row: Vec<f32> = (0..kv_heads * dim)
                .map(|i| ((token * 7 + i * 13 + layer) % 97) as f32 * 0.02 - 1.0)
                .collect();
            cache.write(layer, table[token / PAGE_TOKENS], token % PAGE_TOKENS, &row, &row);
        }
    }
    println!("work             |   µs a layer |  GB/s | GFLOP/s | share of FMA");
    for (name, rows, context) in [
        ("decode at 32", 1, 32),
        ("decode at 512", 1, 512),
        ("decode at 8k", 1, 8192),
        ("decode at 32k", 1, 32_768),
        ("512 at 0", 512, 0),
        ("128 at 2k", 128, 2048),
        ("128 at 8k", 128, 8192),
        ("16 at 8k", 16, 8192),
    ] {
        let first_position = if rows == 1 { context - 1 } else { context };
        let q: Vec<f32> =
            (0..rows * heads * dim).map(|i| ((i * 29) % 101) as f32 * 0.02 - 1.0).collect();
        let mut out = vec![0.0; q.len()];
        let sequence = [AttentionSequence { block_table: &table, first_position, rows: 0..rows }];
        let mut layer = 0;
        let seconds = best_seconds(&pool, || {
            layer = (layer + 1) % layers;
            attention(&pool, &cache, layer, heads, &q, &sequence, 0.125, &mut out);
        });
        let pairs: usize = (0..rows).map(|r| first_position + r + 1).sum();
        let flops = (pairs * heads * dim * 4) as f64;
        let bytes = ((first_position + rows) * kv_heads * dim * 4) as f64;
        let (gflops, gbytes) = (flops / seconds / 1e9, bytes / seconds / 1e9);
        println!(
            "{name:<16} | {:>12.1} | {gbytes:>5.1} | {gflops:>7.1} | {:>4.0} %",
            seconds * 1e6,
            100.0 * gflops / fma
        );
    }
}
