"""What is known of subjects, over restarts: one file, written beside and renamed, for the owner alone."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

import msgspec

from llmsec_analyzer.watch.subjects import MAX_SUBJECTS, AnySubject, Subjects
from llmsec_tap.storage.publish import publishing, write_all

VERSION: Final = 1
# 100,000 subjects take about a fifth of it.
_MAX_BYTES: Final = 512 << 20


class _Saved(msgspec.Struct):
    version: int
    subjects: list[tuple[str, AnySubject]]


def save(subjects: Subjects, path: Path) -> None:
    """Raises OSError."""
    data = msgspec.msgpack.encode(_Saved(VERSION, subjects.items()))
    with publishing(path) as descriptor:
        write_all(descriptor, data)


def load(path: Path) -> tuple[Subjects, str]:
    """What was saved, and what is wrong with it: then nothing is known, and all begins anew. No file is nothing wrong."""
    subjects = Subjects()
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return subjects, ""
    except OSError as fault:
        return subjects, fault.strerror or str(fault)
    with os.fdopen(descriptor, "rb") as file:
        if os.fstat(file.fileno()).st_size > _MAX_BYTES:
            return subjects, "it is larger than what is ever written"
        try:
            saved = msgspec.msgpack.decode(file.read(), type=_Saved)
        except (msgspec.MsgspecError, OSError, RecursionError):
            return subjects, "it is damaged"
    if saved.version != VERSION:
        return subjects, "another version wrote it"
    for name, subject in saved.subjects[-MAX_SUBJECTS:]:
        subjects.put(name, subject)
    return subjects, ""
