"""Responses as a user of the official SDK relies on them, against the real binary."""

import asyncio
import time

import openai
import pydantic
import pytest

COUNT = "Count from one to twenty, in words."


def ask(client, model, **options):
    options = {"input": COUNT, "max_output_tokens": 16, "temperature": 0, **options}
    return client.responses.create(model=model, **options)


def over(client, response, seconds=120):
    end = time.monotonic() + seconds
    while response.status in ("queued", "in_progress"):
        assert time.monotonic() < end, response
        time.sleep(0.1)
        response = client.responses.retrieve(response.id)
    return response


def test_a_response_says_what_a_chat_says(client, model):
    reply = ask(client, model, instructions="Be brief.", metadata={"for": "a test"})
    chat = client.chat.completions.create(
        model=model, max_tokens=16, temperature=0,
        messages=[{"role": "system", "content": "Be brief."}, {"role": "user", "content": COUNT}],
    )
    assert reply.output_text == chat.choices[0].message.content
    assert (reply.usage.input_tokens, reply.usage.output_tokens) == (
        chat.usage.prompt_tokens, chat.usage.completion_tokens,
    )
    assert reply.usage.input_tokens_details.cached_tokens is not None
    assert reply.usage.output_tokens_details.reasoning_tokens == 0
    assert reply.status in ("completed", "incomplete") and reply.metadata == {"for": "a test"}
    if reply.status == "incomplete":
        assert reply.incomplete_details.reason == "max_output_tokens"
    assert client.responses.retrieve(reply.id) == reply
    counted = client.responses.input_tokens.count(model=model, input=COUNT, instructions="Be brief.")
    assert counted.input_tokens == reply.usage.input_tokens


def test_a_stream_says_what_the_whole_says(client, model):
    whole = ask(client, model)
    events = list(ask(client, model, stream=True))
    assert [e.sequence_number for e in events] == list(range(len(events)))
    assert [e.type for e in events[:4]] == [
        "response.created", "response.in_progress", "response.output_item.added", "response.content_part.added",
    ]
    assert events[-1].type in ("response.completed", "response.incomplete")
    assert "".join(e.delta for e in events if e.type == "response.output_text.delta") == whole.output_text
    assert events[-1].response.usage == whole.usage
    assert client.responses.retrieve(events[-1].response.id).output_text == whole.output_text


def test_the_stream_helper(client, model):
    with client.responses.stream(model=model, input="Say hello.", temperature=0) as stream:
        deltas = [event.delta for event in stream if event.type == "response.output_text.delta"]
        final = stream.get_final_response()
    assert final.output_text == "".join(deltas) and final.status == "completed"


class City(pydantic.BaseModel, extra="forbid"):
    name: str = pydantic.Field(max_length=30)
    inhabitants: int = pydantic.Field(ge=0)
    is_capital: bool


def test_parse(client, model):
    reply = client.responses.parse(
        model=model, input="Tell me about Paris, as JSON.", text_format=City, temperature=0, max_output_tokens=300
    )
    assert isinstance(reply.output_parsed, City)
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, model, text={"format": {"type": "json_schema", "name": "x", "schema": {"type": "array", "uniqueItems": True}}})
    assert "uniqueItems" in caught.value.message


def test_a_conversation(client, model):
    first = ask(client, model, input="My name is Ada. Remember it.")
    second = ask(client, model, input="What is my name?", previous_response_id=first.id)
    assert second.previous_response_id == first.id
    chat = client.chat.completions.create(
        model=model, max_tokens=16, temperature=0,
        messages=[
            {"role": "user", "content": "My name is Ada. Remember it."},
            {"role": "assistant", "content": first.output_text},
            {"role": "user", "content": "What is my name?"},
        ],
    )
    assert second.output_text == chat.choices[0].message.content
    assert second.usage.input_tokens == chat.usage.prompt_tokens
    listed = list(client.responses.input_items.list(second.id, order="asc", limit=1))
    assert [item.role for item in listed] == ["user", "assistant", "user"], "the SDK pages through all"
    assert listed[0].content[0].text == "My name is Ada. Remember it."
    # The same history, sent by the client.
    again = ask(client, model, store=False, input=[*[item.to_dict() for item in listed]])
    assert again.output_text == second.output_text
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(again.id)
    client.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(first.id)
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, model, previous_response_id=second.id)
    assert caught.value.code == "previous_response_not_found"


WEATHER = {
    "type": "function",
    "name": "get_weather",
    "description": "The weather of a city",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    "strict": False,
}


def test_tools_and_their_results(client, model):
    call = {"type": "function_call", "call_id": "call_1", "name": "get_weather", "arguments": '{"city": "Paris"}'}
    history = [
        {"role": "user", "content": "How is the weather in Paris?"},
        call,
        {"type": "function_call_output", "call_id": "call_1", "output": "Sunny, 31 degrees."},
    ]
    reply = ask(client, model, input=history, tools=[WEATHER], max_output_tokens=64)
    chat = client.chat.completions.create(
        model=model, max_tokens=64, temperature=0,
        tools=[{"type": "function", "function": {k: WEATHER[k] for k in ("name", "description", "parameters")}}],
        messages=[
            history[0],
            {"role": "assistant", "content": "", "tool_calls": [
                {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": call["arguments"]}}]},
            {"role": "tool", "tool_call_id": "call_1", "content": "Sunny, 31 degrees."},
        ],
    )
    assert reply.usage.input_tokens == chat.usage.prompt_tokens
    assert reply.output_text == (chat.choices[0].message.content or "")


def test_background(client, model):
    begun = ask(client, model, background=True)
    assert begun.status == "queued"
    done = over(client, begun)
    assert done.output_text == ask(client, model).output_text
    assert client.responses.cancel(done.id) == done
    # A long one is stopped, for what it used.
    long = ask(client, model, background=True, max_output_tokens=2000, input="Write a very long story.", temperature=1)
    stopped = client.responses.cancel(long.id)
    assert stopped.status in ("cancelled", "completed")
    assert client.responses.retrieve(long.id).status == stopped.status


def test_a_background_stream_goes_on_where_it_was_left(client, model):
    stream = ask(client, model, background=True, stream=True)
    seen = []
    for event in stream:
        seen.append(event)
        if len(seen) == 6:
            break
    stream.close()
    response_id = seen[0].response.id
    rest = list(client.responses.retrieve(response_id, stream=True, starting_after=seen[-1].sequence_number))
    events = seen + rest
    assert [e.sequence_number for e in events] == list(range(len(events)))
    text = "".join(e.delta for e in events if e.type == "response.output_text.delta")
    assert text == events[-1].response.output_text == ask(client, model).output_text


def test_async_and_errors(client, settings, model):
    async def run():
        async with openai.AsyncOpenAI(**settings, max_retries=0) as client:
            whole = await ask(client, model)
            stream = await ask(client, model, stream=True)
            deltas = [e.delta async for e in stream if e.type == "response.output_text.delta"]
            assert "".join(deltas) == whole.output_text

    asyncio.run(run())
    for param, options in {
        "temperature": {"temperature": 9},
        "input": {"input": []},
        "tools[0].type": {"tools": [{"type": "web_search"}]},
        "conversation": {"conversation": "conv_1"},
        "nonsense": {"extra_body": {"nonsense": 1}},
    }.items():
        with pytest.raises(openai.BadRequestError) as caught:
            ask(client, model, **options)
        assert caught.value.param == param, caught.value
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve("resp_none")
