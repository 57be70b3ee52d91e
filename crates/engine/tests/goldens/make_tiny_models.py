"""Tiny random models and their logits, made by `transformers`: the goldens of the forward pass.

    pip install torch transformers safetensors gguf
    python make_tiny_models.py            # writes one folder per model beside this script

Each folder holds the same decoder as safetensors (`config.json`, ...) and as GGUF, the tokens it was run on, and the
logits that `transformers` computed in float32 (`logits.f32`: little endian, one row of the vocabulary per entry of
`positions`). Weights are rounded to the narrower type before the logits are computed, so both containers hold exactly
the same numbers. They are drawn wide enough for attention to be sharp: a wrong rope moves the logits by far more than
the tolerance, which this script asserts.
"""

import copy
import json
import pathlib
import shutil

import gguf
import numpy as np
import torch
import transformers
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

HERE = pathlib.Path(__file__).resolve().parent
VOCAB = 256
TOKENS = 112
POSITIONS = [*range(0, 8), *range(8, 104, 6), *range(104, TOKENS)]
COMMON = dict(
    vocab_size=VOCAB,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=3,
    bos_token_id=1,
    eos_token_id=2,
    pad_token_id=None,
)
LLAMA3 = dict(
    rope_type="llama3",
    rope_theta=500_000.0,
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=64,
)

# name: (class, config, type the weights are stored in, type of the GGUF file, old spelling of config.json?)
MODELS = {
    "qwen2-tied": (
        Qwen2ForCausalLM,
        Qwen2Config(
            **COMMON,
            num_attention_heads=4,
            num_key_value_heads=2,
            tie_word_embeddings=True,
            max_position_embeddings=256,
            rope_parameters=dict(rope_type="default", rope_theta=1_000_000.0),
        ),
        torch.float16,
        "F16",
        True,
    ),
    "qwen2-yarn": (
        Qwen2ForCausalLM,
        Qwen2Config(
            **COMMON,
            num_attention_heads=2,
            num_key_value_heads=1,
            tie_word_embeddings=False,
            max_position_embeddings=32,
            rope_parameters=dict(
                rope_type="yarn",
                rope_theta=10_000.0,
                factor=4.0,
                original_max_position_embeddings=32,
            ),
        ),
        torch.float16,
        "F16",
        True,
    ),
    "qwen3": (
        Qwen3ForCausalLM,
        Qwen3Config(
            **COMMON,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=16,
            tie_word_embeddings=True,
            max_position_embeddings=256,
            rope_parameters=dict(rope_type="default", rope_theta=1_000_000.0),
        ),
        torch.bfloat16,
        "BF16",
        False,
    ),
    "llama3": (
        LlamaForCausalLM,
        LlamaConfig(
            **COMMON,
            num_attention_heads=2,
            num_key_value_heads=1,
            tie_word_embeddings=False,
            max_position_embeddings=512,
            rope_parameters=LLAMA3,
        ),
        torch.float32,
        "F32",
        False,
    ),
    "llama-linear": (
        LlamaForCausalLM,
        LlamaConfig(
            **COMMON,
            num_attention_heads=4,
            num_key_value_heads=4,
            tie_word_embeddings=False,
            max_position_embeddings=128,
            rms_norm_eps=1e-5,
            rope_parameters=dict(rope_type="linear", rope_theta=10_000.0, factor=4.0),
        ),
        torch.float16,
        "F16",
        True,
    ),
}


def randomise(model, dtype):
    """Draws every parameter; matrices keep the scale of their input, norms stay near 1."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            drawn = torch.randn(parameter.shape)
            if name.endswith("norm.weight"):
                drawn = 1.0 + 0.2 * drawn
            elif name.endswith("bias"):
                drawn = 0.5 * drawn
            elif "embed_tokens" in name:
                pass
            elif "q_proj" in name or "k_proj" in name:
                drawn = 2.0 * drawn / parameter.shape[1] ** 0.5
            else:
                drawn = drawn / parameter.shape[1] ** 0.5
            parameter.copy_(drawn.to(dtype).float())


def run(model, tokens):
    with torch.no_grad():
        return model(torch.tensor([tokens]), use_cache=False).logits[0].float()


def old_spelling(path):
    """Rewrites `config.json` as Qwen and Llama publish it: `rope_theta`, `rope_scaling`, `torch_dtype`."""
    config = json.loads(path.read_text())
    rope = config.pop("rope_parameters")
    config["rope_theta"] = rope.pop("rope_theta")
    kind = rope.pop("rope_type")
    config["rope_scaling"] = None if kind == "default" else {"type": kind, **rope}
    config["torch_dtype"] = config.pop("dtype")
    path.write_text(json.dumps(config, indent=2) + "\n")


GGUF_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def gguf_name(name):
    fixed = {
        "model.embed_tokens.weight": "token_embd.weight",
        "model.norm.weight": "output_norm.weight",
        "lm_head.weight": "output.weight",
    }
    if name in fixed:
        return fixed[name]
    layer, rest = name.removeprefix("model.layers.").split(".", 1)
    part, end = rest.rsplit(".", 1)
    return f"blk.{layer}.{GGUF_NAMES[part]}.{end}"


def permute(weights, heads):
    """Halves to pairs: element i of each half of a head goes to 2 i and 2 i + 1, as GGUF has Llama's Q and K."""
    rows = weights.shape[0]
    halves = weights.reshape(heads, 2, rows // heads // 2, *weights.shape[1:])
    return halves.swapaxes(1, 2).reshape(weights.shape)


def llama3_factors(rope, head_dim):
    """The divisor of each frequency, by the piecewise rule of Llama 3.1."""
    original = rope["original_max_position_embeddings"]
    low, high = original / rope["low_freq_factor"], original / rope["high_freq_factor"]
    factors = []
    for i in range(0, head_dim, 2):
        wavelength = 2 * np.pi * rope["rope_theta"] ** (i / head_dim)
        if wavelength < high:
            factors.append(1.0)
        elif wavelength > low:
            factors.append(rope["factor"])
        else:
            smooth = (original / wavelength - rope["low_freq_factor"]) / (
                rope["high_freq_factor"] - rope["low_freq_factor"]
            )
            factors.append(1.0 / ((1.0 - smooth) / rope["factor"] + smooth))
    return np.array(factors, dtype=np.float32)


def write_keys(writer, config, head_dim):
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    if head_dim * config.num_attention_heads != config.hidden_size:
        writer.add_key_length(head_dim)
        writer.add_value_length(head_dim)
    if config.model_type == "llama":
        writer.add_rope_dimension_count(head_dim)
    rope = config.rope_parameters
    if rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    if rope["rope_type"] == "yarn":
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(rope["factor"])
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    writer.add_tokenizer_model("none")
    writer.add_bos_token_id(config.bos_token_id)
    writer.add_eos_token_id(config.eos_token_id)


def write_gguf(model, config, kind, path, split):
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer = gguf.GGUFWriter(path, config.model_type, split_max_tensors=20 if split else 0)
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name(f"tiny {config.model_type}")
    write_keys(writer, config, head_dim)
    if config.rope_parameters["rope_type"] == "llama3":
        writer.add_tensor("rope_freqs.weight", llama3_factors(config.rope_parameters, head_dim))
    for name, parameter in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        weights = parameter.float().numpy()
        if config.model_type == "llama" and "q_proj" in name:
            weights = permute(weights, config.num_attention_heads)
        if config.model_type == "llama" and "k_proj" in name:
            weights = permute(weights, config.num_key_value_heads)
        stored = gguf.GGMLQuantizationType[kind if weights.ndim == 2 else "F32"]
        writer.add_tensor(gguf_name(name), gguf.quants.quantize(weights, stored), raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def check_sensitivity(cls, model, config, tokens, logits):
    """A forward pass that ignored the scaling, or rotated the other way, must not pass for correct."""
    wrong = copy.deepcopy(config)
    kind = config.rope_parameters["rope_type"]
    theta = config.rope_parameters["rope_theta"]
    wrong.rope_parameters = dict(rope_type="default", rope_theta=theta if kind != "default" else theta * 2)
    other = cls(wrong).eval()
    other.load_state_dict(model.state_dict())
    moved = (run(other, tokens) - logits).abs().amax(dim=1)[POSITIONS[4:]]
    assert moved.min() > 1e-2, f"the goldens would not notice a wrong rope: {moved.min()}"
    return moved.median().item()


def check_reloaded(folder, tokens, logits, **how):
    reloaded = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", **how
    ).eval()
    difference = (run(reloaded, tokens) - logits).abs().max().item()
    assert difference < 1e-4, f"{folder} {how} gives other logits: {difference}"
    return difference


def make(number, name, cls, config, dtype, kind, old):
    torch.manual_seed(20_260 + number)
    folder = HERE / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    config._attn_implementation = "eager"
    model = cls(config).eval()
    randomise(model, dtype)
    tokens = torch.randint(0, VOCAB, (TOKENS,)).tolist()
    logits = run(model, tokens)
    moved = check_sensitivity(cls, model, config, tokens, logits)

    stored = copy.deepcopy(model)
    if name in ("qwen3", "llama-linear"):
        stored = stored.to(dtype)
    stored.generation_config.eos_token_id = [2, 3]
    stored.save_pretrained(folder, max_shard_size="36KB" if name == "llama-linear" else "10MB")
    if old:
        old_spelling(folder / "config.json")
    write_gguf(model, config, kind, folder / f"{name}.gguf", split=name == "llama3")
    reloaded = check_reloaded(folder, tokens, logits)

    logits[POSITIONS].numpy().astype("<f4").tofile(folder / "logits.f32")
    about = dict(transformers=transformers.__version__, torch=torch.__version__)
    sequence = dict(made_by=about, vocab_size=VOCAB, tokens=tokens, positions=POSITIONS)
    (folder / "sequence.json").write_text(json.dumps(sequence) + "\n")
    size = sum(file.stat().st_size for file in folder.iterdir())
    print(f"{name:14} {size:8} bytes  reloaded {reloaded:.1e}  wrong rope moves logits by {moved:.2f}")


if __name__ == "__main__":
    for number, (name, arguments) in enumerate(MODELS.items()):
        make(number, name, *arguments)
