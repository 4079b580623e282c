"""Public API hosts and who serves them. `where` is a pattern of the whole host, `pattern` one of the path.

Only names that are public, and bound to one vendor, are here. Private names and ports say nothing: any server may run behind them.
"""

from __future__ import annotations

import re
from typing import Final

from llmsec_tap.providers.mark import Mark, marks

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

# Hosts with a region or resource in the name, any path; then hosts that serve much else besides, with a path that says so.
PATTERNS: Final[tuple[Mark, ...]] = marks(
    (r"[\w-]+\.openai\.azure\.(com|us|cn)", r"", "azure.ai.openai"),
    (r"[\w-]+\.cognitiveservices\.azure\.(com|us|cn)", r"", "azure.ai.openai"),
    (r"[\w-]+\.services\.ai\.azure\.(com|us|cn)", r"", "azure.ai.openai"),
    (r"[\w.-]+\.inference\.(ai|ml)\.azure\.com", r"", "azure.ai.inference"),
    (r"bedrock(-runtime|-mantle|-agent-runtime)?(-fips)?\..*", r"", "aws.bedrock"),
    (r"[\w-]+\.bedrock-(runtime|agent-runtime)\..*", r"", "aws.bedrock"),
    (r"runtime\.sagemaker\.[\w-]+\.amazonaws\.com(\.cn)?", r"", "aws.sagemaker"),
    (r"([\w-]+-)?aiplatform(\.[\w-]+\.rep)?\.googleapis\.com", r"", "gcp.vertex_ai"),
    (r"[\w-]+\.ml\.cloud\.ibm\.com", r"", "ibm.watsonx.ai"),
    (r"dashscope[\w-]*\.aliyuncs\.com", r"", "alibaba_cloud"),
    (r"[\w-]+\.inference\.heroku\.com", r"", "heroku"),
    (r"[\w.-]+\.endpoints\.huggingface\.cloud", r"", "huggingface"),
    (r"api\.(individual|business|enterprise)\.githubcopilot\.com", r"", "github_copilot"),
)
WITH_PATH: Final[tuple[Mark, ...]] = marks(
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


_COMPILED: Final = tuple((re.compile(where), pattern, provider) for where, pattern, provider in PATTERNS)
_COMPILED_WITH_PATH: Final = tuple((re.compile(where), pattern, provider) for where, pattern, provider in WITH_PATH)


def provider_of_host(host: str, path: str) -> str | None:
    """Who serves this public name, or None where the name says nothing."""
    host = bare_host(host)
    for host_pattern, path_pattern, provider in _COMPILED_WITH_PATH:
        if path_pattern.search(path) and host_pattern.fullmatch(host):
            return provider
    if host in _ONLY_WITH_PATH and not _API_PATH.match(path):
        return None
    exact = EXACT.get(host)
    if exact:
        return exact
    for host_pattern, _, provider in _COMPILED:
        if host_pattern.fullmatch(host):
            return provider
    return None
