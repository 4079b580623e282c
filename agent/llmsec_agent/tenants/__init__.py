"""Tenants that a database has: whose a key is, and what holds for each of them.

`policy.py` is what holds for a tenant, `directory.py` the decoder's side (memory), `tiers.py` Redis and PostgreSQL, `resolver.py` the
process that asks them, `messages.py` what the two say to each other. docs/adr/0010-tenants-in-a-database.md says why it is so.
"""
