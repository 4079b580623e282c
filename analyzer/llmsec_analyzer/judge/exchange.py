"""Findings of exchanges: every text with its role and place, the answer also while it streams, and the two held together."""

from __future__ import annotations

import copy
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from hashlib import blake2b

import msgspec

from llmsec_analyzer.engine.excess import MAX_FINDINGS, Excess, Mask, severest
from llmsec_analyzer.engine.recognizer_api import Match
from llmsec_analyzer.engine.stream import StreamScanner, scan_whole
from llmsec_analyzer.judge.answers import AnswerSoFar, followed, is_consent, is_of_prompt, is_refusal, leaked
from llmsec_analyzer.judge.budget import FULL, WITHOUT_MODEL, Budget
from llmsec_analyzer.judge.exchange_parts import NOTED, Place, Report, TextPart, operator_text
from llmsec_analyzer.judge.roles import FOREIGN_ROLES, OPERATOR_ROLES, OWN_ROLES
from llmsec_analyzer.judge.scanner import Scanner, TextResult, make_finding, preview
from llmsec_analyzer.judge.tool_policy import ToolPolicies
from llmsec_analyzer.risk import rank, risk
from llmsec_analyzer.settings import Sensitivity
from llmsec_tap.model import Finding, Location

# Conversations send their earlier turns again with every request; what was found in one is kept for so many texts.
CACHE_TEXTS = 4096
# Texts with more findings, or more than are kept, are looked at anew: results of hostile texts would fill the memory.
_CACHED_FINDINGS = 100
# What the slowest machine that we know of does: by them a text is told to fit a time limit before it is begun.
_PATTERN_CHARS_PER_S = 4_000_000
_VERDICTS = ("injection.model", "injection.context")
# Turns of a user that are looked at together, where none is longer than so many characters.
_TURNS, _TURN_CHARS = 4, 600
_PARTS_OF_ANSWER = ("reasoning", "text", "refusal")  # in the order of a record


class AnswerStreams:
    """The texts of one answer that is still arriving. `feed` tells what is at least of rank `early_from`."""

    __slots__ = ("_detector", "_early_from", "_exchange_id", "_lean", "_said", "_streams", "_tails", "carried")

    def __init__(self, detector: ExchangeDetector, exchange_id: str, *, early_from: int, lean: bool) -> None:
        self._early_from = early_from
        self._detector = detector
        self._exchange_id = exchange_id
        self._lean = lean
        self._streams: dict[tuple[int, str], StreamScanner] = {}
        self._tails: dict[tuple[int, str], str] = {}
        self._said: dict[int, AnswerSoFar] = {}  # by choice, where it is judged as it comes
        self.carried: dict[int, Finding] = {}  # by choice, the injection that it was found to carry

    def feed(self, kind: str, choice: int, texts: Sequence[str]) -> list[Finding]:
        """The next increments of one text; what became known by them. Never raises: a fault is counted, and the text scanned at its end."""
        key = (choice, kind)
        stream = self._streams.get(key)
        if stream is None:
            stream = self._streams[key] = self._detector.scanner.open("assistant", lean=self._lean)
            if kind == "text" and not self._lean:
                self._said[choice] = AnswerSoFar()
        try:
            fresh = stream.feed_many(texts)
            findings = self._findings(stream, kind, choice, fresh)
        except Exception as fault:  # noqa: BLE001 - see above
            self._detector.scanner.count_fault("stream", fault)
            del self._streams[key]
            return []
        self._tails[key] = texts[-1]
        if kind == "text" and choice in self._said:
            findings += self._judged(stream, choice, texts)
        return findings

    def _findings(self, stream: StreamScanner, kind: str, choice: int, fresh: Sequence[Match]) -> list[Finding]:
        if not fresh:
            return []
        part, known = self._place(kind, choice), stream.known_at[-len(fresh) :]
        return [
            self._detector.scanner.early(match, stream, part=part, exchange_id=self._exchange_id, at=at)
            for match, at in zip(fresh, known, strict=True)
            if rank(match.severity) >= self._early_from
        ]

    def _judged(self, stream: StreamScanner, choice: int, texts: Sequence[str]) -> list[Finding]:
        so_far = self._said[choice]
        if not so_far.add(texts):
            return []
        part = self._place("text", choice)
        finding = self._detector.scanner.judge_answer(so_far.text, part, self._exchange_id, at=stream.deltas)
        if finding is not None or so_far.is_full:
            del self._said[choice]
        if finding is None:
            return []
        self.carried[choice] = finding
        return [finding] if rank(finding.severity) >= self._early_from else []

    def _place(self, kind: str, choice: int) -> str:
        """As the record will have it: reasoning stands before the text, refusals behind it."""
        before = _PARTS_OF_ANSWER[: _PARTS_OF_ANSWER.index(kind)]
        return str(Place("response.messages", choice, sum((choice, other) in self._streams for other in before)))

    def saw(self, part: TextPart) -> StreamScanner | None:
        """The stream that saw exactly this text arrive, if one did."""
        if not part.is_answer:
            return None
        key = (part.place.index, part.kind)
        stream = self._streams.get(key)
        if stream is None or stream.view.end != len(part.text) or not part.text.endswith(self._tails[key]):
            return None  # the server revised what it had sent, or the answer came whole
        return stream


class ExchangeDetector:
    """`examine` reports on whole exchanges; `streams` is for an answer that is still arriving."""

    def __init__(self, scanner: Scanner, *, clock: Callable[[], float] = time.perf_counter) -> None:
        self.scanner = scanner
        self.budget = Budget(scanner.settings.budget.share, clock)
        self._clock = clock
        self._cache: OrderedDict[bytes, TextResult] = OrderedDict()
        self._tools = ToolPolicies(scanner.settings.output.sensitive_tools)
        self.variant = ""  # of what is kept for a text

    def judging_by(self, sensitivity: Sensitivity) -> ExchangeDetector:
        """With the same rules, model, budget and memory."""
        other = copy.copy(self)
        other.scanner = self.scanner.judging_by(sensitivity)
        other.variant = f"{sensitivity.profile} {sensitivity.confidence_threshold}"
        return other

    def streams(self, exchange_id: str = "", early_from: int = 0) -> AnswerStreams:
        return AnswerStreams(self, exchange_id, early_from=early_from, lean=self.budget.lean)

    def examine_request(self, exchange_id: str, parts: Sequence[TextPart], *, pressure: int = FULL) -> Report:
        """Findings of a request whose answer is still out, within the time limits of the configuration.

        What they leave out is looked at by `examine` when the exchange has ended; the report has no score then.
        """
        limits = self.scanner.settings.request_time
        fits: list[TextPart] = []
        left_s = limits.pii_timeout
        for part in parts:
            left_s -= len(part.text) / _PATTERN_CHARS_PER_S
            if left_s > 0:
                fits.append(part)
        left_model_s = limits.injection_timeout - sum(len(part.text) for part in fits) / self.scanner.model_chars_per_s
        report = self.examine(exchange_id, fits, pressure=max(pressure, WITHOUT_MODEL) if left_model_s < 0 else pressure)
        if len(fits) < len(parts) or left_model_s < 0:
            report.risk_score = None
        return report

    def examine(
        self,
        exchange_id: str,
        parts: Sequence[TextPart],
        streams: AnswerStreams | None = None,
        *,
        pressure: int = FULL,
        unread: Sequence[str] = (),
        noted: Sequence[str] = (),
    ) -> Report:
        """Never raises: a fault is counted and marked. `pressure`: the step (budget.py) that a queue of exchanges asks for.

        `unread`: anomalies by which something passed unread. It is a finding of its own, and there is no score: 0 would say clean.
        `noted`: facts of the record that are findings (exchange_parts.NOTED).
        """
        started = self._clock()
        self.budget.pressure = pressure
        faults = self._faults()
        gathered = _Gathered(self.scanner.rules.redacting)
        try:
            marks = self._findings(exchange_id, parts, streams, gathered)
        except Exception as fault:  # noqa: BLE001 - see above
            self.scanner.count_fault("exchange", fault)
            marks = []
        if self._faults() > faults:
            marks.append("detection_fault")
        if unread:
            gathered.found[:0] = self._stated(exchange_id, "unread.body", unread)
        for name in noted:
            gathered.found[:0] = self._stated(exchange_id, NOTED[name], [name])
        gathered.prune()
        score: int | None
        score, reasons = risk(gathered.found)
        self.budget.spent(self._clock() - started)
        dropped, masks = gathered.left_out()
        if unread or "detection_skipped" in marks or not self.scanner.settings.enabled:
            score = None
        acting = {finding.rule_id for finding in gathered.found}.union(*(mask.rules for mask in masks)) & self.scanner.rules.redacting
        return Report(gathered.found, score, reasons, marks, dropped, masks, sorted(acting))

    def _faults(self) -> int:
        return sum(self.scanner.faults.values()) + sum(self.scanner.plan.faults.values())

    def _findings(self, exchange_id: str, parts: Sequence[TextPart], streams: AnswerStreams | None, gathered: _Gathered) -> list[str]:
        marks: list[str] = []
        # What is left out is looked at for secrets all the same: that is cheap, and a flood must not hide them.
        lean = self.budget.skips() or self.budget.lean
        with_model = not self.budget.without_model
        if not with_model and self.scanner.model is not None:
            marks.append("detection_without_model")
        if lean:
            marks.append("detection_secrets_only")
        attacked = suspected = False
        injected: list[str] = []
        request_prints: set[str] = set()
        prompt = "\n".join(part.text for part in parts if part.is_request and part.role in OPERATOR_ROLES)
        system = operator_text(parts)
        for part in parts:
            result = self._scan(exchange_id, part, streams, system, with_model=with_model, lean=lean)
            if result.unscanned:
                marks.append("detection_incomplete")
            fresh = result.findings
            if result.verdict is not None:
                if prompt and part.role not in OPERATOR_ROLES and is_of_prompt(prompt, part.text):
                    fresh = [finding for finding in fresh if finding.rule_id not in _VERDICTS]
                else:
                    suspected = True
                    grave = any(finding.rule_id in _VERDICTS and rank(finding.severity) >= rank("high") for finding in fresh)
                    attacked = attacked or (grave and part.place.group in ("request.messages", "other_texts"))
                    if part.role in FOREIGN_ROLES:
                        injected += [part.text[f.location.start : f.location.end] for f in fresh if f.rule_id in _VERDICTS]
            if part.is_request:
                request_prints.update(finding.fingerprint for finding in fresh)
            else:
                fresh = [_echo(finding) if finding.fingerprint in request_prints else finding for finding in fresh]
            gathered.add(fresh, str(part.place), result.excess)
            if part.kind == "tool_call" and part.is_answer:
                gathered.add(self._sensitive_tool(exchange_id, part))
        if injected:
            gathered.add(self._followed(exchange_id, parts, injected))
        if with_model and not suspected:
            gathered.add(self._over_turns(exchange_id, parts, system))
        gathered.add(
            self._compared(
                exchange_id, parts, prompt, streams if with_model else None, attacked=attacked, suspected=suspected, with_model=with_model
            )
        )
        return marks

    def _scan(
        self, exchange_id: str, part: TextPart, streams: AnswerStreams | None, system: str, *, with_model: bool, lean: bool
    ) -> TextResult:
        stream = streams.saw(part) if streams is not None else None
        # Of the model's own words, reasoning and refusals are not judged. Its earlier turns are whatever the client says they were.
        judge = with_model and (part.is_request or part.kind not in ("reasoning", "refusal", "error"))
        role = "user" if part.is_request and part.role in OWN_ROLES else part.role
        if stream is not None:
            stream.close()
            return self.scanner.result(stream, part.text, part=str(part.place), exchange_id=exchange_id, judge=judge)
        if not judge or not part.is_request or part.kind == "tool_definition":
            system = ""  # what the operator says itself, and what the model says, is judged for what it is
        key = blake2b(
            f"{self.variant}\0{role}\0{judge}{lean}\0{len(system)}\0{system}{part.text}".encode("utf-8", "surrogatepass"), digest_size=16
        ).digest()
        kept = self._cache.get(key)
        if kept is None:
            stream = scan_whole(self.scanner.lean_plan if lean else self.scanner.plan, part.text, role)
            result = self.scanner.result(
                stream, part.text, system=system, part=str(part.place), exchange_id=exchange_id, judge=judge, streamed=False
            )
            if len(result.findings) <= _CACHED_FINDINGS and result.excess is None:
                self._cache[key] = result
            if len(self._cache) > CACHE_TEXTS:
                self._cache.popitem(last=False)
            return result
        self._cache.move_to_end(key)
        findings = [_moved(finding, exchange_id, str(part.place), self.scanner) for finding in kept.findings]
        return TextResult(findings, kept.injection_score, kept.unscanned, kept.verdict)

    def _over_turns(self, exchange_id: str, parts: Sequence[TextPart], system: str) -> list[Finding]:
        """An attack that the last turns of a user make together, and none of them by itself. It counts only where it is grave."""
        turns = [part for part in parts if part.place.group == "request.messages" and part.role == "user" and part.kind == "text"][-_TURNS:]
        if len(turns) < 2 or any(len(part.text) > _TURN_CHARS for part in turns):
            return []
        last = turns[-1]
        together = msgspec.structs.replace(last, text=" ".join(part.text for part in turns))
        result = self._scan(exchange_id, together, None, system, with_model=True, lean=False)
        grave = [found for found in result.findings if found.rule_id in _VERDICTS and rank(found.severity) >= rank("high")]
        place = Location(part=str(last.place), start=0, end=len(last.text))
        return [
            msgspec.structs.replace(
                found, location=place, explanation=f"{found.explanation} (the last {len(turns)} turns of the user together; none by itself)"
            )
            for found in grave
        ]

    def _followed(self, exchange_id: str, parts: Sequence[TextPart], injected: Sequence[str]) -> list[Finding]:
        trusted = "\n".join(
            part.text for part in parts if part.is_request and (part.role not in FOREIGN_ROLES or part.kind == "tool_definition")
        )
        found: list[Finding] = []
        for part in parts:
            if part.is_answer and part.kind == "tool_call":
                for order in injected:
                    span = followed(order, trusted, part.text)
                    if span is not None:
                        found += self._plain(
                            exchange_id, part, "output.injection_followed", *span, "named by what a tool or a document said"
                        )
                        break
        return found

    # --- the answer against its request --------------------------------------------------------------------------------------

    def _sensitive_tool(self, exchange_id: str, part: TextPart) -> list[Finding]:
        rule = self.scanner.rules.by_id.get("tool.sensitive_call")
        if rule is None:
            return []
        return [
            make_finding(
                rule, exchange_id=exchange_id, part=str(part.place), start=hit.start, end=hit.end, preview=part.tool[:80],
                severity=hit.severity, fingerprint=self.scanner.fingerprint(part.tool), note=hit.note,
            )
            for hit in self._tools.hits(part.tool, part.text)
        ]  # fmt: skip

    def _compared(
        self,
        exchange_id: str,
        parts: Sequence[TextPart],
        prompt: str,
        streams: AnswerStreams | None,
        *,
        attacked: bool,
        suspected: bool,
        with_model: bool,
    ) -> list[Finding]:
        rules = self.scanner.rules.by_id
        others = " ".join(part.text for part in parts if part.is_request and part.role == "user")
        found: list[Finding] = []
        refused = False
        answers = [part for part in parts if part.is_answer and part.kind in ("text", "refusal")]
        for part in answers:
            if part.kind == "refusal" or is_refusal(part.text):
                refused = True
                found += self._plain(exchange_id, part, "output.refusal", 0, min(len(part.text), 80), "the answer declines")
            if with_model and part.kind == "text":
                carried = streams.carried.get(part.place.index) if streams is not None and streams.saw(part) is not None else None
                carried = carried or self.scanner.judge_answer(part.text, str(part.place), exchange_id)
                found += [carried] if carried is not None else []
            span = leaked(prompt, part.text) if prompt and self.scanner.settings.output.enabled else None
            if span is not None and part.text[span[0] : span[1]] not in others:
                note = f"{span[1] - span[0]} characters in a row"
                leak = self._plain(exchange_id, part, "output.system_prompt_leak", *span, note)
                # What an answer quotes unasked is mostly meant to be seen.
                found += leak if suspected else [msgspec.structs.replace(finding, severity="medium") for finding in leak]
            for canary in self.scanner.settings.output.canaries:
                at = part.text.find(canary) if canary else -1
                if at >= 0:
                    found += self._plain(exchange_id, part, "output.canary", at, at + len(canary), "a canary of the configuration")
        if attacked and not refused and "output.jailbreak_success" in rules:
            for part in answers:
                if is_consent(part.text):
                    found += self._plain(
                        exchange_id,
                        part,
                        "output.jailbreak_success",
                        0,
                        min(len(part.text), 80),
                        "the request was taken for an attack, and the answer consents",
                    )
                    break
        return found

    def _stated(self, exchange_id: str, rule_id: str, names: Sequence[str]) -> list[Finding]:
        """What the record says of the whole exchange."""
        rule = self.scanner.rules.by_id.get(rule_id)
        if rule is None:
            return []
        fingerprint = self.scanner.fingerprint(" ".join(names))
        return [
            make_finding(
                rule, exchange_id=exchange_id, part="exchange", start=0, end=0, preview="", fingerprint=fingerprint, note=", ".join(names)
            )
        ]

    def _plain(self, exchange_id: str, part: TextPart, rule_id: str, start: int, end: int, note: str) -> list[Finding]:
        rule = self.scanner.rules.by_id.get(rule_id)
        if rule is None:
            return []
        match = Match(rule=rule, start=start, end=end, severity=rule.severity, confidence=rule.confidence)
        return [
            make_finding(
                rule, exchange_id=exchange_id, part=str(part.place), start=start, end=end, preview=preview(part.text, match, self.scanner.near(part.text, match)) if rule.category == "system_prompt_leak" else "",
                fingerprint=self.scanner.fingerprint(part.text[start:end]), note=note,
            )
        ]  # fmt: skip


class _Gathered:
    """The findings of one exchange as they come, the gravest of them kept (excess.py)."""

    def __init__(self, redacting: frozenset[str]) -> None:
        self._redacting = redacting
        self.found: list[Finding] = []
        self._excess: dict[str, Excess] = {}

    def add(self, findings: Sequence[Finding], part: str = "", excess: Excess | None = None) -> None:
        self.found += findings
        if excess is not None:
            self._excess[part] = excess
        if len(self.found) > 4 * MAX_FINDINGS:
            self.prune()

    def prune(self) -> None:
        kept, left = severest(self.found, MAX_FINDINGS, lambda finding: (finding.severity, finding.rule_id, finding.confidence))
        for finding in left:
            place = finding.location
            excess = self._excess.setdefault(place.part, Excess())
            redact = finding.rule_id in self._redacting
            excess.add(finding.rule_id, finding.category, finding.type, place.start, place.end, redact=redact)
        self.found = list(kept)

    def left_out(self) -> tuple[dict[str, int], list[Mask]]:
        """How many by rule, and where in each part."""
        counts: Counter[str] = Counter()
        for excess in self._excess.values():
            counts.update(excess.counts)
        return dict(counts), [excess.mask(part) for part, excess in self._excess.items()]


def _echo(finding: Finding) -> Finding:
    """What the answer only repeats from its request has not leaked by it."""
    if finding.category not in ("pii", "secret"):
        return finding
    return msgspec.structs.replace(finding, severity="info", explanation=finding.explanation + " (the request holds it too)")


def _moved(finding: Finding, exchange_id: str, part: str, scanner: Scanner) -> Finding:
    """The same finding in another exchange: its ids follow from where it stands."""
    rule = scanner.rules.by_id.get(finding.rule_id)
    location = msgspec.structs.replace(finding.location, part=part)
    if rule is None:
        return msgspec.structs.replace(finding, exchange_id=exchange_id, location=location)
    fresh = make_finding(rule, exchange_id=exchange_id, part=part, start=location.start, end=location.end)
    return msgspec.structs.replace(finding, finding_id=fresh.finding_id, exchange_id=exchange_id, location=location)
