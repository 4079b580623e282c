"""A running capture: threads that read, a bounded queue between them and decoding, and TLS calls put together to flows."""
