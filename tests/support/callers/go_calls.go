// Thirteen calls by Go's own TLS on one kept-alive connection, or a server: `go_calls serve ADDRESS CERT KEY`.
package main

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"time"
)

func serve(address, cert, key string) {
	http.HandleFunc("/v1/chat/completions", func(w http.ResponseWriter, r *http.Request) {
		var asked struct {
			Messages []struct{ Content string }
		}
		json.NewDecoder(r.Body).Decode(&asked)
		w.Header().Set("content-type", "application/json")
		message := map[string]string{"role": "assistant", "content": "echo " + asked.Messages[0].Content}
		choices := []any{map[string]any{"index": 0, "message": message, "finish_reason": "stop"}}
		json.NewEncoder(w).Encode(map[string]any{"id": "x", "object": "chat.completion", "model": "echo", "choices": choices})
	})
	server := http.Server{Addr: address}
	if os.Getenv("HTTP2") == "" {
		server.TLSNextProto = map[string]func(*http.Server, *tls.Conn, http.Handler){}
	}
	fmt.Fprintln(os.Stderr, server.ListenAndServeTLS(cert, key))
}

func main() {
	if os.Args[1] == "serve" {
		serve(os.Args[2], os.Args[3], os.Args[4])
		return
	}
	url, authority := os.Args[1], os.Args[2]
	// A program that the tap has never seen is found and probed some 50 ms after its start; what it says before is not seen.
	time.Sleep(500 * time.Millisecond)
	pem, err := os.ReadFile(authority)
	if err != nil {
		panic(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(pem)
	client := http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}, ForceAttemptHTTP2: os.Getenv("HTTP2") != ""}}
	for n := 0; n < 13; n++ {
		content := fmt.Sprintf("call %d by go", n)
		messages := []map[string]string{{"role": "user", "content": content}}
		body, _ := json.Marshal(map[string]any{"model": "tiny", "messages": messages, "max_tokens": 12, "stream": n%2 == 1})
		request, _ := http.NewRequest("POST", url+"/v1/chat/completions", bytes.NewReader(body))
		request.Header.Set("content-type", "application/json")
		request.Header.Set("X-Call", fmt.Sprintf("go-%d", n))
		answer, err := client.Do(request)
		if err != nil {
			panic(err)
		}
		got, _ := io.ReadAll(answer.Body)
		answer.Body.Close()
		line, _ := json.Marshal(map[string]any{"call": n, "body": string(got)})
		fmt.Println(string(line))
	}
}
