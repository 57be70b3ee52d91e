"""Times our tokenizer and the package `tokenizers` on one mixed text of 1 MB, one core each, in one session.

    tokenizer_speed.py EXAMPLE MODEL        EXAMPLE is the built example `tokenizer_speed`
"""

import json
import os
import subprocess
import sys
import tempfile
import time

os.environ["RAYON_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import tokenizer as goldens  # noqa: E402  the file beside this one

ROUNDS = 7


def mixed_text(size=1_000_000):
    """Prose of several scripts, code and data: this repository's own files and the generator's strings."""
    import pathlib
    import random

    root = pathlib.Path(__file__).resolve().parents[4]
    files = sorted(p for p in root.rglob("*") if p.suffix in {".rs", ".md", ".py", ".toml"} and "target" not in p.parts)
    sources = "\n".join(p.read_text(encoding="utf-8", errors="ignore") for p in files)[: size // 2]
    rng, parts, length = random.Random(3), [sources], len(sources.encode())
    while length < size:
        part = goldens.string(rng, ["<|im_start|>", "<|im_end|>"]) + "\n"
        parts.append(part)
        length += len(part.encode())
    return "".join(parts).encode()[:size].decode("utf-8", errors="ignore")


def main(example, model):
    text = mixed_text()
    allow, _, _ = goldens.references(model)
    seconds = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        theirs = len(allow.encode(text, add_special_tokens=False).ids)
        seconds.append(time.perf_counter() - start)
    median = sorted(seconds)[ROUNDS // 2]
    with tempfile.NamedTemporaryFile("w", suffix=".txt", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        ours = json.loads(subprocess.run([example, model, file.name], stdout=subprocess.PIPE, check=True).stdout)
    assert ours["tokens"] == theirs, (ours, theirs)
    mb = len(text.encode()) / 1e6
    print(f"{model}: {mb:.2f} MB, {theirs} tokens; tokenizers {mb / median:.2f} MB/s, ours {ours['median_mb_per_s']} MB/s "
          f"(first call {ours['first_mb_per_s']}), ratio {ours['median_mb_per_s'] * median / mb:.1f}; load {ours['load_ms']} ms")


if __name__ == "__main__":
    main(*sys.argv[1:])
