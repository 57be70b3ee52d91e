//! Builds GGUF and safetensors files byte by byte, valid ones and broken ones. It shares no code with the readers.

/// A metadata value; its number in the format is [`Value::kind`].
#[derive(Clone, Debug)]
pub(crate) enum Value {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    F32(f32),
    Bool(bool),
    Str(String),
    /// Type number of the elements, then elements.
    Array(u32, Vec<Value>),
    U64(u64),
    I64(i64),
    F64(f64),
    /// Type number and bytes, right or wrong.
    Raw(u32, Vec<u8>),
}

impl Value {
    pub(crate) fn kind(&self) -> u32 {
        match self {
            Self::U8(_) => 0,
            Self::I8(_) => 1,
            Self::U16(_) => 2,
            Self::I16(_) => 3,
            Self::U32(_) => 4,
            Self::I32(_) => 5,
            Self::F32(_) => 6,
            Self::Bool(_) => 7,
            Self::Str(_) => 8,
            Self::Array(..) => 9,
            Self::U64(_) => 10,
            Self::I64(_) => 11,
            Self::F64(_) => 12,
            Self::Raw(kind, _) => *kind,
        }
    }

    fn write(&self, out: &mut Vec<u8>) {
        match self {
            Self::U8(n) => out.push(*n),
            Self::I8(n) => out.extend(n.to_le_bytes()),
            Self::U16(n) => out.extend(n.to_le_bytes()),
            Self::I16(n) => out.extend(n.to_le_bytes()),
            Self::U32(n) => out.extend(n.to_le_bytes()),
            Self::I32(n) => out.extend(n.to_le_bytes()),
            Self::F32(x) => out.extend(x.to_le_bytes()),
            Self::Bool(b) => out.push(u8::from(*b)),
            Self::Str(s) => write_string(out, s.as_bytes()),
            Self::Array(kind, elements) => {
                out.extend(kind.to_le_bytes());
                out.extend((elements.len() as u64).to_le_bytes());
                elements.iter().for_each(|element| element.write(out));
            }
            Self::U64(n) => out.extend(n.to_le_bytes()),
            Self::I64(n) => out.extend(n.to_le_bytes()),
            Self::F64(x) => out.extend(x.to_le_bytes()),
            Self::Raw(_, bytes) => out.extend(bytes),
        }
    }
}

fn write_string(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend((bytes.len() as u64).to_le_bytes());
    out.extend(bytes);
}

/// A tensor; `offset` overrides its place in the data.
#[derive(Clone, Debug)]
pub(crate) struct Tensor {
    pub(crate) name: String,
    /// Contiguous dimension first, as in the file.
    pub(crate) dims: Vec<u64>,
    pub(crate) kind: u32,
    pub(crate) bytes: usize,
    pub(crate) offset: Option<u64>,
}

/// A GGUF file to be written.
#[derive(Clone, Debug)]
pub(crate) struct Gguf {
    pub(crate) magic: [u8; 4],
    pub(crate) version: u32,
    /// Written instead of the true counts.
    pub(crate) tensor_count: Option<u64>,
    pub(crate) entry_count: Option<u64>,
    pub(crate) alignment: usize,
    pub(crate) entries: Vec<(String, Value)>,
    pub(crate) tensors: Vec<Tensor>,
}

impl Gguf {
    /// The smallest decoder of a family that opens: one layer, two heads, F32.
    pub(crate) fn decoder(arch: &str) -> Self {
        let key = |suffix: &str| format!("{arch}.{suffix}");
        let entries = vec![
            ("general.architecture".to_owned(), Value::Str(arch.to_owned())),
            ("general.name".to_owned(), Value::Str("tiny".to_owned())),
            (key("context_length"), Value::U32(64)),
            (key("embedding_length"), Value::U32(8)),
            (key("block_count"), Value::U32(1)),
            (key("feed_forward_length"), Value::U32(8)),
            (key("attention.head_count"), Value::U32(2)),
            (key("attention.head_count_kv"), Value::U32(1)),
            (key("attention.layer_norm_rms_epsilon"), Value::F32(1e-6)),
            (key("rope.freq_base"), Value::F32(10_000.0)),
        ];
        let mut shapes: Vec<(&str, Vec<u64>)> = vec![
            ("token_embd.weight", vec![8, 4]),
            ("output_norm.weight", vec![8]),
            ("blk.0.attn_norm.weight", vec![8]),
            ("blk.0.attn_q.weight", vec![8, 8]),
            ("blk.0.attn_k.weight", vec![8, 4]),
            ("blk.0.attn_v.weight", vec![8, 4]),
            ("blk.0.attn_output.weight", vec![8, 8]),
            ("blk.0.ffn_norm.weight", vec![8]),
            ("blk.0.ffn_gate.weight", vec![8, 8]),
            ("blk.0.ffn_up.weight", vec![8, 8]),
            ("blk.0.ffn_down.weight", vec![8, 8]),
        ];
        match arch {
            "qwen2" => shapes.extend([
                ("blk.0.attn_q.bias", vec![8]),
                ("blk.0.attn_k.bias", vec![4]),
                ("blk.0.attn_v.bias", vec![4]),
            ]),
            "qwen3" => shapes.extend([
                ("blk.0.attn_q_norm.weight", vec![4]),
                ("blk.0.attn_k_norm.weight", vec![4]),
            ]),
            _ => {}
        }
        Self {
            magic: *b"GGUF",
            version: 3,
            tensor_count: None,
            entry_count: None,
            alignment: 32,
            entries,
            tensors: shapes.into_iter().map(|(name, dims)| f32_tensor(name, dims)).collect(),
        }
    }

    /// Replaces the value of a key, or adds it.
    pub(crate) fn set(mut self, key: &str, value: Value) -> Self {
        match self.entries.iter_mut().find(|(name, _)| name == key) {
            Some(entry) => entry.1 = value,
            None => self.entries.push((key.to_owned(), value)),
        }
        self
    }

    pub(crate) fn without(mut self, key: &str) -> Self {
        self.entries.retain(|(name, _)| name != key);
        self.tensors.retain(|tensor| tensor.name != key);
        self
    }

    pub(crate) fn tensor(mut self, tensor: Tensor) -> Self {
        self.tensors.push(tensor);
        self
    }

    /// Changes one tensor.
    pub(crate) fn edit(mut self, name: &str, change: impl FnOnce(&mut Tensor)) -> Self {
        change(self.tensors.iter_mut().find(|tensor| tensor.name == name).unwrap());
        self
    }

    pub(crate) fn build(&self) -> Vec<u8> {
        let mut out = self.magic.to_vec();
        out.extend(self.version.to_le_bytes());
        out.extend(self.tensor_count.unwrap_or(self.tensors.len() as u64).to_le_bytes());
        out.extend(self.entry_count.unwrap_or(self.entries.len() as u64).to_le_bytes());
        for (key, value) in &self.entries {
            write_string(&mut out, key.as_bytes());
            out.extend(value.kind().to_le_bytes());
            value.write(&mut out);
        }
        let mut end = 0;
        let mut data = Vec::new();
        for tensor in &self.tensors {
            end = usize::next_multiple_of(end, self.alignment);
            write_string(&mut out, tensor.name.as_bytes());
            out.extend((tensor.dims.len() as u32).to_le_bytes());
            tensor.dims.iter().for_each(|n| out.extend(n.to_le_bytes()));
            out.extend(tensor.kind.to_le_bytes());
            out.extend(tensor.offset.unwrap_or(end as u64).to_le_bytes());
            data.resize(end, 0);
            data.extend((0..tensor.bytes).map(|at| (at % 251) as u8));
            end = data.len();
        }
        out.resize(out.len().next_multiple_of(self.alignment), 0);
        out.extend(data);
        out
    }
}

/// An F32 tensor with the bytes that its dimensions need.
pub(crate) fn f32_tensor(name: &str, dims: Vec<u64>) -> Tensor {
    let bytes = 4 * dims.iter().product::<u64>() as usize;
    Tensor { name: name.to_owned(), dims, kind: 0, bytes, offset: None }
}

/// The JSON header and the data of a safetensors file.
pub(crate) fn safetensors(header: &str, data: &[u8]) -> Vec<u8> {
    let mut out = (header.len() as u64).to_le_bytes().to_vec();
    out.extend(header.as_bytes());
    out.extend(data);
    out
}

/// The `config.json` of the smallest llama that opens.
pub(crate) fn config_json() -> serde_json::Value {
    serde_json::json!({
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 64,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "tie_word_embeddings": true,
        "vocab_size": 4,
        "hidden_act": "silu",
        "eos_token_id": 2,
    })
}

/// The weights that belong to [`config_json`], in one file.
pub(crate) fn decoder_safetensors() -> Vec<u8> {
    let layer = |part: &str| format!("model.layers.0.{part}.weight");
    let shapes = [
        ("model.embed_tokens.weight".to_owned(), vec![4, 8]),
        ("model.norm.weight".to_owned(), vec![8]),
        (layer("input_layernorm"), vec![8]),
        (layer("self_attn.q_proj"), vec![8, 8]),
        (layer("self_attn.k_proj"), vec![4, 8]),
        (layer("self_attn.v_proj"), vec![4, 8]),
        (layer("self_attn.o_proj"), vec![8, 8]),
        (layer("post_attention_layernorm"), vec![8]),
        (layer("mlp.gate_proj"), vec![8, 8]),
        (layer("mlp.up_proj"), vec![8, 8]),
        (layer("mlp.down_proj"), vec![8, 8]),
    ];
    let mut header = serde_json::Map::new();
    header.insert("__metadata__".to_owned(), serde_json::json!({ "format": "pt" }));
    let mut end = 0;
    for (name, shape) in shapes {
        let begin = end;
        end += 4 * shape.iter().product::<usize>();
        let about =
            serde_json::json!({ "dtype": "F32", "shape": shape, "data_offsets": [begin, end] });
        header.insert(name, about);
    }
    safetensors(&serde_json::Value::Object(header).to_string(), &vec![1; end])
}
