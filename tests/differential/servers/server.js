// A model API of node's http and JSON.parse, routed as Express does (case and a last slash do not count): server.js PORT.
const http = require("http");
const answer = '{"id":"c","object":"chat.completion","model":"m","choices":[{"index":0,"message":{"role":"assistant","content":"ok"},"finish_reason":"stop"}]}';
const ollama = '{"model":"m","created_at":"2026-01-01T00:00:00Z","message":{"role":"assistant","content":"ok"},"done":true}';
const routes = ["/v1/chat/completions", "/api/chat", "/v1/completions"];

http.createServer((request, response) => {
  const pieces = [];
  request.on("data", (piece) => pieces.push(piece));
  request.on("end", () => {
    let seen = false;
    let said = answer;
    try {
      const path = decodeURIComponent(request.url.split("?")[0]).toLowerCase().replace(/\/$/, "");
      if (path === "/api/chat") said = ollama;
      const body = JSON.parse(Buffer.concat(pieces).toString("utf8"));
      const texts = [body.prompt, ...(Array.isArray(body.messages) ? body.messages.map((message) => message.content) : [])];
      seen = routes.includes(path) && JSON.stringify(texts).includes("MARKER");
    } catch (fault) {
      response.statusCode = 400;
    }
    response.setHeader("content-type", "application/json");
    response.setHeader("x-seen", seen ? "1" : "0");
    response.end(said);
  });
}).listen(Number(process.argv[2]), "127.0.0.1");
