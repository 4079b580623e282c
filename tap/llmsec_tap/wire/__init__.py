"""Bytes on the wire to HTTP messages and the events of streams: packets, TCP, connections, HTTP, content codings, SSE, NDJSON, AWS frames.

Pure: bytes go in with their capture time, calls on sinks come out (docs/adr/0001-push-sinks.md). Imports no socket, file, clock or thread, and
knows nothing of language models: no dialect, provider or exchange.
"""
