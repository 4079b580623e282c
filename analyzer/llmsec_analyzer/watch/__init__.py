"""Deviations: traffic that is not as it was, or beyond what was allowed, told from the facts of exchanges and never from their texts.

    windows.py    sums over a span of time, and what such sums usually are
    prices.py     what an exchange costs (prices.yaml)
    subjects.py   what is known of a tenant, a key, a client, an upstream, a model, a session
    watcher.py    looks at each exchange as it ends, and says what is unusual about it
    saved.py      what is known, over restarts

Time is capture time, so that a replay tells the same as the live capture did. `anomaly` is another word: it is what is odd on the wire.
"""
