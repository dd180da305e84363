// n8n's chat model against guard serve: LangChain's JavaScript client with the fields that n8n's node gives it
// (n8n-io/n8n, LmChatOpenAi.node.ts, commit 01526fc). Prints one JSON line: what each call got.
// node n8n.mjs URL_OF_A_MODEL URL_OF_A_SCRIPTED_MODEL_WITH_TOOLS

import { ChatOpenAI } from '@langchain/openai';
import { HumanMessage, ToolMessage } from '@langchain/core/messages';
import { tool } from '@langchain/core/tools';

const [real, scripted] = process.argv.slice(2);
const results = {};
const question = [new HumanMessage('What is the capital of France?')];
const schema = {
  type: 'object', properties: { city: { type: 'string' } }, required: ['city'], additionalProperties: false,
};
const lookUp = tool(async ({ city }) => `${city}!`, { name: 'look_up', description: 'Looks up a city', schema });

function model(url, name, responses, modelKwargs = {}, options = {}) {
  const fields = {
    apiKey: 'none', model: name, ...options, timeout: undefined, maxRetries: 2, configuration: { baseURL: `${url}/v1` },
    modelKwargs, supportsStrictToolCalling: false,
  };
  return new ChatOpenAI(responses ? { ...fields, useResponsesApi: true } : fields);
}

function textOf(message) {
  return typeof message.content === 'string' ? message.content : message.content.map((part) => part.text ?? '').join('');
}

async function run(name, call) {
  try {
    results[name] = await call();
  } catch (error) {
    results[name] = { raised: error.constructor.name, message: String(error.message).slice(0, 300) };
  }
}

for (const responses of [false, true]) {
  const api = responses ? 'Responses' : 'Chat';
  // What the node adds in each API, with its options unset and set.
  const unset = responses
    ? { prompt_cache_key: undefined, safety_identifier: undefined, service_tier: undefined, top_logprobs: undefined }
    : {};
  const options = { frequencyPenalty: 0, maxTokens: -1, presencePenalty: 0, temperature: 0, topP: 1 };
  const json = responses
    ? { text: { verbosity: 'medium', format: { type: 'json_schema', name: 'my_schema', schema } } }
    : { response_format: { type: 'json_object' } };

  await run(`${api} text`, async () => ({ text: textOf(await model(real, 'smollm2', responses, unset).invoke(question)) }));
  await run(`${api} options`, async () => ({
    text: textOf(await model(scripted, 'tiny', responses, unset, options).invoke(question)),
  }));
  await run(`${api} stream`, async () => {
    let text = '';
    for await (const chunk of await model(real, 'smollm2', responses, unset).stream(question)) text += textOf(chunk);
    return { text };
  });
  await run(`${api} abstention`, async () => ({
    text: textOf(await model(real, 'smollm2:never', responses, unset).invoke(question)),
  }));
  await run(`${api} JSON`, async () => ({
    object: JSON.parse(textOf(await model(scripted, 'tiny', responses, { ...unset, ...json }).invoke(question))),
  }));
  await run(`${api} tool`, async () => {
    const agent = model(scripted, 'tiny', responses, unset).bindTools([lookUp]);
    const asked = await agent.invoke(question);
    const [call] = asked.tool_calls;
    const result = new ToolMessage({ content: await lookUp.invoke(call.args), tool_call_id: call.id });
    const answer = await agent.invoke([...question, asked, result]);
    return { call: [call.name, call.args], text: textOf(answer) };
  });
}

console.log(JSON.stringify(results));
