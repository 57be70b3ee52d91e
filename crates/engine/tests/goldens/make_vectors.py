"""Goldens of vectors: a tiny random BERT with a tokenizer, hidden states and scores of the tiny Qwen3, and all-MiniLM.

    pip install torch transformers tokenizers safetensors sentence-transformers
    python make_vectors.py [FOLDER OF all-MiniLM-L6-v2]

Run `make_tiny_models.py` first: `qwen3` is read here. What is written: `bert/` (a model with what `sentence-transformers`
writes beside it, `texts.json` with the ids that `tokenizers` gives, `sequences.json` and the vectors that `transformers`
computed in float32 with either pooling), `qwen3-embedding/` (the same weights as `qwen3`, saved without a head, as
Qwen3-Embedding is published), `qwen3/vectors.*`, and, with an argument, `minilm/` (texts and their vectors).
"""

import copy
import json
import pathlib
import shutil
import sys

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import AutoModelForCausalLM, BertConfig, BertModel, Qwen3Model

HERE = pathlib.Path(__file__).resolve().parent
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
WORDS = ["the", "embed", "ding", "##ding", "##s", "un", "##believ", "##able", "cafe", "strasse", "##ß", "##e"]
OTHERS = list("!?.,-_'\"()[]{}#$%&*+/:;<=>@\\^`|~«»—…、。") + list("中文字漢語に日") + ["д", "##д", "α", "##ς", "##σ", "ı", "i̇"]
TEXTS = [
    "",
    "   \t\n ",
    "The embeddings are unbelievable!",
    "Café STRASSE straße naïve",
    "中文字漢語 mixed中文with語latin",
    "に日 か",
    "a.b,c--d_e 'quoted' [SEP] [CLS]x",
    "zero\u200bwidth\u00adsoft\ufffdbad\x00nul\x07bell",
    "non\u00a0breaking\u2003em\u3000wide",
    "don't stop; e-mail@example.com $5.00 + 3% ~tilde^",
    "ΑΣ ΣΑΣ д ДД İstanbul",
    "e\u0301 combining e\u0301\u0302",
    "x" * 100 + " " + "x" * 101,
    "\U0001f600 emoji \U0001f469\u200d\U0001f4bb",
    "\u2581 \u00b4 \u02c6 \u00a8 \u20ac \u00a7 \u00b6",
    "«guillemets» — dash … dots",
    "\ue000private \U00020000ideograph \U0002f800compat \u3400ext",
    "tab\tnew\nline\rreturn\x0bvertical\x0cform\x1cfs\x85nel",
]
LENGTHS = [1, 2, 3, 15, 16, 17, 31, 40, 64]


def tokenizer():
    tokens = SPECIAL + list(LETTERS) + ["##" + letter for letter in LETTERS] + WORDS + OTHERS
    vocab = {token: number for number, token in enumerate(dict.fromkeys(tokens))}
    made = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]", max_input_chars_per_word=100))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    ends = [(token, vocab[token]) for token in ("[CLS]", "[SEP]")]
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ends
    )
    return made, len(vocab)


def write_vectors(path, vectors):
    torch.stack(vectors).float().numpy().astype("<f4").tofile(path)


def randomise(model):
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            drawn = torch.randn(parameter.shape)
            if "LayerNorm.weight" in name:
                drawn = 1.0 + 0.2 * drawn
            elif name.endswith("bias"):
                drawn = 0.5 * drawn
            elif "query" in name or "key" in name:
                drawn = 2.0 * drawn / parameter.shape[1] ** 0.5
            elif "embeddings" not in name:
                drawn = drawn / parameter.shape[1] ** 0.5
            parameter.copy_(drawn.half().float())


def make_bert():
    torch.manual_seed(20_270)
    folder = HERE / "bert"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    made, vocab_size = tokenizer()
    made.save(str(folder / "tokenizer.json"))
    ids = [{"text": text, "ids": made.encode(text, add_special_tokens=False).ids} for text in TEXTS]
    (folder / "texts.json").write_text(json.dumps(ids, indent=0) + "\n")
    config = BertConfig(
        vocab_size=vocab_size,
        hidden_size=40,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=72,
        max_position_embeddings=64,
        type_vocab_size=2,
    )
    config._attn_implementation = "eager"
    model = BertModel(config).eval()
    randomise(model)
    model.half().save_pretrained(folder)
    model.float()
    (folder / "modules.json").write_text(
        json.dumps(
            [
                {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
                {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
                {"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"},
            ]
        )
        + "\n"
    )
    (folder / "1_Pooling_config.json").write_text(
        json.dumps({"word_embedding_dimension": 40, "pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True})
        + "\n"
    )
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 48}) + "\n")
    sequences = [torch.randint(0, vocab_size, (length,)).tolist() for length in LENGTHS]
    (folder / "sequences.json").write_text(json.dumps(sequences) + "\n")
    with torch.no_grad():
        states = [model(torch.tensor([tokens])).last_hidden_state[0] for tokens in sequences]
    unit = lambda vector: torch.nn.functional.normalize(vector, dim=0)
    write_vectors(folder / "mean.f32", [unit(state.mean(dim=0)) for state in states])
    write_vectors(folder / "first.f32", [unit(state[0]) for state in states])


def make_qwen3():
    torch.manual_seed(20_271)
    source, folder = HERE / "qwen3", HERE / "qwen3-embedding"
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32, attn_implementation="eager").eval()
    shutil.rmtree(folder, ignore_errors=True)
    # A copy: converting rounds the rope's frequencies too.
    headless: Qwen3Model = copy.deepcopy(model.model)
    headless.to(torch.bfloat16).save_pretrained(folder)
    sequences = [torch.randint(0, 256, (length,)).tolist() for length in (1, 5, 32, 33, 100)]
    yes, no = 17, 93
    vectors, scores = [], []
    with torch.no_grad():
        for tokens in sequences:
            out = model(torch.tensor([tokens]), output_hidden_states=True, use_cache=False)
            vectors.append(torch.nn.functional.normalize(out.hidden_states[-1][0, -1].float(), dim=0))
            pair = out.logits[0, -1].float()[[no, yes]]
            scores.append(torch.softmax(pair, dim=0)[1].reshape(1))
    about = dict(sequences=sequences, yes=yes, no=no)
    (source / "vectors.json").write_text(json.dumps(about) + "\n")
    write_vectors(source / "vectors.f32", vectors)
    write_vectors(source / "scores.f32", scores)


def make_minilm(model):
    from sentence_transformers import SentenceTransformer

    texts = [
        "A man is eating food.",
        "The girl is carrying a baby.",
        "Mintage is an open, self-hosted AI cloud in one binary: every token is counted, priced and recorded.",
        "fn main() { println!(\"{}\", 6 * 7); }",
        "今天天气很好，我们去公园吧。",
        "Émile naïvely résumé'd — at the café… 50% off!",
        "x",
        "word " * 200,
    ]
    folder = HERE / "minilm"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    reference = SentenceTransformer(model, device="cpu")
    write_vectors(folder / "vectors.f32", [torch.tensor(row) for row in reference.encode(texts, batch_size=1)])
    (folder / "texts.json").write_text(json.dumps(texts, indent=0) + "\n")


if __name__ == "__main__":
    make_bert()
    make_qwen3()
    if len(sys.argv) > 1:
        make_minilm(sys.argv[1])
