"""Jumps of the clock under a real server; `clock.py` by hand does more."""

import os
import shutil
import subprocess
import sys

import pytest

HERE = os.path.dirname(__file__)
BINARY, MODELS = os.environ.get("MINTAGE_BIN"), os.environ.get("MINTAGE_TEST_MODELS")


@pytest.mark.skipif(not (BINARY and MODELS), reason="MINTAGE_BIN or MINTAGE_TEST_MODELS is not set")
@pytest.mark.skipif(not sys.platform.startswith("linux") or not shutil.which("cc"), reason="needs Linux and cc")
def test_a_jumping_clock_bills_nothing_twice():
    model = os.path.join(MODELS, "smollm2-135m-instruct-q4_1.gguf")
    command = [sys.executable, os.path.join(HERE, "clock.py"), "--bin", BINARY, "--model", model, "--jumps", "20"]
    done = subprocess.run(command, text=True, capture_output=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
