// The npm package `openai` against a running server: node clients.mjs http://127.0.0.1:PORT MODEL. Any difference is an error.
import assert from "node:assert/strict";
import OpenAI from "openai";

const [url, model] = process.argv.slice(2);
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: "none", maxRetries: 0 });
const messages = [{ role: "user", content: "What is the capital of France?" }];
const ask = { model, messages, max_tokens: 16, temperature: 0 };

assert.equal((await client.models.list()).data[0].id, model);
const whole = await client.chat.completions.create({ ...ask, logprobs: true, top_logprobs: 2 });
const said = whole.choices[0].message.content;
assert.equal(whole.usage.completion_tokens, 16);
const likely = whole.choices[0].logprobs.content;
assert.equal(likely.map((of) => of.token).join(""), said);
assert.ok(likely.every((of) => of.logprob <= 0 && of.top_logprobs.length === 2));

let streamed = "";
let usage;
for await (const chunk of await client.chat.completions.create({ ...ask, stream: true, stream_options: { include_usage: true } })) {
  streamed += chunk.choices[0]?.delta?.content ?? "";
  usage = chunk.usage ?? usage;
}
assert.equal(streamed, said);
assert.equal(usage.completion_tokens, 16);
const final = await client.chat.completions.stream(ask).finalChatCompletion();
assert.equal(final.choices[0].message.content, said);

const input = messages[0].content;
const response = await client.responses.create({ model, input, max_output_tokens: 16, temperature: 0 });
assert.equal(response.output_text, said);
let pieces = "";
for await (const event of await client.responses.create({ model, input, max_output_tokens: 16, temperature: 0, stream: true })) {
  if (event.type === "response.output_text.delta") pieces += event.delta;
}
assert.equal(pieces, said);

const schema = { type: "object", properties: { city: { enum: ["Rome", "Oslo"] } }, required: ["city"], additionalProperties: false };
const format = { type: "json_schema", json_schema: { name: "x", strict: true, schema } };
const obeys = await client.chat.completions.parse({ model, messages, max_tokens: 40, response_format: format });
assert.ok(["Rome", "Oslo"].includes(JSON.parse(obeys.choices[0].message.content).city));
const text = await client.completions.create({ model, prompt: "Once upon", max_tokens: 4, temperature: 0, logprobs: 1 });
assert.equal(text.choices[0].logprobs.tokens.join(""), text.choices[0].text);

await assert.rejects(client.chat.completions.create({ ...ask, model: "gpt-4o" }), OpenAI.NotFoundError);
await assert.rejects(client.chat.completions.create({ ...ask, temperature: -1 }), OpenAI.BadRequestError);
// Hanging up in the middle: the next answer comes all the same.
const gone = await client.chat.completions.create({ model, messages, stream: true });
for await (const chunk of gone) {
  if (chunk.choices[0]?.delta?.content) break;
}
gone.controller.abort();
assert.equal((await client.chat.completions.create(ask)).choices[0].message.content, said);
console.log("openai for Node");
