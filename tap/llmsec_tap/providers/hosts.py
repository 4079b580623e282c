"""Public API hosts and who serves them.

Only names that are public, and bound to one vendor, are here. Private names and ports say nothing: any server may run behind them.
"""

from __future__ import annotations

import re
from typing import Final

from llmsec_tap.providers.mark import Table, by_value, marks

EXACT: Final[dict[str, str]] = {
    "api.openai.com": "openai",
    "chatgpt.com": "openai",
    "eu.api.openai.com": "openai",
    "us.api.openai.com": "openai",
    "api.anthropic.com": "anthropic",
    "generativelanguage.googleapis.com": "gcp.gemini",
    "aiplatform.googleapis.com": "gcp.vertex_ai",
    "api.mistral.ai": "mistral_ai",
    "codestral.mistral.ai": "mistral_ai",
    "api.cohere.com": "cohere",
    "api.cohere.ai": "cohere",
    "production.api.cohere.ai": "cohere",
    "api.groq.com": "groq",
    "api.deepseek.com": "deepseek",
    "api.x.ai": "x_ai",
    "api.perplexity.ai": "perplexity",
    "openrouter.ai": "openrouter",
    "api.together.xyz": "together",
    "api.together.ai": "together",
    "api.fireworks.ai": "fireworks",
    "api.cerebras.ai": "cerebras",
    "api.sambanova.ai": "sambanova",
    "api.z.ai": "zai",
    "open.bigmodel.cn": "zai",
    "api.moonshot.ai": "moonshot_ai",
    "api.moonshot.cn": "moonshot_ai",
    "api.minimax.io": "minimax",
    "api.minimaxi.com": "minimax",
    "api.stepfun.com": "stepfun",
    "api.siliconflow.cn": "siliconflow",
    "api.siliconflow.com": "siliconflow",
    "ark.cn-beijing.volces.com": "volcengine",
    "router.huggingface.co": "huggingface",
    "api-inference.huggingface.co": "huggingface",
    "ai-gateway.vercel.sh": "vercel_ai_gateway",
    "gateway.pydantic.dev": "pydantic_gateway",
    "gateway.ai.cloudflare.com": "cloudflare",
    "api.replicate.com": "replicate",
    "api.writer.com": "writer",
    "api.aleph-alpha.com": "aleph_alpha",
    "api.voyageai.com": "voyage",
    "api.jina.ai": "jina",
    "api.zeroentropy.dev": "zeroentropy",
    "api.portkey.ai": "portkey",
    "api.ai21.com": "ai21",
    "api.githubcopilot.com": "github_copilot",
    "copilot-proxy.githubusercontent.com": "github_copilot",
    "models.github.ai": "github_models",
    "models.inference.ai.azure.com": "github_models",
    "integrate.api.nvidia.com": "nvidia",
    "ai.api.nvidia.com": "nvidia",
    "api.deepinfra.com": "deepinfra",
    "api.novita.ai": "novita",
    "api.hyperbolic.xyz": "hyperbolic",
    "api.studio.nebius.ai": "nebius",
    "api.studio.nebius.com": "nebius",
    "api.tokenfactory.nebius.com": "nebius",
    "inference.baseten.co": "baseten",
    "api.lambda.ai": "lambda",
    "api.featherless.ai": "featherless",
    "api.friendli.ai": "friendli",
    "llm.chutes.ai": "chutes",
    "api.scaleway.ai": "scaleway",
    "api.inference.wandb.ai": "wandb",
    "api.inference.crusoecloud.com": "crusoe",
    "managed-inference-api-proxy.crusoecloud.com": "crusoe",
    "inference.do-ai.run": "digitalocean",
    "api.doubleword.ai": "doubleword",
    "api.venice.ai": "venice",
    "api.avian.io": "avian",
    "api.upstage.ai": "upstage",
    "api.inceptionlabs.ai": "inception",
    "api.reka.ai": "reka",
    "ollama.com": "ollama",
}

# Hosts with a region or resource in the name.
PATTERNS: Final[Table] = marks(
    ("host", r"[\w-]+\.openai\.azure\.(com|us|cn)\Z", "azure.ai.openai"),
    ("host", r"[\w-]+\.cognitiveservices\.azure\.(com|us|cn)\Z", "azure.ai.openai"),
    ("host", r"[\w-]+\.services\.ai\.azure\.(com|us|cn)\Z", "azure.ai.openai"),
    ("host", r"[\w.-]+\.inference\.(ai|ml)\.azure\.com\Z", "azure.ai.inference"),
    ("host", r"bedrock(-runtime|-mantle|-agent-runtime)?(-fips)?\..*\Z", "aws.bedrock"),
    ("host", r"[\w-]+\.bedrock-(runtime|agent-runtime)\..*\Z", "aws.bedrock"),
    ("host", r"runtime\.sagemaker\.[\w-]+\.amazonaws\.com(\.cn)?\Z", "aws.sagemaker"),
    ("host", r"([\w-]+-)?aiplatform(\.[\w-]+\.rep)?\.googleapis\.com\Z", "gcp.vertex_ai"),
    ("host", r"[\w-]+\.ml\.cloud\.ibm\.com\Z", "ibm.watsonx.ai"),
    ("host", r"dashscope[\w-]*\.aliyuncs\.com\Z", "alibaba_cloud"),
    ("host", r"[\w-]+\.inference\.heroku\.com\Z", "heroku"),
    ("host", r"[\w.-]+\.endpoints\.huggingface\.cloud\Z", "huggingface"),
    ("host", r"api\.(individual|business|enterprise)\.githubcopilot\.com\Z", "github_copilot"),
)
# Hosts that serve much else besides: `where` is a pattern of the whole host, and the path must say so.
WITH_PATH: Final[Table] = marks(
    (r"[\w.-]+\.snowflakecomputing\.com", r"/api/v2/cortex/", "snowflake"),
    (r"[\w.-]+\.(azuredatabricks\.net|cloud\.databricks\.com|gcp\.databricks\.com)", r"/serving-endpoints/", "databricks"),
    (r"api\.cloudflare\.com", r"/client/v4/accounts/[^/]+/ai/", "cloudflare"),
    (r"huggingface\.co", r"/api/inference-proxy/", "huggingface"),
    (r"api\.deepgram\.com", r"/v1/(speak|listen|agent)", "deepgram"),
    (r"chatgpt\.com", r"/backend-api/(codex|conversation)", "openai"),
)
_ONLY_WITH_PATH: Final = frozenset(("chatgpt.com", "ollama.com", "openrouter.ai"))
_API_PATH: Final = re.compile(r"/(api|v1|backend-api)(/|$)")


def bare_host(host: str) -> str:
    """A Host header or authority without its port."""
    host = host.strip().rstrip(".").lower()
    if host.startswith("["):
        return host.partition("]")[0][1:]
    name, colon, port = host.rpartition(":")
    return name if colon and port.isdigit() else host


_by_pattern: Final = by_value(PATTERNS)
_needs_path: Final = re.compile("|".join(row.where for row in WITH_PATH)).fullmatch
_with_path: Final = tuple((re.compile(row.where), re.compile(row.pattern), row.provider) for row in WITH_PATH)


def provider_of_host(host: str, path: str) -> str | None:
    """Who serves this public name, or None where the name says nothing."""
    host = bare_host(host)
    if _needs_path(host) is not None:
        for host_pattern, path_pattern, provider in _with_path:
            if host_pattern.fullmatch(host) and path_pattern.search(path):
                return provider
    if host in _ONLY_WITH_PATH and not _API_PATH.match(path):
        return None
    return EXACT.get(host) or _by_pattern(host)
