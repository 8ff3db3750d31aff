"""Curator: `curator.LLM` on its own OpenAI backend, with its cache, limits out of the way.

Its table of tokens is fetched from a server; litellm, which it needs, ships the same one.
"""

from __future__ import annotations

import os
from pathlib import Path

os.environ["TELEMETRY_ENABLED"] = "false"
os.environ["CURATOR_DISABLE_RICH_DISPLAY"] = "1"
os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"

import litellm  # reads the environment when imported
from bespokelabs import curator
from common import API_KEY, HUGE, MAX_TOKENS, MODEL, TEMPERATURE, Job, check, measure

_TOKENIZERS = Path(litellm.__file__).parent / "litellm_core_utils/tokenizers"


def call_all(job: Job) -> None:
    os.environ["TIKTOKEN_CACHE_DIR"] = str(_TOKENIZERS)
    llm = curator.LLM(
        model_name=MODEL,
        backend="openai",
        generation_params={"max_tokens": MAX_TOKENS, "temperature": TEMPERATURE},
        backend_params={
            "base_url": job.base_url,
            "api_key": API_KEY,
            "max_requests_per_minute": HUGE,
            "max_tokens_per_minute": HUGE,
            "max_concurrent_requests": job.in_flight,
        },
    )
    answered = llm(job.prompts, working_dir=str(job.folder))
    check([row["response"] for row in answered.dataset], job.calls)


if __name__ == "__main__":
    measure(call_all, separable=True)
