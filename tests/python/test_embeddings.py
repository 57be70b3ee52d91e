"""Embeddings and reranking, as vendors' own clients ask for them, of the real all-MiniLM-L6-v2.

The vectors are compared with those that sentence-transformers made (the golden file of the engine's tests).
"""

import asyncio
import json
import os
import pathlib
import shutil
import types

import dashscope
import httpx
import numpy
import ollama
import openai
import pytest
import soak

from conftest import BINARY, EMBEDDER, MODEL_FILE, MODELS

FOLDER = os.path.join(MODELS or "", EMBEDDER)
GOLDEN = pathlib.Path(__file__).resolve().parents[2] / "crates/engine/tests/goldens/minilm"
TEXTS = json.loads((GOLDEN / "texts.json").read_text())
VECTORS = numpy.fromfile(GOLDEN / "vectors.f32", dtype="<f4").reshape(len(TEXTS), -1)
# As long as the model's limit, which a client must ask to have cut.
LONGEST = 256
MIN_COSINE = 0.9999

pytestmark = pytest.mark.skipif(not (BINARY and os.path.isdir(FOLDER)), reason=f"no {EMBEDDER}")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A server with a chat model and an embedding model beside each other."""
    folder = str(tmp_path_factory.mktemp("embeddings"))
    options = types.SimpleNamespace(bin=BINARY, model=os.path.join(MODELS, MODEL_FILE))
    with soak.running(options, folder, environment={"MINTAGE_EMBEDDING_MODELS": FOLDER}) as (process, url):
        yield url
    assert process.returncode == 0


@pytest.fixture(scope="module")
def client(root):
    with openai.OpenAI(base_url=root + "/v1", api_key=soak.KEY, max_retries=0, timeout=120) as client:
        yield client


def check(found, expected=VECTORS):
    """Each vector is the reference's."""
    found = numpy.array(found, dtype=float)
    assert found.shape == expected.shape
    assert numpy.allclose(numpy.linalg.norm(found, axis=1), 1, atol=1e-5)
    cosines = (found * expected.astype(float)).sum(axis=1)
    assert cosines.min() >= MIN_COSINE, cosines


def test_openai(client):
    # The client asks for base64 unless told otherwise.
    packed = client.embeddings.create(model=EMBEDDER, input=TEXTS)
    check([one.embedding for one in packed.data])
    plain = client.embeddings.create(model=EMBEDDER, input=TEXTS, encoding_format="float")
    # As text a number has the digits that tell it from its neighbours in 32 bits.
    singles = lambda reply: numpy.array([one.embedding for one in reply.data], dtype=numpy.float32)
    assert (singles(plain) == singles(packed)).all()
    assert [one.index for one in plain.data] == list(range(len(TEXTS)))
    assert plain.usage.prompt_tokens == plain.usage.total_tokens > len(TEXTS)
    one = client.embeddings.create(model=EMBEDDER, input=TEXTS[0])
    assert one.data[0].embedding == packed.data[0].embedding, "alone as in company"
    whole = client.embeddings.create(model=EMBEDDER, input=TEXTS[0], dimensions=VECTORS.shape[1])
    assert whole.data[0].embedding == one.data[0].embedding


def test_openai_refusals(client):
    def refused(status, needle, **options):
        with pytest.raises(openai.APIStatusError) as caught:
            client.embeddings.create(**{"model": EMBEDDER, "input": "x", **options})
        assert caught.value.status_code == status and needle in caught.value.message, caught.value

    chat = next(model.id for model in client.models.list() if model.id != EMBEDDER)
    refused(400, "was not trained", dimensions=64)
    refused(400, f"at most {LONGEST}", input="word " * 300)
    refused(400, "makes no vectors", model=chat)
    refused(404, "does not exist", model="no-such-model")
    with pytest.raises(openai.BadRequestError, match="/v1/embeddings"):
        client.chat.completions.create(model=EMBEDDER, messages=[{"role": "user", "content": "Hi"}])
    cut = client.embeddings.create(
        model=EMBEDDER, input="word " * 300, extra_body={"truncate_prompt_tokens": -1}
    )
    assert cut.usage.prompt_tokens == LONGEST


def test_openai_async(root):
    async def ask():
        async with openai.AsyncOpenAI(base_url=root + "/v1", api_key=soak.KEY) as client:
            embed = lambda text: client.embeddings.create(model=EMBEDDER, input=text)
            return await asyncio.gather(*map(embed, TEXTS))

    check([reply.data[0].embedding for reply in asyncio.run(ask())])


def test_openai_batch(client):
    import io

    body = lambda text: {"model": EMBEDDER, "input": text}
    line = lambda n: {"custom_id": f"c{n}", "method": "POST", "url": "/v1/embeddings", "body": body(TEXTS[n])}
    lines = "".join(json.dumps(line(n)) + "\n" for n in range(len(TEXTS)))
    file = client.files.create(file=("lines.jsonl", io.BytesIO(lines.encode())), purpose="batch")
    batch = client.batches.create(
        input_file_id=file.id, endpoint="/v1/embeddings", completion_window="24h"
    )
    for _ in range(300):
        batch = client.batches.retrieve(batch.id)
        if batch.status in ("completed", "failed", "expired", "cancelled"):
            break
        asyncio.run(asyncio.sleep(0.1))
    assert batch.status == "completed" and batch.request_counts.completed == len(TEXTS), batch
    results = [json.loads(line) for line in client.files.content(batch.output_file_id).text.splitlines()]
    results.sort(key=lambda result: int(result["custom_id"][1:]))
    check([result["response"]["body"]["data"][0]["embedding"] for result in results])


def test_langchain(root):
    from langchain_openai import OpenAIEmbeddings

    # Otherwise it counts tokens by OpenAI's vocabulary and sends ids of that.
    embeddings = OpenAIEmbeddings(
        model=EMBEDDER, base_url=root + "/v1", api_key=soak.KEY, check_embedding_ctx_length=False
    )
    check(embeddings.embed_documents(TEXTS))
    check([embeddings.embed_query(TEXTS[0])], VECTORS[:1])


@pytest.fixture
def model_studio(monkeypatch, root):
    monkeypatch.setattr(dashscope, "base_http_api_url", root + "/api/v1")
    monkeypatch.setattr(dashscope, "api_key", soak.KEY)


def test_dashscope(model_studio):
    reply = dashscope.TextEmbedding.call(model=EMBEDDER, input=TEXTS)
    assert reply.status_code == 200 and reply.request_id and reply.usage["total_tokens"] > len(TEXTS), reply
    found = reply.output["embeddings"]
    assert [one["text_index"] for one in found] == list(range(len(TEXTS)))
    check([one["embedding"] for one in found])
    query = dashscope.TextEmbedding.call(
        model=EMBEDDER, input=TEXTS[0], text_type="query", dimension=VECTORS.shape[1], output_type="dense"
    )
    check([query.output["embeddings"][0]["embedding"]], VECTORS[:1])
    refused = dashscope.TextEmbedding.call(model=EMBEDDER, input=TEXTS[0], dimension=64)
    assert (refused.status_code, refused.code) == (400, "InvalidParameter")
    missing = dashscope.TextEmbedding.call(model="no-such-model", input=TEXTS[0])
    assert (missing.status_code, missing.code) == (404, "Model.NotExist")


# The cosine of the reference's vectors of the first two texts and the third, which is of something else.
QUERY, DOCUMENTS = TEXTS[0], [TEXTS[3], TEXTS[1], TEXTS[0]]


def scores():
    vectors = VECTORS.astype(float)
    return [float(vectors[0] @ vectors[at]) for at in (3, 1, 0)]


def ranked(results):
    """Best first, each with the reference's cosine."""
    expected = scores()
    found = [(one["index"], one["relevance_score"]) for one in results]
    assert [index for index, _ in found] == sorted(range(3), key=lambda at: -expected[at])[: len(found)]
    assert all(abs(score - expected[index]) < 1e-4 for index, score in found), (found, expected)
    return True


def test_dashscope_rerank(model_studio):
    reply = dashscope.TextReRank.call(
        model=EMBEDDER, query=QUERY, documents=DOCUMENTS, top_n=2, return_documents=True
    )
    assert reply.status_code == 200 and reply.usage["total_tokens"] > 0, reply
    results = [dict(one) for one in reply.output["results"]]
    assert len(results) == 2 and ranked(results)
    assert [one["document"]["text"] for one in results] == [DOCUMENTS[one["index"]] for one in results]


@pytest.mark.parametrize("path", ["/v1/rerank", "/v2/rerank", "/compatible-api/v1/reranks"])
def test_rerank(root, path):
    body = {"model": EMBEDDER, "query": QUERY, "documents": DOCUMENTS}
    headers = {"authorization": f"Bearer {soak.KEY}"}
    reply = httpx.post(root + path, json=body, headers=headers, timeout=60)
    assert reply.status_code == 200 and ranked(reply.json()["results"]), reply.text


def test_ollama(root):
    llama = ollama.Client(host=root, headers={"authorization": f"Bearer {soak.KEY}"}, timeout=120)
    reply = llama.embed(model=EMBEDDER, input=TEXTS)
    check(reply.embeddings)
    assert reply.prompt_eval_count > len(TEXTS) and reply.total_duration > 0
    check([llama.embeddings(model=f"{EMBEDDER}:latest", prompt=TEXTS[0]).embedding], VECTORS[:1])
    assert llama.embed(model=EMBEDDER, input="word " * 300).prompt_eval_count == LONGEST
    with pytest.raises(ollama.ResponseError) as caught:
        llama.embed(model=EMBEDDER, input="word " * 300, truncate=False)
    assert caught.value.status_code == 400
    assert llama.show(EMBEDDER).capabilities == ["embedding"]


RERANKER = pathlib.Path(__file__).resolve().parents[2] / "crates/engine/tests/goldens/qwen3-reranker"
PAIRS = json.loads((RERANKER / "pairs.json").read_text())


@pytest.fixture(scope="module", params=["files", "settings"])
def reranking(request, tmp_path_factory):
    """A server with a reranker, whose files say that it is one, or else the settings do."""
    folder = tmp_path_factory.mktemp("reranking")
    model, arguments = RERANKER, None
    if request.param == "settings":
        model = folder / "model"
        shutil.copytree(RERANKER, model, ignore=shutil.ignore_patterns("modules.json", "1_LogitScore"))
        (folder / "mintage.toml").write_text(f'[[model]]\nsource = "{model}"\ntask = "rerank"\n')
        arguments = ["serve", "--config", str(folder / "mintage.toml")]
    options = types.SimpleNamespace(bin=BINARY, model=str(model))
    with soak.running(options, str(folder), arguments) as (process, url):
        yield url
    assert process.returncode == 0


def test_reranker(reranking, monkeypatch):
    """Scores are those of transformers; control tokens in a text are text."""
    with httpx.Client(base_url=reranking, headers={"authorization": f"Bearer {soak.KEY}"}, timeout=60) as client:
        name = client.get("/v1/models").json()["data"][0]["id"]
        for pair in PAIRS:
            asked = {"model": name, "query": pair["query"], "documents": pair["documents"]}
            if pair["instruction"]:
                asked["instruct"] = pair["instruction"]
            reply = client.post("/v1/rerank", json=asked)
            assert reply.status_code == 200, reply.text
            results = reply.json()["results"]
            found = {result["index"]: result["relevance_score"] for result in results}
            assert [found[n] for n in range(len(found))] == pytest.approx(pair["scores"], abs=1e-4)
            order = [result["relevance_score"] for result in results]
            assert order == sorted(order, reverse=True)
            assert reply.json()["usage"]["total_tokens"] == sum(pair["tokens"])
    pair = PAIRS[0]
    monkeypatch.setattr(dashscope, "base_http_api_url", reranking + "/api/v1")
    reply = dashscope.TextReRank.call(
        model=name, query=pair["query"], documents=pair["documents"], api_key=soak.KEY, top_n=2
    )
    assert reply.status_code == 200, reply
    best = sorted(range(len(pair["scores"])), key=lambda n: -pair["scores"][n])[:2]
    assert [result.index for result in reply.output.results] == best
