// Thirteen calls by node: its own https module, or the vendors' clients where their packages are (third argument: their folder).
import https from "node:https";
import fs from "node:fs";
import { createRequire } from "node:module";

const [url, ca, kind, folder] = process.argv.slice(2);
const prompt = (n) => [{ role: "user", content: `call ${n} by node-${kind}` }];
const say = (value) => console.log(JSON.stringify(value));
const load = (name) => createRequire(folder + "/package.json")(name);

const plain = (n) => new Promise((resolve, reject) => {
  const body = JSON.stringify({ model: "tiny", messages: prompt(n), max_tokens: 12, stream: n % 2 === 1 });
  const request = https.request(`${url}/v1/chat/completions`, {
    method: "POST", ca: fs.readFileSync(ca), agent,
    headers: { "content-type": "application/json", "content-length": Buffer.byteLength(body), "X-Call": `node-${kind}-${n}` },
  }, (answer) => {
    let text = "";
    answer.setEncoding("utf8");
    answer.on("data", (piece) => (text += piece));
    answer.on("end", () => { say({ call: n, body: text }); resolve(); });
  });
  request.on("error", reject);
  request.end(body);
});
const agent = new https.Agent({ keepAlive: true });

if (kind === "https") {
  for (let n = 0; n < 13; n++) await plain(n);
  agent.destroy();
} else if (kind === "openai") {
  const { OpenAI } = load("openai");
  const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: "sk-test", maxRetries: 0 });
  for (let n = 0; n < 13; n++) {
    const asked = { model: "tiny", messages: prompt(n), max_tokens: 12 };
    const options = { headers: { "X-Call": `node-openai-${n}` } };
    let text = "";
    if (n % 2) {
      for await (const part of await client.chat.completions.create({ ...asked, stream: true }, options)) text += part.choices[0]?.delta?.content ?? "";
    } else {
      text = (await client.chat.completions.create(asked, options)).choices[0].message.content;
    }
    say({ call: n, text });
  }
} else {
  const { Anthropic } = load("@anthropic-ai/sdk");
  const client = new Anthropic({ baseURL: url, apiKey: "sk-ant-test", maxRetries: 0 });
  for (let n = 0; n < 13; n++) {
    const asked = { model: "tiny", messages: prompt(n), max_tokens: 12 };
    const options = { headers: { "X-Call": `node-anthropic-${n}` } };
    let text = "";
    if (n % 2) {
      const stream = client.messages.stream(asked, options);
      stream.on("text", (piece) => (text += piece));
      await stream.finalMessage();
    } else {
      text = (await client.messages.create(asked, options)).content.filter((b) => b.type === "text").map((b) => b.text).join("");
    }
    say({ call: n, text });
  }
}
