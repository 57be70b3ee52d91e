"""Golden of a reranker: a tiny random Qwen3 with a vocabulary of its own, and the scores of pairs.

    pip install torch transformers tokenizers safetensors
    python make_reranker.py

Writes `qwen3-reranker/`: a folder as `sentence-transformers` publishes one (`modules.json`, `1_LogitScore/config.json`),
and `pairs.json`: queries, documents and the scores that `transformers` computed in float32, the way the card of
Qwen3-Reranker computes them.
"""

import json
import pathlib
import shutil

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

HERE = pathlib.Path(__file__).resolve().parent
PATTERN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
MERGES = [("y", "e"), ("ye", "s"), ("n", "o"), ("e", "r"), ("t", "h"), ("i", "n"), ("Ġ", "th"), ("in", "g")]
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
PLAIN = ["<think>", "</think>"]
PREFIX = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct provided. "
    'Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n'
)
SUFFIX = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
INSTRUCTION = "Given a web search query, retrieve relevant passages that answer the query"
PAIRS = {
    "What is the capital of China?": [
        "The capital of China is Beijing.",
        "Gravity pulls two bodies towards each other.",
        "yes",
        "",
        "北京是中国的首都。",
    ],
    "Does <|im_end|> end anything?": ["No: <|im_start|> is a text here, and <think> is one.", "  two  spaces\n\nand lines\n"],
}
INSTRUCTED = "Retrieve code that does what the query asks"


def tokenizer():
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = letters + [first + second for first, second in MERGES]
    made = Tokenizer(models.BPE({token: number for number, token in enumerate(tokens)}, MERGES))
    made.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(PATTERN), "isolated")
    made.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    made.add_tokens([AddedToken(token, special=False, normalized=False) for token in PLAIN])
    return made


def main():
    torch.manual_seed(20_272)
    folder = HERE / "qwen3-reranker"
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "1_LogitScore").mkdir(parents=True)
    made = tokenizer()
    fast = PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    fast.save_pretrained(folder)
    yes, no = made.token_to_id("yes"), made.token_to_id("no")
    config = Qwen3Config(
        vocab_size=made.get_vocab_size(),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        tie_word_embeddings=True,
        max_position_embeddings=1024,
        bos_token_id=None,
        eos_token_id=made.token_to_id("<|im_end|>"),
        rope_parameters=dict(rope_type="default", rope_theta=1_000_000.0),
    )
    config._attn_implementation = "eager"
    model = Qwen3ForCausalLM(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            drawn = torch.randn(parameter.shape)
            if "norm" in name:
                drawn = 1.0 + 0.2 * drawn
            elif "embed" in name:
                drawn = 0.3 * drawn
            else:
                drawn = 1.5 * drawn / parameter.shape[1] ** 0.5
            parameter.copy_(drawn.bfloat16().float())
    stored = Qwen3ForCausalLM(config)
    stored.load_state_dict(model.state_dict())
    stored.to(torch.bfloat16).save_pretrained(folder)
    modules = [("", "sentence_transformers.base.modules.transformer.Transformer"),
               ("1_LogitScore", "sentence_transformers.cross_encoder.modules.logit_score.LogitScore")]
    listed = [{"idx": number, "name": str(number), "path": path, "type": kind}
              for number, (path, kind) in enumerate(modules)]
    (folder / "modules.json").write_text(json.dumps(listed, indent=1) + "\n")
    score = {"true_token_id": yes, "false_token_id": no}
    (folder / "1_LogitScore/config.json").write_text(json.dumps(score) + "\n")

    # Texts of a pair are texts: their control tokens are none.
    plain = tokenizer_without_specials()
    pairs = []
    for instruction in (INSTRUCTION, INSTRUCTED):
        for query, documents in PAIRS.items():
            scores, counts = [], []
            for document in documents:
                middle = f"<Instruct>: {instruction}\n<Query>: {query}\n<Document>: {document}"
                ids = made.encode(PREFIX).ids + plain.encode(middle).ids + made.encode(SUFFIX).ids
                with torch.no_grad():
                    logits = model(torch.tensor([ids]), use_cache=False).logits[0, -1].float()[[no, yes]]
                scores.append(torch.softmax(logits, dim=0)[1].item())
                counts.append(len(ids))
            pairs.append({"instruction": instruction if instruction != INSTRUCTION else None, "query": query,
                          "documents": documents, "scores": scores, "tokens": counts})
    spread = [score for pair in pairs for score in pair["scores"]]
    assert max(spread) - min(spread) > 0.1, spread
    (folder / "pairs.json").write_text(json.dumps(pairs, indent=1, ensure_ascii=False) + "\n")


def tokenizer_without_specials():
    described = json.loads(tokenizer().to_str())
    described["added_tokens"] = []
    return Tokenizer.from_str(json.dumps(described))


if __name__ == "__main__":
    main()
