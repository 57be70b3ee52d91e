"""What users of Alibaba's SDK rely on: its version 2 (both of its APIs, all three protocols) and a version 1.

Nothing here depends on what a model says, only on what a server does.
"""

import asyncio
import json
import os
import subprocess
import sys

import dashscope
import openai
import pytest
from dashscope.client.base_api import BaseAsyncApi
from dashscope.embeddings import BatchTextEmbedding
from dashscope.v2 import errors
from dashscope.v2.resources._jobs import Jobs

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


def submit(model, **options):
    options = {"result_format": "message", **OPTIONS, **options}
    service = {"task_group": "aigc", "task": "text-generation", "function": "generation"}
    return BaseAsyncApi.async_call(model=model, input={"messages": HELLO}, **service, **options)


def test_module_api_tasks(model):
    task = submit(model)
    assert task.status_code == 200 and task.output["task_status"] == "PENDING", task
    done = BaseAsyncApi.wait(task)
    assert done.output["task_status"] == "SUCCEEDED", done
    assert done.output["choices"][0]["message"]["content"] == said(call(model))
    assert done.usage["output_tokens"] == 16 and not done.code
    times = [done.output[name] for name in ("submit_time", "scheduled_time", "end_time")]
    assert times == sorted(times)
    task_id = task.output["task_id"]
    assert BaseAsyncApi.fetch(task_id).output == done.output
    listed = BaseAsyncApi.list(model_name=model, status="SUCCEEDED", start_time="20230420000000").output
    assert task_id in [entry["task_id"] for entry in listed["data"]] and listed["total"] >= 1
    late = BaseAsyncApi.cancel(task_id)
    assert (late.status_code, late.code) == (400, "UnsupportedOperation") and "PENDING" in late.message
    assert BaseAsyncApi.wait("no-such-task").output["task_status"] == "UNKNOWN"
    # What cannot be computed is refused at once.
    assert submit(model, temperature=9).code == "InvalidParameter"
    fetched = BatchTextEmbedding.async_call(model, "https://example.com/texts.txt")
    assert (fetched.status_code, fetched.code) == (400, "InvalidParameter") and "url" in fetched.message


def test_module_api_tasks_wait_their_turn(model):
    tasks = [submit(model, max_tokens=64) for _ in range(20)]
    last = tasks.pop()
    cancelled = BaseAsyncApi.cancel(last)
    assert cancelled.status_code == 200, cancelled
    assert BaseAsyncApi.wait(last).output["task_status"] == "CANCELED"
    answers = [BaseAsyncApi.wait(task) for task in tasks]
    texts = {answer.output["choices"][0]["message"]["content"] for answer in answers}
    assert len(texts) == 1, "the same question has the same answer"
    assert len({answer.usage["output_tokens"] for answer in answers}) == 1


def test_module_api_files(model, root, key, tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_text('{"messages": []}\n')
    uploaded = dashscope.Files.upload(str(path), description="two words")
    assert uploaded.status_code == 200 and not uploaded.output["failed_uploads"], uploaded
    file_id = uploaded.output["uploaded_files"][0]["file_id"]
    found = dashscope.Files.get(file_id).output
    assert (found["name"], found["size"], found["description"]) == ("train.jsonl", 17, "two words")
    listed = dashscope.Files.list(page_size=100).output
    assert file_id in [entry["file_id"] for entry in listed["files"]] and listed["total"] >= 1
    # It is a file of the other dialect, too.
    with openai.OpenAI(base_url=root + "/v1", api_key=key) as client:
        assert client.files.content(file_id).text == path.read_text()
    assert dashscope.Files.delete(file_id).status_code == 200
    gone = dashscope.Files.get(file_id)
    assert (gone.status_code, gone.code) == (400, "InvalidParameter")


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


def test_client_api_files_and_tasks(root, key, model, tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_text("{}\n")
    with dashscope.Client(api_key=key, base_url=root + "/api/v1", protocol="native") as client:
        uploaded = client.files.upload(file_path=str(path))
        found = client.files.get(uploaded.file_id)
        assert (found.name, found.size, found.purpose) == ("train.jsonl", 3, "fine-tune")
        assert found.uploaded_at
        assert uploaded.file_id in [file.file_id for file in client.files.list(page_size=100).files]
        assert client.files.delete(uploaded.file_id).deleted
        with pytest.raises(errors.NotFoundError):
            client.files.get(uploaded.file_id)
        jobs = Jobs(client, "aigc/text-generation/generation")
        job = jobs.create(model=model, input={"messages": HELLO}, parameters=OPTIONS)
        done = jobs.wait(job)
        assert done.succeeded and done.output["text"] and done.usage.output_tokens == 16
        assert done.submitted_at <= done.scheduled_at <= done.finished_at
        assert job.task_id in [entry.task_id for entry in jobs.list(status="SUCCEEDED").tasks]
        with pytest.raises(errors.BadRequestError):
            jobs.cancel(job.task_id)
        assert jobs.wait("no-such-task").status == "UNKNOWN"


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
