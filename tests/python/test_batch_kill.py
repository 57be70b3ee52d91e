"""A few kills of the real server in the middle of a batch; `batch_kill.py` by hand does thousands of lines."""

import os
import subprocess
import sys

import pytest

HERE = os.path.dirname(__file__)
BINARY, MODELS = os.environ.get("MINTAGE_BIN"), os.environ.get("MINTAGE_TEST_MODELS")


@pytest.mark.skipif(not (BINARY and MODELS), reason="MINTAGE_BIN or MINTAGE_TEST_MODELS is not set")
def test_each_line_is_answered_and_billed_once():
    model = os.path.join(MODELS, "smollm2-135m-instruct-q4_1.gguf")
    command = [sys.executable, os.path.join(HERE, "batch_kill.py"), "--bin", BINARY, "--model", model,
               "--lines", "100", "--kills", "4", "--life", "1"]
    done = subprocess.run(command, text=True, capture_output=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
