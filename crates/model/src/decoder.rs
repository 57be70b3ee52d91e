//! One description of a decoder-only transformer, whichever container it came from.

/// Model families that load.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Family {
    /// Qwen2, Qwen2.5, Qwen2.5-Coder, QwQ: biases on Q, K and V.
    Qwen2,
    /// Qwen3 dense: RMS norm on each head of Q and K.
    Qwen3,
    /// Llama 2 and 3, SmolLM2.
    Llama,
}

impl Family {
    /// The name that GGUF's `general.architecture` and the `model_type` of `config.json` use.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Qwen2 => "qwen2",
            Self::Qwen3 => "qwen3",
            Self::Llama => "llama",
        }
    }

    /// The family of that name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Qwen2, Self::Qwen3, Self::Llama].into_iter().find(|family| family.name() == name)
    }
}

/// Everything the forward pass needs to know about the shape of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct DecoderConfig {
    /// The family, for names and messages; the forward pass reads the fields below.
    pub family: Family,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the feed-forward layer.
    pub intermediate_size: usize,
    /// Number of layers.
    pub num_layers: usize,
    /// Query heads.
    pub num_heads: usize,
    /// Key and value heads; divides `num_heads`.
    pub num_kv_heads: usize,
    /// Width of one head; not always `hidden_size / num_heads`.
    pub head_dim: usize,
    /// Epsilon of every RMS norm.
    pub rms_norm_eps: f32,
    /// Rotary position embedding.
    pub rope: RopeConfig,
    /// Tokens of the longest context the file promises.
    pub context_length: usize,
}

/// Rotary position embedding.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeConfig {
    /// Base of the frequencies.
    pub theta: f32,
    /// Which elements of a head rotate together.
    pub layout: RopeLayout,
    /// How positions past the trained context are reached.
    pub scaling: RopeScaling,
}

/// Which elements of a head rotate together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RopeLayout {
    /// `(i, i + head_dim / 2)`: every safetensors file, and GGUF files of Qwen.
    Halves,
    /// `(2 i, 2 i + 1)`: GGUF files of Llama, whose Q and K rows are permuted.
    Pairs,
}

/// How positions past the trained context are reached.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    /// As trained.
    None,
    /// Positions divided by `factor`.
    Linear {
        /// Divisor.
        factor: f32,
    },
    /// YaRN (Peng et al. 2023, arXiv 2309.00071).
    Yarn {
        /// Context extension.
        factor: f32,
        /// Trained context, tokens.
        original_context: u32,
        /// Multiplies cos and sin; `None` means `0.1 ln(factor) + 1`.
        attention_factor: Option<f32>,
        /// Rotations above which a dimension is not interpolated.
        beta_fast: f32,
        /// Rotations below which a dimension is interpolated fully.
        beta_slow: f32,
    },
    /// Llama 3.1's piecewise scaling.
    Llama3 {
        /// Context extension.
        factor: f32,
        /// Wavelengths above `original_context / low_freq_factor` are scaled fully.
        low_freq_factor: f32,
        /// Wavelengths below `original_context / high_freq_factor` are kept.
        high_freq_factor: f32,
        /// Trained context, tokens.
        original_context: u32,
    },
    /// A divisor per frequency, `head_dim / 2` of them: GGUF's `rope_freqs.weight`.
    Factors(Vec<f32>),
}

/// Element or block type of a stored tensor, by the names of the GGML formats.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(non_camel_case_types, reason = "the formats' own names")]
#[allow(missing_docs, reason = "a flat catalogue of names defined elsewhere")]
pub enum DType {
    F32,
    F16,
    BF16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2_K,
    Q3_K,
    Q4_K,
    Q5_K,
    Q6_K,
    IQ4_NL,
    IQ4_XS,
}

impl DType {
    /// Every type, for tables and tests.
    pub const ALL: [Self; 15] = [
        Self::F32,
        Self::F16,
        Self::BF16,
        Self::Q4_0,
        Self::Q4_1,
        Self::Q5_0,
        Self::Q5_1,
        Self::Q8_0,
        Self::Q2_K,
        Self::Q3_K,
        Self::Q4_K,
        Self::Q5_K,
        Self::Q6_K,
        Self::IQ4_NL,
        Self::IQ4_XS,
    ];

    /// The type's name in the GGML formats.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::BF16 => "BF16",
            Self::Q4_0 => "Q4_0",
            Self::Q4_1 => "Q4_1",
            Self::Q5_0 => "Q5_0",
            Self::Q5_1 => "Q5_1",
            Self::Q8_0 => "Q8_0",
            Self::Q2_K => "Q2_K",
            Self::Q3_K => "Q3_K",
            Self::Q4_K => "Q4_K",
            Self::Q5_K => "Q5_K",
            Self::Q6_K => "Q6_K",
            Self::IQ4_NL => "IQ4_NL",
            Self::IQ4_XS => "IQ4_XS",
        }
    }

    /// Elements of one block; a row holds a whole number of blocks.
    #[must_use]
    pub fn block_len(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::BF16 => 1,
            Self::Q4_0 | Self::Q4_1 | Self::Q5_0 | Self::Q5_1 | Self::Q8_0 | Self::IQ4_NL => 32,
            Self::Q2_K | Self::Q3_K | Self::Q4_K | Self::Q5_K | Self::Q6_K | Self::IQ4_XS => 256,
        }
    }

    /// Bytes of one block.
    #[must_use]
    pub fn block_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::BF16 => 2,
            Self::Q4_0 | Self::IQ4_NL => 18,
            Self::Q4_1 => 20,
            Self::Q5_0 => 22,
            Self::Q5_1 => 24,
            Self::Q8_0 => 34,
            Self::Q2_K => 84,
            Self::Q3_K => 110,
            Self::Q4_K => 144,
            Self::Q5_K => 176,
            Self::Q6_K => 210,
            Self::IQ4_XS => 136,
        }
    }

    /// Bytes of a row of `cols` elements; `None` where that is no whole number of blocks, or too many.
    #[must_use]
    pub fn row_bytes(self, cols: usize) -> Option<usize> {
        cols.is_multiple_of(self.block_len())
            .then(|| (cols / self.block_len()).checked_mul(self.block_bytes()))
            .flatten()
    }
}

impl std::fmt::Display for DType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// A stored matrix (or vector: one row), row-major, borrowed from the mapped file.
#[derive(Clone, Copy, Debug)]
pub struct TensorView<'a> {
    /// Element or block type.
    pub dtype: DType,
    /// Outputs of the linear layer.
    pub rows: usize,
    /// Inputs of the linear layer: contiguous elements.
    pub cols: usize,
    /// Exactly `rows` rows of `cols` elements.
    pub data: &'a [u8],
}

/// All weights of a decoder.
#[derive(Clone, Debug)]
pub struct DecoderWeights<'a> {
    /// (vocab, hidden)
    pub token_embedding: TensorView<'a>,
    /// One entry a layer.
    pub layers: Vec<LayerWeights<'a>>,
    /// (1, hidden)
    pub output_norm: TensorView<'a>,
    /// (vocab, hidden); `None` where the embedding serves as the output too.
    pub output: Option<TensorView<'a>>,
}

/// Weights of one layer. Shapes are (outputs, inputs); vectors are one row.
#[derive(Clone, Debug)]
pub struct LayerWeights<'a> {
    /// (1, hidden)
    pub attention_norm: TensorView<'a>,
    /// (heads × head_dim, hidden)
    pub q: TensorView<'a>,
    /// (kv_heads × head_dim, hidden)
    pub k: TensorView<'a>,
    /// (kv_heads × head_dim, hidden)
    pub v: TensorView<'a>,
    /// (1, heads × head_dim), where the family has it
    pub q_bias: Option<TensorView<'a>>,
    /// (1, kv_heads × head_dim), where the family has it
    pub k_bias: Option<TensorView<'a>>,
    /// (1, kv_heads × head_dim), where the family has it
    pub v_bias: Option<TensorView<'a>>,
    /// (1, head_dim), where the family has it
    pub q_norm: Option<TensorView<'a>>,
    /// (1, head_dim), where the family has it
    pub k_norm: Option<TensorView<'a>>,
    /// (hidden, heads × head_dim)
    pub attention_output: TensorView<'a>,
    /// (1, hidden)
    pub ffn_norm: TensorView<'a>,
    /// (intermediate, hidden)
    pub gate: TensorView<'a>,
    /// (intermediate, hidden)
    pub up: TensorView<'a>,
    /// (hidden, intermediate)
    pub down: TensorView<'a>,
}
