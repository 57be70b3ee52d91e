"""Writes the dequantisation goldens: for each format NAME, `NAME.bin` = blocks as a file stores them, then what the
`gguf` package makes of them (f32, little endian).

    pip install gguf numpy && python dequantise.py

Blocks are random bytes; their f16 scales cycle through ordinary, huge, subnormal, negative and zero values.
"""

import pathlib

import numpy as np
from gguf import GGMLQuantizationType, quants
from gguf.constants import GGML_QUANT_SIZES

# Byte offsets of the f16 scales in one block.
SCALES = {
    "Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0], "Q2_K": [80, 82], "Q3_K": [108],
    "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208], "IQ4_NL": [0], "IQ4_XS": [0], "F16": [0], "BF16": [],
}
VALUES = np.array([0.01, -0.37, 65504.0, 2.0**-24, -3.0 * 2.0**-24, 0.0, -0.0, 1.5], dtype=np.float16)


def main() -> None:
    rng = np.random.default_rng(20)
    here = pathlib.Path(__file__).parent
    for name, offsets in SCALES.items():
        kind = GGMLQuantizationType[name]
        length, size = GGML_QUANT_SIZES[kind]
        count = len(VALUES) if length > 1 else 64
        blocks = rng.integers(0, 256, size=(count, size), dtype=np.uint8)
        for place, offset in enumerate(offsets):
            scales = np.roll(VALUES, place) if length > 1 else np.resize(VALUES, count)
            blocks[:, offset : offset + 2] = scales.view(np.uint8).reshape(-1, 2)[:count]
        if name == "BF16":
            blocks[:, 1] &= 0xBF  # no infinity, no NaN
        values = quants.dequantize(blocks.reshape(1, -1), kind).astype("<f4")
        assert np.isfinite(values).all(), name
        (here / f"{name}.bin").write_bytes(blocks.tobytes() + values.tobytes())


if __name__ == "__main__":
    main()
