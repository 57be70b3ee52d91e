"""How fast are embeddings here, beside `sentence-transformers` on the same cores, and are they the same?

    cargo build --release -p mintage-engine --example embed
    python embeddings.py --bin target/release/examples/embed --model FOLDER [--threads 2] [--texts 512] [--pairs 5]

Needs torch and sentence-transformers. The same texts (paragraphs of this repository's documents, and pieces of them, of
all lengths) go through both, tokenising included, in turns within one minute of each other, so that what else the machine
does falls on both; the other one is idle meanwhile. Prints texts a second of each turn, the medians, and the largest
distance (1 - cosine) between a text's two vectors.
"""

import argparse
import json
import os
import pathlib
import random
import statistics
import subprocess
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
BATCH = 32


def texts(count):
    paragraphs = []
    for path in sorted(ROOT.glob("*.md")) + sorted((ROOT / "docs").glob("*.md")):
        paragraphs += [p.strip() for p in path.read_text().split("\n\n") if len(p.strip()) > 20]
    chosen = random.Random(7)
    out = []
    while len(out) < count:
        words = chosen.choice(paragraphs).split()
        length = chosen.choice([4, 8, 16, 32, 64, 128])
        start = chosen.randrange(max(1, len(words) - length))
        out.append(" ".join(words[start : start + length]))
    return out


def unfolded(model, folder):
    """The model's files as their publisher lays them out: `1_Pooling_config.json` is `1_Pooling/config.json`."""
    laid_out = pathlib.Path(folder) / "model"
    modules = json.loads((pathlib.Path(model) / "modules.json").read_text())
    paths = {f"{module['path']}_config.json": f"{module['path']}/config.json" for module in modules if module["path"]}
    for file in pathlib.Path(model).iterdir():
        if file.is_file():
            target = laid_out / paths.get(file.name, file.name)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(file.resolve())
    return str(laid_out)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", required=True)
    parser.add_argument("--model", required=True, help="folder of a BERT model, as sentence-transformers publishes it")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--texts", type=int, default=512)
    parser.add_argument("--pairs", type=int, default=5)
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    import numpy
    import torch
    from sentence_transformers import SentenceTransformer

    torch.set_num_threads(options.threads)
    all_texts = texts(options.texts)
    with tempfile.TemporaryDirectory() as folder:
        reference = SentenceTransformer(unfolded(options.model, folder), device="cpu")
        listed, vectors = os.path.join(folder, "texts.json"), os.path.join(folder, "vectors.f32")
        pathlib.Path(listed).write_text(json.dumps(all_texts))
        command = [options.bin, options.model, listed, str(options.threads), vectors]
        ours = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

        def here():
            ours.stdin.write("\n")
            ours.stdin.flush()
            return float(ours.stdout.readline())

        def there():
            started = time.perf_counter()
            found = reference.encode(all_texts, batch_size=BATCH, normalize_embeddings=True)
            return time.perf_counter() - started, found

        here(), there()
        times = {"mintage": [], "sentence-transformers": []}
        for _ in range(options.pairs):
            times["mintage"].append(here())
            seconds, expected = there()
            times["sentence-transformers"].append(seconds)
            print("  ".join(f"{name} {options.texts / t[-1]:7.1f} texts/s" for name, t in times.items()), flush=True)
        ours.stdin.close()
        assert ours.wait() == 0
        found = numpy.fromfile(vectors, dtype="<f4").reshape(expected.shape)
    cosines = (found.astype(float) * expected.astype(float)).sum(axis=1)
    medians = {name: options.texts / statistics.median(t) for name, t in times.items()}
    tokens = sum(len(ids) for ids in reference.tokenizer(all_texts, truncation=True, max_length=256)["input_ids"])
    for name, rate in medians.items():
        print(f"{name}: median {rate:.1f} texts/s, {rate * tokens / options.texts:.0f} tokens/s")
    print(f"{medians['mintage'] / medians['sentence-transformers']:.2f} times as fast; 1 - cosine at most {1 - cosines.min():.1e}")


if __name__ == "__main__":
    main()
