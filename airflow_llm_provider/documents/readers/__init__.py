"""Readers: what a file's bytes say, one module per kind of format, each a pure function.

A reader `read_<kind>(raw: bytes, reading: Reading) -> tuple[Part, ...]` returns the parts of the document in reading
order, or raises `Unreadable(reason, message)`. `kinds.py` has the table of formats, and chooses the reader by the
first bytes and the file's name. Readers that parse run in the sandbox: see `documents/sandbox.py`.
"""
