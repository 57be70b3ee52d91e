//! Weights packed for products: strips of 16 rows, at the file's bits per weight.
//!
//! Not the product itself (`matmul`) and not the layout (`layout`). Invariant: `strips × strip_bytes` initialised bytes;
//! rows beyond the last are zero.

use crate::dequant::{dequantize_row, values_of};
use crate::layout::{self, STRIP_ROWS, StripSizes};
use crate::memory::AlignedBytes;
use crate::native::{self, BLOCK, ScaleKind};
use crate::quantised::{Quantised, for_quantised};
use crate::{ActivationKind, Format, Isa, KernelError, Pool};

/// A matrix of (`rows` outputs × `cols` inputs), repacked for [`crate::matmul()`].
#[derive(Debug)]
pub struct PackedMatrix {
    format: Format,
    rows: usize,
    cols: usize,
    sizes: StripSizes,
    data: AlignedBytes,
    isa: Isa,
}

impl PackedMatrix {
    /// Repacks `data`: `rows` rows of `cols` elements in `format`, as a model file stores them.
    ///
    /// # Errors
    /// If `cols` is no whole number of blocks, `data` has another size than the shape says, or memory is short.
    pub fn pack(
        format: Format,
        rows: usize,
        cols: usize,
        data: &[u8],
        pool: &Pool,
    ) -> Result<Self, KernelError> {
        let too_large = KernelError::TooLarge { format, rows, cols };
        let Some(row_bytes) = format.row_bytes(cols) else {
            return Err(KernelError::PartialBlock { format, cols, block: format.block_len() });
        };
        let expected = row_bytes.checked_mul(rows).ok_or_else(|| too_large.clone())?;
        if data.len() != expected {
            return Err(KernelError::Size { what: "data", expected, got: data.len() });
        }
        let sizes = layout::strip_sizes(format, cols).ok_or(too_large)?;
        let strips = rows.div_ceil(STRIP_ROWS);
        let each =
            |run: &(dyn Fn(usize) + Sync)| pool.for_each(strips, 4, &|strips| strips.for_each(run));
        let data = AlignedBytes::filled(strips, sizes.strip, each, &|strip, packed| {
            let first = strip * STRIP_ROWS;
            let rows_here = STRIP_ROWS.min(rows - first);
            pack_strip(
                format,
                sizes,
                row_bytes,
                &data[first * row_bytes..][..rows_here * row_bytes],
                packed,
            );
        })?;
        Ok(Self { format, rows, cols, sizes, data, isa: Isa::best() })
    }

    /// The same matrix, multiplied with the kernels of `isa` (or the best that the processor has, if it lacks that).
    /// Results of quantised formats do not depend on it.
    #[must_use]
    pub fn with_isa(mut self, isa: Isa) -> Self {
        self.isa = isa.min(Isa::best());
        self
    }

    /// Rows: outputs.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Columns: inputs.
    #[must_use]
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// The format it was packed from, and whose bits per weight it keeps.
    #[must_use]
    pub fn format(&self) -> Format {
        self.format
    }

    /// The instruction set its products use.
    #[must_use]
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// Bytes of packed memory; what a product with one activation row reads.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.sizes.strip * self.strips()
    }

    /// What [`crate::matmul()`] wants the activations prepared as.
    #[must_use]
    pub fn activation_kind(&self) -> ActivationKind {
        if self.format.is_quantised() { ActivationKind::Int8 } else { ActivationKind::Float }
    }

    /// Dequantises row `row` into `dst` (`cols` elements), bit for bit as [`dequantize_row`] does from the file.
    ///
    /// # Panics
    /// If `row` is no row of the matrix or `dst` has another length than `cols`.
    pub fn dequantize_row(&self, row: usize, dst: &mut [f32]) {
        assert!(row < self.rows, "row {row} of {}", self.rows);
        assert!(dst.len() == self.cols, "{} elements for a row of {}", dst.len(), self.cols);
        let (strip, lane) = (self.strip(row / STRIP_ROWS), row % STRIP_ROWS);
        if !self.format.is_quantised() {
            let size = self.format.block_bytes();
            for (column, value) in dst.iter_mut().enumerate() {
                let element = &strip[size * (STRIP_ROWS * column + lane)..][..size];
                // One element of a floating-point format always has the right size.
                let _ = dequantize_row(self.format, element, std::slice::from_mut(value));
            }
            return;
        }
        let kind = ScaleKind::of(self.format);
        for (index, values) in dst.chunks_exact_mut(BLOCK).enumerate() {
            let codes = layout::get_codes(self.format, self.code_block(strip, index), lane);
            let raw = self.raw_scales(strip, index, lane);
            values_of(self.format, kind, &codes, &raw, values);
        }
    }

    pub(crate) fn strips(&self) -> usize {
        self.rows.div_ceil(STRIP_ROWS)
    }

    pub(crate) fn strip(&self, strip: usize) -> &[u8] {
        &self.data.as_slice()[strip * self.sizes.strip..][..self.sizes.strip]
    }

    /// Offset of the code plane in a strip.
    pub(crate) fn codes_at(&self) -> usize {
        self.sizes.codes_at
    }

    /// Codes of 16 rows × the `block`-th 32 columns.
    pub(crate) fn code_block<'a>(&self, strip: &'a [u8], block: usize) -> &'a [u8] {
        let size = layout::code_block_bytes(self.format);
        &strip[self.sizes.codes_at + block * size..][..size]
    }

    /// Scales of one row of a strip and the `block`-th 32 columns.
    pub(crate) fn raw_scales(&self, strip: &[u8], block: usize, lane: usize) -> native::RawScales {
        let kind = ScaleKind::of(self.format);
        let (group, sub) = (block / layout::group_blocks(kind), block % layout::group_blocks(kind));
        let size = layout::group_bytes(kind);
        layout::get_scales(kind, &strip[group * size..][..size], sub, lane)
    }
}

/// Packs up to 16 rows (`rows`, each of `row_bytes`) into a zeroed strip.
fn pack_strip(format: Format, sizes: StripSizes, row_bytes: usize, rows: &[u8], strip: &mut [u8]) {
    if row_bytes == 0 {
        return;
    }
    match format {
        Format::F32 => pack_elements::<4>(row_bytes, rows, strip),
        Format::F16 | Format::BF16 => pack_elements::<2>(row_bytes, rows, strip),
        _ => for_quantised!(format, pack_quantised(sizes.codes_at, row_bytes, rows, strip)),
    }
}

/// Elements of `SIZE` bytes, column by column. Like the quantised ones in pieces of all rows, so that what is written
/// stays in the nearest cache until every row has been there.
fn pack_elements<const SIZE: usize>(row_bytes: usize, rows: &[u8], strip: &mut [u8]) {
    /// Columns of a piece: 4 KiB of f32.
    const COLUMNS: usize = 64;
    let piece_bytes = SIZE * STRIP_ROWS * COLUMNS;
    for (index, piece) in strip.chunks_mut(piece_bytes).enumerate() {
        for (lane, row) in rows.chunks_exact(row_bytes).enumerate() {
            let from = (index * SIZE * COLUMNS).min(row.len());
            let to = ((index + 1) * SIZE * COLUMNS).min(row.len());
            let columns = piece.chunks_exact_mut(SIZE * STRIP_ROWS);
            for (column, element) in columns.zip(row[from..to].as_chunks::<SIZE>().0) {
                column[SIZE * lane..][..SIZE].copy_from_slice(element);
            }
        }
    }
}

fn pack_quantised<Q: Quantised>(codes_at: usize, row_bytes: usize, rows: &[u8], strip: &mut [u8]) {
    let (scale_plane, code_plane) = strip.split_at_mut(codes_at);
    let (block_bytes, subs) = (Q::FORMAT.block_bytes(), Q::FORMAT.block_len() / BLOCK);
    let records = scale_plane.chunks_exact_mut(Q::GROUP_BYTES);
    let pieces = code_plane.chunks_exact_mut(subs * Q::CODE_BYTES);
    for (index, (record, piece)) in records.zip(pieces).enumerate() {
        for (lane, row) in rows.chunks_exact(row_bytes).enumerate() {
            let block = &row[index * block_bytes..][..block_bytes];
            for (sub, packed) in piece.chunks_exact_mut(Q::CODE_BYTES).enumerate() {
                layout::put_codes(Q::FORMAT, packed, lane, &native::codes(Q::FORMAT, block, sub));
                let scales = native::scales(Q::FORMAT, block, sub);
                layout::put_scales(Q::KIND, record, sub, lane, &scales);
            }
        }
    }
}
