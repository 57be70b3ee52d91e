//! Weights as the forward pass wants them: matrices packed once, vectors as f32. Not the file: it may be closed when
//! loading is done.
//!
//! Invariant: every shape was checked against the configuration, so that no step can fail on one.

use mintage_kernels::{ActivationKind, Format, PackedMatrix, Pool, dequantize_row};
use mintage_model::{DType, DecoderConfig, DecoderWeights, LayerWeights, TensorView};

use super::ForwardError;

/// How weights are kept in memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WeightStorage {
    /// In the file's formats; activations are quantised where a format's kernel wants it.
    #[default]
    AsStored,
    /// Dequantised to f32, activations unquantised: the slow path that the fast one is measured against.
    Float,
}

/// How far loading is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoadProgress {
    /// Bytes of the file's tensors that are packed.
    pub done_bytes: u64,
    /// Bytes of all tensors that will be.
    pub total_bytes: u64,
}

/// All weights of a decoder.
pub(super) struct PackedWeights {
    /// (vocab, hidden)
    pub(super) embedding: PackedMatrix,
    pub(super) layers: Vec<PackedLayer>,
    /// (hidden)
    pub(super) output_norm: Vec<f32>,
    /// (vocab, hidden); `None` where the embedding serves as the output too.
    pub(super) output: Option<PackedMatrix>,
}

/// Weights of one layer; shapes as in [`LayerWeights`].
pub(super) struct PackedLayer {
    pub(super) attention_norm: Vec<f32>,
    pub(super) q: Linear,
    pub(super) k: Linear,
    pub(super) v: Linear,
    pub(super) q_norm: Option<Vec<f32>>,
    pub(super) k_norm: Option<Vec<f32>>,
    pub(super) attention_output: PackedMatrix,
    pub(super) ffn_norm: Vec<f32>,
    pub(super) gate: PackedMatrix,
    pub(super) up: PackedMatrix,
    pub(super) down: PackedMatrix,
    /// What Q, K and V want of their common input, each kind once.
    pub(super) qkv_kinds: Vec<ActivationKind>,
    /// What gate and up want of theirs.
    pub(super) gate_up_kinds: Vec<ActivationKind>,
}

/// A matrix and, where the family has one, its bias.
pub(super) struct Linear {
    pub(super) matrix: PackedMatrix,
    pub(super) bias: Option<Vec<f32>>,
}

impl PackedWeights {
    /// Checks and packs everything, with all threads of the pool.
    pub(super) fn load(
        config: &DecoderConfig,
        weights: &DecoderWeights<'_>,
        storage: WeightStorage,
        pool: &Pool,
        progress: &mut dyn FnMut(LoadProgress),
    ) -> Result<Self, ForwardError> {
        if weights.layers.len() != config.num_layers {
            return Err(ForwardError::Model {
                tensor: "layers".into(),
                message: format!("{} expected, {} found", config.num_layers, weights.layers.len()),
            });
        }
        let total_bytes = total_bytes(weights);
        let mut loader = Loader { config, storage, pool, progress, done_bytes: 0, total_bytes };
        let (vocab, hidden) = (config.vocab_size, config.hidden_size);
        let embedding =
            loader.matrix("token_embedding", &weights.token_embedding, vocab, hidden)?;
        let layers = weights
            .layers
            .iter()
            .enumerate()
            .map(|(index, layer)| loader.layer(index, layer))
            .collect::<Result<_, _>>()?;
        let output_norm = loader.vector("output_norm", &weights.output_norm, hidden)?;
        let output = match &weights.output {
            Some(output) => Some(loader.matrix("output", output, vocab, hidden)?),
            None => None,
        };
        Ok(Self { embedding, layers, output_norm, output })
    }

    /// (vocab, hidden): what turns the last hidden state into logits.
    pub(super) fn output_matrix(&self) -> &PackedMatrix {
        self.output.as_ref().unwrap_or(&self.embedding)
    }

    /// Bytes of all matrices in memory.
    pub(super) fn bytes(&self) -> usize {
        let layers: usize = self
            .layers
            .iter()
            .map(|layer| {
                [
                    &layer.q.matrix,
                    &layer.k.matrix,
                    &layer.v.matrix,
                    &layer.attention_output,
                    &layer.gate,
                    &layer.up,
                    &layer.down,
                ]
                .map(PackedMatrix::bytes)
                .iter()
                .sum::<usize>()
            })
            .sum();
        layers + self.embedding.bytes() + self.output.as_ref().map_or(0, PackedMatrix::bytes)
    }

    /// Bytes that a step of any width reads at least: all matrices, but of an embedding that is no output a few rows.
    pub(super) fn step_bytes(&self) -> usize {
        self.bytes() - self.output.as_ref().map_or(0, |_| self.embedding.bytes())
    }
}

/// Bytes of the tensors that [`PackedWeights::load`] reports progress over.
fn total_bytes(weights: &DecoderWeights<'_>) -> u64 {
    let layers = weights.layers.iter().map(|layer| {
        [&layer.q, &layer.k, &layer.v, &layer.attention_output, &layer.gate, &layer.up, &layer.down]
            .iter()
            .map(|view| view.data.len() as u64)
            .sum::<u64>()
    });
    layers.sum::<u64>()
        + weights.token_embedding.data.len() as u64
        + weights.output.as_ref().map_or(0, |view| view.data.len() as u64)
}

struct Loader<'a> {
    config: &'a DecoderConfig,
    storage: WeightStorage,
    pool: &'a Pool,
    progress: &'a mut dyn FnMut(LoadProgress),
    done_bytes: u64,
    total_bytes: u64,
}

impl Loader<'_> {
    fn layer(
        &mut self,
        index: usize,
        layer: &LayerWeights<'_>,
    ) -> Result<PackedLayer, ForwardError> {
        let config = self.config;
        let (hidden, intermediate) = (config.hidden_size, config.intermediate_size);
        let q_size = config.num_heads * config.head_dim;
        let kv_size = config.num_kv_heads * config.head_dim;
        let name = |field: &str| format!("layers[{index}].{field}");
        let attention_norm = self.vector(&name("attention_norm"), &layer.attention_norm, hidden)?;
        let q = self.linear(&name("q"), &layer.q, layer.q_bias.as_ref(), q_size)?;
        let k = self.linear(&name("k"), &layer.k, layer.k_bias.as_ref(), kv_size)?;
        let v = self.linear(&name("v"), &layer.v, layer.v_bias.as_ref(), kv_size)?;
        let q_norm = self.head_norm(&name("q_norm"), layer.q_norm.as_ref())?;
        let k_norm = self.head_norm(&name("k_norm"), layer.k_norm.as_ref())?;
        let attention_output =
            self.matrix(&name("attention_output"), &layer.attention_output, hidden, q_size)?;
        let ffn_norm = self.vector(&name("ffn_norm"), &layer.ffn_norm, hidden)?;
        let gate = self.matrix(&name("gate"), &layer.gate, intermediate, hidden)?;
        let up = self.matrix(&name("up"), &layer.up, intermediate, hidden)?;
        let down = self.matrix(&name("down"), &layer.down, hidden, intermediate)?;
        Ok(PackedLayer {
            qkv_kinds: distinct_kinds(&[&q.matrix, &k.matrix, &v.matrix]),
            gate_up_kinds: distinct_kinds(&[&gate, &up]),
            attention_norm,
            q,
            k,
            v,
            q_norm,
            k_norm,
            attention_output,
            ffn_norm,
            gate,
            up,
            down,
        })
    }

    fn linear(
        &mut self,
        name: &str,
        matrix: &TensorView<'_>,
        bias: Option<&TensorView<'_>>,
        rows: usize,
    ) -> Result<Linear, ForwardError> {
        let matrix = self.matrix(name, matrix, rows, self.config.hidden_size)?;
        let bias = match bias {
            Some(bias) => Some(self.vector(&format!("{name}_bias"), bias, rows)?),
            None => None,
        };
        Ok(Linear { matrix, bias })
    }

    fn head_norm(
        &mut self,
        name: &str,
        norm: Option<&TensorView<'_>>,
    ) -> Result<Option<Vec<f32>>, ForwardError> {
        norm.map(|norm| self.vector(name, norm, self.config.head_dim)).transpose()
    }

    fn matrix(
        &mut self,
        name: &str,
        view: &TensorView<'_>,
        rows: usize,
        cols: usize,
    ) -> Result<PackedMatrix, ForwardError> {
        check_shape(name, view, rows, cols)?;
        let format = format_of(view.dtype);
        let packed = match self.storage {
            WeightStorage::AsStored => PackedMatrix::pack(format, rows, cols, view.data, self.pool),
            WeightStorage::Float => {
                let bytes: Vec<u8> =
                    dequantize(name, view)?.iter().flat_map(|value| value.to_le_bytes()).collect();
                PackedMatrix::pack(Format::F32, rows, cols, &bytes, self.pool)
            }
        };
        let packed = packed.map_err(|error| model_error(name, error.to_string()))?;
        self.done_bytes += view.data.len() as u64;
        (self.progress)(LoadProgress {
            done_bytes: self.done_bytes,
            total_bytes: self.total_bytes,
        });
        Ok(packed)
    }

    fn vector(
        &mut self,
        name: &str,
        view: &TensorView<'_>,
        len: usize,
    ) -> Result<Vec<f32>, ForwardError> {
        check_shape(name, view, 1, len)?;
        dequantize(name, view)
    }
}

/// The file's fault: a tensor, by its field.
pub(crate) fn model_error(tensor: &str, message: String) -> ForwardError {
    ForwardError::Model { tensor: tensor.into(), message }
}

/// Shape and byte length: whatever made the view, the kernels read only what is there.
pub(crate) fn check_shape(
    name: &str,
    view: &TensorView<'_>,
    rows: usize,
    cols: usize,
) -> Result<(), ForwardError> {
    if (view.rows, view.cols) != (rows, cols) {
        let found = format!("({}, {}) found", view.rows, view.cols);
        return Err(model_error(name, format!("shape ({rows}, {cols}) expected, {found}")));
    }
    let expected =
        format_of(view.dtype).row_bytes(cols).and_then(|row_bytes| row_bytes.checked_mul(rows));
    if expected != Some(view.data.len()) {
        let found = view.data.len();
        let message = format!("{found} bytes are no ({rows}, {cols}) of {:?}", view.dtype);
        return Err(model_error(name, message));
    }
    Ok(())
}

/// All rows as f32. The view's shape was checked.
pub(crate) fn dequantize(name: &str, view: &TensorView<'_>) -> Result<Vec<f32>, ForwardError> {
    let mut values = vec![0.0; view.rows * view.cols];
    let row_bytes = view.data.len() / view.rows.max(1);
    if row_bytes == 0 {
        return Ok(values);
    }
    let rows = view.data.chunks_exact(row_bytes).zip(values.chunks_exact_mut(view.cols));
    for (src, dst) in rows {
        dequantize_row(format_of(view.dtype), src, dst)
            .map_err(|error| model_error(name, error.to_string()))?;
    }
    Ok(values)
}

fn distinct_kinds(matrices: &[&PackedMatrix]) -> Vec<ActivationKind> {
    let mut kinds = Vec::new();
    for matrix in matrices {
        let kind = matrix.activation_kind();
        if !kinds.contains(&kind) {
            kinds.push(kind);
        }
    }
    kinds
}

/// The kernels' name of a stored type: the crates do not know each other.
pub(crate) fn format_of(dtype: DType) -> Format {
    match dtype {
        DType::F32 => Format::F32,
        DType::F16 => Format::F16,
        DType::BF16 => Format::BF16,
        DType::Q4_0 => Format::Q4_0,
        DType::Q4_1 => Format::Q4_1,
        DType::Q5_0 => Format::Q5_0,
        DType::Q5_1 => Format::Q5_1,
        DType::Q8_0 => Format::Q8_0,
        DType::Q2_K => Format::Q2_K,
        DType::Q3_K => Format::Q3_K,
        DType::Q4_K => Format::Q4_K,
        DType::Q5_K => Format::Q5_K,
        DType::Q6_K => Format::Q6_K,
        DType::IQ4_NL => Format::IQ4_NL,
        DType::IQ4_XS => Format::IQ4_XS,
    }
}
