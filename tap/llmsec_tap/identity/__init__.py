"""Who serves an exchange and who calls: the evidence is weighed here, and credentials become fingerprints.

Also decides what is a call to a model at all (`classify.py`, `non_inference.py`) and masks what is neither content nor ours. Imports `dialects`
and `providers`, never `exchange` or anything that reads bytes from a connection.
"""
