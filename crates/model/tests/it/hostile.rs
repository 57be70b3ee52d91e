//! Files made to break a reader: each is refused with an error that names the place, and nothing panics.

use mintage_model::ModelFile;
use serde_json::json;

use crate::gguf_bytes::{
    Gguf, Tensor, Value, config_json, decoder_safetensors, f32_tensor, safetensors,
};

const HUGE: [u64; 6] = [1 << 31, (1 << 42) + 1, 1 << 62, 1 << 63, u64::MAX - 7, u64::MAX];

/// Opens one GGUF file from memory; the message of its error must contain every one of `parts`.
#[track_caller]
fn check(gguf: &Gguf, parts: &[&str]) {
    check_bytes(gguf.build(), parts);
}

#[track_caller]
fn check_bytes(bytes: Vec<u8>, parts: &[&str]) {
    let message = match ModelFile::from_gguf_bytes(vec![bytes]) {
        Ok(model) => panic!("opened: {:?}", model.config()),
        Err(error) => error.to_string(),
    };
    for part in parts {
        assert!(message.contains(part), "`{message}` does not contain `{part}`");
    }
}

#[test]
fn the_valid_files_open() {
    for arch in ["llama", "qwen2", "qwen3"] {
        for version in [2, 3] {
            let mut gguf = Gguf::decoder(arch);
            gguf.version = version;
            let model = ModelFile::from_gguf_bytes(vec![gguf.build()]).unwrap();
            assert_eq!(model.config().family.name(), arch);
            assert_eq!(model.gguf_version(), Some(version));
        }
    }
    let config = config_json().to_string();
    ModelFile::from_safetensors_bytes(&config, None, vec![decoder_safetensors()]).unwrap();
}

#[test]
fn counts_far_beyond_the_file() {
    for huge in HUGE {
        let mut gguf = Gguf::decoder("llama");
        gguf.tensor_count = Some(huge);
        check(&gguf, &["the tensor count", &huge.to_string(), "65536"]);
        let mut gguf = Gguf::decoder("llama");
        gguf.entry_count = Some(huge);
        check(&gguf, &["the metadata count", &huge.to_string(), "16384"]);
    }
    // Within the limits, and still more than the file has.
    let mut gguf = Gguf::decoder("llama");
    gguf.tensor_count = Some(60_000);
    check(&gguf, &["the tensor list", "1440000 bytes"]);
    let mut gguf = Gguf::decoder("llama");
    gguf.entry_count = Some(16_000);
    check(&gguf, &["the metadata", "208000 bytes"]);
}

#[test]
fn strings_and_arrays_longer_than_the_file() {
    for huge in HUGE {
        let length = huge.to_le_bytes().to_vec();
        let gguf = Gguf::decoder("llama").set("general.name", Value::Raw(8, length.clone()));
        check(&gguf, &["general.name", &huge.to_string(), "limit"]);
        for kind in 0..=12_u32 {
            let mut array = kind.to_le_bytes().to_vec();
            array.extend(&length);
            let gguf = Gguf::decoder("llama").set("tokenizer.ggml.tokens", Value::Raw(9, array));
            check(&gguf, &["tokenizer.ggml.tokens", &huge.to_string(), "limit"]);
        }
    }
    let string = Value::Raw(8, 16_000_000_u64.to_le_bytes().to_vec());
    check(&Gguf::decoder("llama").set("general.name", string), &["general.name", "cut short"]);
    let mut array = 8_u32.to_le_bytes().to_vec();
    array.extend(16_000_000_u64.to_le_bytes());
    let gguf = Gguf::decoder("llama").set("tokenizer.ggml.tokens", Value::Raw(9, array));
    check(&gguf, &["tokenizer.ggml.tokens", "128000000 bytes"]);

    let mut gguf = Gguf::decoder("llama");
    gguf.entries.push(("k".repeat(65_536), Value::U8(0)));
    check(&gguf, &["metadata key 10", "65536", "65535"]);
    let gguf = Gguf::decoder("llama").tensor(f32_tensor(&"t".repeat(257), vec![8]));
    check(&gguf, &["a tensor's name", "257", "256"]);
}

#[test]
fn nested_arrays() {
    let nest = |depth: usize| {
        (1..depth)
            .fold(Value::Array(4, vec![Value::U32(7)]), |inner, _| Value::Array(9, vec![inner]))
    };
    let open = |value: Value| {
        ModelFile::from_gguf_bytes(vec![Gguf::decoder("llama").set("x.nested", value).build()])
    };
    let model = open(nest(4)).unwrap();
    let shown = model.metadata().unwrap().get("x.nested").unwrap().to_string();
    assert_eq!(shown, "[[[[7]]]]");
    let deep = open(nest(5)).unwrap_err().to_string();
    assert!(deep.contains("x.nested") && deep.contains("the limit is 4"), "{deep}");
    let head = [9_u32.to_le_bytes().to_vec(), 1_u64.to_le_bytes().to_vec()].concat();
    let deeper = open(Value::Raw(9, head.repeat(100_000))).unwrap_err().to_string();
    assert!(deeper.contains("x.nested"), "{deeper}");

    // After an inner array, the next one is found at its own place.
    let rows = [vec!["a", "bc"], vec![], vec!["def"]].map(|row| {
        Value::Array(8, row.into_iter().map(|text| Value::Str(text.to_owned())).collect())
    });
    let model = open(Value::Array(9, rows.into())).unwrap();
    let shown = model.metadata().unwrap().get("x.nested").unwrap().to_string();
    assert_eq!(shown, r#"[["a", "bc"], [], ["def"]]"#);
}

#[test]
fn the_head_of_the_file() {
    let with = |change: fn(&mut Gguf)| {
        let mut gguf = Gguf::decoder("llama");
        change(&mut gguf);
        gguf
    };
    check_bytes(Vec::new(), &["the magic number needs 4 bytes"]);
    check_bytes(b"GGU".to_vec(), &["the magic number needs 4 bytes"]);
    check(&with(|gguf| gguf.magic = *b"GGML"), &["instead of `GGUF`"]);
    check(&with(|gguf| gguf.version = 1), &["the GGUF version is 1", "2 and 3"]);
    check(&with(|gguf| gguf.version = 4), &["the GGUF version is 4", "2 and 3"]);
    check(&with(|gguf| gguf.version = 3 << 24), &["big endian"]);
    check_bytes(b"PK\x03\x04rest".to_vec(), &["pickle", "convert"]);
    check_bytes(b"\x80\x02}q\x00".to_vec(), &["pickle", "convert"]);
}

#[test]
fn metadata_that_breaks_the_rules() {
    let valid = || Gguf::decoder("llama");
    check(&valid().set("x", Value::Raw(13, vec![0; 8])), &["the type of `x` is 13"]);
    check(&valid().set("x", Value::Raw(u32::MAX, vec![])), &["the type of `x`", "4294967295"]);
    let array = [99_u32.to_le_bytes().to_vec(), vec![0; 8]].concat();
    check(&valid().set("x", Value::Raw(9, array)), &["the element type of `x` is 99"]);
    check(&valid().set("x", Value::Raw(7, vec![2])), &["the truth value of `x` is 2"]);
    let text = [2_u64.to_le_bytes().to_vec(), vec![0xff, 0xfe]].concat();
    check(&valid().set("x", Value::Raw(8, text)), &["x is not UTF-8"]);
    let mut twice = valid();
    twice.entries.push(("general.name".to_owned(), Value::U8(1)));
    check(&twice, &["`general.name` occurs twice"]);
    for alignment in [0_u64, 3, 48, 1 << 17, 1 << 31, 1 << 63, u64::MAX] {
        let gguf = valid().set("general.alignment", Value::U64(alignment));
        check(&gguf, &["general.alignment", "power of two", &alignment.to_string()]);
    }
    let text = Value::Str("32".to_owned());
    check(&valid().set("general.alignment", text), &["general.alignment", "whole number", "32"]);
    check(&valid().set("general.alignment", Value::I32(-32)), &["general.alignment", "-32"]);
}

#[test]
fn other_alignments_open() {
    for alignment in [8_usize, 64, 4096] {
        let mut gguf = Gguf::decoder("llama");
        gguf.alignment = alignment;
        gguf = gguf.set("general.alignment", Value::U32(alignment as u32));
        let model = ModelFile::from_gguf_bytes(vec![gguf.build()]).unwrap();
        let norm = model.tensor("output_norm.weight").unwrap();
        assert_eq!(norm.data, (0..32).collect::<Vec<u8>>());
    }
}

#[test]
fn tensors_that_lie_about_their_place() {
    let valid = || Gguf::decoder("llama");
    let at =
        |offset: u64| valid().edit("blk.0.ffn_down.weight", |tensor| tensor.offset = Some(offset));
    check(&at(0), &["`token_embd.weight` and `blk.0.ffn_down.weight` overlap"]);
    check(&at(96), &["overlap"]);
    check(&at(8), &["the offset 8 of the tensor `blk.0.ffn_down.weight`", "alignment 32"]);
    check(&at(1 << 20), &["blk.0.ffn_down.weight", "cut short"]);
    for huge in [1_u64 << 31, 1 << 42, 1 << 63, u64::MAX - 31] {
        check(&at(huge), &["blk.0.ffn_down.weight"]);
    }
    let twice = valid().tensor(f32_tensor("output_norm.weight", vec![8]));
    check(&twice, &["`output_norm.weight` occurs twice"]);
}

#[test]
fn tensors_of_impossible_shape() {
    let valid = || Gguf::decoder("llama");
    let shaped = |dims: &[u64]| {
        let dims = dims.to_vec();
        valid().edit("blk.0.ffn_down.weight", |tensor| tensor.dims = dims)
    };
    check(&shaped(&[]), &["number of dimensions of the tensor `blk.0.ffn_down.weight`", "is 0"]);
    check(
        &shaped(&[1; 5]),
        &["number of dimensions of the tensor `blk.0.ffn_down.weight`", "is 5"],
    );
    check(&shaped(&[8, 0]), &["a dimension of 0"]);
    for huge in HUGE {
        check(&shaped(&[huge]), &["blk.0.ffn_down.weight"]);
        check(&shaped(&[8, huge]), &["blk.0.ffn_down.weight"]);
        check(&shaped(&[huge, huge, huge, huge]), &["blk.0.ffn_down.weight", "2^63"]);
    }
    // 2^32 · 2^32 elements wrap around to none.
    check(&shaped(&[1 << 32, 1 << 32]), &["blk.0.ffn_down.weight", "2^63"]);
    check(&shaped(&[8, 9]), &["blk.0.ffn_down.weight"]);
    check(&shaped(&[4, 16]), &["`blk.0.ffn_down.weight` has shape [16, 4]", "needs [8, 8]"]);
    check(&shaped(&[8, 4, 2]), &["`blk.0.ffn_down.weight` has shape [2, 4, 8]", "needs [8, 8]"]);
    let row = valid().edit("blk.0.ffn_down.weight", |tensor| tensor.kind = 2);
    check(&row, &["blk.0.ffn_down.weight", "no multiple of Q4_0's 32"]);
}

#[test]
fn tensor_types_that_do_not_load() {
    for kind in [4, 5, 9, 15, 16, 19, 24, 27, 28, 31, 34, 35, 39, 40, 1000, u32::MAX] {
        let gguf = Gguf::decoder("llama").edit("blk.0.attn_v.weight", |tensor| tensor.kind = kind);
        check(&gguf, &["the type of the tensor `blk.0.attn_v.weight`", &kind.to_string(), "Q4_K"]);
    }
}

#[test]
fn tensors_too_few_and_too_many() {
    for arch in ["llama", "qwen2", "qwen3"] {
        for missing in Gguf::decoder(arch).tensors.iter().map(|tensor| tensor.name.clone()) {
            let gguf = Gguf::decoder(arch).without(&missing);
            check(&gguf, &[&missing, "is missing"]);
        }
        for extra in ["blk.0.attn_output.bias", "blk.1.attn_q.weight", "blk.0.ffn_up_exps.weight"] {
            let gguf = Gguf::decoder(arch).tensor(f32_tensor(extra, vec![8]));
            check(&gguf, &[extra, "has no place", arch]);
        }
    }
    let gguf = Gguf::decoder("llama").tensor(f32_tensor("blk.0.attn_q_norm.weight", vec![4]));
    check(&gguf, &["blk.0.attn_q_norm.weight", "has no place"]);
}

#[test]
fn keys_of_wrong_type_or_value() {
    let valid = || Gguf::decoder("llama");
    let text = || Value::Str("many".to_owned());
    for key in [
        "llama.context_length",
        "llama.embedding_length",
        "llama.block_count",
        "llama.feed_forward_length",
        "llama.attention.head_count",
        "llama.attention.head_count_kv",
        "llama.attention.key_length",
        "llama.rope.dimension_count",
    ] {
        check(&valid().set(key, text()), &[key, "whole number", "\"many\" (string)"]);
        check(&valid().set(key, Value::F32(8.0)), &[key, "whole number", "8 (f32)"]);
        check(&valid().set(key, Value::I64(-1)), &[key, "whole number", "-1"]);
        check(&valid().set(key, Value::U32(0)), &[key, "between 1 and", "is 0"]);
        check(&valid().set(key, Value::U64(1 << 63)), &[key, "between 1 and"]);
        check(&valid().set(key, Value::Array(4, vec![])), &[key, "one whole number"]);
    }
    for key in ["llama.attention.layer_norm_rms_epsilon", "llama.rope.freq_base"] {
        check(&valid().set(key, text()), &[key, "floating-point", "string"]);
        check(&valid().set(key, Value::F32(f32::NAN)), &[key, "between", "NaN"]);
        check(&valid().set(key, Value::F32(f32::INFINITY)), &[key, "between", "inf"]);
        check(&valid().set(key, Value::F32(-1.0)), &[key, "between", "-1"]);
    }
    for key in ["llama.context_length", "llama.attention.layer_norm_rms_epsilon"] {
        check(&valid().without(key), &[key, "is missing"]);
    }
    let heads = |value| valid().set("llama.attention.head_count", value);
    check(&heads(Value::U32(3)), &["llama.attention.key_length", "missing"]);
    let kv = valid().set("llama.attention.head_count_kv", Value::U32(3));
    check(&kv, &["the number of key/value heads", "divisor of the 2"]);
    check(&heads(Value::U32(8)), &["the width of a head", "even"]);
    let mixed = Value::Array(4, vec![Value::U32(1), Value::U32(2)]);
    let mixed = valid().set("llama.attention.head_count_kv", mixed);
    check(&mixed, &["one whole number for all layers", "[1, 2]"]);
    let same = Value::Array(4, vec![Value::U32(1), Value::U32(1)]);
    let same = valid().set("llama.attention.head_count_kv", same);
    ModelFile::from_gguf_bytes(vec![same.build()]).unwrap();
}

#[test]
fn variants_that_would_be_computed_wrongly() {
    let valid = || Gguf::decoder("llama");
    let text = |s: &str| Value::Str(s.to_owned());
    check(&valid().set("general.architecture", text("gemma3")), &["gemma3", "qwen2, qwen3, llama"]);
    check(&valid().set("general.type", text("adapter")), &["general.type", "adapter"]);
    check(&valid().without("general.architecture"), &["general.architecture", "missing"]);
    check(&valid().set("llama.expert_count", Value::U32(8)), &["llama.expert_count", "is 8"]);
    check(&valid().set("llama.logit_scale", Value::F32(0.5)), &["llama.logit_scale", "0.5"]);
    check(&valid().set("llama.attention.causal", Value::Bool(false)), &["attention.causal"]);
    check(&valid().set("llama.rope.scaling.type", text("longrope")), &["longrope", "yarn"]);
    check(
        &valid().set("llama.rope.dimension_count", Value::U32(2)),
        &["rope.dimension_count", "4"],
    );
    check(&valid().set("llama.attention.value_length", Value::U32(2)), &["value_length", "4"]);
    let factor = valid().set("llama.rope.scaling.factor", Value::F32(0.25));
    check(&factor, &["llama.rope.scaling.factor", "between 1 and"]);
    let freqs = |dims| valid().tensor(f32_tensor("rope_freqs.weight", dims));
    check(&freqs(vec![3]), &["rope_freqs.weight", "[2]", "[3]"]);
    check(&freqs(vec![1 << 13]), &["rope_freqs.weight", "8192", "4096"]);
    let halves = Tensor { kind: 1, bytes: 4, ..f32_tensor("rope_freqs.weight", vec![2]) };
    check(&valid().tensor(halves), &["rope_freqs.weight", "F16"]);
    let both = freqs(vec![2]).set("llama.rope.scaling.factor", Value::F32(4.0));
    check(&both, &["rope_freqs.weight", "llama.rope.scaling.type"]);
}

#[test]
fn end_of_turn_ids_outside_the_vocabulary() {
    for name in ["bos", "eos", "eot", "eom"] {
        let key = format!("tokenizer.ggml.{name}_token_id");
        for id in [4, u32::MAX] {
            let gguf = Gguf::decoder("llama").set(&key, Value::U32(id));
            check(&gguf, &["_token_id", "the vocabulary's size, 4", &id.to_string()]);
        }
        check(&Gguf::decoder("llama").set(&key, Value::U64(1 << 32)), &[&key, "4294967296"]);
    }
}

#[test]
fn gguf_cut_at_every_byte() {
    let whole = Gguf::decoder("qwen2")
        .set("tokenizer.ggml.tokens", Value::Array(8, vec![Value::Str("a".to_owned()); 4]))
        .set("tokenizer.ggml.eos_token_id", Value::U32(1))
        .build();
    ModelFile::from_gguf_bytes(vec![whole.clone()]).unwrap();
    for end in 0..whole.len() {
        let cut = whole[..end].to_vec();
        assert!(ModelFile::from_gguf_bytes(vec![cut]).is_err(), "cut at {end}");
    }
}

#[test]
fn safetensors_cut_at_every_byte() {
    let (config, whole) = (config_json().to_string(), decoder_safetensors());
    for end in 0..whole.len() {
        let cut = vec![whole[..end].to_vec()];
        let opened = ModelFile::from_safetensors_bytes(&config, None, cut);
        assert!(opened.is_err(), "cut at {end}");
    }
}

#[track_caller]
fn check_safetensors(bytes: Vec<u8>, parts: &[&str]) {
    let config = config_json().to_string();
    let message = match ModelFile::from_safetensors_bytes(&config, None, vec![bytes]) {
        Ok(_) => panic!("opened"),
        Err(error) => error.to_string(),
    };
    for part in parts {
        assert!(message.contains(part), "`{message}` does not contain `{part}`");
    }
}

#[test]
fn hostile_safetensors_headers() {
    for huge in HUGE {
        let bytes = [huge.to_le_bytes().to_vec(), b"{}".to_vec()].concat();
        check_safetensors(bytes, &["the header's length", &huge.to_string()]);
    }
    check_safetensors(1_000_u64.to_le_bytes().to_vec(), &["the header needs 1000 bytes"]);
    check_safetensors(safetensors("", &[]), &["not valid JSON"]);
    check_safetensors(safetensors("[]", &[]), &["not valid JSON", "one entry per tensor"]);
    check_safetensors(safetensors("{\"a\":1}", &[]), &["not valid JSON"]);
    check_safetensors(safetensors(&"[".repeat(1 << 20), &[]), &["not valid JSON"]);
    let deep = format!("{{\"__metadata__\":{}", "{\"a\":".repeat(1 << 20));
    check_safetensors(safetensors(&deep, &[]), &["not valid JSON", "EOF"]);
    let tensor = |dtype: &str, shape: &str, offsets: &str| {
        let header =
            format!(r#"{{"t":{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}}}"#);
        safetensors(&header, &[0; 16])
    };
    check_safetensors(tensor("I64", "[2]", "[0,16]"), &["the type of the tensor `t`", "I64"]);
    check_safetensors(tensor("F8_E4M3", "[16]", "[0,16]"), &["`t`", "F8_E4M3", "BF16"]);
    check_safetensors(
        tensor("F32", "[5]", "[0,16]"),
        &["the offsets of the tensor `t`", "20 bytes"],
    );
    check_safetensors(tensor("F32", "[4]", "[16,0]"), &["the offsets of the tensor `t`"]);
    check_safetensors(tensor("F32", "[4]", "[8,24]"), &["`t`", "cut short"]);
    check_safetensors(tensor("F32", "[3]", "[0,12]"), &["the data has 16 bytes", "describes 12"]);
    check_safetensors(tensor("F32", "[1,1,1,1,4]", "[0,16]"), &["dimensions", "5"]);
    check_safetensors(tensor("F32", "[-4]", "[0,16]"), &["not valid JSON"]);
    check_safetensors(tensor("F32", "[0]", "[0,0]"), &["`t`", "a dimension of 0"]);
    for huge in HUGE {
        let offsets = format!("[{},{huge}]", huge - 16);
        check_safetensors(tensor("F32", "[4]", &offsets), &["`t`"]);
        let shape = format!("[{huge},{huge}]");
        check_safetensors(tensor("F32", &shape, "[0,16]"), &["`t`", "2^63"]);
    }
    let two = |first: &str, second: &str, offsets: &str| {
        let header = format!(
            r#"{{"{first}":{{"dtype":"F32","shape":[2],"data_offsets":[0,8]}},
                "{second}":{{"dtype":"F32","shape":[2],"data_offsets":{offsets}}}}}"#
        );
        safetensors(&header, &[0; 16])
    };
    check_safetensors(two("a", "b", "[4,12]"), &["`a` and `b` overlap"]);
    check_safetensors(two("a", "a", "[8,16]"), &["`a` occurs twice"]);
}

#[track_caller]
fn check_config(key: &str, value: serde_json::Value, parts: &[&str]) {
    let mut config = config_json();
    config[key] = value;
    let shards = vec![decoder_safetensors()];
    let message = match ModelFile::from_safetensors_bytes(&config.to_string(), None, shards) {
        Ok(model) => panic!("opened: {:?}", model.config()),
        Err(error) => error.to_string(),
    };
    for part in parts {
        assert!(message.contains(part), "`{message}` does not contain `{part}`");
    }
}

#[test]
fn config_json_that_does_not_load() {
    check_config("auto_map", json!({"AutoModel": "m.M"}), &["auto_map", "own code"]);
    check_config("model_type", json!("mistral"), &["model_type", "mistral", "qwen2, qwen3, llama"]);
    check_config("model_type", json!(["llama"]), &["model_type", "a string", "a list of 1"]);
    check_config("model_type", json!(null), &["model_type", "missing"]);
    let reward = json!(["LlamaForSequenceClassification"]);
    check_config("architectures", reward, &["architectures", "LlamaForCausalLM"]);
    let gptq = json!({"quant_method": "gptq"});
    check_config("quantization_config", gptq, &["quantization_config", "GGUF"]);
    check_config("hidden_act", json!("gelu"), &["hidden_act", "gelu", "silu"]);
    check_config("mlp_bias", json!(true), &["mlp_bias"]);
    check_config("partial_rotary_factor", json!(0.5), &["partial_rotary_factor"]);
    for key in ["hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size"] {
        check_config(key, json!("8"), &[key, "whole number", "\"8\""]);
        check_config(key, json!(1.5), &[key, "whole number", "1.5"]);
        check_config(key, json!(-8), &[key, "whole number", "-8"]);
        check_config(key, json!(0), &[key, "between 1 and", "is 0"]);
        check_config(key, json!(u64::MAX), &[key, "between 1 and"]);
        check_config(key, json!(null), &[key, "missing"]);
    }
    check_config("rope_theta", json!("big"), &["rope_theta", "a number"]);
    check_config("rope_theta", json!(0), &["rope_theta", "between"]);
    check_config("tie_word_embeddings", json!(false), &["lm_head.weight", "is missing"]);
    check_config("vocab_size", json!(5), &["model.embed_tokens.weight", "[4, 8]", "[5, 8]"]);
    check_config("eos_token_id", json!(4), &["eos_token_id", "vocabulary's size, 4"]);
    check_config("eos_token_id", json!([1, "x"]), &["eos_token_id", "a token id"]);
    check_config("eos_token_id", json!(vec![1; 65]), &["eos_token_id", "at most 64"]);
}

#[test]
fn a_tied_head_ignores_its_stored_copy() {
    let head = r#""lm_head.weight":{"dtype":"F32","shape":[4,8],"data_offsets":[0,128]}"#;
    let with_head = |shape: &str| {
        let copy = safetensors(&format!("{{{}}}", head.replace("[4,8]", shape)), &[0; 128]);
        let open = |tied: serde_json::Value| {
            let mut config = config_json();
            config["tie_word_embeddings"] = tied;
            let shards = vec![decoder_safetensors(), copy.clone()];
            let model = ModelFile::from_safetensors_bytes(&config.to_string(), None, shards)?;
            Ok(model.weights()?.output.is_some())
        };
        [json!(true), json!(false), json!(null)].map(open)
    };
    let opened = |opened: [Result<bool, mintage_model::ModelError>; 3]| opened.map(Result::ok);
    assert_eq!(opened(with_head("[4,8]")), [Some(false), Some(true), Some(true)]);
    assert_eq!(opened(with_head("[8,4]")), [Some(false), None, None]);
}

#[test]
fn messages_stay_short_whatever_the_file_says() {
    let long = "x".repeat(1 << 20);
    let short = |opened: Result<ModelFile, mintage_model::ModelError>| {
        let message = opened.unwrap_err().to_string();
        assert!(message.contains("xxx") && message.len() < 500, "{} bytes", message.len());
    };
    let text = Value::Str(long.clone());
    for key in ["general.architecture", "general.type", "llama.block_count", "general.alignment"] {
        let gguf = Gguf::decoder("llama").set(key, text.clone());
        short(ModelFile::from_gguf_bytes(vec![gguf.build()]));
    }
    for key in ["model_type", "hidden_size", "architectures", "hidden_act", "eos_token_id"] {
        let mut config = config_json();
        config[key] = if key == "architectures" { json!([long]) } else { json!(long) };
        let shards = vec![decoder_safetensors()];
        short(ModelFile::from_safetensors_bytes(&config.to_string(), None, shards));
    }
    let config = config_json().to_string();
    for header in [
        format!(r#"{{"t":{{"{long}":1}}}}"#),
        format!(r#"{{"t":{{"dtype":"{long}","shape":[1],"data_offsets":[0,4]}}}}"#),
    ] {
        let shards = vec![safetensors(&header, &[0; 4])];
        short(ModelFile::from_safetensors_bytes(&config, None, shards));
    }
}

#[test]
fn a_sliding_window_bounds_the_context() {
    let key = "llama.attention.sliding_window";
    for (window, context) in [(0, 64), (16, 16), (100, 64)] {
        let gguf = Gguf::decoder("llama").set(key, Value::U32(window));
        let model = ModelFile::from_gguf_bytes(vec![gguf.build()]).unwrap();
        assert_eq!(model.config().context_length, context);
    }
    let open = |changes: serde_json::Value| {
        let mut config = config_json();
        for (key, value) in changes.as_object().unwrap() {
            config[key] = value.clone();
        }
        let shards = vec![decoder_safetensors()];
        let model = ModelFile::from_safetensors_bytes(&config.to_string(), None, shards).unwrap();
        model.config().context_length
    };
    assert_eq!(open(json!({"sliding_window": 16})), 64);
    assert_eq!(open(json!({"sliding_window": 16, "use_sliding_window": false})), 64);
    assert_eq!(open(json!({"sliding_window": 16, "use_sliding_window": true})), 16);
    let late = json!({"sliding_window": 16, "use_sliding_window": true, "max_window_layers": 1});
    assert_eq!(open(late), 64);
    assert_eq!(open(json!({"sliding_window": 16, "layer_types": ["sliding_attention"]})), 16);
    assert_eq!(open(json!({"sliding_window": 16, "layer_types": ["full_attention"]})), 64);
}

#[test]
fn rope_scaling_that_does_not_load() {
    let key = "rope_scaling";
    check_config(key, json!("yarn"), &["rope_scaling", "an object"]);
    check_config(key, json!({"type": "dynamic", "factor": 2}), &["rope_scaling.type", "dynamic"]);
    check_config(key, json!({"factor": 2}), &["rope_scaling.type", "linear, yarn, llama3"]);
    check_config(key, json!({"rope_type": "linear"}), &["rope_scaling.factor", "missing"]);
    let zero = json!({"rope_type": "linear", "factor": 0});
    check_config(key, zero, &["rope_scaling.factor", "between 1 and"]);
    let truncate = json!({"rope_type": "yarn", "factor": 2, "truncate": false});
    check_config(key, truncate, &["rope_scaling.truncate"]);
    let llama3 = json!({"rope_type": "llama3", "factor": 8, "low_freq_factor": 4,
        "high_freq_factor": 1, "original_max_position_embeddings": 8192});
    check_config(key, llama3, &["rope_scaling.high_freq_factor", "above"]);
    let layers = json!({"full_attention": {"rope_type": "default", "rope_theta": 1e4}});
    check_config("rope_parameters", layers, &["rope_parameters.type"]);
}

#[test]
fn the_fuzz_seeds_open() {
    let seeds = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/seeds");
    let read = |folder: &str| {
        let files = std::fs::read_dir(seeds.join(folder)).unwrap();
        files.map(|file| std::fs::read(file.unwrap().path()).unwrap()).collect::<Vec<_>>()
    };
    for bytes in read("gguf") {
        ModelFile::from_gguf_bytes(vec![bytes]).unwrap();
    }
    for bytes in read("safetensors") {
        let parts = bytes.splitn(2, |&byte| byte == 0).collect::<Vec<_>>();
        let (config, weights) = match parts[..] {
            [config, weights] if config.starts_with(b"{") => (config, weights),
            _ => (config_json().to_string().leak().as_bytes(), bytes.as_slice()),
        };
        let config = std::str::from_utf8(config).unwrap();
        ModelFile::from_safetensors_bytes(config, Some(config), vec![weights.to_vec()]).unwrap();
    }
}
