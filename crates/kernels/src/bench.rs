//! How fast products are on this machine, beside the limits that the machine sets.
//!
//! Measures only; the caller prints. Not a test: nothing here passes or fails. Figures count a multiply-add as two
//! operations and a gigabyte as 10⁹ bytes. Products are medians over repetitions; limits are the best repetition, so
//! that a share of a limit never looks better than it is.

use std::hint::black_box;
use std::time::{Duration, Instant};

use crate::isa::compiled_per_isa;
use crate::layout::LINE;
use crate::memory::AlignedBytes;
use crate::{Activations, Format, Isa, KernelError, PackedMatrix, Pool, matmul, synthetic};

/// Weights are spread over this many bytes where a product is to stream from memory rather than from a cache.
const STREAM_BYTES: usize = 256 << 20;
/// Most activation rows at which weights are spread: with more, the product hides the reading.
const STREAM_ROWS: usize = 8;
/// Bytes of the buffer of the streaming read, in pieces.
const READ_BYTES: usize = 512 << 20;
const READ_PIECE_BYTES: usize = 1 << 20;
/// How far ahead of its use memory is asked for, in bytes; 0 leaves it to the processor.
const READ_AHEAD: [usize; 3] = [0, 4096, 16_384];
/// Time spent on one measurement.
const MEASURE: Duration = Duration::from_millis(250);
/// Fewest repetitions of one measurement.
const MIN_REPEATS: usize = 5;

/// What the machine can do at most, with all threads of the pool. NaN where there is no loop for the instruction set.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Reading memory in order, in GB/s.
    pub read_gb_per_s: f64,
    /// f32 multiply-adds in registers, in GFLOP/s.
    pub f32_gflop_per_s: f64,
    /// int8 dot products in registers, in GOP/s.
    pub int8_gop_per_s: f64,
}

impl Limits {
    /// The better of two measurements of one machine: on a shared one, each limit shows in its quietest moment.
    #[must_use]
    pub fn or_better(self, other: Self) -> Self {
        Self {
            read_gb_per_s: self.read_gb_per_s.max(other.read_gb_per_s),
            f32_gflop_per_s: self.f32_gflop_per_s.max(other.f32_gflop_per_s),
            int8_gop_per_s: self.int8_gop_per_s.max(other.int8_gop_per_s),
        }
    }
}

/// One product measured.
#[derive(Debug, Clone, Copy)]
pub struct Measured {
    /// Activation rows.
    pub rows: usize,
    /// Seconds of one product, median.
    pub seconds: f64,
    /// Seconds of the fastest product: what a quiet machine would give, if this one is shared.
    pub least_seconds: f64,
    /// Operations of one product.
    pub operations: f64,
    /// Bytes of packed weights that one product reads.
    pub weight_bytes: f64,
}

impl Measured {
    /// Operations per second, in 10⁹.
    #[must_use]
    pub fn gop_per_s(&self) -> f64 {
        self.operations / self.seconds / 1e9
    }

    /// Packed weights read per second, in 10⁹ bytes.
    #[must_use]
    pub fn gb_per_s(&self) -> f64 {
        self.weight_bytes / self.seconds / 1e9
    }

    /// The time that the machine's binding limit would take (reading every weight once, or every multiply-add) over
    /// the time it took: 0 … 1. NaN where the limit is not known.
    #[must_use]
    pub fn share_of_limit(&self, format: Format, limits: &Limits) -> f64 {
        let rate =
            if format.is_quantised() { limits.int8_gop_per_s } else { limits.f32_gflop_per_s };
        let computing = self.operations / (rate * 1e9);
        let reading = self.weight_bytes / (limits.read_gb_per_s * 1e9);
        if computing.is_nan() { f64::NAN } else { computing.max(reading) / self.seconds }
    }
}

/// Measures the limits of the machine with the instruction set `isa`.
///
/// # Errors
/// Where memory is short.
pub fn limits(pool: &Pool, isa: Isa) -> Result<Limits, KernelError> {
    let isa = isa.min(Isa::best());
    Ok(Limits {
        read_gb_per_s: ReadLimit::new(pool)?.gb_per_s(pool, isa),
        f32_gflop_per_s: register_rate(pool, isa, Loop::Float),
        int8_gop_per_s: register_rate(pool, isa, Loop::Int8),
    })
}

/// Measures products of each number of activation `rows` with made-up weights (`outputs × inputs`), which stream from
/// memory where the rows are few; tells `each` one by one.
///
/// # Errors
/// If the shape does not fit the format.
pub fn products(
    pool: &Pool,
    isa: Isa,
    format: Format,
    (outputs, inputs): (usize, usize),
    rows: &[usize],
    each: &mut dyn FnMut(Measured),
) -> Result<(), KernelError> {
    let data = synthetic::weights(format, outputs, inputs, 1);
    let streamed = rows.iter().any(|&rows| rows <= STREAM_ROWS);
    let copies = if streamed { STREAM_BYTES.div_ceil(data.len().max(1)).clamp(1, 512) } else { 1 };
    let matrices = (0..copies)
        .map(|_| Ok(PackedMatrix::pack(format, outputs, inputs, &data, pool)?.with_isa(isa)))
        .collect::<Result<Vec<_>, KernelError>>()?;
    let Some(first) = matrices.first() else {
        return Err(KernelError::Size { what: "data", expected: 1, got: 0 });
    };
    for &rows in rows {
        let used =
            if rows <= STREAM_ROWS { matrices.as_slice() } else { std::slice::from_ref(first) };
        let x = synthetic::activations(rows * inputs, 2);
        let (mut prepared, mut out) = (Activations::new(), vec![0.0; rows * outputs]);
        prepared.prepare(pool, &x, rows, inputs, &[first.activation_kind()]);
        let mut turn = used.iter().cycle();
        let Seconds { median: seconds, least: least_seconds } = seconds_of(|| {
            if let Some(matrix) = turn.next() {
                matmul(pool, matrix, &prepared, &mut out);
            }
            black_box(&out);
        });
        let operations = 2.0 * (rows * outputs * inputs) as f64;
        let weight_bytes = first.bytes() as f64;
        each(Measured { rows, seconds, least_seconds, operations, weight_bytes });
    }
    Ok(())
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

/// A buffer to read in order, in huge pages where weights are.
#[derive(Debug)]
pub struct ReadLimit(AlignedBytes);

impl ReadLimit {
    /// Takes the memory.
    ///
    /// # Errors
    /// Where it is short.
    pub fn new(pool: &Pool) -> Result<Self, KernelError> {
        let pieces = READ_BYTES / READ_PIECE_BYTES;
        let each =
            |run: &(dyn Fn(usize) + Sync)| pool.for_each(pieces, 1, &|pieces| pieces.for_each(run));
        AlignedBytes::filled(pieces, READ_PIECE_BYTES, each, &|_, piece| piece.fill(1)).map(Self)
    }

    /// GB/s of reading memory in order: the best repetition of the best distance of fetching ahead. What a machine
    /// gives varies with what runs beside it, so callers measure more than once and keep the best.
    #[must_use]
    pub fn gb_per_s(&self, pool: &Pool, isa: Isa) -> f64 {
        let part = READ_BYTES.div_ceil(pool.threads());
        let best = READ_AHEAD.iter().map(|&ahead| {
            let times = seconds_of(|| {
                pool.run(&|thread| {
                    let bytes = self.0.as_slice();
                    let (from, to) = (thread * part, (thread + 1) * part);
                    let mine = &bytes[from.min(READ_BYTES)..to.min(READ_BYTES)];
                    black_box(read_all(isa, mine, ahead));
                });
            });
            READ_BYTES as f64 / times.least / 1e9
        });
        best.fold(0.0, f64::max)
    }
}

compiled_per_isa! {
    /// The sum of all words, for the sake of reading them, each line asked for `ahead` bytes before its use.
    fn read_all(bytes: &[u8], ahead: usize) -> u64 = read_all_body
}

#[inline(always)]
fn read_all_body<const FUSED: bool>(bytes: &[u8], ahead: usize) -> u64 {
    // Many sums, so that the additions never wait for one another.
    const SUMS: usize = 32;
    let mut sums = [0_u64; SUMS];
    for chunk in bytes.as_chunks::<{ 8 * SUMS }>().0 {
        if ahead > 0 {
            for line in chunk.chunks(LINE) {
                fetch(line.as_ptr().wrapping_add(ahead));
            }
        }
        for (sum, word) in sums.iter_mut().zip(chunk.as_chunks::<8>().0) {
            *sum = sum.wrapping_add(u64::from_ne_bytes(*word));
        }
    }
    sums.iter().fold(0, |all, sum| all.wrapping_add(*sum))
}

/// Asks for a cache line; an address that is none is ignored.
#[inline(always)]
fn fetch(address: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a hint that reads nothing, whatever the address; SSE is part of x86-64.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T1 }>(address.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}

#[derive(Clone, Copy)]
enum Loop {
    Float,
    Int8,
}

/// 10⁹ operations per second of a loop in registers, over all threads, best of the repetitions.
fn register_rate(pool: &Pool, isa: Isa, kind: Loop) -> f64 {
    const TURNS: usize = 200_000;
    let operations_per_turn = match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => crate::peak::avx512_operations(matches!(kind, Loop::Int8)),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => crate::peak::avx2_operations(matches!(kind, Loop::Int8)),
        _ => return f64::NAN,
    };
    let times = seconds_of(|| {
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
    (pool.threads() * TURNS * operations_per_turn) as f64 / times.least / 1e9
}
