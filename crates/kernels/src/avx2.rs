//! Products with AVX2 and FMA: 16 weight rows in the 32-bit lanes of two registers, `vpmaddubsw` over pairs of columns.
//!
//! Narrow codes (up to 6 bits) are summed in int16 over a whole block, or half of one, before one `vpmaddwd` widens them:
//! accumulators start at `−offset · Σq` of their columns, so that the true sum fits (at most 16·127·16 = 32,512 for 5 bits
//! over 32 columns and 32·127·8 for 6 bits over 16) and wrapping in between does no harm. Bytes (`Q8_0`, the `IQ4` tables)
//! multiply as |w| · (q with the sign of w): 2·128·127 fits, and is widened at once. The terms and their order are those of
//! `scalar`, so the bits are too.

use std::arch::x86_64::*;
use std::mem::MaybeUninit;
use std::ops::Range;

use crate::activations::{self, ActivationBlock, LEVELS, SMALLEST_SCALE};
use crate::layout::{STRIP_ROWS, VECTORS, field};
use crate::matmul::Output;
use crate::native::{BLOCK, IQ4_VALUES, ScaleKind, code_offset};
use crate::quantised::{Quantised, for_quantised};
use crate::scalar::FLOAT_CHAIN;
use crate::{Activations, Format, PackedMatrix};

/// Activation rows of a tile: with 2 × 3 sums, 2 × 3 integers, the weights and an activation, all 16 registers are in use.
const TILE_ROWS: usize = 3;
/// How far ahead of use packed weights are fetched (into the second-level cache), in bytes.
const PREFETCH: usize = 16384;
/// Blocks of 32 columns in one panel; two of them stay in 32 KiB.
const PANEL_BLOCKS: usize = 16;
/// Strips that share the activations of a group while these are in the first-level cache.
const PANEL_STRIPS: usize = 2;

/// A vector over the 16 rows of a strip.
type Pair<T> = [T; 2];

/// The unpacked codes and the scales of 16 rows × 32 columns.
#[repr(C, align(64))]
#[derive(Clone, Copy)]
struct PanelBlock {
    codes: [Pair<__m256i>; VECTORS],
    /// Of the two halves (only the first, if the format is not halved), times each of `activations::LEVELS`.
    scale: [[Pair<__m256>; 2]; 2],
    min: [Pair<__m256>; 2],
}

type Panel = [MaybeUninit<PanelBlock>; PANEL_BLOCKS];
type Panels = [Panel; PANEL_STRIPS];

/// Codes that are multiplied as signed bytes.
const fn is_wide<Q: Quantised>() -> bool {
    Q::TABLE || Q::LOW_BITS == 8
}

/// What is subtracted from narrow codes inside the int16 sums. Five bits with a minimum have no offset of their own but
/// would overflow without one; it is added back in int32.
const fn centre<Q: Quantised>() -> i16 {
    if Q::HAS_MIN { if Q::HIGH_BITS == 1 { 16 } else { 0 } } else { code_offset(Q::FORMAT) as i16 }
}

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
/// AVX2, FMA, F16C; sizes as `matmul` checked them.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn quantised_strips<Q: Quantised>(
    w: &PackedMatrix,
    a: &Activations,
    out: &Output,
    strips: Range<usize>,
) {
    // SAFETY: `strips` are strips of `w`; the groups hold `blocks × rows` activation blocks.
    unsafe {
        if a.rows() > TILE_ROWS {
            let mut panels: Panels = [[MaybeUninit::uninit(); PANEL_BLOCKS]; PANEL_STRIPS];
            let mut start = strips.start;
            while start < strips.end {
                let end = strips.end.min(start + PANEL_STRIPS);
                panel_strips::<Q>(w, a, out, start..end, &mut panels);
                start = end;
            }
            return;
        }
        let Some(group) = a.int8_group(0) else { return };
        for strip in strips {
            let place = Place::new(w, out, 0, strip);
            let (bytes, blocks, group) = (w.strip(strip), w.cols() / BLOCK, group.as_ptr());
            match a.rows() {
                1 => direct::<Q, 1>(bytes, w.codes_at(), blocks, group, &place),
                2 => direct::<Q, 2>(bytes, w.codes_at(), blocks, group, &place),
                _ => direct::<Q, 3>(bytes, w.codes_at(), blocks, group, &place),
            }
        }
    }
}

/// Where a tile's results go.
struct Place<'a> {
    out: &'a Output,
    first_activation: usize,
    first_row: usize,
    /// All ones in the lanes that are rows of the matrix.
    mask: Pair<__m256i>,
}

impl<'a> Place<'a> {
    #[target_feature(enable = "avx2,fma,f16c")]
    #[inline]
    fn new(w: &PackedMatrix, out: &'a Output, first_activation: usize, strip: usize) -> Self {
        let first_row = strip * STRIP_ROWS;
        Self { out, first_activation, first_row, mask: lane_masks(w.rows() - first_row) }
    }

    /// # Safety
    /// AVX; activation row `first_activation + t` exists.
    #[target_feature(enable = "avx2,fma,f16c")]
    #[inline]
    unsafe fn load(&self, t: usize) -> Pair<__m256> {
        // SAFETY: masked lanes are not read.
        unsafe {
            let at = self.out.at(self.first_activation + t, self.first_row);
            [
                _mm256_maskload_ps(at, self.mask[0]),
                _mm256_maskload_ps(at.wrapping_add(8), self.mask[1]),
            ]
        }
    }

    /// # Safety
    /// As [`Place::load`]; no other thread has the strip.
    #[target_feature(enable = "avx2,fma,f16c")]
    #[inline]
    unsafe fn store(&self, t: usize, sums: Pair<__m256>) {
        // SAFETY: masked lanes are not written.
        unsafe {
            let at = self.out.at(self.first_activation + t, self.first_row);
            _mm256_maskstore_ps(at, self.mask[0], sums[0]);
            _mm256_maskstore_ps(at.wrapping_add(8), self.mask[1], sums[1]);
        }
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn lane_masks(rows_left: usize) -> Pair<__m256i> {
    let left = _mm256_set1_epi32(rows_left.min(STRIP_ROWS) as i32);
    let lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    [
        _mm256_cmpgt_epi32(left, lanes),
        _mm256_cmpgt_epi32(left, _mm256_add_epi32(lanes, _mm256_set1_epi32(8))),
    ]
}

/// One strip for up to [`TILE_ROWS`] activation rows, each block unpacked where it is used.
///
/// # Safety
/// AVX2, FMA, F16C; the strip holds `blocks` blocks, `group` `blocks × T`.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn direct<Q: Quantised, const T: usize>(
    strip: &[u8],
    codes_at: usize,
    blocks: usize,
    group: *const ActivationBlock,
    place: &Place,
) {
    let mut sums = [[_mm256_setzero_ps(); 2]; T];
    // SAFETY: all offsets stay inside the strip and the group.
    unsafe {
        for block in 0..blocks {
            let weights = unpack_block::<Q>(strip.as_ptr(), codes_at, block);
            block_products::<Q, T>(&weights, group.add(block * T), &mut sums);
        }
        for (t, &sums) in sums.iter().enumerate() {
            place.store(t, sums);
        }
    }
}

/// Up to [`PANEL_STRIPS`] strips for many activation rows, through panels.
///
/// # Safety
/// AVX2, FMA, F16C; `strips` are strips of `w`.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn panel_strips<Q: Quantised>(
    w: &PackedMatrix,
    a: &Activations,
    out: &Output,
    strips: Range<usize>,
    panels: &mut Panels,
) {
    let blocks = w.cols() / BLOCK;
    let mut start = 0;
    while start < blocks {
        let count = PANEL_BLOCKS.min(blocks - start);
        for (strip, panel) in strips.clone().zip(panels.iter_mut()) {
            let bytes = w.strip(strip).as_ptr();
            for (index, unpacked) in panel.iter_mut().enumerate().take(count) {
                // SAFETY: block `start + index` lies inside the strip.
                unpacked.write(unsafe { unpack_block::<Q>(bytes, w.codes_at(), start + index) });
            }
        }
        for index in 0..activations::group_count(a.rows()) {
            let rows = activations::group(a.rows(), index);
            let Some(group) = a.int8_group(index) else { return };
            let group = &group[start * rows.len()..(start + count) * rows.len()];
            for (strip, panel) in strips.clone().zip(panels.iter()) {
                // SAFETY: `count` blocks of the panel were written above, and the group has as many.
                unsafe {
                    group_tiles::<Q>(
                        panel,
                        count,
                        group,
                        rows.len(),
                        start == 0,
                        Place::new(w, out, rows.start, strip),
                    );
                }
            }
        }
        start += count;
    }
}

/// One strip × one group of activation rows, in tiles of at most [`TILE_ROWS`].
///
/// # Safety
/// AVX2, FMA, F16C; `count` blocks of the panel are written, `group` has `count × rows`.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn group_tiles<Q: Quantised>(
    panel: &Panel,
    count: usize,
    group: &[ActivationBlock],
    rows: usize,
    is_first: bool,
    mut place: Place,
) {
    let mut slot = 0;
    while slot < rows {
        // Four rows make two tiles of two rather than three and one.
        let taken = match rows - slot {
            1 => 1,
            2 | 4 => 2,
            _ => TILE_ROWS,
        };
        // SAFETY: `taken` rows from `slot` are in the group.
        unsafe {
            let part = group.as_ptr().add(slot);
            match taken {
                1 => tile::<Q, 1>(panel, count, part, rows, is_first, &place),
                2 => tile::<Q, 2>(panel, count, part, rows, is_first, &place),
                _ => tile::<Q, 3>(panel, count, part, rows, is_first, &place),
            }
        }
        slot += taken;
        place.first_activation += taken;
    }
}

/// 16 weight rows × `T` activation rows over `count` blocks of a panel.
///
/// # Safety
/// AVX2, FMA, F16C; `count` blocks of the panel are written; `a` has `T` blocks at each of `count` strides.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn tile<Q: Quantised, const T: usize>(
    panel: &Panel,
    count: usize,
    a: *const ActivationBlock,
    stride: usize,
    is_first: bool,
    place: &Place,
) {
    let mut sums = [[_mm256_setzero_ps(); 2]; T];
    // SAFETY: see above.
    unsafe {
        if !is_first {
            sums = std::array::from_fn(|t| place.load(t));
        }
        for (block, weights) in panel.iter().enumerate().take(count) {
            block_products::<Q, T>(weights.assume_init_ref(), a.add(block * stride), &mut sums);
        }
        for (t, &sums) in sums.iter().enumerate() {
            place.store(t, sums);
        }
    }
}

/// Adds the products of one block: 16 weight rows × `T` activation rows × 32 columns.
///
/// # Safety
/// AVX2, FMA, F16C; `a` points to `T` blocks.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
unsafe fn block_products<Q: Quantised, const T: usize>(
    w: &PanelBlock,
    a: *const ActivationBlock,
    sums: &mut [Pair<__m256>; T],
) {
    // SAFETY: `a` points to `T` blocks.
    let a: [&ActivationBlock; T] = std::array::from_fn(|t| unsafe { &*a.add(t) });
    if Q::HALVED {
        let first = dots::<Q, T, 0, 4>(w, a);
        add_dots(&first, &w.scale[0], a, sums);
        let last = dots::<Q, T, 4, 8>(w, a);
        add_dots(&last, &w.scale[1], a, sums);
        for (a, sums) in a.iter().zip(sums).filter(|_| Q::HAS_MIN) {
            for half in 0..2 {
                let sum = _mm256_set1_ps(a.scaled_half_sum(half));
                for (to, min) in sums.iter_mut().zip(w.min[half]) {
                    *to = _mm256_fmadd_ps(min, sum, *to);
                }
            }
        }
        return;
    }
    let dots = dots::<Q, T, 0, 8>(w, a);
    add_dots(&dots, &w.scale[0], a, sums);
    for (a, sums) in a.iter().zip(sums).filter(|_| Q::HAS_MIN) {
        for (to, min) in sums.iter_mut().zip(w.min[0]) {
            *to = _mm256_fmadd_ps(min, _mm256_set1_ps(a.scaled_sum), *to);
        }
    }
}

/// Adds integer dot products, weighed with both scales.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn add_dots<const T: usize>(
    dots: &[Pair<__m256i>; T],
    scale: &[Pair<__m256>; 2],
    a: [&ActivationBlock; T],
    sums: &mut [Pair<__m256>; T],
) {
    for t in 0..T {
        let activation = _mm256_set1_epi32(a[t].exponent as i32);
        let scale = &scale[a[t].level as usize % 2];
        for h in 0..2 {
            let scale =
                _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(scale[h]), activation));
            sums[t][h] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dots[t][h]), scale, sums[t][h]);
        }
    }
}

/// Integer dot products of the code vectors `FROM..TO` (all, or one half).
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn dots<Q: Quantised, const T: usize, const FROM: usize, const TO: usize>(
    w: &PanelBlock,
    a: [&ActivationBlock; T],
) -> [Pair<__m256i>; T] {
    let ones = _mm256_set1_epi16(1);
    let mut dots = [[_mm256_setzero_si256(); 2]; T];
    if !is_wide::<Q>() && centre::<Q>() != 0 {
        for t in 0..T {
            let [first, last] = a[t].neg_pairs;
            let pairs = match (FROM, TO) {
                (0, VECTORS) => [first[0] + last[0], first[1] + last[1]],
                (0, _) => first,
                _ => last,
            };
            let pairs = _mm256_set1_epi32(i32::from(pairs[0] as u16) | (i32::from(pairs[1]) << 16));
            dots[t] = [_mm256_mullo_epi16(pairs, _mm256_set1_epi16(centre::<Q>())); 2];
        }
    }
    for j in FROM..TO {
        let codes = w.codes[j];
        let sizes = codes.map(|c| if is_wide::<Q>() { _mm256_abs_epi8(c) } else { c });
        for t in 0..T {
            let q = &a[t].q;
            let four = i32::from_le_bytes([
                q[4 * j] as u8,
                q[4 * j + 1] as u8,
                q[4 * j + 2] as u8,
                q[4 * j + 3] as u8,
            ]);
            let four = _mm256_set1_epi32(four);
            for h in 0..2 {
                dots[t][h] = if is_wide::<Q>() {
                    add_wide(dots[t][h], sizes[h], _mm256_sign_epi8(four, codes[h]), ones)
                } else {
                    add_narrow(dots[t][h], codes[h], four)
                };
            }
        }
    }
    if is_wide::<Q>() {
        return dots;
    }
    for t in 0..T {
        for dot in &mut dots[t] {
            *dot = _mm256_madd_epi16(*dot, ones);
            if Q::HAS_MIN && centre::<Q>() != 0 {
                let taken = a[t].neg_sum_128 / 128 * i32::from(centre::<Q>());
                *dot = _mm256_sub_epi32(*dot, _mm256_set1_epi32(taken));
            }
        }
    }
    dots
}

/// `sum + w · a` over pairs of columns, in int16.
///
/// In assembly to keep the order: the compiler makes trees of the additions, runs out of registers and is twice as slow.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn add_narrow(mut sum: __m256i, w: __m256i, a: __m256i) -> __m256i {
    // SAFETY: two AVX2 instructions on registers.
    unsafe {
        std::arch::asm!(
            "vpmaddubsw {products}, {w}, {a}",
            "vpaddw {sum}, {sum}, {products}",
            products = out(ymm_reg) _,
            w = in(ymm_reg) w,
            a = in(ymm_reg) a,
            sum = inout(ymm_reg) sum,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    sum
}

/// `sum + |w| · a` over groups of four columns, in int32; in assembly for the same reason.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn add_wide(mut sum: __m256i, sizes: __m256i, a: __m256i, ones: __m256i) -> __m256i {
    // SAFETY: three AVX2 instructions on registers.
    unsafe {
        std::arch::asm!(
            "vpmaddubsw {a}, {sizes}, {a}",
            "vpmaddwd {a}, {a}, {ones}",
            "vpaddd {sum}, {sum}, {a}",
            a = inout(ymm_reg) a => _,
            sizes = in(ymm_reg) sizes,
            ones = in(ymm_reg) ones,
            sum = inout(ymm_reg) sum,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    sum
}

/// Unpacks one block and asks for weights further on.
///
/// # Safety
/// AVX2, FMA, F16C; `strip` points to a strip that has `block`.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
unsafe fn unpack_block<Q: Quantised>(
    strip: *const u8,
    codes_at: usize,
    block: usize,
) -> PanelBlock {
    // SAFETY: the block's codes are inside the strip; prefetching any address is harmless.
    unsafe {
        let packed = strip.add(codes_at + block * Q::CODE_BYTES);
        for line in 0..Q::CODE_BYTES / 64 {
            _mm_prefetch::<_MM_HINT_T1>(packed.wrapping_add(PREFETCH + 64 * line).cast());
        }
        let [low, high] = [scales::<Q>(strip, block, 0), scales::<Q>(strip, block, 1)];
        PanelBlock {
            codes: unpack::<Q>(packed),
            scale: [0, 1].map(|half| {
                let scale = [low.scale[half], high.scale[half]];
                [scale, scale.map(|s| _mm256_mul_ps(s, _mm256_set1_ps(LEVELS[1])))]
            }),
            min: [0, 1].map(|half| [low.min[half], high.min[half]]),
        }
    }
}

/// The codes of one block as bytes: as they are if narrow, signed if wide.
///
/// # Safety
/// AVX2; `packed` points to a code block.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
unsafe fn unpack<Q: Quantised>(packed: *const u8) -> [Pair<__m256i>; VECTORS] {
    // SAFETY: the block has `LOW_BITS + HIGH_BITS` vectors of two halves.
    let stored = |index: usize, h: usize| unsafe {
        _mm256_loadu_si256(packed.add(64 * index + 32 * h).cast())
    };
    // SAFETY: sixteen bytes.
    let table = unsafe { _mm256_broadcastsi128_si256(_mm_loadu_si128(IQ4_VALUES.as_ptr().cast())) };
    let mut codes = [[_mm256_setzero_si256(); 2]; VECTORS];
    for (j, codes) in codes.iter_mut().enumerate() {
        for (h, code) in codes.iter_mut().enumerate() {
            let (vector, shift) = field(Q::LOW_BITS, j);
            if Q::LOW_BITS == 8 {
                *code = _mm256_xor_si256(stored(vector, h), _mm256_set1_epi8(-128));
                continue;
            }
            let mask = _mm256_set1_epi8(((1 << Q::LOW_BITS) - 1) as i8);
            *code = _mm256_and_si256(shift_to(stored(vector, h), shift, 0), mask);
            if Q::TABLE {
                *code = _mm256_shuffle_epi8(table, *code);
            }
            if Q::HIGH_BITS > 0 {
                let (vector, shift) = field(Q::HIGH_BITS, j);
                let mask = _mm256_set1_epi8((((1 << Q::HIGH_BITS) - 1) << Q::LOW_BITS) as i8);
                let top = shift_to(stored(Q::LOW_BITS + vector, h), shift, Q::LOW_BITS);
                *code = _mm256_or_si256(*code, _mm256_and_si256(top, mask));
            }
        }
    }
    codes
}

/// Moves a field from bit `from` to bit `to` of each byte; the bits around it are to be masked off.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn shift_to(x: __m256i, from: usize, to: usize) -> __m256i {
    if from == to {
        x
    } else if from < to {
        _mm256_sll_epi16(x, _mm_cvtsi32_si128((to - from) as i32))
    } else {
        _mm256_srl_epi16(x, _mm_cvtsi32_si128((from - to) as i32))
    }
}

/// Scale and minimum of the two halves of a block, for 8 rows.
#[derive(Clone, Copy)]
struct Scales {
    scale: [__m256; 2],
    min: [__m256; 2],
}

/// Scales of side `h` (8 rows) of a strip for one block.
///
/// # Safety
/// AVX2, F16C; `strip` points to the scale plane, which covers `block`.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
unsafe fn scales<Q: Quantised>(strip: *const u8, block: usize, h: usize) -> Scales {
    let (record, sub) = (block / Q::GROUP_BLOCKS * Q::GROUP_BYTES, block % Q::GROUP_BLOCKS);
    // Makes a zero `activations::nonzero_scale`.
    let (zero, tiny) = (_mm256_setzero_ps(), _mm256_set1_ps(SMALLEST_SCALE));
    // SAFETY: the record lies inside the scale plane (see `layout`), and so do its parts.
    unsafe {
        let record = strip.add(record);
        let d = _mm256_cvtph_ps(_mm_loadu_si128(record.add(16 * h).cast()));
        let m = if Q::HAS_MIN {
            _mm256_cvtph_ps(_mm_loadu_si128(record.add(32 + 16 * h).cast()))
        } else {
            zero
        };
        let subs = record.add(if Q::HAS_MIN { 64 } else { 32 } + 8 * h);
        let neg_m = _mm256_xor_ps(_mm256_set1_ps(-0.0), m);
        let bytes = |half: usize| _mm_loadl_epi64(subs.add(16 * (2 * sub + half)).cast());
        let signed = |index: usize, count: usize| {
            let scale = _mm256_sub_epi32(six_bits(subs, count, index), _mm256_set1_epi32(32));
            _mm256_fmadd_ps(d, _mm256_cvtepi32_ps(scale), tiny)
        };
        match Q::KIND {
            ScaleKind::Plain => Scales { scale: [_mm256_add_ps(d, tiny); 2], min: [zero; 2] },
            ScaleKind::PlainMin => Scales { scale: [_mm256_add_ps(d, tiny); 2], min: [m; 2] },
            ScaleKind::SixBitMin => {
                let scale = _mm256_fmadd_ps(d, _mm256_cvtepi32_ps(six_bits(subs, 8, sub)), tiny);
                let min = _mm256_mul_ps(neg_m, _mm256_cvtepi32_ps(six_bits(subs.add(96), 8, sub)));
                Scales { scale: [scale; 2], min: [min; 2] }
            }
            ScaleKind::SixBitSigned32 => Scales { scale: [signed(sub, 8); 2], min: [zero; 2] },
            ScaleKind::SixBitSigned16 => {
                Scales { scale: [signed(2 * sub, 16), signed(2 * sub + 1, 16)], min: [zero; 2] }
            }
            ScaleKind::SignedByte => {
                let scale = [0, 1].map(|half| {
                    _mm256_fmadd_ps(d, _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes(half))), tiny)
                });
                Scales { scale, min: [zero; 2] }
            }
            ScaleKind::FourBitMin => {
                let both = [0, 1].map(|half| _mm256_cvtepu8_epi32(bytes(half)));
                let low =
                    both.map(|b| _mm256_cvtepi32_ps(_mm256_and_si256(b, _mm256_set1_epi32(15))));
                let high = both.map(|b| _mm256_cvtepi32_ps(_mm256_srli_epi32::<4>(b)));
                Scales {
                    scale: low.map(|s| _mm256_fmadd_ps(d, s, tiny)),
                    min: high.map(|s| _mm256_mul_ps(neg_m, s)),
                }
            }
        }
    }
}

/// Six-bit number `index` of `count` for 8 rows.
///
/// # Safety
/// AVX2; `plane` points to the vectors of `count` numbers (see `layout`), at the side wanted.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
unsafe fn six_bits(plane: *const u8, count: usize, index: usize) -> __m256i {
    let half = count / 2;
    // SAFETY: both vectors are inside the plane.
    let vector =
        |at: usize| unsafe { _mm256_cvtepu8_epi32(_mm_loadl_epi64(plane.add(16 * at).cast())) };
    let shifted = |x: __m256i, by: usize| _mm256_srl_epi32(x, _mm_cvtsi32_si128(by as i32));
    let low =
        _mm256_and_si256(shifted(vector(index % half), 4 * (index / half)), _mm256_set1_epi32(15));
    let high =
        _mm256_and_si256(shifted(vector(half + index / 4), 2 * (index % 4)), _mm256_set1_epi32(3));
    _mm256_or_si256(low, _mm256_slli_epi32::<4>(high))
}

/// A floating-point format at compile time.
trait Float {
    /// Bytes of one element.
    const BYTES: usize;
    /// 8 elements as f32.
    ///
    /// # Safety
    /// AVX2, F16C; `at` points to 8 elements.
    unsafe fn load(at: *const u8) -> __m256;
}

struct F32;
impl Float for F32 {
    const BYTES: usize = 4;
    #[target_feature(enable = "avx2,fma,f16c")]
    #[inline]
    unsafe fn load(at: *const u8) -> __m256 {
        // SAFETY: the caller's promise.
        unsafe { _mm256_loadu_ps(at.cast()) }
    }
}

struct F16;
impl Float for F16 {
    const BYTES: usize = 2;
    #[target_feature(enable = "avx2,fma,f16c")]
    #[inline]
    unsafe fn load(at: *const u8) -> __m256 {
        // SAFETY: the caller's promise.
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(at.cast())) }
    }
}

struct Bf16;
impl Float for Bf16 {
    const BYTES: usize = 2;
    #[target_feature(enable = "avx2,fma,f16c")]
    #[inline]
    unsafe fn load(at: *const u8) -> __m256 {
        // SAFETY: the caller's promise.
        let wide = unsafe { _mm256_cvtepu16_epi32(_mm_loadu_si128(at.cast())) };
        _mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide))
    }
}

/// # Safety
/// AVX2, FMA, F16C; sizes as `matmul` checked them.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn float_strips<F: Float>(
    w: &PackedMatrix,
    a: &Activations,
    out: &Output,
    strips: Range<usize>,
) {
    let mut strip = strips.start;
    while strip < strips.end {
        // A chain of additions waits four cycles for each: a single row takes several strips at once.
        let count = if a.rows() == 1 && strips.end - strip >= 4 { 4 } else { 1 };
        for index in 0..activations::group_count(a.rows()) {
            let rows = activations::group(a.rows(), index);
            let Some(group) = a.float_group(index) else { return };
            // SAFETY: `count` strips from `strip` exist; the group has `cols × rows` values.
            unsafe {
                let (group, start) = (group.as_ptr(), rows.start);
                match (rows.len(), count) {
                    (1, 4) => float_tile::<F, 4, 1>(w, strip, group, out, start),
                    (1, _) => float_tile::<F, 1, 1>(w, strip, group, out, start),
                    (2, _) => float_tile::<F, 1, 2>(w, strip, group, out, start),
                    (3, _) => float_tile::<F, 1, 3>(w, strip, group, out, start),
                    (4, _) => float_tile::<F, 1, 4>(w, strip, group, out, start),
                    (5, _) => float_tile::<F, 1, 5>(w, strip, group, out, start),
                    _ => float_tile::<F, 1, 6>(w, strip, group, out, start),
                }
            }
        }
        strip += count;
    }
}

/// `S` × 16 weight rows × `T` activation rows.
///
/// # Safety
/// AVX2, FMA, F16C; `S` strips from `first` exist, `group` points to `cols × T` values, `T` rows of output follow
/// `first_activation`.
#[allow(
    clippy::needless_range_loop,
    reason = "tiles are read by index: strip, activation row, half"
)]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn float_tile<F: Float, const S: usize, const T: usize>(
    w: &PackedMatrix,
    first: usize,
    group: *const f32,
    out: &Output,
    first_activation: usize,
) {
    let strips: [*const u8; S] = std::array::from_fn(|s| w.strip(first + s).as_ptr());
    let mut sums = [[[_mm256_setzero_ps(); 2]; T]; S];
    let mut start = 0;
    while start < w.cols() {
        let end = w.cols().min(start + FLOAT_CHAIN);
        let mut chains = [[[_mm256_setzero_ps(); 2]; T]; S];
        for column in start..end {
            // SAFETY: `column` is below `cols`.
            unsafe {
                let values: [__m256; T] =
                    std::array::from_fn(|t| _mm256_set1_ps(*group.add(column * T + t)));
                for s in 0..S {
                    let at = strips[s].add(column * F::BYTES * STRIP_ROWS);
                    _mm_prefetch::<_MM_HINT_T1>(at.wrapping_add(PREFETCH).cast());
                    for h in 0..2 {
                        let weights = F::load(at.add(8 * F::BYTES * h));
                        for t in 0..T {
                            chains[s][t][h] = _mm256_fmadd_ps(weights, values[t], chains[s][t][h]);
                        }
                    }
                }
            }
        }
        for (sums, chains) in sums.iter_mut().zip(&chains) {
            for (sum, chain) in sums.iter_mut().flatten().zip(chains.iter().flatten()) {
                *sum = _mm256_add_ps(*sum, *chain);
            }
        }
        start = end;
    }
    for (s, sums) in sums.iter().enumerate() {
        let first_row = (first + s) * STRIP_ROWS;
        let place =
            Place { out, first_activation, first_row, mask: lane_masks(w.rows() - first_row) };
        for (t, &sums) in sums.iter().enumerate() {
            // SAFETY: the rows exist; masked lanes are not written.
            unsafe { place.store(t, sums) };
        }
    }
}

/// Blocks of 32 activations as int8 blocks, every `stride`-th of `values`; whether all are finite.
///
/// # Safety
/// AVX2.
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) unsafe fn quantise_blocks(
    x: &[[f32; BLOCK]],
    values: &mut [ActivationBlock],
    stride: usize,
) -> bool {
    let mut is_sound = true;
    for (x, value) in x.iter().zip(values.iter_mut().step_by(stride)) {
        is_sound &= quantise_block(x, value);
    }
    is_sound
}

/// 32 activations as an int8 block, the same bits as the scalar twin in `activations`; whether they are finite.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn quantise_block(x: &[f32; BLOCK], to: &mut ActivationBlock) -> bool {
    // SAFETY: four vectors of eight.
    let x: [__m256; 4] = std::array::from_fn(|i| unsafe { _mm256_loadu_ps(x.as_ptr().add(8 * i)) });
    let sizes = x.map(|v| _mm256_and_si256(_mm256_castps_si256(v), _mm256_set1_epi32(0x7fff_ffff)));
    let most = _mm256_max_epu32(
        _mm256_max_epu32(sizes[0], sizes[1]),
        _mm256_max_epu32(sizes[2], sizes[3]),
    );
    let most = _mm_max_epu32(_mm256_castsi256_si128(most), _mm256_extracti128_si256::<1>(most));
    let most = _mm_max_epu32(most, _mm_shuffle_epi32::<0b01_00_11_10>(most));
    let most = _mm_max_epu32(most, _mm_shuffle_epi32::<0b10_11_00_01>(most));
    let Some(scale) = activations::block_scale(_mm_cvtsi128_si32(most) as u32) else {
        *to = activations::broken_block();
        return false;
    };
    let q = x.map(|v| _mm256_cvtps_epi32(_mm256_mul_ps(v, _mm256_set1_ps(scale.inverse))));
    // Packing works within 128-bit lanes; the permutation puts the groups of four back in order.
    let words = [_mm256_packs_epi32(q[0], q[1]), _mm256_packs_epi32(q[2], q[3])];
    let bytes = _mm256_packs_epi16(words[0], words[1]);
    let bytes = _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
    // −(q₀ + q₁), −(q₂ + q₃) of each group of four, then summed over the four groups of each 128-bit lane.
    let pairs =
        _mm256_sub_epi16(_mm256_setzero_si256(), _mm256_maddubs_epi16(_mm256_set1_epi8(1), bytes));
    let pairs = _mm256_add_epi16(pairs, _mm256_shuffle_epi32::<0b01_00_11_10>(pairs));
    let pairs = _mm256_add_epi16(pairs, _mm256_shuffle_epi32::<0b10_11_00_01>(pairs));
    let halves = [_mm256_extract_epi32::<0>(pairs), _mm256_extract_epi32::<4>(pairs)];
    let mut block_q = [0; BLOCK];
    // SAFETY: thirty-two bytes.
    unsafe { _mm256_storeu_si256(block_q.as_mut_ptr().cast(), bytes) };
    let halves = halves.map(|pair| [pair as i16, (pair >> 16) as i16]);
    *to = activations::with_pairs(block_q, scale, halves);
    true
}
