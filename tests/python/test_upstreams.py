"""Two real servers, one behind a name of the other; clients as their vendors publish them, unmodified."""

import json
import os
import signal
import time
import types

import anthropic
import dashscope
import httpx
import kill
import ollama
import openai
import pytest
import soak

BINARY, MODELS = os.environ.get("MINTAGE_BIN"), os.environ.get("MINTAGE_TEST_MODELS")
pytestmark = pytest.mark.skipif(not (BINARY and MODELS), reason="MINTAGE_BIN or MINTAGE_TEST_MODELS is not set")

EMBEDDER = "all-minilm-l6-v2"
EMBEDDER_FOLDER = os.path.join(MODELS or "", EMBEDDER)
TEXTS = ["red", "green and blue", "a dog barks"]

QUESTION = [{"role": "user", "content": "Name three colours, and nothing else."}]
TOOL = {"type": "function", "function": {"name": "weather", "description": "The weather of a city.", "parameters": {
    "type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}}}

SETTINGS = """
[[upstream]]
name = "far"
base_url = "{url}/v1"
model = "{model}"
api_key_env = "FAR_KEY"
flavour = "mintage"
context_tokens = 4096
allow_private_address = true

[[upstream]]
name = "gone"
base_url = "http://127.0.0.1:9/v1"
context_tokens = 4096
allow_private_address = true
max_retries = 0

[[upstream]]
name = "far-vectors"
base_url = "{url}/v1"
model = "all-minilm-l6-v2"
task = "embed"
api_key_env = "FAR_KEY"
flavour = "mintage"
context_tokens = 256
allow_private_address = true

[[route]]
name = "either"
targets = [{{ model = "gone", weight = 1 }}, {{ model = "far", weight = 0 }}]
"""


@pytest.fixture(scope="module")
def back(tmp_path_factory):
    """The server behind: URL, folder, model."""
    folder = str(tmp_path_factory.mktemp("back"))
    model = os.path.join(MODELS, "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf")
    beside = {"MINTAGE_EMBEDDING_MODELS": EMBEDDER_FOLDER} if os.path.isdir(EMBEDDER_FOLDER) else {}
    with soak.running(types.SimpleNamespace(bin=BINARY, model=model), folder, environment=beside) as (_, url):
        client = openai.OpenAI(base_url=url + "/v1", api_key=soak.KEY)
        yield url, folder, client.models.list().data[0].id


def settings_of(back, folder):
    path = os.path.join(folder, "mintage.toml")
    with open(path, "w") as file:
        file.write(SETTINGS.format(url=back[0], model=back[2]))
    return ["serve", "--config", path]


@pytest.fixture(scope="module")
def front(back, tmp_path_factory):
    """The server before it, which has no model of its own: URL and folder."""
    folder = str(tmp_path_factory.mktemp("front"))
    options = types.SimpleNamespace(bin=BINARY)
    with soak.running(options, folder, settings_of(back, folder), {"FAR_KEY": soak.KEY}) as (_, url):
        yield url, folder


@pytest.fixture(scope="module")
def clients(back, front):
    """The same client of both servers."""
    behind = openai.OpenAI(base_url=back[0] + "/v1", api_key=soak.KEY, max_retries=0, timeout=120)
    before = openai.OpenAI(base_url=front[0] + "/v1", api_key=soak.KEY, max_retries=0, timeout=120)
    return behind, before


def counted(usage):
    return usage.prompt_tokens, usage.completion_tokens


def newest(folder):
    """The newest record of usage: uncached and cached tokens of the prompt together, and sampled ones."""
    row = max(kill.records(folder)[0], key=lambda row: row["seq"])
    return row["input"] + row["cached_input"], row["output"]


def test_a_chat_is_the_same_through_it(clients, back, front):
    behind, before = clients
    ask = {"messages": QUESTION, "temperature": 0, "max_tokens": 24, "seed": 1}
    direct = behind.chat.completions.create(model=back[2], **ask)
    through = before.chat.completions.create(model="far", **ask)
    assert through.choices[0].message.content == direct.choices[0].message.content
    assert (through.model, counted(through.usage)) == ("far", counted(direct.usage))
    assert newest(front[1]) == newest(back[1]) == counted(through.usage)
    answered = {(row["model_digest"], row["metered_by"]) for row in kill.records(front[1])[0]}
    assert answered == {(f"upstream:127.0.0.1/{back[2]}", "upstream")}


def test_a_stream_is_the_same_through_it(clients, back, front):
    text, usage, finish = "", None, None
    ask = {"messages": QUESTION, "temperature": 0, "max_tokens": 24}
    for chunk in clients[1].chat.completions.create(
            model="far", stream=True, stream_options={"include_usage": True}, **ask):
        usage = chunk.usage or usage
        for choice in chunk.choices:
            text += choice.delta.content or ""
            finish = choice.finish_reason or finish
    direct = clients[0].chat.completions.create(model=back[2], **ask).choices[0]
    assert (text, finish) == (direct.message.content, direct.finish_reason)
    assert newest(front[1]) == counted(usage)


def test_tools_and_completions_come_through(clients, back):
    behind, before = clients
    history = QUESTION + [
        {"role": "assistant", "content": None, "tool_calls": [
            {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}}]},
        {"role": "tool", "tool_call_id": "c1", "content": "rain"},
    ]
    ask = {"messages": history, "tools": [TOOL], "temperature": 0, "max_tokens": 24}
    direct = behind.chat.completions.create(model=back[2], **ask)
    through = before.chat.completions.create(model="far", **ask)
    assert (through.choices[0].message.content, counted(through.usage)) == (
        direct.choices[0].message.content, counted(direct.usage))
    ask = {"prompt": ["def add(a, b):", "import"], "n": 2, "temperature": 0, "max_tokens": 8}
    direct, through = behind.completions.create(model=back[2], **ask), before.completions.create(model="far", **ask)
    assert [choice.text for choice in through.choices] == [choice.text for choice in direct.choices]
    assert counted(through.usage) == counted(direct.usage)


def test_anthropics_client_speaks_through_it(front, back):
    client = anthropic.Anthropic(base_url=front[0], api_key=soak.KEY, max_retries=0)
    message = client.messages.create(model="far", max_tokens=16, messages=QUESTION)
    assert message.model == "far" and message.content[0].text
    usage = message.usage
    assert newest(front[1]) == (usage.input_tokens + usage.cache_read_input_tokens, usage.output_tokens)
    with client.messages.stream(model="either", max_tokens=16, messages=QUESTION) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text == final.content[0].text
    # The first target is gone; who stood in for it is told.
    assert final.model in ("far", "either")
    assert newest(front[1]) == newest(back[1])


def test_a_name_that_is_gone_is_told_so(clients):
    with pytest.raises(openai.InternalServerError) as caught:
        clients[1].chat.completions.create(model="gone", messages=QUESTION)
    assert (caught.value.status_code, caught.value.code) == (503, "upstream_unavailable")
    assert [model.id for model in clients[1].models.list()] == ["far", "gone", "far-vectors", "either"]


@pytest.mark.skipif(not os.path.isdir(EMBEDDER_FOLDER), reason=f"no {EMBEDDER}")
def test_vectors_are_the_same_through_it(clients, back, front, monkeypatch):
    behind, before = clients
    for more in ({}, {"encoding_format": "float"}):
        direct = behind.embeddings.create(model=EMBEDDER, input=TEXTS, **more)
        through = before.embeddings.create(model="far-vectors", input=TEXTS, **more)
        assert [one.embedding for one in through.data] == [one.embedding for one in direct.data]
        assert (through.model, through.usage) == ("far-vectors", direct.usage)
        assert newest(front[1]) == newest(back[1]) == (through.usage.prompt_tokens, 0)
    expected = [one.embedding for one in direct.data]
    headers = {"authorization": f"Bearer {soak.KEY}"}
    with_ollama = ollama.Client(host=front[0], headers=headers).embed(model="far-vectors", input=TEXTS)
    assert [list(one) for one in with_ollama.embeddings] == expected
    monkeypatch.setattr(dashscope, "base_http_api_url", front[0] + "/api/v1")
    monkeypatch.setattr(dashscope, "api_key", soak.KEY)
    reply = dashscope.TextEmbedding.call(model="far-vectors", input=TEXTS)
    assert reply.status_code == 200, reply
    assert [one["embedding"] for one in reply.output["embeddings"]] == expected
    assert newest(front[1]) == (reply.usage["total_tokens"], 0)
    answered = {(row["model_digest"], row["metered_by"]) for row in kill.records(front[1])[0]}
    assert (f"upstream:127.0.0.1/{EMBEDDER}", "upstream") in answered


@pytest.mark.skipif(not os.path.isdir(EMBEDDER_FOLDER), reason=f"no {EMBEDDER}")
def test_connections_are_kept(clients, front):
    for _ in range(5):
        clients[1].embeddings.create(model="far-vectors", input="a")
    page = httpx.get(front[0] + "/metrics", headers={"authorization": f"Bearer {soak.KEY}"}).text
    reused, = (line for line in page.splitlines()
               if line.startswith('mintage_upstream_connections_total{upstream="far-vectors",how="reused"}'))
    assert int(reused.split()[-1]) >= 4, reused


def test_a_client_that_hangs_up_pays_what_the_service_counted(clients, back, front):
    before = len(kill.records(front[1])[0])
    stream = clients[1].chat.completions.create(model="far", messages=QUESTION, stream=True, max_tokens=60)
    next(iter(stream))
    stream.close()
    for _ in range(600):
        rows = kill.records(front[1])[0]
        if len(rows) > before:
            break
        time.sleep(0.1)
    row = max(rows, key=lambda row: row["seq"])
    assert row["finish"] == "abort"
    assert newest(front[1]) == newest(back[1])


def test_after_a_kill_at_most_what_was_received_is_billed(back, tmp_path):
    folder = str(tmp_path)
    options = types.SimpleNamespace(bin=BINARY)
    arguments, environment = settings_of(back, folder), {"FAR_KEY": soak.KEY}
    server, url = soak.start(options, folder, arguments, environment)
    body = {"model": "far", "messages": QUESTION, "stream": True, "max_tokens": 400, "ignore_eos": True}
    headers, received, id = {"authorization": f"Bearer {soak.KEY}"}, 0, None
    with httpx.stream("POST", url + "/v1/chat/completions", json=body, headers=headers, timeout=60) as response:
        lines = (line for line in response.iter_lines() if line.startswith("data: {"))
        try:
            for line in lines:
                event = json.loads(line[6:])
                id = event["id"]
                received += sum(bool(choice["delta"].get("content")) for choice in event["choices"])
                if received == 40:
                    server.send_signal(signal.SIGKILL)
                    server.wait()
        except httpx.HTTPError:
            pass
    assert received >= 40
    again, _ = soak.start(options, folder, arguments, environment)
    again.send_signal(signal.SIGTERM)
    again.wait(60)
    rows, marks = kill.records(folder)
    assert marks == 0
    assert [row["id"] for row in rows] in ([], [id])
    for row in rows:
        assert row["finish"] == "crash" and 0 < row["output"] <= received, (row, received)
