// The npm packages `openai` and `ai` (Vercel) against guard serve. Prints one JSON line: what each call got.
// node openai_and_ai.mjs URL_OF_A_MODEL URL_OF_A_SCRIPTED_MODEL_WITH_TOOLS

import OpenAI from 'openai';
import { generateObject, generateText, streamText, tool, jsonSchema, stepCountIs } from 'ai';
import { createOpenAI } from '@ai-sdk/openai';
import { createOpenAICompatible } from '@ai-sdk/openai-compatible';

const [real, scripted] = process.argv.slice(2);
const results = {};
const question = [{ role: 'user', content: 'What is the capital of France?' }];
const schema = {
  type: 'object', properties: { city: { type: 'string' } }, required: ['city'], additionalProperties: false,
};

async function run(name, call) {
  try {
    results[name] = await call();
  } catch (error) {
    results[name] = { raised: error.constructor.name, message: String(error.message).slice(0, 200), code: error.code };
  }
}

const client = new OpenAI({ baseURL: `${real}/v1`, apiKey: 'none', maxRetries: 0 });
const tooled = new OpenAI({ baseURL: `${scripted}/v1`, apiKey: 'none', maxRetries: 0 });

await run('openai chat', async () => {
  const answer = await client.chat.completions.create({ model: 'smollm2', messages: question });
  return { text: answer.choices[0].message.content, action: answer.guard.action };
});
await run('openai stream', async () => {
  let text = '';
  let action;
  for await (const chunk of await client.chat.completions.create({ model: 'smollm2', messages: question, stream: true })) {
    text += chunk.choices[0]?.delta?.content ?? '';
    action = chunk.guard?.action ?? action;
  }
  return { text, action };
});
await run('openai abstention', async () => {
  const answer = await client.chat.completions.create({ model: 'smollm2:never', messages: question });
  return { text: answer.choices[0].message.content, refusal: answer.choices[0].message.refusal };
});
await run('openai retracted', async () => {
  let text = '';
  for await (const chunk of await client.chat.completions.create({ model: 'live:never', messages: question, stream: true })) {
    text += chunk.choices[0]?.delta?.content ?? '';
  }
  return { text };
});
await run('openai unknown option', () => client.chat.completions.create({ model: 'smollm2', messages: question, n: 2 }));
await run('openai responses', async () => {
  const answer = await client.responses.create({ model: 'smollm2', input: 'What is the capital of France?' });
  return { text: answer.output_text };
});
await run('openai tool', async () => {
  const tools = [{ type: 'function', function: { name: 'look_up', parameters: schema } }];
  const answer = await tooled.chat.completions.create({ model: 'tiny', messages: question, tools });
  return { calls: answer.choices[0].message.tool_calls.map((call) => [call.function.name, call.function.arguments]) };
});
await run('openai JSON', async () => {
  const format = { type: 'json_schema', json_schema: { name: 'city', schema, strict: true } };
  const answer = await tooled.chat.completions.parse({ model: 'tiny', messages: question, response_format: format });
  return { object: JSON.parse(answer.choices[0].message.content) };
});

const compatible = createOpenAICompatible({ name: 'guard', baseURL: `${real}/v1` });
const compatibleTooled = createOpenAICompatible({
  name: 'guard', baseURL: `${scripted}/v1`, supportsStructuredOutputs: true,
});
const own = createOpenAI({ baseURL: `${real}/v1`, apiKey: 'none' });
const prompt = question[0].content;
const lookUp = tool({ description: 'Looks up a city', inputSchema: jsonSchema(schema), execute: async ({ city }) => `${city}!` });

await run('ai generateText', async () => ({ text: (await generateText({ model: compatible('smollm2'), prompt, maxRetries: 0 })).text }));
await run('ai generateText, Responses', async () => ({ text: (await generateText({ model: own('smollm2'), prompt, maxRetries: 0 })).text }));
await run('ai streamText', async () => {
  const errors = [];
  const stream = streamText({ model: compatible('smollm2'), prompt, maxRetries: 0, onError: ({ error }) => errors.push(error) });
  let text = '';
  for await (const piece of stream.textStream) text += piece;
  return { text, errors: errors.length };
});
await run('ai streamText, retracted', async () => {
  const errors = [];
  const stream = streamText({ model: compatible('live:never'), prompt, maxRetries: 0, onError: ({ error }) => errors.push(error) });
  for await (const _ of stream.textStream);
  return { errors: errors.length, reason: await stream.finishReason.then((reason) => reason, (error) => error.name) };
});
await run('ai generateObject', async () => ({
  object: (await generateObject({ model: compatibleTooled('tiny'), schema: jsonSchema(schema), prompt, maxRetries: 0 })).object,
}));
await run('ai tool', async () => {
  const answer = await generateText({
    model: compatibleTooled('tiny'), prompt, tools: { look_up: lookUp }, stopWhen: stepCountIs(3), maxRetries: 0,
  });
  return { text: answer.text, calls: answer.steps.flatMap((step) => step.toolCalls.map((call) => [call.toolName, call.input])) };
});

console.log(JSON.stringify(results));
