//! A bidirectional encoder as data: BERT and its many descendants (all-MiniLM, bge, e5, gte), from safetensors.
//!
//! Not arithmetic. Invariant: an [`EncoderFile`] exists only if every tensor's name and shape were checked, so that an
//! engine that gets one has nothing left to refuse but its size.

mod file;
mod wordpiece;

pub use file::EncoderFile;
pub use wordpiece::WordPiece;

use crate::decoder::TensorView;

/// Everything the forward pass needs to know about the shape of an encoder.
#[derive(Clone, Debug, PartialEq)]
pub struct EncoderConfig {
    /// Rows of the word embedding.
    pub vocab_size: usize,
    /// Width of the residual stream, and of the vectors that come out.
    pub hidden_size: usize,
    /// Width of the feed-forward layer.
    pub intermediate_size: usize,
    /// Number of layers.
    pub num_layers: usize,
    /// Heads; divides `hidden_size`.
    pub num_heads: usize,
    /// Rows of the position embedding.
    pub max_positions: usize,
    /// Rows of the token type embedding.
    pub token_types: usize,
    /// Epsilon of every layer norm.
    pub layer_norm_eps: f32,
    /// How a text's vector is made of its tokens'.
    pub pooling: Pooling,
    /// Tokens of the longest text that the model was made for, at most `max_positions`.
    pub max_tokens: usize,
}

/// How a text's vector is made of its tokens'.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pooling {
    /// The mean over all tokens, the marks at both ends among them.
    Mean,
    /// The first token's.
    First,
    /// The last token's: of models that look back only.
    Last,
}

/// A matrix with its bias.
#[derive(Clone, Copy, Debug)]
pub struct LinearView<'a> {
    /// (outputs, inputs)
    pub weight: TensorView<'a>,
    /// (1, outputs)
    pub bias: TensorView<'a>,
}

/// A layer norm.
#[derive(Clone, Copy, Debug)]
pub struct LayerNormView<'a> {
    /// (1, hidden)
    pub weight: TensorView<'a>,
    /// (1, hidden)
    pub bias: TensorView<'a>,
}

/// All weights of an encoder.
#[derive(Clone, Debug)]
pub struct EncoderWeights<'a> {
    /// (vocab, hidden)
    pub words: TensorView<'a>,
    /// (positions, hidden)
    pub positions: TensorView<'a>,
    /// (types, hidden)
    pub token_types: TensorView<'a>,
    /// Ends the sum of the three.
    pub embedding_norm: LayerNormView<'a>,
    /// One entry a layer.
    pub layers: Vec<EncoderLayerWeights<'a>>,
}

/// Weights of one layer.
#[derive(Clone, Debug)]
pub struct EncoderLayerWeights<'a> {
    /// (hidden, hidden)
    pub q: LinearView<'a>,
    /// (hidden, hidden)
    pub k: LinearView<'a>,
    /// (hidden, hidden)
    pub v: LinearView<'a>,
    /// (hidden, hidden)
    pub attention_output: LinearView<'a>,
    /// Ends the attention's half.
    pub attention_norm: LayerNormView<'a>,
    /// (intermediate, hidden)
    pub up: LinearView<'a>,
    /// (hidden, intermediate)
    pub down: LinearView<'a>,
    /// Ends the layer.
    pub output_norm: LayerNormView<'a>,
}
