"""Conformance with the official OpenAI SDK, against a running server.

BASE_URL (ending in /v1), API_KEY and MODEL come from the environment. Without BASE_URL everything is skipped, unless
MINTAGE_REQUIRE_SERVER is set, as continuous integration does.
"""

import os

import openai
import pytest


def pytest_collection_modifyitems(items):
    if os.environ.get("BASE_URL"):
        return
    if os.environ.get("MINTAGE_REQUIRE_SERVER"):
        raise pytest.UsageError("BASE_URL is not set")
    for item in items:
        item.add_marker(pytest.mark.skip(reason="BASE_URL is not set"))


@pytest.fixture(scope="session")
def settings():
    return {"base_url": os.environ["BASE_URL"], "api_key": os.environ["API_KEY"], "timeout": 120}


@pytest.fixture(scope="session")
def model():
    return os.environ["MODEL"]


@pytest.fixture(scope="session")
def client(settings):
    with openai.OpenAI(**settings, max_retries=0) as client:
        yield client
