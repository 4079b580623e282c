"""The configuration as it counts: flags over environment over file over defaults, with where each value comes from.

Everything that is wrong is found at once, wherever it stands. Paths in `security` count from the file's own folder.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from llmsec_agent.config import schema
from llmsec_agent.config.channels import CHANNELS
from llmsec_agent.config.checks import check_together, notes_on
from llmsec_agent.config.files import Document, Source, find_file, is_readable, read_document, repeated_sentence
from llmsec_agent.config.names import Renamed, from_environment
from llmsec_agent.config.schema import Config
from llmsec_agent.config.secret import Secret
from llmsec_analyzer.rules.load import PACKAGE
from llmsec_analyzer.settings import DetectionSettings
from llmsec_analyzer.typed_files import Checker, FileError, Given, Problem, dotted, keys, struct_type
from llmsec_analyzer.yaml_files import Where
from llmsec_tap.errors import ConfigError
from llmsec_tap.identity.tenants import TenantRule
from llmsec_tap.identity.whose import WhoseSettings


class Note(NamedTuple):
    """Something that a file says and that does less than it may seem to. No error."""

    where: Where
    text: str
    place: str  # `file:line`, or the name of a variable

    def sentence(self) -> str:
        return f"{self.place}: {dotted(self.where)}: {self.text}"


class Loaded(NamedTuple):
    """The whole configuration. `origins`: for each key that is not a default, by its dotted name, where its value is from."""

    config: Config
    file: Path | None
    origins: dict[str, str]
    notes: tuple[Note, ...]

    def sets(self, section: str) -> bool:
        """Something in this section is not a default."""
        return any(name.startswith(f"{section}.") for name in self.origins)


def whose_of(loaded: Loaded) -> WhoseSettings:
    """A header that a client sets names a tenant only where the configuration speaks of tenants at all."""
    tenants = loaded.config.tenants
    header = tenants.header.lower() if loaded.sets("tenants") else None
    return WhoseSettings(
        tenant_header=header,
        tenant=tenants.default,
        end_users_in_clear=tenants.end_users_in_clear,
        rules=tuple(_rule(rule) for rule in tenants.rules),
    )


def _rule(given: schema.TenantRule) -> TenantRule:
    match = given.match
    return TenantRule(
        tenant=given.tenant,
        api_key_fingerprint=match.api_key_fingerprint,
        api_key_prefix=match.api_key_prefix,
        access_key_id=match.access_key_id,
        deployment=match.deployment,
        headers=tuple((name.lower(), value) for name, value in match.headers.items()),
        process=match.process,
        pod=match.pod,
        namespace=match.namespace,
        path=match.path,
        model=match.model,
        header_tenant=match.tenant_id,
    )


def load_config(path: str | None, report: Callable[[str], None] | None = None) -> Config:
    """The configuration that counts for a command whose option `--config` says `path`. Raises ConfigError (FileError has all faults).

    `report` is given one line where something in it does nothing, or where the default file cannot be read.
    """
    return load_all(path, report).config


def load_all(path: str | None, report: Callable[[str], None] | None = None) -> Loaded:
    """As `load_config`, with the file it is from, the origin of each value, and notes."""
    loaded = read_config(path, report=report)
    if report is not None and loaded.notes:
        count = len(loaded.notes)
        report(f"note: {loaded.file or 'the environment'}: {count} notes on the configuration; `llmsec-analyze config check` lists them")
    return loaded


def read_config(
    path: str | None,
    *,
    flags: Mapping[str, tuple[str, Any]] | None = None,
    environment: Mapping[str, str] | None = None,
    report: Callable[[str], None] | None = None,
    strict: bool = False,
) -> Loaded:
    """`flags`: by dotted key, the option's name and its typed value (`{"storage.path": ("--store", "x")}`); they win.

    `strict`: a default file that this user may not read is an error; else it is passed over, and `report` is told.
    """
    environment = os.environ if environment is None else environment
    source = _source(path, environment, report, strict=strict)
    file = str(source.path) if source is not None else "environment"
    document = read_document(source.path) if source is not None else Document({}, lambda _: None, [])
    problems: list[Problem] = [Problem(where[:-1], repeated_sentence(where, first), "", line) for where, line, first in document.repeated]
    tree = document.tree

    def twice(where: Where, written: str, ours: str) -> None:
        problems.append(Problem(where[:-1], f"`{written}` and `{ours}` are one key", "leave one out", document.lines(where)))

    renamed = Renamed(tree, twice)
    given = from_environment(environment)
    for name, (option, value) in (flags or {}).items():
        given[tuple(name.split("."))] = Given(value, f"flag {option}")
    for where, item in given.items():
        _overlay(tree, where, item)
    checker = Checker(document.lines, elsewhere=_elsewhere(), readers={Secret: Secret}, spelled=renamed.spelled)
    config = checker.struct(tree, Config)
    problems += checker.problems
    if config is not None:
        config = _from_folder(config, source.path.parent if source is not None else Path())
        problems += [
            problem._replace(where=renamed.spelled(problem.where), line=document.lines(renamed.spelled(problem.where)))
            for problem in check_together(config)
        ]
    if problems:
        raise FileError(file, problems, checker.more)
    places = {where: _place(file, document, renamed, where, origin) for where, _, _, origin in checker.given}
    notes = [Note(renamed.spelled(where), text, places.get(where, file)) for where, text in notes_on(config, checker.given)]
    origins = {dotted_key(where): place for where, place in places.items()}
    return Loaded(config, source.path if source is not None else None, origins, tuple(notes))


def dotted_key(where: Iterable[str | int]) -> str:
    return ".".join(map(str, where))


def _source(path: str | None, environment: Mapping[str, str], report: Callable[[str], None] | None, *, strict: bool) -> Source | None:
    try:
        source = find_file(path, environment)
    except OSError as fault:
        if strict:
            raise ConfigError(f"Failed to read config file '{fault.filename}': {fault.strerror}") from None
        if report is not None:
            report(f"note: the default configuration is not read: {fault.filename}: {fault.strerror}")
        return None
    if source is not None and not source.said_by and not strict and not is_readable(source.path):
        # An ordinary user's replay is not to fail because of a file that is the agent's.
        if report is not None:
            report(f"note: the default configuration {source.path} is not readable by this user and not used")
        return None
    return source


def _overlay(tree: dict[Any, Any], where: Where, item: Given) -> None:
    """Put a value over the tree's. Where the tree has no mapping on the way, the tree's fault is told instead."""
    at = tree
    for step in where[:-1]:
        if at.get(step) is None:
            at[step] = {}
        if not isinstance(at[step], dict):
            return
        at = at[step]
    at[where[-1]] = item


def _place(file: str, document: Document, renamed: Renamed, where: Where, origin: str) -> str:
    if origin:
        return origin
    line = document.lines(renamed.spelled(where))
    return f"{file}:{line}" if line is not None else file


def _elsewhere() -> dict[str, list[str]]:
    """The places of every key's name, for who wrote it into the wrong section."""
    places: dict[str, list[str]] = {}
    for where, _, _, _ in keys(struct_type(Config)):
        places.setdefault(str(where[-1]), []).append(dotted_key(where))
    return places


def _from_folder(config: Config, folder: Path) -> Config:
    def full(name: str) -> str:
        return name if Path(name).is_absolute() or name.startswith(PACKAGE) else str(folder / name)

    security: DetectionSettings = config.security
    injection = security.prompt_injection
    model = injection.model
    if model.path is not None:
        injection = msgspec.structs.replace(injection, model=msgspec.structs.replace(model, path=full(model.path)))
    anomalies = security.anomaly_detection
    if anomalies.prices is not None:
        anomalies = msgspec.structs.replace(anomalies, prices=full(anomalies.prices))
    security = msgspec.structs.replace(
        security,
        anomaly_detection=anomalies,
        rules=tuple(map(full, security.rules)),
        suppressions=tuple(map(full, security.suppressions)),
        prompt_injection=injection,
    )
    channels = config.alerting.channels
    for name in CHANNELS:
        settings = getattr(channels, name)
        named = {key: full(path) for key in ("template", "ca_file") if (path := getattr(settings, key, None)) is not None}
        if named:
            channels = msgspec.structs.replace(channels, **{name: msgspec.structs.replace(settings, **named)})
    return msgspec.structs.replace(config, security=security, alerting=msgspec.structs.replace(config.alerting, channels=channels))
