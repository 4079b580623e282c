"""TLS as a reader beside the connection sees it: hellos, and records where their secrets are known."""
