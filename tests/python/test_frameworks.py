"""Programs that stand on several APIs at once: LiteLLM, LangChain, Qwen-Agent."""

import asyncio
import json
import os

import pytest

# Before it is imported: it would fetch its list of prices otherwise.
os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")

HELLO = "Count from one to twenty, in words."


@pytest.fixture(scope="module")
def litellm():
    import litellm

    litellm.telemetry = False
    litellm.drop_params = False
    return litellm


PROVIDERS = {"openai": "/v1", "dashscope": "/compatible-mode/v1", "anthropic": "", "ollama_chat": ""}


@pytest.fixture(params=PROVIDERS)
def provider(request, root, key, model):
    """What LiteLLM needs to speak this provider's dialect to the server."""
    return {
        "model": f"{request.param}/{model}",
        "api_base": root + PROVIDERS[request.param],
        "api_key": key,
        "max_tokens": 16,
        "temperature": 0,
        "timeout": 120,
    }


def test_litellm(litellm, provider):
    messages = [{"role": "user", "content": HELLO}]
    whole = litellm.completion(messages=messages, **provider)
    choice = whole.choices[0]
    assert choice.message.content and choice.finish_reason == "length"
    assert whole.usage.completion_tokens == 16 and whole.usage.prompt_tokens > 10
    stream = litellm.completion(
        messages=messages, stream=True, stream_options={"include_usage": True}, **provider
    )
    chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == choice.message.content
    used = [chunk.usage for chunk in chunks if getattr(chunk, "usage", None)][-1]
    assert used.completion_tokens == 16

    async def talk():
        return await litellm.acompletion(messages=messages, **provider)

    assert asyncio.run(talk()).choices[0].message.content == choice.message.content


def test_litellm_errors(litellm, provider):
    messages = [{"role": "user", "content": HELLO}]
    family = provider["model"].split("/")[0]
    with pytest.raises(litellm.NotFoundError):
        litellm.completion(messages=messages, **{**provider, "model": f"{family}/no-such-model"})
    with pytest.raises(litellm.AuthenticationError):
        litellm.completion(messages=messages, **{**provider, "api_key": "sk-wrong"})


def test_langchain(settings, model):
    from langchain_core.messages import AIMessage, HumanMessage
    from langchain_core.tools import tool
    from langchain_openai import ChatOpenAI

    chat = ChatOpenAI(model=model, temperature=0, max_tokens=16, **settings)
    whole = chat.invoke(HELLO)
    assert whole.content and whole.usage_metadata["output_tokens"] == 16
    assert "".join(chunk.content for chunk in chat.stream(HELLO)) == whole.content
    assert asyncio.run(chat.ainvoke(HELLO)).content == whole.content

    @tool
    def get_weather(city: str) -> str:
        """The weather of a city."""
        return f"{city}: 21 degrees"

    question = HumanMessage("What is the weather in Paris?")
    call = {"name": "get_weather", "args": {"city": "Paris"}, "id": "call_1", "type": "tool_call"}
    history = [question, AIMessage("", tool_calls=[call]), get_weather.invoke(call)]
    caller = chat.bind_tools([get_weather])
    asked, told = caller.invoke([question]), caller.invoke(history)
    read = lambda reply: reply.usage_metadata["input_tokens"]
    # The model answers, or calls once more.
    assert (told.content or told.tool_calls) and read(told) > read(asked) + 10 > read(whole)


@pytest.mark.parametrize("kind", ["oai", "qwen_dashscope"])
def test_qwen_agent(root, key, model, kind):
    """An agent with a tool: the model's words decide whether it is called, its own parser reads them."""
    from qwen_agent.agents import Assistant
    from qwen_agent.tools.base import BaseTool, register_tool

    called = []

    @register_tool("get_weather", allow_overwrite=True)
    class GetWeather(BaseTool):
        description = "The weather of a city."
        parameters = [{"name": "city", "type": "string", "description": "The city.", "required": True}]

        def call(self, params, **kwargs):
            called.append(json.loads(params))
            return "21 degrees"

    servers = {"oai": root + "/v1", "qwen_dashscope": root + "/api/v1"}
    config = {
        "model": model,
        "model_type": kind,
        "model_server": servers[kind],
        "base_http_api_url": servers[kind],
        "api_key": key,
        "generate_cfg": {"top_k": 1, "seed": 7, "max_tokens": 96, "fncall_prompt_type": "nous"},
    }
    agent = Assistant(llm=config, function_list=["get_weather"])
    question = "Call the tool get_weather for the city Paris, then tell me the weather."
    *_, messages = agent.run([{"role": "user", "content": question}])
    assert messages
    if called:
        # Results go back. A small model may call until the agent's own limit: then a result is the last word.
        assert all(arguments.get("city") == "Paris" for arguments in called), called
        assert any(message["role"] == "function" for message in messages)
    else:
        assert messages[-1]["role"] == "assistant"
