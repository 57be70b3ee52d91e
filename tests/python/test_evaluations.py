"""lm-eval and aiperf, as published, against the real server; see `evaluations.py`."""

import os
import pathlib
import subprocess
import sys

import pytest

from conftest import BINARY, MODEL_FILE, MODELS

HERE = pathlib.Path(__file__).resolve().parent
TOOLS = os.environ.get("MINTAGE_TEST_TOOLS")
# Any will do: prompts are made up with it, and counted by the server.
TOKENIZER = HERE.parent.parent / "crates/engine/tests/goldens/qwen3-reranker"


@pytest.mark.skipif(not (BINARY and MODELS and TOOLS), reason="MINTAGE_BIN, …_MODELS or …_TOOLS is not set")
def test_their_sums_are_ours():
    model = os.path.join(MODELS, MODEL_FILE)
    command = [sys.executable, HERE / "evaluations.py", "--bin", BINARY, "--model", model, "--tools", TOOLS,
               "--tokenizer", TOKENIZER]
    done = subprocess.run(command, text=True, capture_output=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
