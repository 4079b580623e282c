"""Detection in a process of its own, so that decoding never waits for it and a fault of it costs no exchange.

`client.py` is the end in the decoder, `__main__.py` the other one, `protocol.py` what they say to each other.
"""
