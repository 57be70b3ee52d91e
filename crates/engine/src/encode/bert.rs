//! BERT's forward pass (Devlin et al. 2018): layers of attention in both directions, a norm behind each half.
//!
//! Invariant: each row of each buffer depends only on its own token's sequence, so that a batch equals its parts.

use std::ops::Range;

use mintage_kernels::{
    Activations, Format, FullAttention, PackedMatrix, Pool, add_bias_rows, add_layer_norm,
    dequantize_row, gelu_bias, matmul, matmul_each,
};
use mintage_model::{
    EncoderConfig, EncoderFile, EncoderLayerWeights, LayerNormView, LinearView, Pooling,
    TensorView, TokenId,
};

use super::{Encode, EncodeShape, normalise};
use crate::forward::{ForwardError, check_shape, dequantize, format_of, model_error};

/// An encoder with its threads.
pub struct Encoder {
    config: EncoderConfig,
    pool: Pool,
    words: Table,
    /// (positions, hidden): with the type of a text's only segment added.
    positions: Vec<f32>,
    embedding_norm: LayerNorm,
    layers: Vec<Layer>,
    /// (hidden), zeros
    no_bias: Vec<f32>,
    buffers: Buffers,
}

/// Rows that are looked up, as the file stores them.
struct Table {
    format: Format,
    row_bytes: usize,
    data: Vec<u8>,
}

struct LayerNorm {
    weight: Vec<f32>,
    bias: Vec<f32>,
}

struct Layer {
    q: PackedMatrix,
    q_bias: Vec<f32>,
    /// Without its bias, which adds the same to every score of a query: the softmax doesn't see it.
    k: PackedMatrix,
    /// Without its bias: the weights of a query sum to 1, so that it is part of `attention_bias`.
    v: PackedMatrix,
    attention_output: PackedMatrix,
    attention_bias: Vec<f32>,
    attention_norm: LayerNorm,
    up: PackedMatrix,
    up_bias: Vec<f32>,
    down: PackedMatrix,
    down_bias: Vec<f32>,
    output_norm: LayerNorm,
}

/// Scratch of one step; grows to the largest step and is reused.
#[derive(Default)]
struct Buffers {
    activations: Activations,
    /// (rows, hidden): the residual stream
    x: Vec<f32>,
    /// (rows, hidden): what a projection gives
    hidden: Vec<f32>,
    /// (rows, hidden), each
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    /// (rows, intermediate)
    inner: Vec<f32>,
}

impl Encoder {
    /// Loads an opened file with `threads` threads, then lets the system take back the memory its mapping used.
    ///
    /// # Errors
    /// [`ForwardError::Model`] where a tensor does not fit, [`ForwardError::File`] where the file cannot be read.
    pub fn load(file: &EncoderFile, threads: usize) -> Result<Self, ForwardError> {
        let config = file.config().clone();
        let weights = file.weights()?;
        let pool = Pool::new(threads);
        let hidden = config.hidden_size;
        check_shape("words", &weights.words, config.vocab_size, hidden)?;
        let format = format_of(weights.words.dtype);
        let words = Table {
            format,
            row_bytes: weights.words.data.len() / config.vocab_size.max(1),
            data: weights.words.data.to_vec(),
        };
        check_shape("positions", &weights.positions, config.max_positions, hidden)?;
        check_shape("token_types", &weights.token_types, config.token_types, hidden)?;
        let mut positions = dequantize("positions", &weights.positions)?;
        let types = dequantize("token_types", &weights.token_types)?;
        for row in positions.chunks_exact_mut(hidden) {
            row.iter_mut().zip(&types).for_each(|(p, t)| *p += t);
        }
        let layers = weights
            .layers
            .iter()
            .enumerate()
            .map(|(index, layer)| load_layer(&config, index, layer, &pool))
            .collect::<Result<_, _>>()?;
        let embedding_norm = load_norm("embedding_norm", &weights.embedding_norm, hidden)?;
        let (no_bias, buffers) = (vec![0.0; hidden], Buffers::default());
        file.release();
        Ok(Self { config, pool, words, positions, embedding_norm, layers, no_bias, buffers })
    }

    fn grow(&mut self, rows: usize) {
        let hidden = self.config.hidden_size;
        let Buffers { x, hidden: projected, q, k, v, inner, .. } = &mut self.buffers;
        let wanted = [
            (x, hidden),
            (projected, hidden),
            (q, hidden),
            (k, hidden),
            (v, hidden),
            (inner, self.config.intermediate_size),
        ];
        for (buffer, width) in wanted {
            if buffer.len() < rows * width {
                buffer.resize(rows * width, 0.0);
            }
        }
    }

    /// Words, positions and their norm into `buffers.x`.
    fn embed(&mut self, sequences: &[&[TokenId]], rows: usize) -> Result<(), ForwardError> {
        let hidden = self.config.hidden_size;
        let b = &mut self.buffers;
        let (x, places) = (&mut b.x[..rows * hidden], &mut b.hidden[..rows * hidden]);
        let tokens = sequences.iter().flat_map(|tokens| tokens.iter().enumerate());
        let targets = x.chunks_exact_mut(hidden).zip(places.chunks_exact_mut(hidden));
        for ((position, token), (x, place)) in tokens.zip(targets) {
            let word = &self.words.data[*token as usize * self.words.row_bytes..];
            dequantize_row(self.words.format, &word[..self.words.row_bytes], x)
                .map_err(|error| model_error("words", error.to_string()))?;
            place.copy_from_slice(&self.positions[position * hidden..][..hidden]);
        }
        let LayerNorm { weight, bias } = &self.embedding_norm;
        add_layer_norm(
            &self.pool,
            x,
            places,
            &self.no_bias,
            weight,
            bias,
            self.config.layer_norm_eps,
        );
        Ok(())
    }

    fn layer(&mut self, index: usize, sequences: &[Range<usize>], rows: usize) {
        let Self { config, pool, layers, buffers: b, .. } = self;
        let (layer, hidden) = (&layers[index], config.hidden_size);
        let eps = config.layer_norm_eps;
        let x = &mut b.x[..rows * hidden];
        let projected = &mut b.hidden[..rows * hidden];
        let q = &mut b.q[..rows * hidden];
        let k = &mut b.k[..rows * hidden];
        let v = &mut b.v[..rows * hidden];
        let inner = &mut b.inner[..rows * config.intermediate_size];

        b.activations.prepare(pool, x, rows, hidden, &[layer.q.activation_kind()]);
        matmul_each(
            pool,
            &b.activations,
            [(&layer.q, &mut *q), (&layer.k, &mut *k), (&layer.v, &mut *v)],
        );
        add_bias_rows(pool, q, &layer.q_bias);
        let head_dim = hidden / config.num_heads;
        let scale = 1.0 / (head_dim as f32).sqrt();
        let attention = FullAttention { q, k, v, heads: config.num_heads, head_dim, scale };
        attention.compute(pool, sequences, projected);
        let kinds = [layer.attention_output.activation_kind()];
        b.activations.prepare(pool, projected, rows, hidden, &kinds);
        matmul(pool, &layer.attention_output, &b.activations, projected);
        let LayerNorm { weight, bias } = &layer.attention_norm;
        add_layer_norm(pool, x, projected, &layer.attention_bias, weight, bias, eps);

        b.activations.prepare(pool, x, rows, hidden, &[layer.up.activation_kind()]);
        matmul(pool, &layer.up, &b.activations, inner);
        gelu_bias(pool, inner, &layer.up_bias);
        let kinds = [layer.down.activation_kind()];
        b.activations.prepare(pool, inner, rows, config.intermediate_size, &kinds);
        matmul(pool, &layer.down, &b.activations, projected);
        let LayerNorm { weight, bias } = &layer.output_norm;
        add_layer_norm(pool, x, projected, &layer.down_bias, weight, bias, eps);
    }

    /// One vector a sequence from its rows of `buffers.x`, of length 1.
    fn pool_rows(&self, sequences: &[Range<usize>], vectors: &mut Vec<f32>) {
        let hidden = self.config.hidden_size;
        vectors.clear();
        vectors.resize(sequences.len() * hidden, 0.0);
        for (rows, vector) in sequences.iter().zip(vectors.chunks_exact_mut(hidden)) {
            let of = |row: usize| &self.buffers.x[row * hidden..][..hidden];
            match self.config.pooling {
                Pooling::First => vector.copy_from_slice(of(rows.start)),
                Pooling::Last => vector.copy_from_slice(of(rows.end - 1)),
                Pooling::Mean => {
                    for row in rows.clone() {
                        vector.iter_mut().zip(of(row)).for_each(|(sum, x)| *sum += x);
                    }
                }
            }
            // Of the mean only the direction is left.
            normalise(vector);
        }
    }
}

impl Encode for Encoder {
    fn shape(&self) -> EncodeShape {
        EncodeShape {
            vocab_size: self.config.vocab_size,
            max_tokens: self.config.max_positions,
            width: self.config.hidden_size,
        }
    }

    fn encode(
        &mut self,
        sequences: &[&[TokenId]],
        vectors: &mut Vec<f32>,
    ) -> Result<(), ForwardError> {
        self.shape().check(sequences)?;
        let rows = sequences.iter().map(|tokens| tokens.len()).sum();
        let mut start = 0;
        let ranges: Vec<Range<usize>> = sequences
            .iter()
            .map(|tokens| {
                start += tokens.len();
                start - tokens.len()..start
            })
            .collect();
        self.grow(rows);
        self.embed(sequences, rows)?;
        for layer in 0..self.layers.len() {
            self.layer(layer, &ranges, rows);
        }
        self.pool_rows(&ranges, vectors);
        Ok(())
    }
}

fn load_layer(
    config: &EncoderConfig,
    index: usize,
    layer: &EncoderLayerWeights<'_>,
    pool: &Pool,
) -> Result<Layer, ForwardError> {
    let (hidden, inner) = (config.hidden_size, config.intermediate_size);
    let name = |field: &str| format!("layers[{index}].{field}");
    let matrix = |field: &str, linear: &LinearView<'_>, rows, cols| {
        pack(&name(field), &linear.weight, rows, cols, pool)
    };
    let bias =
        |field: &str, linear: &LinearView<'_>, rows| vector(&name(field), &linear.bias, rows);
    let norm = |field: &str, view: &LayerNormView<'_>| load_norm(&name(field), view, hidden);
    let v_bias = bias("v", &layer.v, hidden)?;
    check_shape(&name("attention_output"), &layer.attention_output.weight, hidden, hidden)?;
    let output = dequantize(&name("attention_output"), &layer.attention_output.weight)?;
    let mut attention_bias = bias("attention_output", &layer.attention_output, hidden)?;
    for (bias, row) in attention_bias.iter_mut().zip(output.chunks_exact(hidden)) {
        let product = row.iter().zip(&v_bias).map(|(w, b)| f64::from(*w) * f64::from(*b));
        *bias = (f64::from(*bias) + product.sum::<f64>()) as f32;
    }
    Ok(Layer {
        q: matrix("q", &layer.q, hidden, hidden)?,
        q_bias: bias("q", &layer.q, hidden)?,
        k: matrix("k", &layer.k, hidden, hidden)?,
        v: matrix("v", &layer.v, hidden, hidden)?,
        attention_output: matrix("attention_output", &layer.attention_output, hidden, hidden)?,
        attention_bias,
        attention_norm: norm("attention_norm", &layer.attention_norm)?,
        up: matrix("up", &layer.up, inner, hidden)?,
        up_bias: bias("up", &layer.up, inner)?,
        down: matrix("down", &layer.down, hidden, inner)?,
        down_bias: bias("down", &layer.down, hidden)?,
        output_norm: norm("output_norm", &layer.output_norm)?,
    })
}

fn pack(
    name: &str,
    view: &TensorView<'_>,
    rows: usize,
    cols: usize,
    pool: &Pool,
) -> Result<PackedMatrix, ForwardError> {
    check_shape(name, view, rows, cols)?;
    PackedMatrix::pack(format_of(view.dtype), rows, cols, view.data, pool)
        .map_err(|error| model_error(name, error.to_string()))
}

fn vector(name: &str, view: &TensorView<'_>, len: usize) -> Result<Vec<f32>, ForwardError> {
    check_shape(name, view, 1, len)?;
    dequantize(name, view)
}

fn load_norm(name: &str, view: &LayerNormView<'_>, len: usize) -> Result<LayerNorm, ForwardError> {
    Ok(LayerNorm { weight: vector(name, &view.weight, len)?, bias: vector(name, &view.bias, len)? })
}
