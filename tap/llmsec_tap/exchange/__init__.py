"""HTTP messages to finished records: bodies decoded and framed, given to the dialect that reads them, and put on an `Exchange`.

`assembly.py` settles who reads what and when; `completeness.py`, `record.py`, `ids.py` and `timing.py` are pure functions of the outcome. Imports
`wire.messages`, `dialects` and `identity`, never a parser of one HTTP version, nor `capture` or `storage`.
"""
