"""lm-eval and aiperf, as published, against the real server; see `evaluations.py`."""

import os
import pathlib
import subprocess
import sys

import pytest

HERE = pathlib.Path(__file__).resolve().parent
BINARY, MODELS = os.environ.get("MINTAGE_BIN"), os.environ.get("MINTAGE_TEST_MODELS")
TOOLS = os.environ.get("MINTAGE_TEST_TOOLS")
# Any will do: prompts are made up with it, and counted by the server.
TOKENIZER = HERE.parent.parent / "crates/engine/tests/goldens/qwen3-reranker"


@pytest.mark.skipif(not (BINARY and MODELS and TOOLS), reason="MINTAGE_BIN, …_MODELS or …_TOOLS is not set")
def test_their_sums_are_ours():
    model = os.path.join(MODELS, "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf")
    command = [sys.executable, HERE / "evaluations.py", "--bin", BINARY, "--model", model, "--tools", TOOLS,
               "--tokenizer", TOKENIZER]
    done = subprocess.run(command, text=True, capture_output=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
