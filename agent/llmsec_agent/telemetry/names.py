"""The names that telemetry has, in one place: OpenTelemetry's GenAI conventions are in development, and some of them will change.

Buckets are those that the conventions ask for. Names that they do not have begin with `llmsec.`.
"""

from __future__ import annotations

from typing import Final

SCOPE: Final = "llmsec-trace"

# --- metrics ----------------------------------------------------------------------------------------------------------------

OPERATION_DURATION: Final = "gen_ai.client.operation.duration"
TOKEN_USAGE: Final = "gen_ai.client.token.usage"  # noqa: S105 - no password
REQUEST_DURATION: Final = "gen_ai.server.request.duration"
TIME_TO_FIRST_TOKEN: Final = "gen_ai.server.time_to_first_token"  # noqa: S105
TIME_PER_OUTPUT_TOKEN: Final = "gen_ai.server.time_per_output_token"  # noqa: S105

DURATION_S: Final = tuple(0.01 * 2**power for power in range(14))
FIRST_TOKEN_S: Final = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
PER_TOKEN_S: Final = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)
TOKENS: Final = tuple(4**power for power in range(14))

# Name, unit, bounds, description.
HISTOGRAMS: Final = (
    (OPERATION_DURATION, "s", DURATION_S, "GenAI operation duration."),
    (TOKEN_USAGE, "{token}", TOKENS, "Number of input and output tokens used."),
    (REQUEST_DURATION, "s", DURATION_S, "Generative AI server request duration such as time-to-last byte or last output token."),
    (TIME_TO_FIRST_TOKEN, "s", FIRST_TOKEN_S, "Time to generate first token for successful responses."),
    (TIME_PER_OUTPUT_TOKEN, "s", PER_TOKEN_S, "Time per output token generated after the first token for successful responses."),
)

# What the SDK counts, by the names that its `stats()` has.
SDK_COUNTS: Final = "llmsec.sdk."

# --- events of a span -------------------------------------------------------------------------------------------------------

# From an open proposal (guardrail events): the most likely of all names to change.
FINDING_EVENT: Final = "gen_ai.guardrail.security.finding"
FINDING_ID: Final = "gen_ai.guardrail.security.external_finding_id"
FINDING_RULE: Final = "gen_ai.guardrail.security.policy.rule.id"
FINDING_CATEGORY: Final = "gen_ai.guardrail.security.risk.category"
FINDING_SCORE: Final = "gen_ai.guardrail.security.risk.score"
FINDING_HASH: Final = "gen_ai.guardrail.security.content.input.hash"
FINDING_VERDICT: Final = "gen_ai.guardrail.verdict.type"
FINDING_TARGET: Final = "gen_ai.guardrail.target.type"
DEVIATION_EVENT: Final = "llmsec.deviation"

# --- parameters of a request ------------------------------------------------------------------------------------------------

# Which of a request's parameters is which attribute, by folded name; and the type that the attribute has.
PARAMETERS: Final[dict[str, tuple[str, type[int | float]]]] = {
    "maxtokens": ("gen_ai.request.max_tokens", int),
    "maxcompletiontokens": ("gen_ai.request.max_tokens", int),
    "maxoutputtokens": ("gen_ai.request.max_tokens", int),
    "maxnewtokens": ("gen_ai.request.max_tokens", int),
    "numpredict": ("gen_ai.request.max_tokens", int),
    "temperature": ("gen_ai.request.temperature", float),
    "topp": ("gen_ai.request.top_p", float),
    "p": ("gen_ai.request.top_p", float),
    "topk": ("gen_ai.request.top_k", int),
    "k": ("gen_ai.request.top_k", int),
    "n": ("gen_ai.request.choice.count", int),
    "candidatecount": ("gen_ai.request.choice.count", int),
    "seed": ("gen_ai.request.seed", int),
    "frequencypenalty": ("gen_ai.request.frequency_penalty", float),
    "presencepenalty": ("gen_ai.request.presence_penalty", float),
}
