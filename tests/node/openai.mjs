// OpenAI's own client for Node against a running server: BASE_URL (ending in /v1), API_KEY, MODEL; EMBEDDING_MODEL if it has one.
// MINTAGE_TEST_NODE is the folder whose node_modules holds it. Exit code 0 when everything held.

import assert from "node:assert/strict";
import { createRequire } from "node:module";
import path from "node:path";

const require = createRequire(path.join(process.env.MINTAGE_TEST_NODE, "here.js"));
const OpenAI = require("openai");
const { BASE_URL, API_KEY, MODEL } = process.env;
const client = new OpenAI.OpenAI({ baseURL: BASE_URL, apiKey: API_KEY, maxRetries: 0 });
const messages = [{ role: "user", content: "What is the capital of France? Answer with its name only." }];
const tools = [{
  type: "function",
  function: {
    name: "get_weather",
    description: "The weather of a city",
    parameters: { type: "object", properties: { city: { type: "string" } }, required: ["city"] },
  },
}];

async function check(name, work) {
  await work();
  console.log(`ok ${name}`);
}

await check("whole", async () => {
  const answer = await client.chat.completions.create({ model: MODEL, messages, temperature: 0, max_tokens: 16 });
  assert.match(answer.choices[0].message.content, /Paris/);
  assert.equal(answer.usage.total_tokens, answer.usage.prompt_tokens + answer.usage.completion_tokens);
  assert.match(answer._request_id, /./);
});

await check("stream", async () => {
  const stream = await client.chat.completions.create({
    model: MODEL, messages, temperature: 0, max_tokens: 16, stream: true, stream_options: { include_usage: true },
  });
  let text = "", usage = null, end = null;
  for await (const event of stream) {
    text += event.choices[0]?.delta.content ?? "";
    end = event.choices[0]?.finish_reason ?? end;
    usage = event.usage ?? usage;
  }
  assert.match(text, /Paris/);
  assert.equal(end, "stop");
  assert.ok(usage.completion_tokens > 0);
});

await check("stream helper", async () => {
  const stream = client.chat.completions.stream({ model: MODEL, messages, temperature: 0, max_tokens: 16 });
  let deltas = "";
  stream.on("content", (delta) => { deltas += delta; });
  const final = await stream.finalChatCompletion();
  assert.equal(final.choices[0].message.content, deltas);
});

await check("tools and their results", async () => {
  const call = { id: "call_1", type: "function", function: { name: "get_weather", arguments: '{"city":"Paris"}' } };
  const history = [
    { role: "user", content: "How is the weather in Paris?" },
    { role: "assistant", content: null, tool_calls: [call] },
    { role: "tool", tool_call_id: "call_1", content: "22 degrees and sunny" },
  ];
  const answer = await client.chat.completions.create({ model: MODEL, messages: history, tools, temperature: 0, max_tokens: 40 });
  const { message, finish_reason } = answer.choices[0];
  assert.ok(message.content || message.tool_calls, JSON.stringify(message));
  for (const made of message.tool_calls ?? []) assert.equal(typeof JSON.parse(made.function.arguments), "object");
  assert.ok(["stop", "length", "tool_calls"].includes(finish_reason));
});

await check("schema", async () => {
  const schema = { type: "object", properties: { city: { type: "string" } }, required: ["city"], additionalProperties: false };
  const answer = await client.chat.completions.create({
    model: MODEL, messages, temperature: 0, max_tokens: 60,
    response_format: { type: "json_schema", json_schema: { name: "city", strict: true, schema } },
  });
  assert.equal(typeof JSON.parse(answer.choices[0].message.content).city, "string");
});

await check("hanging up", async () => {
  const stream = await client.chat.completions.create({ model: MODEL, messages, max_tokens: 200, stream: true });
  for await (const event of stream) if (event.choices[0]?.delta.content) break;
});

await check("responses", async () => {
  const ask = { model: MODEL, input: messages[0].content, temperature: 0, max_output_tokens: 16 };
  const whole = await client.responses.create(ask);
  assert.match(whole.output_text, /Paris/);
  assert.equal(whole.usage.total_tokens, whole.usage.input_tokens + whole.usage.output_tokens);
  const stream = await client.responses.create({ ...ask, stream: true });
  let text = "", next = 0, last = null;
  for await (const event of stream) {
    assert.equal(event.sequence_number, next++);
    if (event.type === "response.output_text.delta") text += event.delta;
    last = event;
  }
  assert.equal(text, whole.output_text);
  assert.equal(last.type, "response.completed");
  const followed = await client.responses.create({ ...ask, input: "And of Italy?", previous_response_id: whole.id });
  const items = [];
  for await (const item of client.responses.inputItems.list(followed.id, { order: "asc", limit: 1 })) items.push(item.role);
  assert.deepEqual(items, ["user", "assistant", "user"]);
  const schema = { type: "object", properties: { city: { type: "string" } }, required: ["city"], additionalProperties: false };
  const parsed = await client.responses.parse({
    ...ask, max_output_tokens: 60, text: { format: { type: "json_schema", name: "city", strict: true, schema } },
  });
  assert.equal(typeof parsed.output_parsed.city, "string");
  await client.responses.delete(whole.id);
  await assert.rejects(client.responses.retrieve(whole.id), OpenAI.NotFoundError);
});

await check("responses in the background", async () => {
  const ask = { model: MODEL, input: messages[0].content, temperature: 0, max_output_tokens: 16, background: true };
  let response = await client.responses.create(ask);
  assert.equal(response.status, "queued");
  for (let tries = 0; ["queued", "in_progress"].includes(response.status); tries++) {
    assert.ok(tries < 600, response.status);
    await new Promise((resolve) => setTimeout(resolve, 100));
    response = await client.responses.retrieve(response.id);
  }
  assert.match(response.output_text, /Paris/);
  // The client joins the texts of what it retrieves, not of what it cancels.
  const { output_text: _, ...whole } = response;
  assert.deepEqual(await client.responses.cancel(response.id), whole);
});

await check("completions and models", async () => {
  const text = await client.completions.create({ model: MODEL, prompt: "1, 2, 3, 4,", max_tokens: 8, temperature: 0 });
  assert.match(text.choices[0].text, /5/);
  const ids = [];
  for await (const model of client.models.list()) ids.push(model.id);
  assert.ok(ids.includes(MODEL));
  assert.equal((await client.models.retrieve(MODEL)).id, MODEL);
});

await check("files and batches", async () => {
  const body = { model: MODEL, messages, temperature: 0, max_tokens: 8 };
  const line = (id) => JSON.stringify({ custom_id: id, method: "POST", url: "/v1/chat/completions", body });
  const input = await OpenAI.toFile(Buffer.from(["a", "b", "c"].map(line).join("\n")), "in.jsonl");
  const file = await client.files.create({ file: input, purpose: "batch" });
  assert.equal((await client.files.retrieve(file.id)).filename, "in.jsonl");
  let batch = await client.batches.create({
    input_file_id: file.id, endpoint: "/v1/chat/completions", completion_window: "24h",
  });
  for (let tries = 0; batch.status !== "completed"; tries++) {
    assert.ok(tries < 600 && !["failed", "expired", "cancelled"].includes(batch.status), JSON.stringify(batch));
    await new Promise((resolve) => setTimeout(resolve, 100));
    batch = await client.batches.retrieve(batch.id);
  }
  assert.deepEqual(batch.request_counts, { total: 3, completed: 3, failed: 0 });
  const output = (await (await client.files.content(batch.output_file_id)).text()).trim().split("\n").map(JSON.parse);
  assert.deepEqual(output.map((one) => one.custom_id), ["a", "b", "c"]);
  for (const one of output) assert.match(one.response.body.choices[0].message.content, /Paris/);
  const listed = [];
  for await (const one of client.batches.list({ limit: 1 })) listed.push(one.id);
  assert.ok(listed.includes(batch.id));
  for (const id of [file.id, batch.output_file_id]) assert.equal((await client.files.delete(id)).deleted, true);
  await assert.rejects(client.files.retrieve(file.id), OpenAI.NotFoundError);
});

if (process.env.EMBEDDING_MODEL) {
  await check("embeddings", async () => {
    const ask = { model: process.env.EMBEDDING_MODEL, input: ["a cat", "a kitten", "the national debt"] };
    // The client asks for base64 unless told otherwise, and unpacks it.
    const packed = (await client.embeddings.create(ask)).data.map((one) => one.embedding);
    const plain = (await client.embeddings.create({ ...ask, encoding_format: "float" })).data.map((one) => one.embedding);
    assert.deepEqual(plain.map((vector) => [...Float32Array.from(vector)]), packed.map((vector) => [...Float32Array.from(vector)]));
    const cosine = (a, b) => packed[a].reduce((sum, value, n) => sum + value * packed[b][n], 0);
    assert.ok(Math.abs(cosine(0, 0) - 1) < 1e-5);
    assert.ok(cosine(0, 1) > cosine(0, 2) + 0.2);
  });
}

await check("errors by class", async () => {
  const bad = { model: MODEL, messages, temperature: 9 };
  await assert.rejects(client.chat.completions.create(bad), OpenAI.BadRequestError);
  await assert.rejects(client.chat.completions.create({ model: "none", messages }), OpenAI.NotFoundError);
  const stranger = new OpenAI.OpenAI({ baseURL: BASE_URL, apiKey: "sk-wrong", maxRetries: 0 });
  await assert.rejects(stranger.models.list(), OpenAI.AuthenticationError);
});
