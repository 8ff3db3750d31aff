"""The official client of OpenAI, with the transport named first: `httpx` (its own) or `aiohttp`."""

from __future__ import annotations

import asyncio
import sys

from common import API_KEY, MAX_TOKENS, MODEL, TEMPERATURE, Job, keep_in_flight, measure
from openai import AsyncOpenAI, DefaultAioHttpClient


def client(base_url: str, transport: str) -> AsyncOpenAI:
    if transport == "httpx":
        return AsyncOpenAI(base_url=base_url, api_key=API_KEY, max_retries=0)
    return AsyncOpenAI(
        base_url=base_url, api_key=API_KEY, max_retries=0, http_client=DefaultAioHttpClient()
    )


async def call_all(job: Job, transport: str) -> None:
    async with client(job.base_url, transport) as openai:

        async def ask(prompt: str) -> str:
            completion = await openai.chat.completions.create(
                model=MODEL,
                messages=[{"role": "user", "content": prompt}],
                max_tokens=MAX_TOKENS,
                temperature=TEMPERATURE,
            )
            return completion.choices[0].message.content or ""

        await keep_in_flight(job, ask)


if __name__ == "__main__":
    chosen = sys.argv.pop(1)
    measure(lambda job: asyncio.run(call_all(job, chosen)), separable=True)
