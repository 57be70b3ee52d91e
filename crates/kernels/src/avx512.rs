//! Products with AVX-512 and VNNI: 16 weight rows in the 32-bit lanes of one register, `vpdpbusd` over four columns.
//!
//! Codes are unpacked to unsigned bytes whose zero is 128 (`code << (8 − bits)`; the scale is divided by the same power of
//! two, which is exact), so that every accumulator of a format with an offset starts at `−128·Σq`, a number the activation
//! block carries. Up to [`DIRECT_ROWS`] or [`BYTES_DIRECT_ROWS`] activation rows are multiplied while a block is unpacked in
//! registers; more of them share a panel of unpacked codes in the first-level cache. Same terms in the same order as
//! `scalar`: same bits.

use std::arch::x86_64::*;
use std::mem::MaybeUninit;
use std::ops::Range;

use crate::activations::{self, ActivationBlock, LEVELS, SMALLEST_SCALE};
use crate::layout::{LINE, STRIP_ROWS, VECTORS, field};
use crate::matmul::Output;
use crate::native::{BLOCK, IQ4_VALUES, ScaleKind};
use crate::quantised::{Quantised, for_quantised};
use crate::scalar::FLOAT_CHAIN;
use crate::{Activations, Format, PackedMatrix};

/// Activation rows up to which a panel does not pay.
const DIRECT_ROWS: usize = 10;
/// The same for formats of eight bits, which a panel would only copy.
const BYTES_DIRECT_ROWS: usize = 24;
/// How far ahead of use packed weights are fetched, in bytes: into the second-level cache, which keeps more reads of memory
/// in flight than the first.
const PREFETCH: usize = 16384;
/// Blocks of 32 columns in one panel at most; two strips of it, and the activations that pass by, stay in 32 KiB.
const PANEL_BLOCKS: usize = 16;
/// The same for formats whose blocks have more than a scale a row.
const LARGE_PANEL_BLOCKS: usize = 12;
/// Strips that share the activation loads of a tile.
const TILE_STRIPS: usize = 2;

/// The unpacked codes and the scales of 16 rows × 32 columns.
#[repr(C, align(64))]
#[derive(Clone, Copy)]
struct PanelBlock {
    codes: [__m512i; VECTORS],
    scales: Scales,
}

/// One value a row: scale and minimum of the two halves (only the first, if the format is not halved).
#[derive(Clone, Copy)]
struct Scales {
    /// Times each of `activations::LEVELS`.
    scale: [[__m512; 2]; 2],
    min: [__m512; 2],
}

type Panel = [[MaybeUninit<PanelBlock>; PANEL_BLOCKS]; TILE_STRIPS];

/// Computes the outputs of `strips` for all activation rows.
pub(crate) fn strips(w: &PackedMatrix, a: &Activations, out: &Output, strips: Range<usize>) {
    // SAFETY: `matmul` comes here only if the processor has the instructions (`Isa`), after it checked all sizes.
    unsafe {
        match w.format() {
            Format::F32 => float_strips::<F32>(w, a, out, strips),
            Format::F16 => float_strips::<F16>(w, a, out, strips),
            Format::BF16 => float_strips::<Bf16>(w, a, out, strips),
            format => for_quantised!(format, quantised_strips(w, a, out, strips)),
        }
    }
}

/// # Safety
/// AVX-512 F, BW, VNNI; sizes as `matmul` checked them.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn quantised_strips<Q: Quantised>(
    w: &PackedMatrix,
    a: &Activations,
    out: &Output,
    strips: Range<usize>,
) {
    // SAFETY: the caller's promise is passed on.
    unsafe {
        let direct_rows = if Q::LOW_BITS == 8 { BYTES_DIRECT_ROWS } else { DIRECT_ROWS };
        if a.rows() <= direct_rows {
            for strip in strips {
                direct_strip::<Q>(w, a, out, strip);
            }
            return;
        }
        let mut panel: Panel = [[MaybeUninit::uninit(); PANEL_BLOCKS]; TILE_STRIPS];
        let mut strip = strips.start;
        while strip < strips.end {
            if strip + TILE_STRIPS <= strips.end {
                panel_strips::<Q, TILE_STRIPS>(w, a, out, strip, &mut panel);
                strip += TILE_STRIPS;
            } else {
                panel_strips::<Q, 1>(w, a, out, strip, &mut panel);
                strip += 1;
            }
        }
    }
}

/// Calls a function with the number of rows of a group (1–6) as constant.
macro_rules! for_rows {
    ($rows:expr, $function:ident::<[$($generic:tt),*]> $arguments:tt) => {
        match $rows {
            1 => $function::<$($generic,)* 1> $arguments,
            2 => $function::<$($generic,)* 2> $arguments,
            3 => $function::<$($generic,)* 3> $arguments,
            4 => $function::<$($generic,)* 4> $arguments,
            5 => $function::<$($generic,)* 5> $arguments,
            6 => $function::<$($generic,)* 6> $arguments,
            _ => {}
        }
    };
}

/// One strip for few activation rows.
///
/// # Safety
/// As [`quantised_strips`]; `strip` is a strip of `w`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
#[inline]
unsafe fn direct_strip<Q: Quantised>(
    w: &PackedMatrix,
    a: &Activations,
    out: &Output,
    strip: usize,
) {
    let first_row = strip * STRIP_ROWS;
    let mask = lane_mask(w.rows() - first_row);
    let (bytes, blocks) = (w.strip(strip), w.cols() / BLOCK);
    for index in 0..activations::group_count(a.rows()) {
        let rows = activations::group(a.rows(), index);
        let Some(group) = a.int8_group(index) else { return };
        // SAFETY: the group has `blocks × rows` activation blocks and the strip `blocks` code blocks; `mask` keeps the
        // lanes that are rows of the matrix.
        unsafe {
            let at = Place { out, first_activation: rows.start, first_row, mask: [mask, 0] };
            for_rows!(
                rows.len(),
                direct_group::<[Q]>(bytes, w.codes_at(), blocks, group.as_ptr(), &at)
            );
        }
    }
}

/// Where a tile's results go.
struct Place<'a> {
    out: &'a Output,
    first_activation: usize,
    first_row: usize,
    /// Lanes of each strip that are rows of the matrix.
    mask: [__mmask16; TILE_STRIPS],
}

fn lane_mask(rows_left: usize) -> __mmask16 {
    if rows_left >= STRIP_ROWS { !0 } else { (1 << rows_left) - 1 }
}

/// 16 weight rows × `T` activation rows, the codes unpacked in registers.
///
/// # Safety
/// As [`quantised_strips`]; `strip` holds `blocks` blocks, `group` `blocks × T`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
#[inline]
unsafe fn direct_group<Q: Quantised, const T: usize>(
    strip: &[u8],
    codes_at: usize,
    blocks: usize,
    group: *const ActivationBlock,
    place: &Place,
) {
    let mut sums = [[_mm512_setzero_ps(); T]; 1];
    // SAFETY: all offsets stay inside the strip and the group (see above); prefetching any address is harmless.
    unsafe {
        let codes_start = strip.as_ptr().add(codes_at);
        for scale_group in 0..blocks / Q::GROUP_BLOCKS {
            // The scale planes lie between the code planes: all of the strip is asked for.
            let at = scale_group * Q::GROUP_BYTES;
            if Q::GROUP_BYTES >= LINE || at.is_multiple_of(LINE) {
                prefetch(strip.as_ptr().wrapping_add(at + PREFETCH), Q::GROUP_BYTES);
            }
            let record = Record::read::<Q>(strip.as_ptr(), scale_group);
            for sub in 0..Q::GROUP_BLOCKS {
                let block = scale_group * Q::GROUP_BLOCKS + sub;
                let packed = codes_start.add(block * Q::CODE_BYTES);
                prefetch(packed.wrapping_add(PREFETCH), Q::CODE_BYTES);
                let weights =
                    PanelBlock { codes: unpack::<Q>(packed), scales: record.scales::<Q>(sub) };
                block_products::<Q, 1, T>([&weights], group.add(block * T), &mut sums);
            }
        }
        for (slot, &sum) in sums[0].iter().enumerate() {
            let at = place.out.at(place.first_activation + slot, place.first_row);
            _mm512_mask_storeu_ps(at, place.mask[0], sum);
        }
    }
}

/// Asks for the lines of memory that begin in `bytes` from `at` on; a hint, which never faults.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
#[inline]
fn prefetch(at: *const u8, bytes: usize) {
    for line in 0..bytes.div_ceil(64) {
        _mm_prefetch::<_MM_HINT_T1>(at.wrapping_add(64 * line).cast());
    }
}

/// `S` strips for many activation rows, through a panel.
///
/// # Safety
/// As [`quantised_strips`]; `first..first + S` are strips of `w`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
#[inline]
unsafe fn panel_strips<Q: Quantised, const S: usize>(
    w: &PackedMatrix,
    a: &Activations,
    out: &Output,
    first: usize,
    panel: &mut Panel,
) {
    let first_row = first * STRIP_ROWS;
    let mut mask = [0; TILE_STRIPS];
    for (s, mask) in mask.iter_mut().enumerate().take(S) {
        *mask = lane_mask(w.rows() - first_row - s * STRIP_ROWS);
    }
    let blocks = w.cols() / BLOCK;
    let most = if Q::HAS_MIN || Q::HALVED { LARGE_PANEL_BLOCKS } else { PANEL_BLOCKS };
    let mut start = 0;
    while start < blocks {
        let count = most.min(blocks - start);
        let is_last = start + count == blocks;
        for (s, panel) in panel.iter_mut().enumerate().take(S) {
            let strip = w.strip(first + s);
            // What the panel after this one takes is fetched while this one is at work.
            let ahead = if is_last { S * strip.len() } else { 0 };
            let next = w.codes_at() + if is_last { 0 } else { (start + count) * Q::CODE_BYTES };
            let next = strip.as_ptr().wrapping_add(ahead + next);
            if is_last {
                prefetch(strip.as_ptr().wrapping_add(ahead), w.codes_at());
            }
            // SAFETY: block `start` lies inside the strip.
            let mut record = unsafe { Record::read::<Q>(strip.as_ptr(), start / Q::GROUP_BLOCKS) };
            for (index, unpacked) in panel.iter_mut().enumerate().take(count) {
                prefetch(next.wrapping_add(index * Q::CODE_BYTES), Q::CODE_BYTES);
                let block = start + index;
                let (scale_group, sub) = (block / Q::GROUP_BLOCKS, block % Q::GROUP_BLOCKS);
                // SAFETY: the block lies inside the strip.
                unsafe {
                    if index > 0 && sub == 0 {
                        record = Record::read::<Q>(strip.as_ptr(), scale_group);
                    }
                    let packed = strip.as_ptr().add(w.codes_at() + block * Q::CODE_BYTES);
                    let scales = record.scales::<Q>(sub);
                    unpacked.write(PanelBlock { codes: unpack::<Q>(packed), scales });
                }
            }
        }
        for index in 0..activations::group_count(a.rows()) {
            let rows = activations::group(a.rows(), index);
            let Some(group) = a.int8_group(index) else { return };
            let at = Place { out, first_activation: rows.start, first_row, mask };
            // SAFETY: `count` blocks of `S` strips were unpacked above; the group has blocks up to `start + count`.
            unsafe {
                let group = group.as_ptr().add(start * rows.len());
                for_rows!(rows.len(), tile::<[Q, S]>(panel, count, group, start == 0, &at));
            }
        }
        start += count;
    }
}

/// `S` × 16 weight rows × `T` activation rows over `count` blocks of a panel.
///
/// # Safety
/// As [`quantised_strips`]; `count` blocks of `S` strips of the panel are written, `group` has `count × T`.
#[allow(
    clippy::needless_range_loop,
    reason = "tiles are read by index: strip, activation row, block"
)]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn tile<Q: Quantised, const S: usize, const T: usize>(
    panel: &Panel,
    count: usize,
    group: *const ActivationBlock,
    is_first: bool,
    place: &Place,
) {
    let mut sums = [[_mm512_setzero_ps(); T]; S];
    // SAFETY: see above; masked lanes are not accessed.
    unsafe {
        if !is_first {
            for (s, sums) in sums.iter_mut().enumerate() {
                for (slot, sum) in sums.iter_mut().enumerate() {
                    let at = place
                        .out
                        .at(place.first_activation + slot, place.first_row + s * STRIP_ROWS);
                    *sum = _mm512_maskz_loadu_ps(place.mask[s], at);
                }
            }
        }
        for block in 0..count {
            let weights: [&PanelBlock; S] =
                std::array::from_fn(|s| panel[s][block].assume_init_ref());
            block_products::<Q, S, T>(weights, group.add(block * T), &mut sums);
        }
        for (s, sums) in sums.iter().enumerate() {
            for (slot, &sum) in sums.iter().enumerate() {
                let at =
                    place.out.at(place.first_activation + slot, place.first_row + s * STRIP_ROWS);
                _mm512_mask_storeu_ps(at, place.mask[s], sum);
            }
        }
    }
}

/// Adds the products of one block: `S` × 16 weight rows × `T` activation rows × 32 columns.
///
/// # Safety
/// The instructions of [`quantised_strips`]; `a` points to `T` blocks.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
#[inline]
unsafe fn block_products<Q: Quantised, const S: usize, const T: usize>(
    w: [&PanelBlock; S],
    a: *const ActivationBlock,
    sums: &mut [[__m512; T]; S],
) {
    let offset = !Q::HAS_MIN;
    // SAFETY: `a` points to `T` blocks.
    let a: [&ActivationBlock; T] = std::array::from_fn(|t| unsafe { &*a.add(t) });
    if Q::HALVED {
        let start = |half: usize| a.map(|a| if offset { a.neg_half_128[half] } else { 0 });
        let first = dots::<S, T, 0, 4>(w, a, start(0));
        add_dots(&first, w.map(|w| &w.scales.scale[0]), a, sums);
        let last = dots::<S, T, 4, 8>(w, a, start(1));
        add_dots(&last, w.map(|w| &w.scales.scale[1]), a, sums);
        for s in 0..S {
            for t in 0..T {
                if Q::HAS_MIN {
                    for half in 0..2 {
                        let sum = _mm512_set1_ps(a[t].scaled_half_sum(half));
                        sums[s][t] = _mm512_fmadd_ps(w[s].scales.min[half], sum, sums[s][t]);
                    }
                }
            }
        }
        return;
    }
    let dots = dots::<S, T, 0, 8>(w, a, a.map(|a| if offset { a.neg_sum_128 } else { 0 }));
    add_dots(&dots, w.map(|w| &w.scales.scale[0]), a, sums);
    for s in 0..S {
        for t in 0..T {
            if Q::HAS_MIN {
                sums[s][t] = _mm512_fmadd_ps(
                    w[s].scales.min[0],
                    _mm512_set1_ps(a[t].scaled_sum),
                    sums[s][t],
                );
            }
        }
    }
}

/// Adds integer dot products, weighed with both scales.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
#[inline]
fn add_dots<const S: usize, const T: usize>(
    dots: &[[__m512i; T]; S],
    scales: [&[__m512; 2]; S],
    a: [&ActivationBlock; T],
    sums: &mut [[__m512; T]; S],
) {
    for s in 0..S {
        for t in 0..T {
            let activation = _mm512_set1_epi32(a[t].exponent as i32);
            let scale = _mm512_castsi512_ps(_mm512_add_epi32(
                _mm512_castps_si512(scales[s][a[t].level as usize % 2]),
                activation,
            ));
            sums[s][t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dots[s][t]), scale, sums[s][t]);
        }
    }
}

/// Integer dot products of the code vectors `FROM..TO`, from `start`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
#[inline]
fn dots<const S: usize, const T: usize, const FROM: usize, const TO: usize>(
    w: [&PanelBlock; S],
    a: [&ActivationBlock; T],
    start: [i32; T],
) -> [[__m512i; T]; S] {
    let mut dots = [[_mm512_setzero_si512(); T]; S];
    for dots in &mut dots {
        for t in 0..T {
            dots[t] = _mm512_set1_epi32(start[t]);
        }
    }
    for j in FROM..TO {
        for t in 0..T {
            let q = &a[t].q;
            let four = i32::from_le_bytes([
                q[4 * j] as u8,
                q[4 * j + 1] as u8,
                q[4 * j + 2] as u8,
                q[4 * j + 3] as u8,
            ]);
            let four = _mm512_set1_epi32(four);
            for s in 0..S {
                dots[s][t] = _mm512_dpbusd_epi32(dots[s][t], w[s].codes[j], four);
            }
        }
    }
    dots
}

/// The codes of one block as bytes whose zero is 128 (or 0, if the format has a minimum).
///
/// # Safety
/// The instructions of [`quantised_strips`]; `packed` points to a code block.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
#[inline]
unsafe fn unpack<Q: Quantised>(packed: *const u8) -> [__m512i; VECTORS] {
    let bits = Q::LOW_BITS + Q::HIGH_BITS;
    // SAFETY: the block has `LOW_BITS + HIGH_BITS` vectors.
    let stored = |index: usize| unsafe { _mm512_loadu_si512(packed.add(64 * index).cast()) };
    let mut codes = [_mm512_setzero_si512(); VECTORS];
    for (j, code) in codes.iter_mut().enumerate() {
        let (vector, shift) = field(Q::LOW_BITS, j);
        if Q::LOW_BITS == 8 {
            *code = stored(vector);
            continue;
        }
        if Q::TABLE {
            let index = _mm512_and_si512(shift_to(stored(vector), shift, 0), _mm512_set1_epi8(15));
            *code = _mm512_shuffle_epi8(iq4_table(), index);
            continue;
        }
        let mask = ((1 << Q::LOW_BITS) - 1) << (8 - bits);
        *code = _mm512_and_si512(
            shift_to(stored(vector), shift, 8 - bits),
            _mm512_set1_epi8(mask as i8),
        );
        if Q::HIGH_BITS > 0 {
            let (vector, shift) = field(Q::HIGH_BITS, j);
            let top = shift_to(stored(Q::LOW_BITS + vector), shift, 8 - Q::HIGH_BITS);
            let mask = (((1 << Q::HIGH_BITS) - 1) << (8 - Q::HIGH_BITS)) as u8 as i8;
            // code | (top & mask)
            *code = _mm512_ternarylogic_epi32::<0xf8>(*code, top, _mm512_set1_epi8(mask));
        }
    }
    codes
}

/// Moves a field from bit `from` to bit `to` of each byte; the bits around it are to be masked off.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
#[inline]
fn shift_to(x: __m512i, from: usize, to: usize) -> __m512i {
    if from == to {
        x
    } else if from < to {
        _mm512_sll_epi16(x, _mm_cvtsi32_si128((to - from) as i32))
    } else {
        _mm512_srl_epi16(x, _mm_cvtsi32_si128((from - to) as i32))
    }
}

/// The table of the `IQ4` formats, plus 128, in each 128-bit lane.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
#[inline]
fn iq4_table() -> __m512i {
    let t = IQ4_VALUES.map(|v| (v as u8 ^ 0x80) as i8);
    _mm512_broadcast_i32x4(_mm_setr_epi8(
        t[0], t[1], t[2], t[3], t[4], t[5], t[6], t[7], t[8], t[9], t[10], t[11], t[12], t[13],
        t[14], t[15],
    ))
}

/// One record of the scale plane: what the blocks of a scale group share, and their six-bit numbers as bytes.
struct Record {
    /// The scale, with the scaling of [`unpack`] taken back.
    d: __m512,
    /// The scale of minima, or the minimum.
    m: __m512,
    /// 16 rows of each number: scales less 32 where they are signed, then minima.
    numbers: [__m512i; 4],
    /// What is not turned into bytes here.
    subs: *const u8,
}

impl Record {
    /// # Safety
    /// The instructions of [`quantised_strips`]; `strip` points to the scale plane, which covers the group.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
    #[inline]
    unsafe fn read<Q: Quantised>(strip: *const u8, scale_group: usize) -> Self {
        let mut numbers = [_mm512_setzero_si512(); 4];
        // SAFETY: the record lies inside the scale plane (see `layout`), and so do its parts.
        unsafe {
            let record = strip.add(scale_group * Q::GROUP_BYTES);
            let d = _mm512_cvtph_ps(_mm256_loadu_si256(record.cast()));
            let d = _mm512_mul_ps(d, _mm512_set1_ps(unit::<Q>()));
            let m = if Q::HAS_MIN {
                _mm512_cvtph_ps(_mm256_loadu_si256(record.add(32).cast()))
            } else {
                _mm512_setzero_ps()
            };
            let subs = record.add(if Q::HAS_MIN { 64 } else { 32 });
            let signed = |x: __m512i| _mm512_sub_epi8(x, _mm512_set1_epi8(32));
            match Q::KIND {
                ScaleKind::SixBitMin => {
                    let [scales, mins] = [subs, subs.add(96)].map(|at| six_bits::<2>(at));
                    numbers = [scales[0], scales[1], mins[0], mins[1]];
                }
                ScaleKind::SixBitSigned16 => numbers = six_bits::<4>(subs).map(signed),
                ScaleKind::SixBitSigned32 => {
                    [numbers[0], numbers[1]] = six_bits::<2>(subs).map(signed);
                }
                _ => {}
            }
            Self { d, m, numbers, subs }
        }
    }

    /// Scales of 16 rows for block `sub` of the group.
    ///
    /// # Safety
    /// The instructions of [`quantised_strips`]; `sub` is a block of the group, whose strip is still there.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
    #[inline]
    unsafe fn scales<Q: Quantised>(&self, sub: usize) -> Scales {
        // Makes a zero `activations::nonzero_scale`.
        let tiny = _mm512_set1_ps(SMALLEST_SCALE * unit::<Q>());
        let zero = _mm512_setzero_ps();
        let (d, m) = (self.d, self.m);
        // SAFETY: a group has at most 16 numbers of 16 bytes, and the record as many bytes as its kind says.
        let (scale, min) = unsafe {
            let number = |index: usize| {
                let at = self.numbers.as_ptr().cast::<u8>().add(16 * index);
                _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_load_si128(at.cast())))
            };
            let byte = |half: usize| _mm_loadu_si128(self.subs.add(16 * (2 * sub + half)).cast());
            match Q::KIND {
                ScaleKind::Plain => ([_mm512_add_ps(d, tiny); 2], [zero; 2]),
                ScaleKind::PlainMin => ([_mm512_add_ps(d, tiny); 2], [m; 2]),
                ScaleKind::SixBitMin => {
                    let neg_m = _mm512_sub_ps(_mm512_set1_ps(-0.0), m);
                    let min = _mm512_mul_ps(neg_m, number(8 + sub));
                    ([_mm512_fmadd_ps(d, number(sub), tiny); 2], [min; 2])
                }
                ScaleKind::SixBitSigned32 => {
                    ([_mm512_fmadd_ps(d, number(sub), tiny); 2], [zero; 2])
                }
                ScaleKind::SixBitSigned16 => {
                    let both = [2 * sub, 2 * sub + 1];
                    (both.map(|index| _mm512_fmadd_ps(d, number(index), tiny)), [zero; 2])
                }
                ScaleKind::SignedByte => {
                    let scale = [0, 1].map(|half| {
                        let number = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(byte(half)));
                        _mm512_fmadd_ps(d, number, tiny)
                    });
                    (scale, [zero; 2])
                }
                ScaleKind::FourBitMin => {
                    let neg_m = _mm512_sub_ps(_mm512_set1_ps(-0.0), m);
                    let bytes = [0, 1].map(|half| _mm512_cvtepu8_epi32(byte(half)));
                    let low = bytes
                        .map(|b| _mm512_cvtepi32_ps(_mm512_and_si512(b, _mm512_set1_epi32(15))));
                    let high = bytes.map(|b| _mm512_cvtepi32_ps(_mm512_srli_epi32::<4>(b)));
                    (
                        low.map(|s| _mm512_fmadd_ps(d, s, tiny)),
                        high.map(|s| _mm512_mul_ps(neg_m, s)),
                    )
                }
            }
        };
        let root = _mm512_set1_ps(LEVELS[1]);
        Scales { scale: scale.map(|scale| [scale, _mm512_mul_ps(scale, root)]), min }
    }
}

/// What takes the scaling of [`unpack`] back.
const fn unit<Q: Quantised>() -> f32 {
    let bits = if Q::TABLE { 8 } else { Q::LOW_BITS + Q::HIGH_BITS };
    1.0 / (1_u32 << (8 - bits)) as f32
}

/// `4 · N` six-bit numbers of 16 rows as bytes, those of one number after those of another: nibbles first, then the upper
/// two bits (see `layout`).
///
/// # Safety
/// The instructions of [`quantised_strips`]; `plane` points to `4 · N · 12` bytes.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
#[inline]
unsafe fn six_bits<const N: usize>(plane: *const u8) -> [__m512i; N] {
    // Each of four numbers has its two bits elsewhere: to where they belong.
    let turns = _mm512_set_epi32(30, 30, 30, 30, 0, 0, 0, 0, 2, 2, 2, 2, 4, 4, 4, 4);
    std::array::from_fn(|four| {
        // SAFETY: `N / 2` vectors of nibbles, then 16 bytes for each four numbers.
        let (nibbles, upper) = unsafe {
            let nibbles = _mm512_loadu_si512(plane.add(64 * (four % (N / 2))).cast());
            (nibbles, _mm_loadu_si128(plane.add(32 * N + 16 * four).cast()))
        };
        let nibbles = if four < N / 2 { nibbles } else { _mm512_srli_epi16::<4>(nibbles) };
        let upper = _mm512_rolv_epi32(_mm512_broadcast_i32x4(upper), turns);
        let low = _mm512_and_si512(nibbles, _mm512_set1_epi8(15));
        // low | (upper & 0x30)
        _mm512_ternarylogic_epi32::<0xf8>(low, upper, _mm512_set1_epi8(0x30))
    })
}

/// A floating-point format at compile time.
trait Float {
    /// Bytes of 16 elements.
    const BYTES: usize;
    /// 16 elements as f32.
    ///
    /// # Safety
    /// AVX-512 F; `at` points to 16 elements.
    unsafe fn load(at: *const u8) -> __m512;
}

struct F32;
impl Float for F32 {
    const BYTES: usize = 64;
    #[target_feature(enable = "avx512f")]
    #[inline]
    unsafe fn load(at: *const u8) -> __m512 {
        // SAFETY: the caller's promise.
        unsafe { _mm512_loadu_ps(at.cast()) }
    }
}

struct F16;
impl Float for F16 {
    const BYTES: usize = 32;
    #[target_feature(enable = "avx512f")]
    #[inline]
    unsafe fn load(at: *const u8) -> __m512 {
        // SAFETY: the caller's promise.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(at.cast())) }
    }
}

struct Bf16;
impl Float for Bf16 {
    const BYTES: usize = 32;
    #[target_feature(enable = "avx512f")]
    #[inline]
    unsafe fn load(at: *const u8) -> __m512 {
        // SAFETY: the caller's promise.
        let wide = unsafe { _mm512_cvtepu16_epi32(_mm256_loadu_si256(at.cast())) };
        _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
    }
}

/// # Safety
/// AVX-512 F; sizes as `matmul` checked them.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn float_strips<F: Float>(
    w: &PackedMatrix,
    a: &Activations,
    out: &Output,
    strips: Range<usize>,
) {
    // A chain of additions waits four cycles for each: few rows take several strips at once.
    let most = if a.rows() == 1 { 4 } else { 2 };
    let mut strip = strips.start;
    while strip < strips.end {
        let count = if strips.end - strip >= most { most } else { 1 };
        for index in 0..activations::group_count(a.rows()) {
            let rows = activations::group(a.rows(), index);
            let Some(group) = a.float_group(index) else { return };
            // SAFETY: `count` strips from `strip` exist; the group has `cols × rows` values.
            unsafe {
                let (group, cols) = (group.as_ptr(), w.cols());
                match count {
                    1 => {
                        for_rows!(rows.len(), float_tile::<[F, 1]>(w, strip, cols, group, out, rows.start))
                    }
                    2 => {
                        for_rows!(rows.len(), float_tile::<[F, 2]>(w, strip, cols, group, out, rows.start))
                    }
                    _ => float_tile::<F, 4, 1>(w, strip, cols, group, out, rows.start),
                }
            }
        }
        strip += count;
    }
}

/// `S` × 16 weight rows × `T` activation rows.
///
/// # Safety
/// AVX-512 F; `S` strips from `first` exist, `group` points to `cols × T` values, `T` rows of output follow
/// `first_activation`.
#[allow(
    clippy::needless_range_loop,
    reason = "tiles are read by index: strip, activation row, block"
)]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn float_tile<F: Float, const S: usize, const T: usize>(
    w: &PackedMatrix,
    first: usize,
    cols: usize,
    group: *const f32,
    out: &Output,
    first_activation: usize,
) {
    let strips: [*const u8; S] = std::array::from_fn(|s| w.strip(first + s).as_ptr());
    let mut sums = [[_mm512_setzero_ps(); T]; S];
    let mut start = 0;
    while start < cols {
        let end = cols.min(start + FLOAT_CHAIN);
        let mut chains = [[_mm512_setzero_ps(); T]; S];
        for column in start..end {
            // SAFETY: `column` is below `cols`.
            unsafe {
                let weights: [__m512; S] = std::array::from_fn(|s| {
                    let at = strips[s].add(column * F::BYTES);
                    _mm_prefetch::<_MM_HINT_T1>(at.wrapping_add(PREFETCH).cast());
                    F::load(at)
                });
                for t in 0..T {
                    let value = _mm512_set1_ps(*group.add(column * T + t));
                    for s in 0..S {
                        chains[s][t] = _mm512_fmadd_ps(weights[s], value, chains[s][t]);
                    }
                }
            }
        }
        for s in 0..S {
            for t in 0..T {
                sums[s][t] = _mm512_add_ps(sums[s][t], chains[s][t]);
            }
        }
        start = end;
    }
    for (s, sums) in sums.iter().enumerate() {
        let row = (first + s) * STRIP_ROWS;
        for (t, &sum) in sums.iter().enumerate() {
            // SAFETY: masked lanes are not written.
            unsafe {
                _mm512_mask_storeu_ps(
                    out.at(first_activation + t, row),
                    lane_mask(w.rows() - row),
                    sum,
                )
            };
        }
    }
}
