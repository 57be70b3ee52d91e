"""Writes `dequantised.tsv`: for tensors of real model files, the SHA-256 of what the `gguf` package dequantises (f32,
little endian).

    pip install gguf numpy && python hash_dequantised.py FOLDER

Of each file and element type, the first and the last tensor are taken, and of each tensor at most MAX_ROWS rows.
"""

import hashlib
import pathlib
import sys

import numpy as np
from gguf import GGUFReader, quants

MAX_ROWS = 2048


def main() -> None:
    lines = []
    for path in sorted(pathlib.Path(sys.argv[1]).glob("*.gguf")):
        tensors = GGUFReader(path).tensors
        for kind in sorted({t.tensor_type for t in tensors}):
            of_kind = [t for t in tensors if t.tensor_type == kind]
            for tensor in {t.name: t for t in (of_kind[0], of_kind[-1])}.values():
                data = tensor.data if tensor.data.ndim > 1 else tensor.data.reshape(1, -1)
                values = quants.dequantize(data[:MAX_ROWS], kind).astype("<f4")
                digest = hashlib.sha256(values.tobytes()).hexdigest()
                lines.append(f"{path.name}\t{tensor.name}\t{kind.name}\t{values.shape[0]}\t{digest}")
    target = pathlib.Path(__file__).parent / "dequantised.tsv"
    target.write_text("file\ttensor\ttype\trows\tsha256\n" + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
