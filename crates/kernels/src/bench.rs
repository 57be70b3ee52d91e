//! How fast products are on this machine, beside the limits that the machine sets.
//!
//! Measures only; the caller prints. Not a test: nothing here passes or fails. Figures count a multiply-add as two
//! operations and a gigabyte as 10⁹ bytes, and are medians over repetitions.

use std::hint::black_box;
use std::time::{Duration, Instant};

use crate::{Activations, Format, Isa, KernelError, PackedMatrix, Pool, matmul, synthetic};

/// Weights are spread over this many bytes where a product is to stream from memory rather than from a cache.
const STREAM_BYTES: usize = 256 << 20;
/// Bytes of one buffer of the streaming read.
const READ_BYTES: usize = 512 << 20;
/// Time spent on one measurement.
const MEASURE: Duration = Duration::from_millis(250);
/// Fewest repetitions of one measurement.
const MIN_REPEATS: usize = 5;

/// What the machine can do at most, with all threads of the pool.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Reading memory in order, in GB/s.
    pub read_gb_per_s: f64,
    /// f32 multiply-adds in registers, in GFLOP/s.
    pub f32_gflop_per_s: f64,
    /// int8 dot products in registers, in GOP/s.
    pub int8_gop_per_s: f64,
}

/// One product measured.
#[derive(Debug, Clone, Copy)]
pub struct Measured {
    /// Seconds of one product, median.
    pub seconds: f64,
    /// Seconds of the fastest product: what a quiet machine would give, if this one is shared.
    pub least_seconds: f64,
    /// Operations per second, in 10⁹.
    pub gop_per_s: f64,
    /// Packed weights read per second, in 10⁹ bytes.
    pub gb_per_s: f64,
}

/// Measures the limits of the machine with the instruction set `isa`.
#[must_use]
pub fn limits(pool: &Pool, isa: Isa) -> Limits {
    let isa = isa.min(Isa::best());
    Limits {
        read_gb_per_s: read_rate(pool),
        f32_gflop_per_s: register_rate(pool, isa, Loop::Float),
        int8_gop_per_s: register_rate(pool, isa, Loop::Int8),
    }
}

/// Measures products of `rows` activation rows with made-up weights (`outputs × inputs`), streaming from memory if
/// `rows` is small.
///
/// # Errors
/// If the shape does not fit the format.
pub fn product(
    pool: &Pool,
    isa: Isa,
    format: Format,
    (outputs, inputs): (usize, usize),
    rows: usize,
) -> Result<Measured, KernelError> {
    let data = synthetic::weights(format, outputs, inputs, 1);
    let copies = if rows <= 8 { STREAM_BYTES.div_ceil(data.len().max(1)).min(512) } else { 1 };
    let matrices = (0..copies)
        .map(|_| Ok(PackedMatrix::pack(format, outputs, inputs, &data, pool)?.with_isa(isa)))
        .collect::<Result<Vec<_>, KernelError>>()?;
    let x = synthetic::activations(rows * inputs, 2);
    let mut prepared = Activations::new();
    let mut out = vec![0.0; rows * outputs];
    let (kind, bytes) = match matrices.first() {
        Some(matrix) => (matrix.activation_kind(), matrix.bytes()),
        None => return Err(KernelError::Size { what: "data", expected: 1, got: 0 }),
    };
    prepared.prepare(pool, &x, rows, inputs, &[kind]);
    let mut next = 0;
    let Seconds { median: seconds, least } = seconds_of(|| {
        matmul(pool, &matrices[next % copies], &prepared, &mut out);
        next += 1;
        black_box(&out);
    });
    let operations = 2.0 * (rows * outputs * inputs) as f64;
    Ok(Measured {
        seconds,
        least_seconds: least,
        gop_per_s: operations / seconds / 1e9,
        gb_per_s: bytes as f64 / seconds / 1e9,
    })
}

/// Seconds to prepare (rows × cols) activations as int8, median.
#[must_use]
pub fn preparation(pool: &Pool, rows: usize, cols: usize) -> f64 {
    let x = synthetic::activations(rows * cols, 2);
    let mut prepared = Activations::new();
    median_seconds(|| {
        prepared.prepare(pool, &x, rows, cols, &[crate::ActivationKind::Int8]);
        black_box(&prepared);
    })
}

/// GB/s of file bytes repacked, median.
///
/// # Errors
/// If the shape does not fit the format.
pub fn packing(
    pool: &Pool,
    format: Format,
    (rows, cols): (usize, usize),
) -> Result<f64, KernelError> {
    let data = synthetic::weights(format, rows, cols, 1);
    let mut result = Ok(());
    let seconds = median_seconds(|| {
        result = PackedMatrix::pack(format, rows, cols, &data, pool).map(|matrix| {
            black_box(&matrix);
        });
    });
    result.map(|()| data.len() as f64 / seconds / 1e9)
}

fn median_seconds(run: impl FnMut()) -> f64 {
    seconds_of(run).median
}

/// Seconds of one run.
#[derive(Debug, Clone, Copy)]
struct Seconds {
    median: f64,
    /// The fastest run: what a quiet machine would give, if this one is shared.
    least: f64,
}

fn seconds_of(mut run: impl FnMut()) -> Seconds {
    run();
    let (start, mut times) = (Instant::now(), Vec::new());
    while times.len() < MIN_REPEATS || start.elapsed() < MEASURE {
        let before = Instant::now();
        run();
        times.push(before.elapsed().as_secs_f64());
    }
    times.sort_by(f64::total_cmp);
    Seconds { median: times[times.len() / 2], least: times[0] }
}

fn read_rate(pool: &Pool) -> f64 {
    let words = vec![1_u64; READ_BYTES / 8];
    let part = words.len().div_ceil(pool.threads());
    let seconds = median_seconds(|| {
        pool.run(&|thread| {
            let mine =
                &words[(thread * part).min(words.len())..((thread + 1) * part).min(words.len())];
            // Eight sums, so that the additions never wait for one another.
            let mut sums = [0_u64; 32];
            for chunk in mine.chunks_exact(32) {
                for (sum, word) in sums.iter_mut().zip(chunk) {
                    *sum = sum.wrapping_add(*word);
                }
            }
            black_box(sums);
        });
    });
    READ_BYTES as f64 / seconds / 1e9
}

#[derive(Clone, Copy)]
enum Loop {
    Float,
    Int8,
}

/// 10⁹ operations per second of a loop in registers, over all threads.
fn register_rate(pool: &Pool, isa: Isa, kind: Loop) -> f64 {
    const TURNS: usize = 200_000;
    let operations_per_turn = match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => crate::peak::avx512_operations(matches!(kind, Loop::Int8)),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => crate::peak::avx2_operations(matches!(kind, Loop::Int8)),
        _ => return f64::NAN,
    };
    let seconds = median_seconds(|| {
        pool.run(&|_| {
            #[cfg(target_arch = "x86_64")]
            match (isa, kind) {
                (Isa::Avx512, Loop::Float) => crate::peak::avx512_float(TURNS),
                (Isa::Avx512, Loop::Int8) => crate::peak::avx512_int8(TURNS),
                (_, Loop::Float) => crate::peak::avx2_float(TURNS),
                (_, Loop::Int8) => crate::peak::avx2_int8(TURNS),
            }
        });
    });
    (pool.threads() * TURNS * operations_per_turn) as f64 / seconds / 1e9
}
