"""aiohttp with nothing around it: no journal, no retries, no limits. The ceiling."""

from __future__ import annotations

import asyncio

import aiohttp
from common import API_KEY, MAX_TOKENS, MODEL, TEMPERATURE, Job, keep_in_flight, measure


async def call_all(job: Job) -> None:
    url = f"{job.base_url}/chat/completions"
    connector = aiohttp.TCPConnector(limit=0)
    headers = {"Authorization": f"Bearer {API_KEY}"}
    async with aiohttp.ClientSession(connector=connector, headers=headers) as session:

        async def ask(prompt: str) -> str:
            body = {
                "model": MODEL,
                "messages": [{"role": "user", "content": prompt}],
                "max_tokens": MAX_TOKENS,
                "temperature": TEMPERATURE,
            }
            async with session.post(url, json=body) as answer:
                answer.raise_for_status()
                completion = await answer.json()
            return completion["choices"][0]["message"]["content"]

        await keep_in_flight(job, ask)


if __name__ == "__main__":
    measure(lambda job: asyncio.run(call_all(job)), separable=True)
