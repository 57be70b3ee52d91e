"""What a user of Anthropic's SDK relies on. Nothing here depends on what a model says, only on what a server does."""

import asyncio
import json

import anthropic
import pytest

HELLO = [{"role": "user", "content": "Count from one to twenty, in words."}]
TOOL = {
    "name": "get_weather",
    "description": "The weather of a city.",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
# This SDK knows no sampling options by name any more; the wire does.
GREEDY = {"temperature": 0}


@pytest.fixture(scope="module")
def claude(root, key):
    with anthropic.Anthropic(base_url=root, api_key=key, max_retries=0, timeout=120) as client:
        yield client


def ask(client, model, **options):
    options = {"max_tokens": 16, "messages": HELLO, "extra_body": GREEDY, **options}
    return client.messages.create(model=model, **options)


def read(usage):
    """All tokens of the prompt: those of the cache are counted apart."""
    return usage.input_tokens + usage.cache_read_input_tokens


def test_a_message(claude, model):
    reply = ask(claude, model)
    assert reply.type == "message" and reply.role == "assistant" and reply.model == model
    assert [block.type for block in reply.content] == ["text"] and reply.content[0].text
    assert reply.stop_reason == "max_tokens"
    assert reply.usage.output_tokens == 16
    assert reply.usage.input_tokens + reply.usage.cache_read_input_tokens > 10
    assert reply._request_id


def test_a_stream_says_what_the_whole_says(claude, model):
    whole = ask(claude, model)
    with claude.messages.stream(model=model, max_tokens=16, messages=HELLO, extra_body=GREEDY) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text == whole.content[0].text == final.content[0].text
    assert final.stop_reason == whole.stop_reason
    assert read(final.usage) == read(whole.usage)
    assert final.usage.output_tokens == whole.usage.output_tokens
    kinds = [event.type for event in ask(claude, model, stream=True)]
    assert kinds[:2] == ["message_start", "content_block_start"]
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]


def test_stop_sequences_and_system(claude, model):
    whole = ask(claude, model, max_tokens=60).content[0].text
    word = next(whole[i : i + 6] for i in range(8, len(whole)) if whole.count(whole[i : i + 6]) == 1)
    cut = ask(claude, model, max_tokens=60, stop_sequences=[word])
    assert cut.stop_reason == "stop_sequence" and cut.stop_sequence == word
    assert "".join(block.text for block in cut.content) == whole[: whole.index(word)]
    system = [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}]
    assert ask(claude, model, system=system).content


def test_tools_and_their_results(claude, model):
    question = {"role": "user", "content": "What is the weather in Paris? Use the tool."}
    reply = ask(claude, model, messages=[question], tools=[TOOL], max_tokens=128)
    calls = [block for block in reply.content if block.type == "tool_use"]
    # Whether it calls is the model's; that a call is one is ours.
    assert (reply.stop_reason == "tool_use") == bool(calls)
    for call in calls:
        assert call.name == "get_weather" and isinstance(call.input, dict)
    asked = {"type": "tool_use", "id": "toolu_1", "name": "get_weather", "input": {"city": "Paris"}}
    result = {"type": "tool_result", "tool_use_id": "toolu_1", "content": "21 degrees"}
    history = [question, {"role": "assistant", "content": [asked]}, {"role": "user", "content": [result]}]
    told = ask(claude, model, messages=history, tools=[TOOL], max_tokens=48)
    assert told.content and read(told.usage) > read(reply.usage) + 10
    with claude.messages.stream(
        model=model, max_tokens=128, messages=[question], tools=[TOOL], extra_body=GREEDY
    ) as stream:
        final = stream.get_final_message()
    assert [block.type for block in final.content] == [block.type for block in reply.content]


def test_an_answer_of_a_schema(claude, model):
    schema = {
        "type": "object",
        "properties": {"city": {"enum": ["Paris", "Rome"]}, "large": {"type": "boolean"}},
        "required": ["city", "large"],
        "additionalProperties": False,
    }
    question = [{"role": "user", "content": "Name a city. Is it large?"}]
    config = {"format": {"type": "json_schema", "schema": schema}}
    reply = ask(claude, model, messages=question, output_config=config, max_tokens=64)
    answer = json.loads(reply.content[0].text)
    assert answer["city"] in ("Paris", "Rome") and isinstance(answer["large"], bool) and len(answer) == 2
    with pytest.raises(anthropic.BadRequestError) as caught:
        broken = {"format": {"type": "json_schema", "schema": {"type": "no-such-type"}}}
        ask(claude, model, messages=question, output_config=broken)
    assert "output_config.format.schema" in caught.value.api_message


def test_a_prefilled_answer_goes_on(claude, model):
    messages = [*HELLO, {"role": "assistant", "content": "One, two, three,"}]
    reply = ask(claude, model, messages=messages)
    bare = ask(claude, model)
    assert reply.content[0].text and read(reply.usage) > read(bare.usage)


def test_counting_tokens(claude, model):
    counted = claude.messages.count_tokens(model=model, messages=HELLO, tools=[TOOL])
    reply = ask(claude, model, tools=[TOOL], max_tokens=1)
    assert counted.input_tokens == read(reply.usage)


def test_models(claude, model):
    listed = [found.id for found in claude.models.list()]
    assert model in listed
    assert claude.models.retrieve(model).id == model
    with pytest.raises(anthropic.NotFoundError):
        claude.models.retrieve("no-such-model")


def test_errors(claude, root, model):
    with pytest.raises(anthropic.NotFoundError) as caught:
        ask(claude, "no-such-model")
    assert caught.value.type == "not_found_error" and caught.value.error_code == "model_not_found"
    assert caught.value.request_id
    with pytest.raises(anthropic.BadRequestError) as caught:
        ask(claude, model, max_tokens=0)
    assert "max_tokens" in caught.value.api_message
    with anthropic.Anthropic(base_url=root, api_key="sk-wrong", max_retries=0) as stranger:
        with pytest.raises(anthropic.AuthenticationError) as caught:
            ask(stranger, model)
    assert caught.value.type == "authentication_error"


def test_async_and_bearer(root, key, model):
    async def talk():
        async with anthropic.AsyncAnthropic(base_url=root, auth_token=key, api_key=None, timeout=120) as client:
            reply = await ask(client, model)
            events = [event.type async for event in await ask(client, model, stream=True)]
            return reply, events

    reply, events = asyncio.run(talk())
    assert reply.content[0].text and events[-1] == "message_stop"
