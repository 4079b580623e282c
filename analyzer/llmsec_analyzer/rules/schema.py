"""What a rule is. One record says what is looked for, how sure a match is, what it means and which examples prove it.

Rules hold no code: what a pattern cannot say is one of the named validators (recognizers/validators.py) or recognizers
(recognizers/assigned.py), or a plug-in. docs/rules.md describes every field for those who write rules.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from llmsec_analyzer.typed_files import key
from llmsec_tap.model import Category, Severity, Taxonomy

Action = Annotated[
    Literal["alert_only", "alert_and_redact"],
    key(
        words={"alert": "alert_only"},
        refused={"block": "a tap is not in the path and cannot block: use alert_only, or alert_and_redact to mask what is stored"},
    ),
]
Group = Literal["prompt_injection", "pii_detection", "secret_detection", "output", "always"]
Trigger = Literal["digits", "at", "hex_colon", "dotted_name", "iban", "long_token", "tags"]


class Examples(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """Texts that must and must not match. `<alnum:36>` and its like stand for synthetic characters (prove/synthetic.py)."""

    match: tuple[str, ...] = ()
    no_match: tuple[str, ...] = ()


class Rule(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """One rule. Exactly one of `pattern` and `recognizer`; a pattern needs `keywords` or a `trigger` that starts it."""

    id: str
    version: str = "1"
    name: str
    description: str
    category: Category
    type: str
    severity: Severity
    confidence: float = 0.8
    pattern: str | None = None
    recognizer: str | None = None
    keywords: tuple[str, ...] = ()
    trigger: Trigger | None = None
    left: int = 0  # how far before its keyword a match may begin, in characters
    horizon: int = 160  # how far after the end of its keyword a match may end
    near_token: bool = False  # a match holds 24 or more token characters in a row after its keyword: look only where some are
    digits: int = 0  # of trigger `digits`: a match holds so many digits or more; runs with fewer are not looked at
    settle: int = 1  # characters after the match that must be seen before it counts
    validate: tuple[str, ...] = ()
    allow: tuple[str, ...] = ()  # with keywords: a value that one of these patterns (RE2) finds something in does not count
    min_entropy: float | None = None
    context: tuple[str, ...] = ()  # words that stand near the real thing
    context_needed: bool = True  # without one of them nothing counts; else they only add confidence
    action: Action = "alert_only"
    switch: Group | None = None  # the section of `security` whose `enabled` switches it off; none: that of its category
    evidence: bool = False  # feeds the injection model; a finding of its own only where no model runs
    roles: tuple[str, ...] = ()  # only in texts of these roles; none: in all
    taxonomy: Taxonomy | None = None
    references: tuple[str, ...] = ()
    examples: Examples = Examples()

    @property
    def group(self) -> Group:
        """The section of the configuration that it belongs to."""
        return self.switch or _GROUP[self.category]

    @property
    def redacts(self) -> bool:
        """Whether its matches are masked. Of shipped rules, `action` is advice until a configuration says so (judge/rule_set.py)."""
        return self.action == "alert_and_redact"


class RuleFile(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    rules: tuple[Rule, ...]


_GROUP: dict[Category, Group] = {
    "prompt_injection": "prompt_injection",
    "jailbreak": "prompt_injection",
    "pii": "pii_detection",
    "secret": "secret_detection",
    "system_prompt_leak": "output",
    "data_exfiltration": "output",
    "unsafe_output": "output",
    "anomaly": "always",
}

# What a category means in the public taxonomies; a rule may say otherwise. ATLAS ids as of content release 2026.05.
_ATLAS = "ATLAS 2026.05 "
TAXONOMY: dict[str, Taxonomy] = {
    "prompt_injection": Taxonomy(owasp_llm_2025="LLM01", owasp_llm_2026="LLM01", mitre_atlas=_ATLAS + "AML.T0051.000"),
    "jailbreak": Taxonomy(owasp_llm_2025="LLM01", owasp_llm_2026="LLM01", mitre_atlas=_ATLAS + "AML.T0054"),
    "system_prompt_leak": Taxonomy(owasp_llm_2025="LLM07", owasp_llm_2026="LLM08", mitre_atlas=_ATLAS + "AML.T0056"),
    "pii": Taxonomy(owasp_llm_2025="LLM02", owasp_llm_2026="LLM02", mitre_atlas=_ATLAS + "AML.T0057"),
    "secret": Taxonomy(owasp_llm_2025="LLM02", owasp_llm_2026="LLM02", mitre_atlas=_ATLAS + "AML.T0055"),
    "data_exfiltration": Taxonomy(owasp_llm_2025="LLM05", owasp_llm_2026="LLM10", mitre_atlas=_ATLAS + "AML.T0077"),
    "unsafe_output": Taxonomy(owasp_llm_2025="LLM05", owasp_llm_2026="LLM10", mitre_atlas=_ATLAS + "AML.T0102"),
    "anomaly": Taxonomy(owasp_llm_2025="LLM10", owasp_llm_2026="LLM06", mitre_atlas=_ATLAS + "AML.T0029"),
}
INDIRECT = Taxonomy(owasp_llm_2025="LLM01", owasp_llm_2026="LLM01", mitre_atlas=_ATLAS + "AML.T0051.001")
OBFUSCATED = Taxonomy(owasp_llm_2025="LLM01", owasp_llm_2026="LLM01", mitre_atlas=_ATLAS + "AML.T0068")


def taxonomy_of(rule: Rule) -> Taxonomy:
    return rule.taxonomy or TAXONOMY[rule.category]
