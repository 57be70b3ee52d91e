"""Conformance with the vendors' own clients, against a real server.

With MINTAGE_BIN and MINTAGE_TEST_MODELS (as `cargo xtask ci` sets them) the server is the real binary with the default
model. Otherwise BASE_URL (ending in /v1), API_KEY and MODEL name a running one; without either everything is skipped.
"""

import os
import types

import openai
import pytest
import soak


BINARY, MODELS = os.environ.get("MINTAGE_BIN"), os.environ.get("MINTAGE_TEST_MODELS")
MODEL_FILE = "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf"
EMBEDDER = "all-minilm-l6-v2"


def pytest_collection_modifyitems(items):
    if os.environ.get("BASE_URL") or (BINARY and MODELS):
        return
    for item in items:
        item.add_marker(pytest.mark.skip(reason="neither BASE_URL nor MINTAGE_BIN is set"))


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """URL, key and model of the server."""
    if os.environ.get("BASE_URL"):
        yield os.environ["BASE_URL"], os.environ["API_KEY"], os.environ["MODEL"]
        return
    folder = str(tmp_path_factory.mktemp("server"))
    options = types.SimpleNamespace(bin=BINARY, model=os.path.join(MODELS, MODEL_FILE))
    embedder = os.path.join(MODELS, EMBEDDER)
    environment = {"MINTAGE_EMBEDDING_MODELS": embedder} if os.path.isdir(embedder) else {}
    with soak.running(options, folder, environment=environment) as (process, url):
        client = openai.OpenAI(base_url=url + "/v1", api_key=soak.KEY)
        yield url + "/v1", soak.KEY, client.models.list().data[0].id
    assert process.returncode == 0, "the server did not shut down cleanly"


@pytest.fixture(scope="session")
def settings(server):
    return {"base_url": server[0], "api_key": server[1], "timeout": 120}


@pytest.fixture(scope="session")
def root(server):
    """The URL without OpenAI's `/v1`: where the other dialects begin."""
    return server[0].removesuffix("/v1")


@pytest.fixture(scope="session")
def key(server):
    return server[1]


@pytest.fixture(scope="session")
def model(server):
    return server[2]


@pytest.fixture(scope="session")
def client(settings):
    with openai.OpenAI(**settings, max_retries=0) as client:
        yield client
