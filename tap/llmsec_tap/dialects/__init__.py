"""One file for each API that is spoken with language models, as pure functions from request and answer to a `Draft`.

`registry.py` lists them, `claims.py` is the scale on which they claim a request, `base.py` says what a dialect is. Imports `providers` (whose
fields an answer has) and neither HTTP nor `identity`: a dialect must not know what carried its messages, nor decide who served them.
"""
