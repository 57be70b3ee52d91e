"""OpenAI's client for Node, where node and the client are; see `tests/node/openai.mjs`."""

import os
import shutil
import subprocess

import pytest

from conftest import EMBEDDER

SCRIPT = os.path.join(os.path.dirname(__file__), "..", "node", "openai.mjs")
FOLDER = os.environ.get("MINTAGE_TEST_NODE")


@pytest.mark.skipif(not shutil.which("node"), reason="no node here")
@pytest.mark.skipif(not FOLDER, reason="MINTAGE_TEST_NODE names no folder with OpenAI's client")
def test_openai_for_node(server, client):
    url, key, model = server
    environment = {**os.environ, "BASE_URL": url, "API_KEY": key, "MODEL": model}
    embedders = [m.id for m in client.models.list() if m.id == EMBEDDER]
    environment["EMBEDDING_MODEL"] = "".join(embedders)
    done = subprocess.run(["node", SCRIPT], env=environment, text=True, capture_output=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("ok ") == 11 + len(embedders), done.stdout
