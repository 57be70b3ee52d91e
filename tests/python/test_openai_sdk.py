"""What a user of the official SDK relies on. Nothing here depends on what a model says, only on what a server does."""

import asyncio
import json
import os
import time
import urllib.request

import openai
import pydantic
import pytest

HELLO = [{"role": "user", "content": "Count from one to twenty, in words."}]


def ask(client, model, **options):
    options = {"max_tokens": 16, "temperature": 0, **options}
    return client.chat.completions.create(model=model, messages=options.pop("messages", HELLO), **options)


def text_of(stream):
    """The text, the finish reasons by choice, and the usage of a stream."""
    texts, finish, usage = {}, {}, None
    for chunk in stream:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            texts[choice.index] = texts.get(choice.index, "") + (choice.delta.content or "")
            if choice.finish_reason:
                finish[choice.index] = choice.finish_reason
    return texts, finish, usage


def test_models(client, model):
    assert model in [m.id for m in client.models.list()]
    assert client.models.retrieve(model).id == model
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("no-such-model")
    assert caught.value.code == "model_not_found"


def test_chat(client, model):
    reply = ask(client, model)
    choice = reply.choices[0]
    assert choice.message.role == "assistant" and choice.message.content
    assert choice.finish_reason in ("stop", "length")
    assert 0 < reply.usage.completion_tokens <= 16
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens
    assert reply.usage.prompt_tokens_details.cached_tokens is not None
    assert reply._request_id


def test_a_stream_says_what_the_whole_says(client, model):
    whole = ask(client, model)
    texts, finish, usage = text_of(
        ask(client, model, stream=True, stream_options={"include_usage": True})
    )
    assert texts[0] == whole.choices[0].message.content
    assert finish[0] == whole.choices[0].finish_reason
    assert usage.completion_tokens == whole.usage.completion_tokens
    assert usage.prompt_tokens == whole.usage.prompt_tokens


def test_several_choices(client, model):
    reply = ask(client, model, n=3, temperature=1, seed=7)
    assert [c.index for c in reply.choices] == [0, 1, 2]
    again, _, _ = text_of(ask(client, model, n=3, temperature=1, seed=7, stream=True))
    assert [again.get(i, "") for i in range(3)] == [c.message.content for c in reply.choices]


def test_logprobs(client, model):
    reply = ask(client, model, logprobs=True, top_logprobs=3, max_tokens=5)
    entries = reply.choices[0].logprobs.content
    assert entries
    for entry in entries:
        assert entry.logprob <= 0 and len(entry.top_logprobs) == 3
        assert bytes(entry.bytes).decode(errors="replace") == entry.token
    # Greedy: the chosen token is the likeliest.
    assert entries[0].token == entries[0].top_logprobs[0].token
    assert b"".join(bytes(e.bytes) for e in entries).decode() == reply.choices[0].message.content


def test_stop(client, model):
    whole = ask(client, model).choices[0].message.content
    assert len(whole) > 6
    stop = whole[3:6]
    for stream in (False, True):
        if stream:
            texts, finish, _ = text_of(ask(client, model, stop=[stop, "never said"], stream=True))
            content, reason = texts.get(0, ""), finish[0]
        else:
            choice = ask(client, model, stop=stop).choices[0]
            content, reason = choice.message.content, choice.finish_reason
        assert content == whole[: whole.index(stop)]
        assert reason == "stop"


def test_typed_errors(client, model, settings):
    with pytest.raises(openai.AuthenticationError):
        ask(openai.OpenAI(**{**settings, "api_key": "sk-wrong"}), model)
    with pytest.raises(openai.NotFoundError):
        ask(client, "no-such-model")
    cases = {
        "temperature": {"temperature": 9},
        "n": {"n": 0},
        "max_tokens": {"max_tokens": -1},
        "top_logprobs": {"logprobs": True, "top_logprobs": 99},
        "messages": {"messages": []},
        "nonsense": {"extra_body": {"nonsense": 1}},
    }
    for param, options in cases.items():
        with pytest.raises(openai.BadRequestError) as caught:
            ask(client, model, **options)
        assert caught.value.param == param, caught.value
        assert caught.value.type == "invalid_request_error"
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, model, max_tokens=10_000_000)
    assert caught.value.code == "context_length_exceeded"


class City(pydantic.BaseModel, extra="forbid"):
    name: str = pydantic.Field(max_length=30)
    inhabitants: int = pydantic.Field(ge=0)
    is_capital: bool
    rivers: list[str] = pydantic.Field(max_length=2)


ABOUT_PARIS = [{"role": "user", "content": "Tell me about Paris, as JSON."}]


def test_structured_output(client, model):
    for seed in range(3):
        options = {"messages": ABOUT_PARIS, "temperature": 1, "seed": seed, "max_tokens": 400}
        reply = client.chat.completions.parse(model=model, response_format=City, **options)
        choice = reply.choices[0]
        assert choice.finish_reason == "stop"
        assert isinstance(choice.message.parsed, City)
        # The same, streamed, with log-probabilities (so that nothing is forced) and with a stop string that never comes.
        schema = {"name": "City", "strict": True, "schema": City.model_json_schema()}
        streamed = ask(
            client, model, **options, stream=True, logprobs=True, stop=["\x01"],
            response_format={"type": "json_schema", "json_schema": schema},
        )
        texts, finish, _ = text_of(streamed)
        assert City.model_validate_json(texts[0]) == choice.message.parsed
        assert finish[0] == "stop"
    cut = ask(client, model, messages=ABOUT_PARIS, response_format={"type": "json_object"}, max_tokens=3)
    assert cut.choices[0].finish_reason == "length"
    assert cut.choices[0].message.content.startswith("{")


class GetWeather(pydantic.BaseModel, extra="forbid"):
    """The weather of a city."""

    city: str = pydantic.Field(max_length=30)
    days: int = pydantic.Field(ge=1, le=7)


def test_tools(client, model):
    tools = [openai.pydantic_function_tool(GetWeather, name="get_weather")]
    question = [{"role": "user", "content": "How will the weather be in Paris in the next 3 days?"}]
    options = {"model": model, "messages": question, "tools": tools, "temperature": 0, "max_tokens": 120}
    for choice in ("required", {"type": "function", "function": {"name": "get_weather"}}):
        reply = client.chat.completions.parse(**options, tool_choice=choice, parallel_tool_calls=False)
        [call] = reply.choices[0].message.tool_calls
        assert isinstance(call.function.parsed_arguments, GetWeather)
        assert call.id and call.function.name == "get_weather"
    # Streamed, in deltas, it is the same call.
    with client.chat.completions.stream(**options, tool_choice="required", parallel_tool_calls=False) as stream:
        deltas = [e.arguments_delta for e in stream if e.type == "tool_calls.function.arguments.delta"]
        final = stream.get_final_completion().choices[0]
    assert "".join(deltas) == call.function.arguments == final.message.tool_calls[0].function.arguments
    assert len(deltas) > 1 and final.finish_reason == reply.choices[0].finish_reason
    plain = client.chat.completions.create(**options, tool_choice="none")
    assert plain.choices[0].message.tool_calls is None and plain.choices[0].message.content
    # Its result is read: the history costs the prompt its tokens, and is answered.
    result = {"role": "tool", "tool_call_id": call.id, "content": "22 degrees and sunny on all three days"}
    made = {"id": call.id, "type": "function", "function": {"name": "get_weather", "arguments": call.function.arguments}}
    asked = {"role": "assistant", "content": reply.choices[0].message.content, "tool_calls": [made]}
    answer = client.chat.completions.create(**{**options, "messages": [*question, asked, result]}, tool_choice="none")
    assert answer.choices[0].message.content
    assert answer.usage.prompt_tokens > plain.usage.prompt_tokens + 20
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**options, tool_choice={"type": "function", "function": {"name": "no_such_tool"}})
    assert caught.value.param == "tool_choice"


def test_guided_output(client, model):
    for field, value, fits in [
        ("guided_choice", ["red", "green"], lambda text: text in ("red", "green")),
        ("guided_regex", "[0-9]{3}-[a-f]{2}", lambda text: text[:3].isdigit() and len(text) == 6),
        ("guided_grammar", 'root ::= "(" root? ")"', lambda text: text.count("(") == text.count(")") > 0),
        ("guided_json", {"type": "array", "items": {"type": "boolean"}, "maxItems": 4}, lambda text: len(json.loads(text)) <= 4),
    ]:
        reply = ask(client, model, max_tokens=60, temperature=1, n=3, seed=5, extra_body={field: value})
        for choice in reply.choices:
            assert choice.finish_reason == "length" or fits(choice.message.content), (field, choice)
        text = client.completions.create(
            model=model, prompt="x", max_tokens=60, temperature=1, seed=6, extra_body={field: value}
        ).choices[0]
        assert text.finish_reason == "length" or fits(text.text), (field, text)
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, model, extra_body={"guided_json": {"type": "array", "uniqueItems": True}})
    assert caught.value.param == "guided_json" and "uniqueItems" in caught.value.message


def test_completions(client, model):
    reply = client.completions.create(
        model=model, prompt="1, 2, 3,", max_tokens=5, temperature=0, echo=True, logprobs=1,
        extra_body={"return_token_ids": True},
    )
    choice = reply.choices[0]
    assert choice.text.startswith("1, 2, 3,")
    ids = choice.prompt_token_ids
    assert len(ids) == reply.usage.prompt_tokens
    assert choice.logprobs.token_logprobs[0] is None
    # The same prompt as tokens gives the same answer.
    from_ids = client.completions.create(
        model=model, prompt=ids, max_tokens=5, temperature=0, extra_body={"return_token_ids": True}
    )
    assert from_ids.choices[0].token_ids == choice.token_ids
    assert choice.text.endswith(from_ids.choices[0].text)
    several = client.completions.create(model=model, prompt=["a", "b"], max_tokens=1, temperature=0)
    assert [c.index for c in several.choices] == [0, 1]


def test_async(settings, model):
    async def run():
        async with openai.AsyncOpenAI(**settings, max_retries=0) as client:
            whole = ask(client, model)
            stream = await ask(client, model, stream=True)
            parts = [c.choices[0].delta.content or "" async for c in stream if c.choices]
            assert "".join(parts) == (await whole).choices[0].message.content
            with pytest.raises(openai.BadRequestError):
                await ask(client, model, n=0)

    asyncio.run(run())


def metric(settings, name):
    root = settings["base_url"].removesuffix("/v1")
    page = urllib.request.urlopen(f"{root}/metrics").read().decode()
    return sum(float(line.rsplit(" ", 1)[1]) for line in page.splitlines() if line.startswith(name))


def test_a_closed_stream_stops_the_work(client, model, settings):
    before = metric(settings, "vllm:request_success_total")
    stream = ask(client, model, stream=True, max_tokens=400, extra_body={"ignore_eos": True})
    for _, _ in zip(range(3), stream):
        pass
    stream.close()
    deadline = time.monotonic() + 20
    while metric(settings, "vllm:request_success_total") == before:
        assert time.monotonic() < deadline, "the abandoned request goes on"
        time.sleep(0.05)
    assert metric(settings, "vllm:num_requests_running") == 0


def test_the_printed_curl_works(settings, model):
    request = urllib.request.Request(
        settings["base_url"] + "/chat/completions",
        data=json.dumps({"model": model, "messages": HELLO, "max_tokens": 3}).encode(),
        headers={"authorization": f"Bearer {settings['api_key']}", "content-type": "application/json"},
    )
    with urllib.request.urlopen(request) as reply:
        assert json.load(reply)["choices"][0]["message"]["content"]
