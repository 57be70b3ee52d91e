"""A short soak on a small model; `soak.py` by hand runs the long one."""

import os
import subprocess
import sys

import pytest

HERE = os.path.dirname(__file__)
BINARY, MODELS = os.environ.get("MINTAGE_BIN"), os.environ.get("MINTAGE_TEST_MODELS")


@pytest.mark.skipif(not (BINARY and MODELS), reason="MINTAGE_BIN or MINTAGE_TEST_MODELS is not set")
def test_answers_do_not_change_under_load():
    model = os.path.join(MODELS, "smollm2-135m-instruct-q4_1.gguf")
    command = [sys.executable, os.path.join(HERE, "soak.py"), "--bin", BINARY, "--model", model,
               "--users", "12", "--seconds", "20", "--questions", "16"]
    done = subprocess.run(command, text=True, capture_output=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
