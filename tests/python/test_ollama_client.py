"""What users of Ollama's own client rely on."""

import asyncio
import json

import ollama
import pytest

HELLO = [{"role": "user", "content": "Count from one to twenty, in words."}]
OPTIONS = {"num_predict": 16, "temperature": 0}


@pytest.fixture(scope="module")
def llama(root, key):
    return ollama.Client(host=root, headers={"authorization": f"Bearer {key}"}, timeout=120)


def test_chat(llama, model):
    whole = llama.chat(model=model, messages=HELLO, options=OPTIONS)
    assert whole.done and whole.done_reason == "length" and whole.eval_count == 16
    assert whole.prompt_eval_count > 10 and whole.total_duration >= whole.eval_duration > 0
    lines = list(llama.chat(model=model, messages=HELLO, options=OPTIONS, stream=True))
    assert "".join(line.message.content for line in lines) == whole.message.content
    assert [line.done for line in lines] == [False] * (len(lines) - 1) + [True]


def test_generate(llama, model):
    whole = llama.generate(model=model, prompt=HELLO[0]["content"], options=OPTIONS)
    lines = llama.generate(model=model, prompt=HELLO[0]["content"], options=OPTIONS, stream=True)
    assert "".join(line.response for line in lines) == whole.response
    assert whole.response == llama.chat(model=model, messages=HELLO, options=OPTIONS).message.content


def test_an_answer_of_a_schema(llama, model):
    schema = {"type": "object", "properties": {"city": {"enum": ["Paris", "Rome"]}}, "required": ["city"]}
    schema["additionalProperties"] = False
    options = {"num_predict": 64, "temperature": 0}
    reply = llama.chat(model=model, messages=HELLO, format=schema, options=options)
    assert json.loads(reply.message.content)["city"] in ("Paris", "Rome")
    reply = llama.generate(model=model, prompt="Name a city.", format=schema, options=options)
    assert json.loads(reply.response)["city"] in ("Paris", "Rome")


def test_models(llama, model):
    assert model in [found.model for found in llama.list().models]
    assert model in [found.model for found in llama.ps().models]
    assert "completion" in llama.show(model).capabilities


def test_errors(llama, model):
    with pytest.raises(ollama.ResponseError) as caught:
        llama.chat(model="no-such-model", messages=HELLO)
    assert caught.value.status_code == 404 and "no-such-model" in caught.value.error
    with pytest.raises(ollama.ResponseError) as caught:
        llama.chat(model=model, messages=HELLO, options={"temperature": 9})
    assert caught.value.status_code == 400 and "temperature" in caught.value.error


def test_async(root, key, model):
    async def talk():
        client = ollama.AsyncClient(host=root, headers={"authorization": f"Bearer {key}"}, timeout=120)
        stream = await client.chat(model=model, messages=HELLO, options=OPTIONS, stream=True)
        return [line async for line in stream]

    assert asyncio.run(talk())[-1].eval_count == 16
