// A model API of Go's net/http and encoding/json, as Ollama and most Go servers are: server PORT.
package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"strings"
)

type message struct {
	Role    string `json:"role"`
	Content string `json:"content"`
}

type request struct {
	Model    string    `json:"model"`
	Messages []message `json:"messages"`
	Prompt   string    `json:"prompt"`
}

const answer = `{"id":"c","object":"chat.completion","model":"m","choices":[{"index":0,"message":{"role":"assistant","content":"ok"},"finish_reason":"stop"}]}`

const ollama = `{"model":"m","created_at":"2026-01-01T00:00:00Z","message":{"role":"assistant","content":"ok"},"done":true}`

func handle(w http.ResponseWriter, r *http.Request) {
	var body request
	kind := r.Header.Get("Content-Type")
	if strings.HasPrefix(kind, "multipart/") || strings.HasPrefix(kind, "application/x-www-form-urlencoded") {
		body.Prompt = r.FormValue("prompt")
	} else if err := json.NewDecoder(r.Body).Decode(&body); err != nil {
		http.Error(w, err.Error(), 400)
		return
	}
	seen := strings.Contains(body.Prompt, "MARKER")
	for _, m := range body.Messages {
		seen = seen || strings.Contains(m.Content, "MARKER")
	}
	said := answer
	if r.URL.Path == "/api/chat" {
		said = ollama
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", fmt.Sprint(len(said)))
	if seen {
		w.Header().Set("X-Seen", "1")
	}
	w.Write([]byte(said))
}

func main() {
	mux := http.NewServeMux()
	for _, path := range []string{"/v1/chat/completions", "/api/chat", "/v1/completions", "/v1/images/edits"} {
		mux.HandleFunc(path, handle)
	}
	http.ListenAndServe("127.0.0.1:"+os.Args[1], mux)
}
