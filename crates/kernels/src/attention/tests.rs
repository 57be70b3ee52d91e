//! Attention against a plain f64 version, and against itself under every split.

use super::*;

/// A small generator; the values only have to look random.
struct Random(u64);

impl Random {
    fn unit(&mut self) -> f32 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 40) as f32) / (1u64 << 24) as f32
    }

    fn row(&mut self, len: usize, size: f32) -> Vec<f32> {
        (0..len).map(|_| (self.unit() + self.unit() + self.unit() - 1.5) * size).collect()
    }
}

/// One sequence whose keys and values lie in scattered pages.
struct Sequence {
    k: Vec<Vec<f32>>,
    v: Vec<Vec<f32>>,
    q: Vec<Vec<f32>>,
    table: Vec<u32>,
}

struct Case {
    cache: KvCache,
    heads: usize,
    sequences: Vec<Sequence>,
}

const LAYER: usize = 1;
const SCALE: f32 = 0.25;

fn case(
    isa: Isa,
    format: KvFormat,
    heads: usize,
    kv_heads: usize,
    dim: usize,
    lengths: &[usize],
) -> Case {
    let mut random = Random(7 + dim as u64);
    let pages: usize = lengths.iter().map(|l| l.div_ceil(PAGE_TOKENS)).sum();
    let mut cache = KvCache::with_isa(isa, format, pages + 1, LAYER + 1, kv_heads, dim);
    let mut free: Vec<u32> = (0..pages as u32 + 1).rev().collect();
    free.rotate_left(pages / 2);
    // A page that belonged to somebody else: nothing of it may be seen.
    for page in 0..=pages as u32 {
        for slot in 0..PAGE_TOKENS {
            cache.write(
                LAYER,
                page,
                slot,
                &vec![f32::NAN; kv_heads * dim],
                &vec![f32::NAN; kv_heads * dim],
            );
        }
    }
    let mut sequences = Vec::new();
    for &length in lengths {
        let table: Vec<u32> =
            (0..length.div_ceil(PAGE_TOKENS)).filter_map(|_| free.pop()).collect();
        let mut rows = |width: usize, size: f32| -> Vec<Vec<f32>> {
            (0..length).map(|_| random.row(width, size)).collect()
        };
        let (q, mut k, mut v) =
            (rows(heads * dim, 3.0), rows(kv_heads * dim, 2.0), rows(kv_heads * dim, 1.0));
        for position in 0..length {
            let (page, slot) = (table[position / PAGE_TOKENS], position % PAGE_TOKENS);
            cache.write(LAYER, page, slot, &k[position], &v[position]);
            (k[position], v[position]) = cache.read(LAYER, page, slot);
        }
        sequences.push(Sequence { k, v, q, table });
    }
    Case { cache, heads, sequences }
}

/// A head's query as the cache's arithmetic takes it: rounded to words where keys are words.
fn taken(case: &Case, query: &[f32]) -> Vec<f64> {
    if !matches!(case.cache.block(LAYER, 0, 0), cache::Block::Words(_)) {
        return query.iter().map(|&q| f64::from(q)).collect();
    }
    let factor = SCALE * std::f32::consts::LOG2_E;
    let most = f32::from(cache::word_limits(query.len()).0);
    let largest = query.iter().fold(0.0_f32, |a, q| a.max((q * factor).abs()));
    let word = |q: f32| (q * factor * (most / largest)).round_ties_even();
    let step = f64::from(largest / most) / f64::from(factor);
    query.iter().map(|&q| f64::from(word(q)) * step).collect()
}

/// One row in f64, straight from the definition.
fn reference(case: &Case, sequence: &Sequence, position: usize) -> Vec<f32> {
    let dim = case.cache.head_dim();
    let group = case.heads / case.cache.kv_heads();
    let mut out = Vec::new();
    for head in 0..case.heads {
        let at = |row: &[f32], head: usize, d: usize| f64::from(row[head * dim + d]);
        let query = taken(case, &sequence.q[position][head * dim..][..dim]);
        let scores: Vec<f64> = (0..=position)
            .map(|p| (0..dim).map(|d| query[d] * at(&sequence.k[p], head / group, d)).sum())
            .map(|dot: f64| dot * f64::from(SCALE))
            .collect();
        let max = scores.iter().fold(f64::NEG_INFINITY, |a, &b| a.max(b));
        let weights: Vec<f64> = scores.iter().map(|s| (s - max).exp()).collect();
        let sum: f64 = weights.iter().sum();
        for d in 0..dim {
            let value: f64 =
                weights.iter().zip(&sequence.v).map(|(w, v)| w * at(v, head / group, d)).sum();
            out.push((value / sum) as f32);
        }
    }
    out
}

/// A batch: (sequence, first position, rows) in this order; returns one row per position, keyed the same way.
fn run(threads: usize, case: &Case, batch: &[(usize, usize, usize)]) -> Vec<Vec<f32>> {
    let width = case.heads * case.cache.head_dim();
    let mut q = Vec::new();
    let mut sequences = Vec::new();
    for &(index, first_position, rows) in batch {
        let sequence = &case.sequences[index];
        let start = q.len() / width;
        sequence.q[first_position..first_position + rows]
            .iter()
            .for_each(|row| q.extend_from_slice(row));
        sequences.push(AttentionSequence {
            block_table: &sequence.table,
            first_position,
            rows: start..start + rows,
        });
    }
    let mut out = vec![f32::NAN; q.len()];
    let pool = Pool::new(threads);
    attention(&pool, &case.cache, LAYER, case.heads, &q, &sequences, SCALE, &mut out);
    out.chunks_exact(width).map(<[f32]>::to_vec).collect()
}

fn levels() -> impl Iterator<Item = Isa> {
    Isa::ALL.into_iter().filter(|isa| {
        if !isa.available() {
            eprintln!("skipped: {isa:?} is not available");
        }
        isa.available()
    })
}

/// The largest difference from the f64 result; values are in [-1.5, 1.5].
const CEILING: f32 = 4e-6;
/// The same where probabilities are rounded to words, half a step of 13 bits each, of a page's largest: at most 9e-5 for
/// each token that is seen, and the random sum of as many for all of them.
const WORDS_CEILING: f32 = 6e-4;

#[test]
fn close_to_f64() {
    for format in [KvFormat::F32, KvFormat::F16] {
        for (heads, kv_heads, dim, length) in [
            (2, 1, 8, 70),
            (14, 2, 64, 600),
            (12, 2, 128, 300),
            (3, 3, 64, 40),
            (9, 3, 64, 33),
            (4, 2, 80, 290),
            (5, 1, 40, 65),
            (16, 1, 96, 100),
        ] {
            for isa in levels() {
                let case = case(isa, format, heads, kv_heads, dim, &[length]);
                let got = run(2, &case, &[(0, 0, length)]);
                let has_words = matches!(case.cache.block(LAYER, 0, 0), cache::Block::Words(_));
                let ceiling = if has_words { WORDS_CEILING } else { CEILING };
                // Each diagonal of the first pages, then a sample.
                for (position, got) in
                    got.iter().enumerate().filter(|(p, _)| *p < 40 || p % 11 == 3)
                {
                    let want = reference(&case, &case.sequences[0], position);
                    let error =
                        got.iter().zip(&want).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                    // NaN compares false: it fails too.
                    assert!(
                        got.iter().all(|v| v.is_finite()) && error <= ceiling,
                        "{isa:?} {format:?} {heads}/{kv_heads}×{dim} at {position}: {error:e}"
                    );
                }
            }
        }
    }
}

fn check_splits(format: KvFormat, heads: usize, kv_heads: usize, dim: usize) {
    for isa in levels() {
        let case = case(isa, format, heads, kv_heads, dim, &[700, 41, 1030]);
        let whole = run(1, &case, &[(0, 0, 700)]);
        for threads in 1..=4 {
            for chunk in [1, 3, 32, 33, 255, 700] {
                let rows = chunk.min(90);
                for start in (0..700 - rows).step_by(chunk.max(97)) {
                    // Alone, then between strangers, and after one of them.
                    for (at, batch) in [
                        (0, vec![(0, start, rows)]),
                        (6, vec![(1, 35, 6), (0, start, rows), (2, 1000, 1)]),
                        (1, vec![(2, 1029, 1), (0, start, rows)]),
                    ] {
                        let got = run(threads, &case, &batch);
                        for (i, row) in whole[start..start + rows].iter().enumerate() {
                            let same = row
                                .iter()
                                .zip(&got[at + i])
                                .all(|(a, b)| a.to_bits() == b.to_bits());
                            assert!(
                                same,
                                "{isa:?} {format:?} dim {dim}, {threads} threads, position {}, {batch:?}",
                                start + i
                            );
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn a_row_does_not_depend_on_chunk_batch_or_threads() {
    check_splits(KvFormat::F16, 7, 1, 64);
    check_splits(KvFormat::F32, 3, 3, 8);
    check_splits(KvFormat::F16, 4, 2, 40);
}

#[test]
fn tasks_cover_each_segment_once() {
    let table = [0; 400];
    let sequences = [
        AttentionSequence { block_table: &table, first_position: 9000, rows: 0..1 },
        AttentionSequence { block_table: &table, first_position: 10, rows: 1..40 },
        AttentionSequence { block_table: &table, first_position: 255, rows: 40..41 },
    ];
    for threads in [1, 2, 7, 64] {
        let mut tiles = tiles(&sequences, 2, 7);
        let (tasks, len) = tasks(&mut tiles, threads, 7, 64);
        for (index, tile) in tiles.iter().enumerate() {
            let mut seen = vec![0; tile.segments()];
            let mine: Vec<_> = tasks.iter().filter(|t| t.tile == index).collect();
            mine.iter().for_each(|t| t.segments.clone().for_each(|s| seen[s] += 1));
            assert!(seen.iter().all(|&s| s == 1));
            assert_eq!(tile.left.load(Ordering::Relaxed), mine.len());
            assert_eq!(tile.partials.is_some(), mine.len() > 1);
        }
        assert_eq!(len > 0, threads > 1);
    }
}
