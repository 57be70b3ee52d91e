//! The element formats of model files and their block geometry.
//!
//! Not the file reader: names and sizes only. Invariant: the names and numbers agree with ggml's, so that a GGUF tensor
//! type maps one to one.

/// How the elements of a tensor are stored. Quantised formats store rows as a sequence of blocks.
#[allow(non_camel_case_types, reason = "the names are those of the file format")]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    /// IEEE single precision.
    F32,
    /// IEEE half precision.
    F16,
    /// The upper half of a single.
    BF16,
    /// 4 bits, offset 8, one scale per 32.
    Q4_0,
    /// 4 bits, one scale and one minimum per 32.
    Q4_1,
    /// 5 bits, offset 16, one scale per 32.
    Q5_0,
    /// 5 bits, one scale and one minimum per 32.
    Q5_1,
    /// 8 bits signed, one scale per 32.
    Q8_0,
    /// 2 bits; 4-bit scale and minimum per 16, scaled per 256.
    Q2_K,
    /// 3 bits, offset 4; 6-bit scale per 16, scaled per 256.
    Q3_K,
    /// 4 bits; 6-bit scale and minimum per 32, scaled per 256.
    Q4_K,
    /// 5 bits; 6-bit scale and minimum per 32, scaled per 256.
    Q5_K,
    /// 6 bits, offset 32; 8-bit scale per 16, scaled per 256.
    Q6_K,
    /// 4-bit index into a table of 16 values, one scale per 32.
    IQ4_NL,
    /// 4-bit index into a table of 16 values; 6-bit scale per 32, scaled per 256.
    IQ4_XS,
}

impl Format {
    /// Every format, in the order of the enum.
    pub const ALL: [Format; 15] = [
        Format::F32,
        Format::F16,
        Format::BF16,
        Format::Q4_0,
        Format::Q4_1,
        Format::Q5_0,
        Format::Q5_1,
        Format::Q8_0,
        Format::Q2_K,
        Format::Q3_K,
        Format::Q4_K,
        Format::Q5_K,
        Format::Q6_K,
        Format::IQ4_NL,
        Format::IQ4_XS,
    ];

    /// Elements of one block; a row is a whole number of blocks.
    pub const fn block_len(self) -> usize {
        match self {
            Format::F32 | Format::F16 | Format::BF16 => 1,
            Format::Q4_0
            | Format::Q4_1
            | Format::Q5_0
            | Format::Q5_1
            | Format::Q8_0
            | Format::IQ4_NL => 32,
            Format::Q2_K
            | Format::Q3_K
            | Format::Q4_K
            | Format::Q5_K
            | Format::Q6_K
            | Format::IQ4_XS => 256,
        }
    }

    /// Bytes of one block in the file.
    pub const fn block_bytes(self) -> usize {
        match self {
            Format::F32 => 4,
            Format::F16 | Format::BF16 => 2,
            Format::Q4_0 | Format::IQ4_NL => 18,
            Format::Q4_1 => 20,
            Format::Q5_0 => 22,
            Format::Q5_1 => 24,
            Format::Q8_0 => 34,
            Format::Q2_K => 84,
            Format::Q3_K => 110,
            Format::Q4_K => 144,
            Format::Q5_K => 176,
            Format::Q6_K => 210,
            Format::IQ4_XS => 136,
        }
    }

    /// Bytes of a row of `cols` elements; `None` if `cols` is no whole number of blocks or the size overflows.
    pub const fn row_bytes(self, cols: usize) -> Option<usize> {
        if !cols.is_multiple_of(self.block_len()) {
            return None;
        }
        (cols / self.block_len()).checked_mul(self.block_bytes())
    }

    /// True for the formats that hold integers and scales rather than floating-point elements.
    pub const fn is_quantised(self) -> bool {
        !matches!(self, Format::F32 | Format::F16 | Format::BF16)
    }
}
