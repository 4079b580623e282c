"""The form of one rule, as far as its types do not say it: known names, patterns that compile, something that starts it."""

from __future__ import annotations

import re

from llmsec_analyzer.engine.stream import MAX_NEAR
from llmsec_analyzer.engine.triggers import MAX_KEYWORD_BYTES
from llmsec_analyzer.recognizers.assigned import RECOGNIZERS
from llmsec_analyzer.recognizers.build import JUDGEMENT
from llmsec_analyzer.recognizers.identifiers import is_known_validator, known_validators
from llmsec_analyzer.recognizers.patterns import BadPatternError, compile_linear, compile_pattern
from llmsec_analyzer.rules.schema import Rule
from llmsec_analyzer.typed_files import nearest
from llmsec_tap.errors import ConfigError

_ID = re.compile(r"[a-z][a-z0-9_]*(\.[a-z0-9_]+)*")


def check_form(rule: Rule) -> None:
    """Raises ConfigError."""
    if _ID.fullmatch(rule.id) is None:
        raise ConfigError(f"the id {rule.id!r} is not lower-case words with dots and underscores")
    if (rule.pattern is None) == (rule.recognizer is None):
        raise ConfigError("a rule has either a pattern or a recognizer")
    if rule.recognizer is not None and rule.recognizer not in (*RECOGNIZERS, JUDGEMENT):
        raise ConfigError(f"there is no recognizer {rule.recognizer!r}", nearest(rule.recognizer, [*RECOGNIZERS, JUDGEMENT]))
    if not 0 <= rule.confidence <= 1:
        raise ConfigError("confidence is a number from 0 to 1")
    if rule.pattern is not None:
        if not rule.keywords and rule.trigger is None:
            raise ConfigError(
                "a pattern needs keywords or a trigger that starts it", "name words, one of which is in every match: keywords: [ghp_]"
            )
        try:
            compile_pattern(rule.pattern)
        except BadPatternError as fault:
            raise ConfigError(str(fault)) from None
    if rule.near_token and (not rule.keywords or rule.left + rule.horizon > MAX_NEAR):
        raise ConfigError(f"near_token goes with keywords, and with left and horizon of {MAX_NEAR} together at most")
    if rule.digits and rule.trigger != "digits":
        raise ConfigError("digits goes with `trigger: digits`")
    if rule.allow and (rule.pattern is None or not rule.keywords or rule.trigger is not None):
        raise ConfigError("allow goes with a pattern and keywords, and without a trigger")
    for pattern in rule.allow:
        try:
            compile_linear(pattern)
        except BadPatternError as fault:
            raise ConfigError(f"allow: {fault}") from None
    for word in rule.keywords:
        if not word or len(word.encode()) > MAX_KEYWORD_BYTES:
            raise ConfigError(f"the keyword {word!r} has no or more than {MAX_KEYWORD_BYTES} bytes")
    for name in rule.validate:
        if not is_known_validator(name):
            raise ConfigError(f"there is no check {name!r}", nearest(name, known_validators()))
