// Thirteen calls by Bun's own fetch, half of them streamed, half over a connection each: URL, certificate, the name to call by; output as plain.py's.
import fs from "node:fs";

const [url, ca, name] = process.argv.slice(2);
for (let n = 0; n < 13; n++) {
  const body = JSON.stringify({ model: "tiny", messages: [{ role: "user", content: `call ${n} by ${name}` }], max_tokens: 12, stream: n % 2 === 1 });
  const answer = await fetch(`${url}/v1/chat/completions`, {
    method: "POST", body, keepalive: n > 6, tls: { ca: fs.readFileSync(ca, "utf8") },
    headers: { "content-type": "application/json", "X-Call": `${name}-${n}` },
  });
  console.log(JSON.stringify({ call: n, body: await answer.text() }));
}
