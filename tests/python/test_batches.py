"""Files and batches as a user of the official SDK relies on them, against the real binary."""

import io
import json
import time

import openai
import pytest


def upload(client, text, purpose="batch", name="in.jsonl"):
    return client.files.create(file=(name, io.BytesIO(text.encode())), purpose=purpose)


def lines(model, count, **options):
    body = {"model": model, "max_tokens": 4, "temperature": 0, **options}
    for n in range(count):
        messages = [{"role": "user", "content": f"Say the number {n}."}]
        line = {"custom_id": f"c{n}", "method": "POST", "url": "/v1/chat/completions", "body": {**body, "messages": messages}}
        yield json.dumps(line) + "\n"


def over(client, batch, seconds=300):
    end = time.monotonic() + seconds
    while batch.status not in ("completed", "failed", "expired", "cancelled"):
        assert time.monotonic() < end, batch
        time.sleep(0.2)
        batch = client.batches.retrieve(batch.id)
    return batch


def results(client, file_id):
    return [json.loads(line) for line in client.files.content(file_id).text.splitlines()] if file_id else []


def test_files(client):
    text = "hello\nworld\n" * 1000
    made = upload(client, text, purpose="user_data", name="hello.txt")
    assert (made.bytes, made.filename, made.purpose, made.status) == (len(text), "hello.txt", "user_data", "processed")
    assert client.files.retrieve(made.id) == made
    assert client.files.content(made.id).text == text
    others = [upload(client, "x").id for _ in range(3)]
    listed = [f.id for f in client.files.list(limit=2)]
    assert listed[: 4] == [*reversed(others), made.id], "the SDK pages through all"
    assert made.id not in [f.id for f in client.files.list(purpose="batch")]
    for file_id in [made.id, *others]:
        assert client.files.delete(file_id).deleted
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(made.id)
    with pytest.raises(openai.BadRequestError):
        upload(client, "x", purpose="nonsense")


def test_a_batch(client, model):
    bad = json.dumps({"custom_id": "bad", "method": "POST", "url": "/v1/chat/completions", "body": {"model": model, "messages": []}})
    file = upload(client, "".join(lines(model, 8)) + bad)
    batch = client.batches.create(
        input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h", metadata={"for": "a test"}
    )
    assert batch.status == "validating" and batch.metadata == {"for": "a test"}
    batch = over(client, batch)
    assert batch.status == "completed"
    counts = batch.request_counts
    assert (counts.total, counts.completed, counts.failed) == (9, 8, 1)
    output = results(client, batch.output_file_id)
    assert [line["custom_id"] for line in output] == [f"c{n}" for n in range(8)]
    # The same as online, token for token.
    for n in (0, 7):
        body = output[n]["response"]["body"]
        online = client.chat.completions.create(
            model=model, max_tokens=4, temperature=0, messages=[{"role": "user", "content": f"Say the number {n}."}]
        )
        assert body["choices"][0]["message"]["content"] == online.choices[0].message.content
        assert body["usage"]["completion_tokens"] == online.usage.completion_tokens
    assert batch.usage.output_tokens == sum(line["response"]["body"]["usage"]["completion_tokens"] for line in output)
    (error,) = results(client, batch.error_file_id)
    assert error["custom_id"] == "bad" and error["response"]["status_code"] == 400
    assert batch.id in [b.id for b in client.batches.list(limit=10)]


def test_a_batch_is_cancelled(client, model):
    file = upload(client, "".join(lines(model, 200, max_tokens=200)))
    batch = client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")
    while batch.status == "validating":
        time.sleep(0.05)
        batch = client.batches.retrieve(batch.id)
    assert client.batches.cancel(batch.id).status == "cancelling"
    batch = over(client, batch)
    assert batch.status == "cancelled"
    ids = [line["custom_id"] for name in (batch.output_file_id, batch.error_file_id) for line in results(client, name)]
    assert sorted(ids) == sorted(f"c{n}" for n in range(200))
    with pytest.raises(openai.ConflictError):
        client.batches.cancel(batch.id)


def test_a_wrong_input(client, model):
    file = upload(client, "nonsense")
    batch = over(client, client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"))
    assert batch.status == "failed" and batch.errors.data[0].code == "invalid_json_line"
    with pytest.raises(openai.NotFoundError):
        client.batches.create(input_file_id="file-none", endpoint="/v1/chat/completions", completion_window="24h")
