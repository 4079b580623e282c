"""Who serves what, as tables: hosts, paths, headers and fields of answers that only one provider has.

A new provider of an API that is known already is a row here, and nothing else. Every table has the same three columns (`Mark`).
This room knows strings and decoded JSON only, and imports no other room: dialects ask it about an answer they read, `identity` weighs
what it says.
"""
