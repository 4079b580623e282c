"""One pass over a text, whole or in pieces: triggers find where a recognizer must look, which then answers a pure question.

Knows no rule by name, no exchange and no process.
"""
