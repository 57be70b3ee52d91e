"""A few kills of the real server while tasks wait and run; `tasks_kill.py` by hand does many."""

import os
import subprocess
import sys

import pytest

HERE = os.path.dirname(__file__)
BINARY, MODELS = os.environ.get("MINTAGE_BIN"), os.environ.get("MINTAGE_TEST_MODELS")


@pytest.mark.skipif(not (BINARY and MODELS), reason="MINTAGE_BIN or MINTAGE_TEST_MODELS is not set")
def test_each_task_is_there_and_billed_or_failed_and_not_or_waits():
    model = os.path.join(MODELS, "smollm2-135m-instruct-q4_1.gguf")
    command = [sys.executable, os.path.join(HERE, "tasks_kill.py"), "--bin", BINARY, "--model", model, "--kills", "4"]
    done = subprocess.run(command, text=True, capture_output=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
