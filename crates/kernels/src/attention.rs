//! Causal attention over a paged cache, for any mix of prompt chunks and single tokens.
//!
//! Online softmax (Milakov and Gimelshein 2018) over pages, split over the context as in Flash-Decoding (Dao et al. 2023).
//! Knows no scheduler: a sequence here is a block table, a position and some rows. A tile is a few rows of one sequence
//! times the query heads that share one KV head, so that each page is read once a tile.
//!
//! Invariant: the result of a row depends only on its position and its pages, bit for bit. Pages are taken in order;
//! segments begin at multiples of [`SEGMENT_TOKENS`] whatever the work is split into; segments are put together in
//! order; no sum runs over rows, heads or tiles.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod cache;
mod scalar;
mod tile;

use crate::aligned::Aligned;
use crate::elementwise::SharedRows;
use crate::isa::Isa;
use crate::pool::Pool;
pub use cache::{KvCache, KvFormat, PAGE_TOKENS};
use std::cmp::Reverse;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use tile::{Page, Tile, partial_len};

/// Tokens of a segment: the grain in which a long context is split over threads. A multiple of [`PAGE_TOKENS`].
const SEGMENT_TOKENS: usize = 256;
/// Pairs of row and head in a tile at most, where one row has no more: enough to hide the reading of a page.
const TILE_PAIRS: usize = 64;
/// Pieces of work a thread that a step is split into, so that the last one is short.
const TASKS_PER_THREAD: usize = 4;
/// Multiply-adds below which a second thread costs more than it saves.
const ALONE_BELOW: usize = 1 << 17;
/// Elements of partial results that a step may hold: 64 MB. Tiles beyond are not split over the context.
const MAX_PARTIALS: usize = 16 << 20;

/// Some consecutive rows of one sequence.
#[derive(Debug, Clone)]
pub struct AttentionSequence<'a> {
    /// The sequence's pages: position `p` lies in page `block_table[p / PAGE_TOKENS]`.
    pub block_table: &'a [u32],
    /// Position of the first row.
    pub first_position: usize,
    /// The rows of `q` and `out` that belong to the sequence, by position.
    pub rows: Range<usize>,
}

/// Some rows of one sequence and the query heads of one KV head.
struct TileWork {
    sequence: usize,
    /// Rows of `q` and `out`.
    rows: Range<usize>,
    first_position: usize,
    kv_head: usize,
    /// Where the partial results lie, if the tile is split over the context.
    partials: Option<usize>,
    /// Tasks not done yet; who does the last puts the partial results together.
    left: AtomicUsize,
}

/// Some segments of a tile.
struct Task {
    tile: usize,
    segments: Range<usize>,
    cost: usize,
}

/// What all tasks of a call share.
struct Call<'a> {
    isa: Isa,
    cache: &'a KvCache,
    layer: usize,
    heads: usize,
    q: &'a [f32],
    sequences: &'a [AttentionSequence<'a>],
    scale: f32,
    out: SharedRows<'a>,
    partials: SharedRows<'a>,
    tiles: Vec<TileWork>,
}

/// Attention of each row over the positions of its sequence up to and including its own, whose keys and values are in
/// the cache already. Rows that belong to no sequence are left alone.
///
/// `q`, `out`: (rows, `heads` × head dim), row-major; query head `h` uses KV head `h / (heads / kv_heads)`.
///
/// # Panics
/// If `heads` is not a multiple of the cache's KV heads, or a row, page or block table lies outside what is given.
#[allow(clippy::too_many_arguments, reason = "the shape of the operation")]
pub fn attention(
    pool: &Pool,
    cache: &KvCache,
    layer: usize,
    heads: usize,
    q: &[f32],
    sequences: &[AttentionSequence<'_>],
    scale: f32,
    out: &mut [f32],
) {
    let (kv_heads, dim) = (cache.kv_heads(), cache.head_dim());
    if kv_heads == 0 || dim == 0 || heads == 0 {
        return;
    }
    assert!(heads.is_multiple_of(kv_heads), "{heads} heads over {kv_heads} KV heads");
    for sequence in sequences {
        let end = sequence.rows.end.saturating_mul(heads * dim);
        assert!(
            end <= q.len() && end <= out.len(),
            "rows {:?} of {} elements",
            sequence.rows,
            q.len()
        );
    }
    let group = heads / kv_heads;
    let mut tiles = tiles(sequences, kv_heads, group);
    let (tasks, partials_len) = tasks(&mut tiles, pool.threads(), group, dim);
    let mut partials = Aligned::<f32>::new(partials_len);
    let call = Call {
        isa: cache.isa(),
        cache,
        layer,
        heads,
        q,
        sequences,
        scale,
        out: SharedRows::new(out, dim),
        partials: SharedRows::new(partials.get_mut(0, partials_len), 1),
        tiles,
    };
    let max_pairs = call.tiles.iter().map(|t| t.rows.len() * group).max().unwrap_or(0);
    let next = AtomicUsize::new(0);
    let work = |scratch: &mut Tile| {
        while let Some(task) = tasks.get(next.fetch_add(1, Ordering::Relaxed)) {
            call.run(task, scratch);
        }
    };
    let cost: usize = tasks.iter().map(|t| t.cost).sum();
    if pool.threads() == 1 || cost.saturating_mul(2 * dim) < ALONE_BELOW {
        return work(&mut Tile::new(max_pairs, group, dim));
    }
    let scratch: Vec<_> =
        (0..pool.threads()).map(|_| Mutex::new(Tile::new(max_pairs, group, dim))).collect();
    pool.run(&|thread| work(&mut scratch[thread].lock().unwrap_or_else(PoisonError::into_inner)));
}

/// The tiles of a call.
fn tiles(sequences: &[AttentionSequence<'_>], kv_heads: usize, group: usize) -> Vec<TileWork> {
    let tile_rows = (TILE_PAIRS / group).max(1);
    let mut tiles = Vec::new();
    for (index, sequence) in sequences.iter().enumerate() {
        for start in sequence.rows.clone().step_by(tile_rows) {
            let rows = start..sequence.rows.end.min(start + tile_rows);
            let first_position = sequence.first_position + (start - sequence.rows.start);
            tiles.extend((0..kv_heads).map(|kv_head| TileWork {
                sequence: index,
                rows: rows.clone(),
                first_position,
                kv_head,
                partials: None,
                left: AtomicUsize::new(1),
            }));
        }
    }
    tiles
}

impl TileWork {
    fn context(&self) -> usize {
        self.first_position + self.rows.len()
    }

    fn segments(&self) -> usize {
        self.context().div_ceil(SEGMENT_TOKENS)
    }
}

/// Splits tiles that are too long for an even share into runs of segments; returns the tasks, the longest first, and the
/// elements of partial results. Splitting does not change any result.
fn tasks(tiles: &mut [TileWork], threads: usize, group: usize, dim: usize) -> (Vec<Task>, usize) {
    let total: usize = tiles.iter().map(|t| t.context() * t.rows.len() * group).sum();
    let share = (total / (threads * TASKS_PER_THREAD)).max(1);
    let mut tasks = Vec::with_capacity(tiles.len());
    let mut partials_len = 0;
    for (index, tile) in tiles.iter_mut().enumerate() {
        let (segments, pairs) = (tile.segments(), tile.rows.len() * group);
        let cost = tile.context() * pairs;
        let mut parts = if threads == 1 { 1 } else { cost.div_ceil(share).clamp(1, segments) };
        let len = segments * pairs * partial_len(dim);
        if parts > 1 && partials_len + len <= MAX_PARTIALS {
            tile.partials = Some(partials_len);
            partials_len += len;
        } else {
            parts = 1;
        }
        tile.left = AtomicUsize::new(parts);
        tasks.extend((0..parts).map(|i| Task {
            tile: index,
            segments: segments * i / parts..segments * (i + 1) / parts,
            cost: cost / parts,
        }));
    }
    tasks.sort_by_key(|task| Reverse(task.cost));
    (tasks, partials_len)
}

impl Call<'_> {
    fn run(&self, task: &Task, tile: &mut Tile) {
        let work = &self.tiles[task.tile];
        let width = self.heads * tile.dim;
        let offset = work.kv_head * tile.group * tile.dim;
        tile.load(
            &self.q[work.rows.start * width + offset..],
            width,
            work.rows.len(),
            work.first_position,
            self.scale,
        );
        match (self.isa, self.cache.format()) {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the level exists only where its features do.
            (Isa::Avx512, KvFormat::F16) if avx512::takes(tile.dim) => unsafe {
                avx512::query_words(tile)
            },
            _ => {}
        }
        for segment in task.segments.clone() {
            let first_pair = tile.first_pair_at(segment * SEGMENT_TOKENS);
            self.segment(work, segment, tile);
            if let Some(base) = work.partials {
                // SAFETY: a segment of a tile belongs to one task, and its span to that segment.
                tile.store_segment(first_pair, unsafe { self.partial(tile, base, segment) });
            } else {
                tile.add_segment(self.isa, first_pair);
            }
        }
        // Release what this task stored; acquire what the others did, if this is the last.
        if work.left.fetch_sub(1, Ordering::AcqRel) != 1 {
            return;
        }
        if let Some(base) = work.partials {
            for segment in 0..work.segments() {
                let first_pair = tile.first_pair_at(segment * SEGMENT_TOKENS);
                // SAFETY: all tasks of the tile are done with their spans, and this one alone is here.
                tile.add_stored(self.isa, first_pair, unsafe { self.partial(tile, base, segment) });
            }
        }
        for (i, row) in work.rows.clone().enumerate() {
            // SAFETY: the heads of a row and KV head belong to one tile, and one task finishes it.
            tile.finish(i, unsafe { self.out.span(row * width + offset, tile.group * tile.dim) });
        }
    }

    /// Where a split tile keeps the result of a segment.
    ///
    /// # Safety
    /// Nobody else asks for the same span while the result lives.
    #[allow(clippy::mut_from_ref, reason = "the spans are disjoint; see the contract")]
    unsafe fn partial(&self, tile: &Tile, base: usize, segment: usize) -> &mut [f32] {
        let len = tile.pairs * partial_len(tile.dim);
        // SAFETY: the contract is the same.
        unsafe { self.partials.span(base + segment * len, len) }
    }

    fn segment(&self, work: &TileWork, segment: usize, tile: &mut Tile) {
        let table = self.sequences[work.sequence].block_table;
        let end = work.context().min((segment + 1) * SEGMENT_TOKENS);
        tile.start_segment();
        for start in (segment * SEGMENT_TOKENS..end).step_by(PAGE_TOKENS) {
            let block = self.cache.block(self.layer, table[start / PAGE_TOKENS], work.kv_head);
            let next =
                table.get(start / PAGE_TOKENS + 1).filter(|_| start + PAGE_TOKENS < work.context());
            let next = next
                .map_or(block, |&page| self.cache.block(self.layer, page, work.kv_head))
                .start();
            let page = Page { block, start, first_pair: tile.first_pair_at(start), next };
            match self.isa {
                #[cfg(target_arch = "x86_64")]
                // SAFETY: the level exists only where its features do.
                Isa::Avx512 if avx512::takes(tile.dim) => unsafe { avx512::page(tile, &page) },
                #[cfg(target_arch = "x86_64")]
                // SAFETY: as above; AVX-512 implies AVX2.
                Isa::Avx2 | Isa::Avx512 if avx2::takes(tile.dim) => unsafe {
                    avx2::page(tile, &page)
                },
                _ => scalar::page(tile, &page),
            }
        }
    }
}

#[cfg(test)]
mod tests;
