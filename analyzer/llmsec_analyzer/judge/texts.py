"""`llmsec-analyze scan`: texts in, one line of findings out for each, in order and in constant memory."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from llmsec_analyzer.judge.facts import Facts
from llmsec_analyzer.judge.scanner import Scanner
from llmsec_analyzer.judge.suppressions import Suppressions
from llmsec_analyzer.risk import rank, risk_score
from llmsec_tap.errors import SourceError
from llmsec_tap.model import Finding, Severity

# One text of more than this is scanned up to here and marked; nothing a model can read is longer.
MAX_LINE_BYTES = 128 * 1024 * 1024


class Result(msgspec.Struct):
    id: Any
    risk_score: int | None  # null where nothing was looked for, or the text could not be read
    injection_score: float | None
    findings: list[Finding]
    error: str | msgspec.UnsetType = msgspec.UNSET
    unscanned: int | msgspec.UnsetType = msgspec.UNSET
    findings_dropped: dict[str, int] | msgspec.UnsetType = msgspec.UNSET  # beyond those kept, by rule


class Input(msgspec.Struct):
    id: Any
    text: str
    role: str = "user"
    system: str = ""
    error: str | None = None
    cut: bool = False


_encoder = msgspec.json.Encoder()


def inputs(name: str, *, whole: bool = False) -> Iterator[Input]:
    """The texts of a file, `-` being standard input. JSON lines where the first line is an object with `text`; else a text a line."""
    stream: BinaryIO
    if name == "-":
        stream = sys.stdin.buffer
    else:
        try:
            stream = Path(name).open("rb")  # noqa: SIM115 - closed below
        except OSError as fault:
            raise SourceError(f"cannot read {name}: {fault.strerror}", "name a file of texts, or - for standard input") from None
    try:
        if whole:
            data = stream.read(MAX_LINE_BYTES)
            yield Input(id=name, text=data.decode("utf-8", "replace"), cut=bool(stream.read(1)))
            return
        as_json: bool | None = None
        number = 0
        while line := stream.readline(MAX_LINE_BYTES):
            number += 1
            cut = len(line) >= MAX_LINE_BYTES and not line.endswith(b"\n")
            while cut and (rest := stream.readline(MAX_LINE_BYTES)) and not rest.endswith(b"\n"):
                continue
            line = line.rstrip(b"\r\n")
            if not line.strip():
                if not as_json:
                    yield Input(id=number, text="")
                continue
            if as_json is None:
                as_json = _is_record(line)
            yield _record(number, line) if as_json else Input(id=number, text=line.decode("utf-8", "replace"), cut=cut)
    except OSError as fault:
        raise SourceError(f"cannot read {name}: {fault.strerror}") from None
    finally:
        if stream is not sys.stdin.buffer:
            stream.close()


def _is_record(line: bytes) -> bool:
    if not line.lstrip().startswith(b"{"):
        return False
    try:
        value = json.loads(line)
    except ValueError:
        return False
    return isinstance(value, dict) and "text" in value


def _record(number: int, line: bytes) -> Input:
    """One JSON line. Python's own parser: it takes the lone surrogates that other programs write."""
    try:
        value = json.loads(line.decode("utf-8", "surrogateescape" if b"\\ud" in line else "replace"))
    except (ValueError, RecursionError) as fault:
        return Input(id=number, text="", error=f"line {number} is not JSON ({type(fault).__name__})")
    if not isinstance(value, dict) or not isinstance(value.get("text"), str):
        found = value.get("id", number) if isinstance(value, dict) else number
        return Input(id=found, text="", error=f'line {number} has no "text"')
    role, system = value.get("role"), value.get("system")
    return Input(
        id=value.get("id", number),
        text=value["text"],
        role=role if isinstance(role, str) else "user",
        system=system if isinstance(system, str) else "",
    )


def results(scanner: Scanner, texts: Iterator[Input], suppressions: Suppressions | None = None) -> Iterator[Result]:
    nobody = Facts()
    for given in texts:
        if given.error is not None:
            yield Result(given.id, None, None, [], error=given.error)
            continue
        found = scanner.scan(given.text, given.role, system=given.system, exchange_id=str(given.id))
        if suppressions:
            found.findings = [suppressions.marked(finding, nobody, given.role) for finding in found.findings]
        missed = found.unscanned or (1 if given.cut else 0)
        yield Result(
            given.id,
            risk_score(found.findings) if scanner.settings.enabled else None,
            None if found.injection_score is None else round(found.injection_score, 6),
            found.findings,
            unscanned=missed or msgspec.UNSET,
            findings_dropped=dict(found.excess.counts) if found.excess is not None else msgspec.UNSET,
        )


def line_of(result: Result) -> bytes:
    """The result as one line of JSON. An id with lone surrogates is written with U+FFFD for them."""
    try:
        return _encoder.encode(result)
    except UnicodeEncodeError:
        result.id = str(result.id).encode("utf-8", "replace").decode()
        return _encoder.encode(result)


def reaches(findings: list[Finding], severity: Severity) -> bool:
    return any(rank(finding.severity) >= rank(severity) for finding in findings if finding.suppressed is None)
