"""Routes that only one vendor has. Gateways keep them behind a prefix."""

from __future__ import annotations

from typing import Final

from llmsec_tap.providers.mark import Table, by_part, marks

PATHS: Final[Table] = marks(
    ("path", r"/openai/deployments/[^/]+/", "azure.ai.openai"),
    ("path", r"/model/[^/]+/(converse|converse-stream|invoke|invoke-with-response-stream|count-tokens)$", "aws.bedrock"),
    ("path", r"/publishers/(google|anthropic|mistralai|meta)/models/[^/]+:\w+$", "gcp.vertex_ai"),
    ("path", r"/v1(beta|alpha)?/models/[^/]+:(stream)?[gG]enerateContent$", "gcp.gemini"),
    ("path", r"/google\.ai\.generativelanguage\.v1\w*\.GenerativeService[./]BidiGenerateContent", "gcp.gemini"),
    ("path", r"/google\.cloud\.aiplatform\.v1\w*\.LlmBidiService[./]BidiGenerateContent", "gcp.vertex_ai"),
    ("path", r"/v1(beta|alpha)?/models/[^/]+:(batchEmbedContents|embedContent|countTokens)$", "gcp.gemini"),
)

provider_of_path: Final = by_part(PATHS)
