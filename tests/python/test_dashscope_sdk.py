"""What users of Alibaba's SDK rely on: its version 2 (both of its APIs, all three protocols) and a version 1.

Nothing here depends on what a model says, only on what a server does.
"""

import asyncio
import json
import os
import subprocess
import sys

import dashscope
import pytest
from dashscope.v2 import errors

HELLO = [{"role": "user", "content": "Count from one to twenty, in words."}]
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
OPTIONS = {"max_tokens": 16, "temperature": 0.0, "top_k": 1, "seed": 7}


@pytest.fixture(autouse=True)
def here(monkeypatch, root, key):
    monkeypatch.setattr(dashscope, "base_http_api_url", root + "/api/v1")
    monkeypatch.setattr(dashscope, "api_key", key)


def call(model, **options):
    options = {"messages": HELLO, "result_format": "message", **OPTIONS, **options}
    return dashscope.Generation.call(model=model, **options)


def said(response):
    return response.output.choices[0].message.content


def test_module_api_whole(model):
    reply = call(model)
    assert reply.status_code == 200 and not reply.code and reply.request_id
    assert said(reply) and reply.output.choices[0].finish_reason == "length"
    assert reply.usage.output_tokens == 16
    assert reply.usage.total_tokens == reply.usage.input_tokens + 16
    text = call(model, result_format="text")
    assert text.output.text == said(reply) and text.output.finish_reason == "length"
    prompted = call(model, messages=None, prompt=HELLO[0]["content"])
    assert said(prompted) == said(reply)


def test_module_api_stream(model):
    whole = said(call(model))
    full = list(call(model, stream=True))
    assert [said(event) for event in full][-1] == whole
    for before, after in zip(full, full[1:]):
        assert said(after).startswith(said(before))
    parts = list(call(model, stream=True, incremental_output=True))
    assert "".join(said(event) for event in parts) == whole
    for events in (full, parts):
        ends = [event.output.choices[0].finish_reason for event in events]
        assert ends[-1] == "length" and set(ends[:-1]) == {"null"}
        counts = [event.usage.output_tokens for event in events]
        assert counts == sorted(counts) and counts[-1] == 16
    # The SDK merges for the caller who says that increments are not wanted.
    merged = list(call(model, stream=True, incremental_output=False))
    assert said(merged[-1]) == whole


def test_module_api_async(model):
    async def talk():
        options = {"messages": HELLO, "result_format": "message", **OPTIONS}
        reply = await dashscope.AioGeneration.call(model=model, **options)
        events = await dashscope.AioGeneration.call(
            model=model, stream=True, incremental_output=True, **options
        )
        return reply, "".join([said(event) async for event in events])

    reply, streamed = asyncio.run(talk())
    assert said(reply) == streamed == said(call(model))


def test_module_api_multimodal_path(model):
    messages = [{"role": "user", "content": [{"text": HELLO[0]["content"]}]}]
    reply = dashscope.MultiModalConversation.call(model=model, messages=messages, **OPTIONS)
    # The path of several media has lists for contents.
    assert said(reply)[0]["text"] == said(call(model)), reply


def test_module_api_json(model):
    schema = {"type": "object", "properties": {"city": {"enum": ["Paris", "Rome"]}}, "required": ["city"]}
    schema["additionalProperties"] = False
    wanted = {"type": "json_schema", "json_schema": {"name": "city", "schema": schema}}
    reply = call(model, response_format=wanted, max_tokens=64)
    assert json.loads(said(reply))["city"] in ("Paris", "Rome"), reply


def test_module_api_errors(model, monkeypatch):
    missing = call("no-such-model")
    assert (missing.status_code, missing.code) == (404, "Model.NotExist") and missing.request_id
    wrong = call(model, temperature=9)
    assert (wrong.status_code, wrong.code) == (400, "InvalidParameter")
    assert "temperature" in wrong.message
    streamed = list(call("no-such-model", stream=True))
    assert [event.status_code for event in streamed] == [404]
    stranger = call(model, api_key="sk-wrong")
    assert (stranger.status_code, stranger.code) == (401, "InvalidApiKey")


def test_module_api_tokens_and_models(model):
    counted = dashscope.Tokenization.call(model=model, messages=HELLO)
    assert counted.usage["input_tokens"] == call(model).usage.input_tokens
    plain = dashscope.Tokenization.call(model=model, prompt="one two")
    assert "".join(plain.output["tokens"]) == "one two"
    assert dashscope.Models.get(model).output["model"] == model
    listed = dashscope.Models.list().output
    assert model in [found["model"] for found in listed["models"]] and listed["total"] >= 1


def test_module_api_tools(model):
    question = {"role": "user", "content": "What is the weather in Paris?"}
    asked = call(model, messages=[question], tools=[TOOL])
    assert asked.status_code == 200, asked
    function = {"name": "get_weather", "arguments": '{"city": "Paris"}'}
    history = [
        question,
        {"role": "assistant", "content": "", "tool_calls": [{"id": "call_1", "type": "function", "function": function}]},
        {"role": "tool", "content": "21 degrees", "tool_call_id": "call_1"},
    ]
    told = call(model, messages=history, tools=[TOOL])
    # The model answers, or calls once more.
    assert said(told) or told.output.choices[0].message.tool_calls
    assert told.usage.input_tokens > asked.usage.input_tokens + 10


@pytest.fixture(params=["native", "openai", "anthropic"])
def client(request, root, key):
    prefix = {"native": "/api/v1", "openai": "/compatible-mode/v1", "anthropic": "/apps/anthropic"}
    with dashscope.Client(
        api_key=key,
        base_url=root + prefix[request.param],
        protocol=request.param,
        max_retries=0,
        timeout=120,
    ) as client:
        yield client


def create(client, model, **options):
    options = {"messages": HELLO, "max_tokens": 16, "temperature": 0, **options}
    return client.chat.completions.create(model=model, **options)


def test_client_api(client, model):
    reply = create(client, model)
    assert reply.output_text and reply.usage.output_tokens == 16
    chunks = list(create(client, model, stream=True))
    text = "".join(chunk.delta.content or "" for chunk in chunks if chunk.delta)
    assert text == reply.output_text
    assert create(client, model, stream=True).get_final_message().output_text == reply.output_text
    usage = [chunk.usage for chunk in chunks if chunk.usage][-1]
    assert usage.output_tokens == reply.usage.output_tokens


def test_client_api_errors(client, model):
    with pytest.raises(errors.NotFoundError):
        create(client, "no-such-model")
    with pytest.raises(errors.NotFoundError):
        list(create(client, "no-such-model", stream=True))
    with pytest.raises(errors.BadRequestError) as caught:
        create(client, model, top_p=7)
    assert "top_p" in str(caught.value) and caught.value.request_id
    with pytest.raises(errors.AuthenticationError):
        create(client.with_options(api_key="sk-wrong"), model)


def test_client_api_tokens_and_models(root, key, model):
    with dashscope.Client(api_key=key, base_url=root + "/api/v1", protocol="native") as client:
        counted = client.tokenization.count(model=model, messages=HELLO)
        assert counted.input_tokens == create(client, model).usage.input_tokens
        assert client.models.get(model).model == model
        assert client.models.list().total_count >= 1


def test_client_api_async(root, key, model):
    async def talk():
        async with dashscope.AsyncClient(
            api_key=key, base_url=root + "/api/v1", protocol="native"
        ) as client:
            reply = await create(client, model)
            stream = await create(client, model, stream=True)
            return reply.output_text, "".join([text async for text in stream.text_stream])

    whole, streamed = asyncio.run(talk())
    assert whole == streamed and whole


VERSION_1 = """
import sys, dashscope
from dashscope.version import __version__
assert __version__.startswith("1."), __version__
dashscope.base_http_api_url, dashscope.api_key, model = sys.argv[1:]
ask = dict(model=model, messages=[{"role": "user", "content": "Count from one to twenty, in words."}],
           result_format="message", max_tokens=16, top_k=1)
said = lambda event: event.output.choices[0].message.content
whole = dashscope.Generation.call(**ask)
assert whole.status_code == 200, whole
assert said(list(dashscope.Generation.call(stream=True, **ask))[-1]) == said(whole)
parts = dashscope.Generation.call(stream=True, incremental_output=True, **ask)
assert "".join(map(said, parts)) == said(whole)
missing = dashscope.Generation.call(**{**ask, "model": "none"})
assert (missing.status_code, missing.code) == (404, "Model.NotExist"), missing
print(__version__, whole.usage.output_tokens)
"""


def test_version_1(root, key, model):
    folder = os.environ.get("MINTAGE_TEST_DASHSCOPE_1")
    if not folder:
        pytest.skip("MINTAGE_TEST_DASHSCOPE_1 names no folder with dashscope 1.x")
    run = subprocess.run(
        [sys.executable, "-c", VERSION_1, root + "/api/v1", key, model],
        env={**os.environ, "PYTHONPATH": folder},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.split()[1] == "16"
