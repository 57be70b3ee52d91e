"""Tenants share the engine whoever asks for more; see `fairness.py`. How long a single answer takes is only shown."""

import os
import subprocess
import sys

import pytest

HERE = os.path.dirname(__file__)
BINARY, MODELS = os.environ.get("MINTAGE_BIN"), os.environ.get("MINTAGE_TEST_MODELS")


@pytest.mark.skipif(not (BINARY and MODELS), reason="MINTAGE_BIN or MINTAGE_TEST_MODELS is not set")
def test_one_tenant_takes_no_more_than_its_share():
    model = os.path.join(MODELS, "smollm2-135m-instruct-q4_1.gguf")
    command = [sys.executable, os.path.join(HERE, "fairness.py"), "--bin", BINARY, "--model", model]
    done = subprocess.run([*command, "--slowdown", "0", "--singles", "3"], text=True, capture_output=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
