//! OpenAI's dialect, and what vLLM and OpenRouter have beside it.

use serde_json::{Value, json};

use super::{
    EVENTS, JSON, Operation, closed, content, count, flag, joined, list, no_query, nullable,
    number, object, reference, text,
};

const COMPATIBLE: &[&str] = &["/compatible-mode"];
/// Of models: Anthropic's clients look there, too.
const COMPATIBLE_MODELS: &[&str] = &["/compatible-mode", "/apps/anthropic"];

const fn get(
    path: &'static str,
    about: &'static str,
    schema: &'static [super::Content],
) -> Operation {
    Operation {
        method: "GET",
        path,
        also_under: &[],
        about,
        needs_key: true,
        query: no_query,
        body: None,
        answers: schema,
        error: Some("Error"),
    }
}

const fn post(
    path: &'static str,
    about: &'static str,
    body: fn() -> Value,
    answers: &'static [super::Content],
) -> Operation {
    Operation { method: "POST", body: Some(body), ..get(path, about, answers) }
}

pub(super) const OPERATIONS: &[Operation] = &[
    Operation {
        also_under: COMPATIBLE,
        ..post(
            "/v1/chat/completions",
            "Answers a conversation, as OpenAI's document says.",
            || reference("ChatRequest"),
            &[
                content(JSON, || reference("ChatAnswer")),
                content(EVENTS, || reference("ChatEvent")),
            ],
        )
    },
    Operation {
        also_under: COMPATIBLE,
        ..post(
            "/v1/completions",
            "Continues a text, or fills in its middle, as OpenAI's document says.",
            || reference("CompletionRequest"),
            &[
                content(JSON, || reference("Completion")),
                content(EVENTS, || reference("Completion")),
            ],
        )
    },
    Operation {
        also_under: COMPATIBLE,
        ..post(
            "/v1/embeddings",
            "Makes vectors of texts, as OpenAI's document says.",
            || reference("EmbeddingRequest"),
            &[content(JSON, || reference("Embeddings"))],
        )
    },
    post(
        "/v1/rerank",
        "Scores documents for a query, best first, as Jina does.",
        || reference("RerankRequest"),
        &[content(JSON, || reference("Ranked"))],
    ),
    post(
        "/compatible-api/v1/reranks",
        "The same, where Model Studio has it.",
        || reference("RerankRequest"),
        &[content(JSON, || reference("Ranked"))],
    ),
    post(
        "/v2/rerank",
        "The same, as Cohere does.",
        || reference("CohereRerankRequest"),
        &[content(JSON, || reference("CohereRanked"))],
    ),
    Operation {
        also_under: COMPATIBLE,
        query: || vec![("id", true, text())],
        ..get(
            "/v1/generation",
            "Shows what a request of the key's project used and cost, as OpenRouter does.",
            &[content(JSON, || reference("Generation"))],
        )
    },
    Operation {
        also_under: COMPATIBLE_MODELS,
        error: Some("EitherError"),
        ..get(
            "/v1/models",
            "Lists the models that are served; in Anthropic's shape for who sends `anthropic-version`.",
            &[content(JSON, models)],
        )
    },
    Operation {
        also_under: COMPATIBLE_MODELS,
        error: Some("EitherError"),
        ..get("/v1/models/{model}", "Shows a model.", &[content(JSON, model)])
    },
    Operation {
        also_under: COMPATIBLE,
        ..post(
            "/tokenize",
            "Tells the tokens of a text, or of a chat as the model reads it, as vLLM does.",
            || reference("TokenizeRequest"),
            &[content(JSON, || reference("Tokens"))],
        )
    },
    Operation {
        also_under: COMPATIBLE,
        ..post(
            "/detokenize",
            "Tells the text of tokens, as vLLM does.",
            || closed(&["tokens"], json!({"model": nullable(text()), "tokens": list(count())})),
            &[content(JSON, || object(&["prompt"], json!({"prompt": text()})))],
        )
    },
    Operation {
        also_under: COMPATIBLE,
        query: || vec![("model", false, text())],
        ..get(
            "/tokenizer_info",
            "Tells of a model's tokeniser: its special tokens and its template.",
            &[content(JSON, tokenizer_info)],
        )
    },
];

fn models() -> Value {
    json!({"anyOf": [
        object(&["object", "data"], json!({"object": {"const": "list"}, "data": list(reference("Model"))})),
        reference("AnthropicModels"),
    ]})
}

fn model() -> Value {
    json!({"anyOf": [reference("Model"), reference("AnthropicModel")]})
}

pub(super) fn schemas() -> Vec<(&'static str, Value)> {
    let mut schemas = answers();
    schemas.extend([
        ("ChatRequest", chat_request()),
        ("CompletionRequest", completion_request()),
        ("TokenizeRequest", tokenize_request()),
        ("EmbeddingRequest", embedding_request()),
        ("Embeddings", embeddings()),
        ("RerankRequest", rerank_request(true)),
        ("Ranked", ranked()),
        ("CohereRerankRequest", rerank_request(false)),
        ("CohereRanked", cohere_ranked()),
        ("Message", message()),
        ("Tool", tool()),
        ("ToolCall", tool_call()),
        ("ResponseFormat", response_format()),
        ("Usage", usage()),
        ("EitherError", json!({"anyOf": [reference("Error"), reference("AnthropicError")]})),
    ]);
    schemas
}

fn embedding_request() -> Value {
    let ids = || json!({"type": "array", "items": count(), "minItems": 1});
    let words = || json!({"type": "string", "minLength": 1});
    let several =
        |items: Value| json!({"type": "array", "items": items, "minItems": 1, "maxItems": 2048});
    closed(
        &["model", "input"],
        json!({
            "model": text(),
            "input": {"anyOf": [words(), several(words()), ids(), several(ids())]},
            "encoding_format": {"enum": ["float", "base64", null]},
            "dimensions": {"type": ["integer", "null"], "minimum": 1},
            "truncate_prompt_tokens": {"type": ["integer", "null"], "minimum": -1, "not": {"const": 0}},
            "user": {"type": ["string", "null"]},
            "safety_identifier": {"type": ["string", "null"]},
            "usage": {"type": ["object", "null"], "additionalProperties": false, "properties": {
                "include": {"type": "boolean"},
            }},
        }),
    )
}

fn embeddings() -> Value {
    let embedding = object(
        &["object", "index", "embedding"],
        json!({
            "object": {"const": "embedding"},
            "index": count(),
            "embedding": {"anyOf": [list(json!({"type": "number"})), text()]},
        }),
    );
    let usage = object(
        &["prompt_tokens", "total_tokens"],
        json!({"prompt_tokens": count(), "total_tokens": count(), "cost": {"type": "number"}}),
    );
    object(
        &["object", "data", "model", "usage"],
        json!({"object": {"const": "list"}, "data": list(embedding), "model": text(), "usage": usage, "id": text()}),
    )
}

/// Jina's, or Cohere's.
fn rerank_request(is_jina: bool) -> Value {
    let document = || json!({"anyOf": [text(), object(&["text"], json!({"text": text()}))]});
    let number = || json!({"type": ["integer", "null"], "minimum": 1});
    let shared = json!({
        "model": text(),
        "query": {"anyOf": [
            {"type": "string", "minLength": 1},
            object(&["text"], json!({"text": {"type": "string", "minLength": 1}})),
        ]},
        "documents": {"type": "array", "items": document(), "minItems": 1, "maxItems": 2048},
        "top_n": number(),
        "max_tokens_per_doc": number(),
        "return_documents": flag(),
    });
    let own = if is_jina {
        let maybe = || json!({"type": ["string", "null"]});
        json!({"instruct": maybe(), "user": maybe(), "truncation": flag()})
    } else {
        json!({"priority": {"type": ["integer", "null"], "minimum": 0, "maximum": 999}})
    };
    closed(&["model", "query", "documents"], joined(shared, own))
}

fn scores() -> Value {
    list(object(
        &["index", "relevance_score"],
        json!({
            "index": count(),
            "relevance_score": {"type": "number", "minimum": -1.001, "maximum": 1.001},
            "document": object(&["text"], json!({"text": text()})),
        }),
    ))
}

fn ranked() -> Value {
    let usage = object(
        &["prompt_tokens", "total_tokens"],
        json!({"prompt_tokens": count(), "total_tokens": count()}),
    );
    object(
        &["id", "object", "model", "results", "usage"],
        json!({"id": text(), "object": {"const": "list"}, "model": text(), "results": scores(), "usage": usage}),
    )
}

fn cohere_ranked() -> Value {
    let meta = object(&["tokens"], json!({"tokens": {"type": "object"}}));
    object(&["id", "results", "meta"], json!({"id": text(), "results": scores(), "meta": meta}))
}

/// What says how tokens are chosen and how the answer is sent.
fn shared() -> Value {
    joined(joined(shape(), sampling()), joined(ignored(), structured()))
}

fn shape() -> Value {
    json!({
        "model": text(),
        "n": {"type": ["integer", "null"], "minimum": 1},
        "stream": flag(),
        "stream_options": {"type": ["object", "null"], "additionalProperties": false, "properties": {
            "include_usage": {"type": "boolean"},
            "continuous_usage_stats": flag(),
            "include_obfuscation": {"type": "boolean"},
        }},
        "usage": {"type": ["object", "null"], "additionalProperties": false, "properties": {
            "include": {"type": "boolean"},
        }},
        "stop": {"anyOf": [text(), list(text()), {"type": "null"}]},
        "stop_token_ids": {"type": ["array", "null"], "items": count(), "maxItems": 64},
        "ignore_eos": flag(),
        "return_token_ids": flag(),
        "prompt_logprobs": {"type": ["integer", "null"], "minimum": 0, "maximum": 20},
        "max_tokens": {"type": ["integer", "null"], "minimum": 0},
    })
}

fn sampling() -> Value {
    json!({
        "temperature": number(0.0, 2.0),
        "top_p": number(0.0, 1.0),
        "top_k": {"type": ["integer", "null"], "minimum": 0},
        "min_p": number(0.0, 1.0),
        "typical_p": number(0.0, 1.0),
        "repetition_penalty": number(0.0625, 16.0),
        "frequency_penalty": number(-2.0, 2.0),
        "presence_penalty": number(-2.0, 2.0),
        "logit_bias": {"type": ["object", "null"], "additionalProperties": number(-100.0, 100.0)},
        "seed": {"type": ["integer", "null"]},
    })
}

/// OpenAI's fields that change nothing here.
fn ignored() -> Value {
    let maybe = || json!({"type": ["string", "null"]});
    json!({
        "user": text(),
        "safety_identifier": maybe(),
        "prompt_cache_key": maybe(),
        "prompt_cache_retention": maybe(),
        "service_tier": maybe(),
        "store": flag(),
        "metadata": super::chats::metadata(),
    })
}

/// What an answer must look like.
fn structured() -> Value {
    let maybe = || json!({"type": ["string", "null"]});
    json!({
        "response_format": nullable(reference("ResponseFormat")),
        "guided_json": {"type": ["object", "string", "boolean", "null"]},
        "guided_json_object": flag(),
        "guided_regex": maybe(),
        "guided_choice": {"type": ["array", "null"], "items": text()},
        "guided_grammar": maybe(),
        "guided_decoding_backend": maybe(),
        "structured_outputs": {"type": ["object", "null"]},
    })
}

fn chat_request() -> Value {
    let own = json!({
        "messages": {"type": "array", "minItems": 1, "items": reference("Message")},
        "max_completion_tokens": {"type": ["integer", "null"], "minimum": 1},
        "logprobs": flag(),
        "top_logprobs": {"type": ["integer", "null"], "minimum": 0, "maximum": 20},
        "tools": {"type": "array", "maxItems": 128, "items": reference("Tool")},
        "tool_choice": {"anyOf": [
            {"enum": ["auto", "none", "required"]},
            closed(&["type", "function"], json!({
                "type": {"const": "function"},
                "function": closed(&["name"], json!({"name": text()})),
            })),
        ]},
        "parallel_tool_calls": {"type": "boolean"},
        "modalities": {"anyOf": [{"const": ["text"]}, {"type": "null"}]},
        "reasoning_effort": effort(),
        "prediction": nullable(closed(&["type", "content"], json!({
            "type": {"const": "content"},
            "content": {"anyOf": [text(), {"type": "array", "minItems": 1, "items": {"type": "object"}}]},
        }))),
        "verbosity": {"type": ["string", "null"]},
        "enable_thinking": flag(),
        "thinking_budget": {"type": ["integer", "null"], "minimum": 1},
        "chat_template_kwargs": {"type": ["object", "null"], "additionalProperties": false,
            "properties": {"enable_thinking": flag()}},
        "incremental_output": flag(),
        "enable_search": {"enum": [false, null]},
        "search_options": {"type": ["object", "null"]},
        "vl_high_resolution_images": flag(),
    });
    closed(&["model", "messages"], joined(shared(), own))
}

/// OpenAI's scale of how much to think.
pub(super) fn effort() -> Value {
    json!({"enum": ["none", "minimal", "low", "medium", "high", "xhigh", "max", null]})
}

fn completion_request() -> Value {
    let tokens = || list(count());
    let own = json!({
        "prompt": {"anyOf": [text(), tokens(), list(json!({"anyOf": [text(), tokens()]}))]},
        "suffix": {"type": ["string", "null"]},
        "echo": flag(),
        "best_of": {"type": ["integer", "null"], "minimum": 0, "maximum": 20},
        "logprobs": {"type": ["integer", "null"], "minimum": 0, "maximum": 5},
    });
    closed(&["model", "prompt"], joined(shared(), own))
}

fn tokenize_request() -> Value {
    let chat = json!({
        "messages": {"type": "array", "minItems": 1, "items": reference("Message")},
        "tools": {"type": "array", "maxItems": 128, "items": reference("Tool")},
        "tool_choice": {},
        "parallel_tool_calls": {"type": "boolean"},
        "enable_thinking": flag(),
        "chat_template_kwargs": {"type": ["object", "null"], "additionalProperties": false,
            "properties": {"enable_thinking": flag()}},
        "continue_final_message": flag(),
        "add_generation_prompt": flag(),
    });
    let both = || {
        json!({
            "model": nullable(text()),
            "return_token_strs": flag(),
            "add_special_tokens": flag(),
        })
    };
    json!({"anyOf": [
        closed(&["prompt"], joined(both(), json!({"prompt": text()}))),
        closed(&["messages"], joined(both(), chat)),
    ]})
}

fn message() -> Value {
    let part = closed(
        &["type"],
        json!({
            "type": {"enum": ["text", "refusal"]},
            "text": text(),
            "refusal": text(),
            "cache_control": {},
        }),
    );
    closed(
        &["role"],
        json!({
            "role": {"enum": ["system", "developer", "user", "assistant", "tool"]},
            "content": {"anyOf": [text(), list(part), {"type": "null"}]},
            "name": {"type": ["string", "null"]},
            "tool_call_id": text(),
            "tool_calls": {"type": ["array", "null"], "items": reference("ToolCall")},
            "partial": flag(),
            "refusal": {"type": ["string", "null"]},
            "reasoning_content": {"type": ["string", "null"]},
            "annotations": {"type": ["array", "null"]},
            "audio": {"type": "null"},
            "function_call": {"type": "null"},
        }),
    )
}

fn tool() -> Value {
    let function = closed(
        &["name"],
        json!({
            "name": text(),
            "description": {"type": ["string", "null"]},
            "parameters": {"type": ["object", "null"]},
            "strict": flag(),
        }),
    );
    closed(&["type", "function"], json!({"type": {"const": "function"}, "function": function}))
}

fn tool_call() -> Value {
    let function = closed(&["name", "arguments"], json!({"name": text(), "arguments": text()}));
    closed(
        &["id", "type", "function"],
        json!({
            "id": text(),
            "type": {"const": "function"},
            "function": function,
            "index": {},
        }),
    )
}

fn response_format() -> Value {
    let schema = closed(
        &[],
        json!({
            "name": {"type": ["string", "null"]},
            "description": {"type": ["string", "null"]},
            "strict": flag(),
            "schema": {"type": ["object", "boolean", "null"]},
        }),
    );
    json!({"anyOf": [
        closed(&["type"], json!({"type": {"const": "text"}})),
        closed(&["type"], json!({
            "type": {"const": "json_object"},
            "schema": {"type": ["object", "boolean", "null"]},
        })),
        closed(&["type", "json_schema"], json!({
            "type": {"const": "json_schema"},
            "json_schema": schema,
        })),
    ]})
}

fn usage() -> Value {
    object(
        &["prompt_tokens", "completion_tokens", "total_tokens", "prompt_tokens_details"],
        json!({
            "prompt_tokens": count(),
            "completion_tokens": count(),
            "total_tokens": count(),
            "prompt_tokens_details": object(&["cached_tokens"], json!({"cached_tokens": count()})),
            "completion_tokens_details": object(&[], json!({"reasoning_tokens": count()})),
            "cost": {"type": "number"},
        }),
    )
}

fn head(object_name: Value) -> Value {
    json!({
        "id": text(),
        "object": object_name,
        "created": count(),
        "model": text(),
        "system_fingerprint": text(),
    })
}

const HEAD: [&str; 6] = ["id", "object", "created", "model", "system_fingerprint", "choices"];

/// A token with its probability, and what is told with it.
fn probability(more: Value) -> Value {
    let own = json!({"token": text(), "logprob": {"type": "number"}, "bytes": list(count())});
    object(&["token", "logprob", "bytes"], joined(own, more))
}

fn chat_logprobs() -> Value {
    let token = || probability(json!({"top_logprobs": list(probability(json!({})))}));
    nullable(object(
        &["content", "refusal"],
        json!({"content": list(token()), "refusal": nullable(list(token()))}),
    ))
}

fn prompt_logprobs() -> Value {
    let told = object(
        &["logprob", "rank", "decoded_token"],
        json!({
            "logprob": {"type": "number"},
            "rank": {"type": ["integer", "null"], "minimum": 1},
            "decoded_token": text(),
        }),
    );
    list(json!({"type": ["object", "null"], "additionalProperties": told}))
}

fn answers() -> Vec<(&'static str, Value)> {
    let ends = || json!({"enum": ["stop", "length", "tool_calls"]});
    let calls = list(json!({"type": "object"}));
    let said = object(
        &["role", "content", "refusal"],
        json!({
            "role": {"const": "assistant"},
            "content": nullable(text()),
            "refusal": nullable(text()),
            "reasoning_content": text(),
            "tool_calls": list(reference("ToolCall")),
        }),
    );
    let choice = object(
        &["index", "message", "logprobs", "finish_reason"],
        json!({
            "index": count(),
            "message": said,
            "logprobs": chat_logprobs(),
            "finish_reason": ends(),
            "token_ids": list(count()),
        }),
    );
    let delta = json!({
        "role": {"const": "assistant"},
        "content": text(),
        "reasoning_content": text(),
        "tool_calls": calls,
    });
    let more = object(
        &["index", "delta", "logprobs", "finish_reason"],
        json!({
            "index": count(),
            "delta": object(&[], delta),
            "logprobs": chat_logprobs(),
            "finish_reason": nullable(ends()),
            "token_ids": list(count()),
        }),
    );
    let of_prompt =
        || json!({"prompt_token_ids": list(count()), "prompt_logprobs": prompt_logprobs()});
    let whole = json!({"choices": list(choice), "usage": reference("Usage")});
    let event = json!({"choices": list(more), "usage": nullable(reference("Usage"))});
    let chat = joined(head(json!({"const": "chat.completion"})), joined(whole, of_prompt()));
    let chunk = joined(head(json!({"const": "chat.completion.chunk"})), joined(event, of_prompt()));
    vec![
        ("ChatAnswer", object(&HEAD, chat)),
        ("ChatEvent", object(&HEAD, chunk)),
        ("Completion", completion()),
        ("Generation", generation()),
        ("Model", one_model()),
        ("Tokens", tokens()),
    ]
}

fn completion() -> Value {
    let logprobs = object(
        &["tokens", "token_logprobs", "top_logprobs", "text_offset"],
        json!({
            "tokens": list(text()),
            "token_logprobs": list(json!({"type": ["number", "null"]})),
            "top_logprobs": list(json!({"type": ["object", "null"]})),
            "text_offset": list(count()),
        }),
    );
    let choice = object(
        &["index", "text", "logprobs", "finish_reason"],
        json!({
            "index": count(),
            "text": text(),
            "logprobs": nullable(logprobs),
            "finish_reason": {"enum": ["stop", "length", null]},
            "token_ids": list(count()),
            "prompt_token_ids": list(count()),
            "prompt_logprobs": prompt_logprobs(),
        }),
    );
    let own = json!({"choices": list(choice), "usage": nullable(reference("Usage"))});
    object(&HEAD, joined(head(json!({"const": "text_completion"})), own))
}

fn generation() -> Value {
    let data = object(
        &["id", "model", "created_at", "tokens_prompt", "tokens_completion", "total_cost"],
        json!({
            "id": text(),
            "model": text(),
            "created_at": count(),
            "tokens_prompt": count(),
            "tokens_completion": count(),
            "native_tokens_prompt": count(),
            "native_tokens_completion": count(),
            "native_tokens_cached": count(),
            "native_tokens_reasoning": count(),
            "total_cost": {"type": "number"},
            "currency": text(),
            "price_version": text(),
            "finish_reason": text(),
            "cancelled": {"type": "boolean"},
            "latency": nullable(count()),
            "generation_time": nullable(count()),
            "api_type": text(),
        }),
    );
    object(&["data"], json!({"data": data}))
}

fn tokenizer_info() -> Value {
    object(
        &["tokenizer_class", "model_max_length", "bos_token", "eos_token", "chat_template"],
        json!({
            "tokenizer_class": text(),
            "model_max_length": count(),
            "bos_token": nullable(text()),
            "eos_token": nullable(text()),
            "pad_token": nullable(text()),
            "chat_template": nullable(text()),
        }),
    )
}

fn one_model() -> Value {
    object(
        &["id", "object", "created", "owned_by", "max_model_len"],
        json!({
            "id": text(),
            "object": {"const": "model"},
            "created": count(),
            "owned_by": text(),
            "max_model_len": count(),
        }),
    )
}

fn tokens() -> Value {
    object(
        &["count", "max_model_len", "tokens", "token_strs"],
        json!({
            "count": count(),
            "max_model_len": count(),
            "tokens": list(count()),
            "token_strs": nullable(list(text())),
        }),
    )
}
