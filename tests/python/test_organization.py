"""OpenAI's own client administers an organisation on a real server: keys, projects, users, usage and costs.

Answers are held to the client's own types (`_strict_response_validation`), and the sums to what was billed.
"""

import json
import os
import subprocess
import time
import types
from decimal import Decimal

import openai
import pytest
import soak

BINARY, MODELS = os.environ.get("MINTAGE_BIN"), os.environ.get("MINTAGE_TEST_MODELS")
EMBEDDER = "all-minilm-l6-v2"
PRICES = """
format = 1
name = "organization"
currency = "CNY"
per_tokens = 1_000_000
time_zone = "+08:00"

[[model]]
name = "*"
input = "1000"
output = "3000"
"""

pytestmark = pytest.mark.skipif(not (BINARY and MODELS), reason="MINTAGE_BIN or MINTAGE_TEST_MODELS is not set")


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    """A server, and the command line on its data folder."""
    folder = str(tmp_path_factory.mktemp("organization"))
    options = types.SimpleNamespace(bin=BINARY, model=os.path.join(MODELS, "smollm2-135m-instruct-q4_1.gguf"))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MINTAGE_")}

    def mintage(*arguments):
        command = [BINARY, "--data-dir", folder, *arguments]
        done = subprocess.run(command, env=environment, text=True, capture_output=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    prices = os.path.join(folder, "list.toml")
    with open(prices, "w") as file:
        file.write(PRICES)
    mintage("price", "import", prices)
    embedder = os.path.join(MODELS, EMBEDDER)
    beside = {"MINTAGE_EMBEDDING_MODELS": embedder} if os.path.isdir(embedder) else {}
    with soak.running(options, folder, environment=beside) as (_, url):
        yield url + "/v1", mintage


@pytest.fixture(scope="module")
def owner(house):
    """OpenAI's client with the key of a member who owns the organisation."""
    url, mintage = house
    member = mintage("member", "add", "ada@example.org", "--role", "owner", "--json")
    member = json.loads(member)["id"]
    key = mintage("key", "create", "ada", "--member", member)
    with openai.OpenAI(base_url=url, api_key="none", admin_api_key=key, max_retries=0, timeout=60,
                       _strict_response_validation=True) as client:
        until = time.monotonic() + 10
        while True:
            try:
                client.admin.organization.projects.list()
                break
            except openai.AuthenticationError:
                # A key made by another process is known within a second or two.
                assert time.monotonic() < until, "the key is not taken"
                time.sleep(0.1)
        yield client.admin.organization


def test_projects_live_and_are_archived(owner):
    made = owner.projects.create(name="shop")
    assert owner.projects.retrieve(made.id).name == "shop"
    assert owner.projects.update(made.id, name="store").name == "store"
    assert made.id in [project.id for project in owner.projects.list(limit=1)], "pages are followed"
    assert owner.projects.archive(made.id).status == "archived"
    assert made.id not in [project.id for project in owner.projects.list()]
    assert made.id in [project.id for project in owner.projects.list(include_archived=True)]


def test_keys_of_projects_are_listed_and_deleted(house, owner):
    _, mintage = house
    project = owner.projects.create(name="keys").id
    value = mintage("key", "create", "till", "--project", project)
    until = time.monotonic() + 10
    while not (listed := list(owner.projects.api_keys.list(project))):
        assert time.monotonic() < until, "the key is not seen"
        time.sleep(0.1)
    key, = listed
    assert value not in key.redacted_value and key.name == "till"
    assert owner.projects.api_keys.retrieve(key.id, project_id=project).id == key.id
    assert owner.projects.api_keys.delete(key.id, project_id=project).deleted
    assert list(owner.projects.api_keys.list(project)) == []


def test_users_have_roles(house, owner):
    _, mintage = house
    mintage("member", "add", "bob@example.org", "--role", "viewer")
    until = time.monotonic() + 10
    while not (found := list(owner.users.list(emails=["bob@example.org"]))):
        assert time.monotonic() < until, "the member is not seen"
        time.sleep(0.1)
    bob, = found
    assert (owner.users.retrieve(bob.id).email, bob.role) == ("bob@example.org", "viewer")
    assert owner.users.update(bob.id, role="owner").role == "owner"
    assert owner.users.delete(bob.id).deleted
    assert list(owner.users.list(emails=["bob@example.org"])) == []
    with pytest.raises(openai.NotFoundError):
        owner.users.retrieve(bob.id)


def test_administrators_keys_open_and_close(house, owner):
    url, _ = house
    made = owner.admin_api_keys.create(name="second", expires_in_seconds=600)
    assert made.value not in owner.admin_api_keys.retrieve(made.id).redacted_value
    assert made.id in [key.id for key in owner.admin_api_keys.list()]
    with openai.OpenAI(base_url=url, api_key="none", admin_api_key=made.value, max_retries=0) as second:
        second.admin.organization.users.list()
        assert owner.admin_api_keys.delete(made.id).deleted
        with pytest.raises(openai.AuthenticationError):
            second.admin.organization.users.list()


def test_usage_and_costs_are_what_was_billed(house, owner):
    url, _ = house
    start = int(time.time()) - 5
    with openai.OpenAI(base_url=url, api_key=soak.KEY, max_retries=0, timeout=60) as client:
        model = client.models.list().data[0].id
        ask = {"model": model, "max_tokens": 5, "messages": [{"role": "user", "content": "Say yes."}]}
        answers = [client.chat.completions.create(**ask).usage for _ in range(3)]
    prompt, said = (sum(getattr(usage, name) for usage in answers) for name in ("prompt_tokens", "completion_tokens"))

    page = owner.usage.completions(start_time=start, bucket_width="1h", group_by=["model", "project_id"])
    results = [result for bucket in page.data for result in bucket.results]
    assert {result.model for result in results} == {model}
    assert sum(result.num_model_requests for result in results) == 3
    assert sum(result.input_tokens for result in results) == prompt
    assert sum(result.output_tokens for result in results) == said
    cached = sum(usage.prompt_tokens_details.cached_tokens for usage in answers)
    assert sum(result.input_cached_tokens for result in results) == cached
    project = results[0].project_id
    assert all(not bucket.results for bucket in owner.usage.completions(start_time=start, models=["other"]).data)

    page = owner.usage.costs(start_time=start, group_by=["line_item"], project_ids=[project])
    lines = {result.line_item: result for bucket in page.data for result in bucket.results}
    exact = {name: Decimal(result.amount.exact) for name, result in lines.items()}
    assert exact[f"{model}, output"] == Decimal(3 * said) / 1000, exact
    assert sum(exact.values()) == Decimal(prompt + 3 * said) / 1000, exact
    assert {result.amount.currency for result in lines.values()} == {"cny"}


@pytest.mark.skipif(not os.path.isdir(os.path.join(MODELS or "", EMBEDDER)), reason=f"no {EMBEDDER}")
def test_usage_of_embeddings_stands_apart(house, owner):
    url, _ = house
    start = int(time.time()) - 5
    with openai.OpenAI(base_url=url, api_key=soak.KEY, max_retries=0, timeout=60) as client:
        usage = client.embeddings.create(model=EMBEDDER, input=["red", "green and blue"]).usage

    def sums(page):
        results = [result for bucket in page.data for result in bucket.results]
        return sum(result.num_model_requests for result in results), sum(result.input_tokens for result in results)

    page = owner.usage.embeddings(start_time=start, bucket_width="1m", group_by=["model", "api_key_id"])
    assert sums(page) == (1, usage.prompt_tokens)
    assert {(result.model, result.object) for bucket in page.data for result in bucket.results} == {
        (EMBEDDER, "organization.usage.embeddings.result")}
    assert sums(owner.usage.embeddings(start_time=start, models=["other"])) == (0, 0)
    assert sums(owner.usage.completions(start_time=start, models=[EMBEDDER])) == (0, 0)
