"""Three real servers on one ledger in PostgreSQL; see `shared.py`."""

import os
import subprocess
import sys

import pytest
import shared

HERE = os.path.dirname(__file__)
BINARY, MODELS = os.environ.get("MINTAGE_BIN"), os.environ.get("MINTAGE_TEST_MODELS")


@pytest.mark.skipif(not (BINARY and MODELS), reason="MINTAGE_BIN or MINTAGE_TEST_MODELS is not set")
@pytest.mark.skipif(not shared.programs(os.environ.get("MINTAGE_TEST_POSTGRES")), reason="no PostgreSQL here")
def test_three_servers_share_one_ledger():
    model = os.path.join(MODELS, "smollm2-135m-instruct-q4_1.gguf")
    command = [sys.executable, os.path.join(HERE, "shared.py"), "--bin", BINARY, "--model", model]
    done = subprocess.run(command, text=True, capture_output=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
