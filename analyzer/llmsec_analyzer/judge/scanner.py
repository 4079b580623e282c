"""The scanner: texts in, findings out. One is made for a run; texts come whole (`scan`) or as a stream (`open`).

Secrets, personal data and unsafe output come from the rules in one pass; the injection verdict comes from the model, over
the whole text at its end. Which category an injection gets depends on where the text stands: what a user writes is direct,
what a tool returns or a document holds is indirect.
"""

from __future__ import annotations

import copy
import hashlib
import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property

import msgspec

from llmsec_analyzer.engine.excess import MAX_FINDINGS, Excess, severest
from llmsec_analyzer.engine.overlap import resolve
from llmsec_analyzer.engine.recognizer_api import Match, Recognizer
from llmsec_analyzer.engine.stream import Plan, StreamScanner, scan_whole
from llmsec_analyzer.injection.choose import Model, choose_model
from llmsec_analyzer.injection.context import Statement
from llmsec_analyzer.injection.context_model import ContextModel, PairVerdict
from llmsec_analyzer.injection.hidden import hidden_secrets
from llmsec_analyzer.injection.model import InjectionModel, Lines, Verdict
from llmsec_analyzer.injection.prepare import MAX_CHARS, Preparer
from llmsec_analyzer.judge.answers import JUDGED_FROM
from llmsec_analyzer.judge.roles import FOREIGN_ROLES, OPERATOR_ROLES, OWN_ROLES
from llmsec_analyzer.judge.rule_set import RuleSet, literals, rule_set
from llmsec_analyzer.recognizers import names_and_addresses as places
from llmsec_analyzer.recognizers.build import make_plan
from llmsec_analyzer.recognizers.plugins import Plugins
from llmsec_analyzer.recognizers.whole_text import WholeTextPatterns
from llmsec_analyzer.rules.schema import INDIRECT, OBFUSCATED, Rule, taxonomy_of
from llmsec_analyzer.settings import DetectionSettings, Profile, Sensitivity
from llmsec_tap.model import Category, Finding, Location, Severity

_CONTEXT_SHOWN = 24
_AROUND = 200  # of what may be shown, as much as tells what stands there
_JAILBREAK_SIGNS = 2
# Texts up to here may be too short to be judged; in scripts without spaces so many letters are more than two words.
_SHORT, _SHORT_UNSPACED = 2_000, 6
_DRESS = frozenset(("leet", "lookalikes", "compatible", "marks"))
# Signs that one or two in a thousand texts of programs have too: enough to speak up, too little to be grave.
_COMMON_SIGNS = frozenset(("injection.role_marker", "injection.send_out", "injection.to_the_ai", "injection.start_with", "system_override"))
_NOTHING_SAID = 0.05
_WORD = re.compile(r"[^\W_]+")
_LINK = re.compile(r"\S+://\S+|\S*[/\\@]\S*")
# Confidence from which a secret or personal data is grave, and from which it is more than information, by profile.
_SURE_ENOUGH: dict[Profile, tuple[float, float]] = {"strict": (0.0, 0.0), "balanced": (0.6, 0.0), "permissive": (0.75, 0.75)}
_DOES = {"F": "forbid something", "K": "keep something to itself", "O": "set a limit"}

Fingerprint = Callable[[str], str]


class TextResult(msgspec.Struct):
    """What one text held. `injection_score` is None where no model judged it; `unscanned` counts characters left out."""

    findings: list[Finding]
    injection_score: float | None = None
    unscanned: int = 0
    verdict: Verdict | None = None
    excess: Excess | None = None  # matches beyond those that are findings


# What is looked for in any case, however much there is to do.
_LEAN = frozenset(("secret", "unsafe_output", "data_exfiltration"))


class Scanner:
    """`fingerprint`: a keyed hash, so that the same secret is known again and never stored."""

    def __init__(
        self,
        settings: DetectionSettings,
        fingerprint: Fingerprint,
        *,
        engine: str | None = None,
        on_fault: Callable[[str, Exception], None] | None = None,
        model_runtime: str = "auto",
        rules: RuleSet | None = None,
    ) -> None:
        """`rules`: others than those of the settings."""
        self.settings = settings
        self.rules: RuleSet = rules or rule_set(settings)
        self.faults: Counter[str] = Counter()
        self.timeouts: Counter[str] = Counter()  # searches that ran out of time, by rule id
        self._on_fault = on_fault
        self._fingerprint = fingerprint
        engine = engine or settings.engine
        self.plan = make_plan(
            self.rules.matching, trusted=self.rules.trusted, engine=engine, on_fault=self._recognizer_fault, timeouts=self.timeouts
        )
        self._whole_text = WholeTextPatterns([(rule, literals(rule.pattern or "")) for rule in self.rules.whole_text], self.timeouts)
        self.model: Model | None = None
        self.context: ContextModel | None = None
        self.lines, self.model_chars_per_s = Lines(1.0, 1.0, 1.0), 1e9
        wanted = settings.prompt_injection.model
        if settings.enabled and settings.prompt_injection.enabled and wanted.enabled:
            preparer = Preparer(self.rules.evidence, self.rules.trusted, engine)
            chosen = choose_model(wanted, preparer, profile=settings.profile, runtime=model_runtime)
            self.model, self.lines, self.model_chars_per_s = chosen.model, chosen.lines, chosen.chars_per_s
            self.context = ContextModel() if chosen.ours and settings.prompt_injection.context else None
        ours = places.detectors(settings.pii_detection, self.rules.by_id)
        self.plugins = Plugins(enabled=settings.plugins and settings.enabled, on_fault=self.count_fault, ours=ours)

    def judging_by(self, sensitivity: Sensitivity) -> Scanner:
        """The same rules and model, with what their scores mean for somebody else. Faults count in both."""
        other = copy.copy(self)
        profile, threshold = sensitivity.profile, sensitivity.confidence_threshold
        if profile is not None:
            other.settings = msgspec.structs.replace(self.settings, profile=profile)
            # A threshold of the file holds for every profile; a classifier of one's own has no others.
            is_fixed = self.settings.prompt_injection.model.confidence_threshold is not None
            if isinstance(self.model, InjectionModel):
                lines = self.model.lines(profile)
                other.lines = lines._replace(threshold=self.threshold) if is_fixed else lines
        if threshold is not None:
            other.lines = other.lines._replace(threshold=threshold)
        return other

    @property
    def threshold(self) -> float:
        """The score from which a text counts as an injection."""
        return self.lines.threshold

    @cached_property
    def lean_plan(self) -> Plan:
        """Secrets and unsafe output only: what is left where the budget does not allow more."""
        rules = [rule for rule in self.rules.matching if rule.category in _LEAN]
        return make_plan(
            rules, trusted=self.rules.trusted, engine=self.plan.engine, on_fault=self._recognizer_fault, timeouts=self.timeouts
        )

    @cached_property
    def secrets_plan(self) -> Plan:
        """For texts whose hiding was undone."""
        rules = [rule for rule in self.rules.matching if rule.category == "secret"]
        return make_plan(
            rules, trusted=self.rules.trusted, engine=self.plan.engine, on_fault=self._recognizer_fault, timeouts=self.timeouts
        )

    # --- texts ----------------------------------------------------------------------------------------------------------

    def scan(
        self, text: str, role: str = "user", *, system: str = "", part: str = "text", exchange_id: str = "", judge: bool = True
    ) -> TextResult:
        """One whole text. `system`: what the operator said before it, where that is known."""
        stream = scan_whole(self.plan, text, role)
        return self.result(stream, text, system=system, part=part, exchange_id=exchange_id, judge=judge, streamed=False)

    def open(self, role: str = "user", *, lean: bool = False) -> StreamScanner:
        """The state of a text that arrives in pieces: feed it, close it, then ask for the `result`."""
        return StreamScanner(self.lean_plan if lean else self.plan, role)

    def result(
        self, stream: StreamScanner, text: str, *, system: str = "", part: str, exchange_id: str, judge: bool = True, streamed: bool = True
    ) -> TextResult:
        """Findings of a closed stream, with the verdict of the model and of plug-ins on the whole text."""
        role = stream.view.role
        found = stream.matches
        excess = stream.excess
        if text:
            found = [*found, *hidden_secrets(self.secrets_plan, text, role, found)]
            if stream.plan is self.plan:
                whole, excess = self._whole_text.scan(text, role, excess)
                found += whole
        matches = resolve(found)
        if self.rules.redacting:
            excess = self._hide_outdone(found, matches, excess)
        near = Neighbours(matches, excess)
        kept, left = severest(matches, MAX_FINDINGS, lambda match: (match.severity, match.rule.id, match.confidence))
        if left and excess is None:
            excess = Excess()
        for match in left:
            assert excess is not None
            excess.add(match.rule.id, match.rule.category, match.kind, match.start, match.end, redact=match.rule.redacts)
        known = {id(match): at for match, at in zip(stream.matches, stream.known_at, strict=True)} if streamed else {}
        findings = [self._finding(match, text, near, part=part, exchange_id=exchange_id, at=known.get(id(match))) for match in kept]
        result = TextResult(findings, excess=excess)
        if judge and self.model is not None and role not in OWN_ROLES and text:
            self._judge(self.model, text, role, system, result, near, part=part, exchange_id=exchange_id)
        findings += [
            self._finding(match, text, near, part=part, exchange_id=exchange_id, at=None) for match in self.plugins.scan(text, role)
        ]
        return result

    def _hide_outdone(self, found: Sequence[Match], matches: Sequence[Match], excess: Excess | None) -> Excess | None:
        """Matches that are masked by their rule's action, and that a match of another rule at the same place outdid."""
        kept = set(map(id, matches))
        for match in found:
            if match.rule.redacts and id(match) not in kept:
                excess = excess or Excess()
                excess.hide(match.rule.id, match.kind, match.start, match.end)
        return excess

    def _judge(
        self, model: Model, text: str, role: str, system: str, result: TextResult, near: Neighbours, *, part: str, exchange_id: str
    ) -> None:
        pair = None
        try:
            verdict = model.judge(text, role)
            if self.context is not None and system and role not in OPERATOR_ROLES:
                pair = self.context.judge(system, text, role, verdict.score)
        except Exception as fault:  # noqa: BLE001 - a fault of ours must not cost the other findings
            self.count_fault("injection.model", fault)
            return
        if (_is_one_word(text) and not verdict.undone) or (not _has_evidence(verdict) and _says_nothing(text)):
            verdict = msgspec.structs.replace(verdict, score=min(verdict.score, _NOTHING_SAID))
        score = verdict.score if pair is None else max(verdict.score, pair.score)
        result.injection_score = score
        if not verdict.complete:
            result.unscanned = max(1, len(text) - MAX_CHARS)
        by_itself = verdict.score >= (self.threshold if _is_evident(verdict) else self.lines.alone)
        statement = _gone_against(pair) if pair is not None and pair.score >= self.threshold and not by_itself else None
        if pair is not None and statement is not None:
            rule = self.rules.by_id.get("injection.context")
            found = (
                None if rule is None else self._pair_finding(rule, pair, statement, text, role, near, part=part, exchange_id=exchange_id)
            )
        elif by_itself:
            rule = self.rules.by_id.get("injection.model")
            found = None if rule is None else self._verdict_finding(rule, verdict, text, role, near, part=part, exchange_id=exchange_id)
        else:
            return
        result.verdict = verdict
        if found is not None:
            result.findings.append(found)

    def _verdict_finding(
        self, rule: Rule, verdict: Verdict, text: str, role: str, near: Neighbours, *, part: str, exchange_id: str
    ) -> Finding:
        jailbreak = sum(self.rules.by_id[sign].category == "jailbreak" for sign in verdict.signs if sign in self.rules.by_id)
        category: Category = "prompt_injection"
        kind, taxonomy = "direct_injection", taxonomy_of(rule)
        if role in FOREIGN_ROLES:
            kind, taxonomy = "indirect_injection", INDIRECT
        elif jailbreak * _JAILBREAK_SIGNS > len(verdict.signs):
            category, kind = "jailbreak", "jailbreak"
            taxonomy = msgspec.structs.replace(taxonomy, mitre_atlas="ATLAS 2026.05 AML.T0054")
        elif verdict.undone:
            kind, taxonomy = "obfuscated_injection", OBFUSCATED
        reasons = [f"score {verdict.score:.2f}, threshold {self.threshold:.2f}"]
        if verdict.opinions:
            reasons.append("opinions: " + ", ".join(f"{name} {score:.2f}" for name, score in verdict.opinions))
        if verdict.signs:
            reasons.append("signs: " + ", ".join(verdict.signs))
        if verdict.undone:
            reasons.append("hidden by: " + ", ".join(verdict.undone))
        if self.model is not None and (words := self.model.heaviest(text[verdict.start : verdict.end])):
            reasons.append("what weighed most: " + ", ".join(map(repr, words)))
        match = Match(
            rule=rule,
            start=verdict.start,
            end=verdict.end,
            severity="high" if _is_evident(verdict) and verdict.score >= self.lines.sure else "medium",
            confidence=round(verdict.score, 4),
            note="; ".join(reasons),
            type=kind,
        )
        found = self._finding(match, text, near, part=part, exchange_id=exchange_id, at=None)
        return msgspec.structs.replace(found, category=category, taxonomy=taxonomy)

    def _pair_finding(
        self, rule: Rule, pair: PairVerdict, statement: Statement, text: str, role: str, near: Neighbours, *, part: str, exchange_id: str
    ) -> Finding:
        does = " and ".join(_DOES[letter] for letter in statement.polarity if letter in _DOES)
        note = (
            f"score {pair.score:.2f}, threshold {self.threshold:.2f}; shares {pair.shared} word{'s' if pair.shared > 1 else ''} with"
            f" characters {statement.start} to {statement.end} of the system prompt, which {does}"
        )
        match = Match(
            rule=rule,
            start=pair.start,
            end=pair.end,
            severity="high" if pair.score >= self.lines.sure else "medium",
            confidence=round(pair.score, 4),
            note=note,
            type="indirect_injection" if role in FOREIGN_ROLES else "",
        )
        found = self._finding(match, text, near, part=part, exchange_id=exchange_id, at=None)
        return msgspec.structs.replace(found, taxonomy=INDIRECT) if role in FOREIGN_ROLES else found

    def judge_answer(self, text: str, part: str, exchange_id: str, at: int | None = None) -> Finding | None:
        """An injection that the model's own words carry on: the score and a sign of it are needed. Never raises."""
        rule, settings = self.rules.by_id.get("output.injection"), self.settings.output
        if rule is None or self.model is None or not settings.injection or len(text) < JUDGED_FROM:
            return None
        try:
            verdict = self.model.judge(text, "assistant")
        except Exception as fault:  # noqa: BLE001 - a fault of ours must not cost the other findings
            self.count_fault("output.injection", fault)
            return None
        if verdict.score < settings.injection_threshold or not verdict.signs:
            return None
        note = f"score {verdict.score:.2f}, threshold {settings.injection_threshold:.2f}; signs: {', '.join(verdict.signs)}"
        start, end, score = verdict.start, verdict.end, round(verdict.score, 4)
        match = Match(rule=rule, start=start, end=end, severity=rule.severity, confidence=score, note=note, type=rule.type)
        return self._finding(match, text, self.near(text, match), part=part, exchange_id=exchange_id, at=at)

    # --- findings -------------------------------------------------------------------------------------------------------

    def _severity(self, match: Match) -> Severity:
        """A shipped rule that is not sure of a secret or of personal data is not grave, or not told: by the profile."""
        if match.rule.category not in ("secret", "pii") or match.rule.id not in self.rules.trusted:
            return match.severity
        grave_from, told_from = _SURE_ENOUGH[self.settings.profile]
        if match.confidence < told_from:
            return "info"
        return "medium" if match.confidence < grave_from and match.severity in ("high", "critical") else match.severity

    def _finding(self, match: Match, text: str, near: Neighbours, *, part: str, exchange_id: str, at: int | None) -> Finding:
        value, shown = text[match.start : match.end], preview(text, match, near)
        return self._told(match, value, shown, part=part, exchange_id=exchange_id, at=at)

    def _told(self, match: Match, value: str, shown: str, *, part: str, exchange_id: str, at: int | None) -> Finding:
        return make_finding(
            match.rule,
            exchange_id=exchange_id,
            part=part,
            start=match.start,
            end=match.end,
            kind=match.kind,
            severity=self._severity(match),
            confidence=match.confidence,
            preview=shown,
            fingerprint=self.fingerprint(value),
            note=match.note,
            at=at,
        )

    def near(self, text: str, match: Match) -> Neighbours:
        """What is sensitive in and around a match, of a text that is not at hand with all that was found in it."""
        first = max(0, match.start - _AROUND)
        found = scan_whole(self.plan, text[first : match.end + _AROUND]).matches
        return Neighbours(msgspec.structs.replace(one, start=one.start + first, end=one.end + first) for one in found)

    def early(self, match: Match, stream: StreamScanner, *, part: str, exchange_id: str, at: int) -> Finding:
        """A finding in a text of which only the last part is held, and the rest has not come.

        What stands around it may be the beginning of something sensitive, so the preview shows none of that.
        """
        base, text = stream.view.base, stream.view.text
        held = msgspec.structs.replace(match, start=match.start - base, end=match.end - base)
        shown = f"[{match.kind}]" if is_sensitive(match.rule) else preview(text, held, self.near(text, held))
        return self._told(match, text[held.start : held.end], shown, part=part, exchange_id=exchange_id, at=at)

    def fingerprint(self, text: str) -> str:
        return self._fingerprint(text.encode("utf-8", "replace").decode())

    # --- faults ---------------------------------------------------------------------------------------------------------

    def _recognizer_fault(self, recognizer: Recognizer, fault: Exception) -> None:
        rule = getattr(recognizer, "rule", None)
        self.count_fault(rule.id if rule is not None else type(recognizer).__name__, fault)

    def forget_faults(self) -> None:
        self.faults.clear()
        self.timeouts.clear()
        self.plan.faults.clear()

    def count_fault(self, name: str, fault: Exception) -> None:
        self.faults[name] += 1
        if self._on_fault is not None and self.faults[name] == 1:
            self._on_fault(name, fault)


def _gone_against(pair: PairVerdict) -> Statement | None:
    """The statement that can be pointed at: it forbids something, keeps it or limits it, and the text takes it up."""
    if pair.against is None or not pair.shared or not any(letter in _DOES for letter in pair.against.polarity):
        return None
    return pair.against


def _is_evident(verdict: Verdict) -> bool:
    """A sign that hardly stands in harmless texts, or a text that somebody took pains to hide (letters that look like others are no pains)."""
    return any(sign not in _COMMON_SIGNS for sign in verdict.signs) or any(kind not in _DRESS for kind in verdict.undone)


def _is_one_word(text: str) -> bool:
    """An identifier or an address, whatever it is made of."""
    return text.isascii() and len(text) <= _SHORT and not any(map(str.isspace, text.strip()))


def _says_nothing(text: str) -> bool:
    """A name, an address, an identifier, a number: one or two words, of which nobody can tell what they are for."""
    if len(text) > _SHORT:
        return False
    words = _WORD.findall(_LINK.sub("x", text))
    return len(words) < 3 and sum(len(word) for word in words if not word.isascii()) < _SHORT_UNSPACED


def _has_evidence(verdict: Verdict) -> bool:
    """Something that a person can be shown: a sign, or that the text was hidden. A score alone is an opinion."""
    return bool(verdict.signs or verdict.undone)


def make_finding(
    rule: Rule,
    *,
    exchange_id: str,
    part: str,
    start: int,
    end: int,
    kind: str = "",
    severity: Severity | None = None,
    confidence: float | None = None,
    preview: str = "",
    fingerprint: str = "",
    note: str = "",
    at: int | None = None,
) -> Finding:
    """A finding whose id follows from its exchange, rule and place: a second run over the same capture gives the same."""
    digest = hashlib.blake2b(f"{exchange_id}\0{rule.id}\0{part}\0{start}\0{end}".encode("utf-8", "replace"), digest_size=12)
    return Finding(
        finding_id=digest.hexdigest(),
        exchange_id=exchange_id,
        rule_id=rule.id,
        rule_version=rule.version,
        category=rule.category,
        type=kind or rule.type,
        severity=severity or rule.severity,
        confidence=round(rule.confidence if confidence is None else confidence, 4),
        location=Location(part=part, start=start, end=end),
        preview=preview,
        fingerprint=fingerprint,
        taxonomy=taxonomy_of(rule),
        explanation=f"{rule.description} ({note})" if note else rule.description,
        at_output_token=at,
    )


class Neighbours:
    """The sensitive places of a text, in order and joined where they overlap, so that those around a match are found at once."""

    __slots__ = ("_ends", "_spans")

    def __init__(self, matches: Iterable[Match] = (), excess: Excess | None = None) -> None:
        spans = [
            (match.start, match.end, match.kind)
            for match in matches
            if (match.rule.category in ("pii", "secret") and match.severity != "info") or match.rule.redacts
        ]
        if excess is not None:
            spans += excess.spans()
        self._spans: list[tuple[int, int, str]] = []
        for start, end, kind in sorted(spans):
            if self._spans and start < self._spans[-1][1]:
                first, last, known = self._spans[-1]
                self._spans[-1] = (first, max(last, end), known)
            else:
                self._spans.append((start, end, kind))
        self._ends = [end for _, end, _ in self._spans]

    def between(self, first: int, last: int) -> list[tuple[int, int, str]]:
        found: list[tuple[int, int, str]] = []
        for index in range(bisect_right(self._ends, first), len(self._spans)):
            if self._spans[index][0] >= last:
                break
            found.append(self._spans[index])
        return found


def is_sensitive(rule: Rule) -> bool:
    """Whether what it finds is not to be shown."""
    return rule.category in ("pii", "secret", "system_prompt_leak") or rule.redacts


def preview(text: str, match: Match, near: Neighbours) -> str:
    """A few characters on either side; the match itself and all other sensitive spans there as `[TYPE]`."""
    if is_sensitive(match.rule):
        first, last = max(0, match.start - _CONTEXT_SHOWN), min(len(text), match.end + _CONTEXT_SHOWN)
        spans = [*near.between(first, last), (match.start, match.end, match.kind)]
    else:
        first, last = match.start, min(match.end, match.start + 160, len(text))
        spans = near.between(first, last)
    pieces: list[str] = []
    at = first
    for start, end, kind in sorted(set(spans)):
        if end <= at or start >= last:
            continue
        pieces += (text[at:start], f"[{kind}]")
        at = end
    if at < last:
        pieces.append(text[at:last])
    shown = "".join(pieces).encode("utf-8", "replace").decode()
    return ("…" if first > 0 else "") + shown + ("…" if last < len(text) else "")
