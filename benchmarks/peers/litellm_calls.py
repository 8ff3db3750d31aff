"""litellm's `acompletion`, with the table of prices that it ships and without telemetry."""

from __future__ import annotations

import asyncio
import os

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"

import litellm  # reads the environment when imported
from common import API_KEY, MAX_TOKENS, MODEL, TEMPERATURE, Job, keep_in_flight, measure

litellm.telemetry = False
litellm.suppress_debug_info = True


async def call_all(job: Job) -> None:
    async def ask(prompt: str) -> str:
        completion = await litellm.acompletion(
            model=f"openai/{MODEL}",
            api_base=job.base_url,
            api_key=API_KEY,
            messages=[{"role": "user", "content": prompt}],
            max_tokens=MAX_TOKENS,
            temperature=TEMPERATURE,
            max_retries=0,
        )
        return completion.choices[0].message.content or ""

    await keep_in_flight(job, ask)


if __name__ == "__main__":
    measure(lambda job: asyncio.run(call_all(job)), separable=True)
