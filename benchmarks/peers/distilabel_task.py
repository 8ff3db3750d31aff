"""distilabel: a `TextGeneration` task over `OpenAILLM`, a batch as large as the calls in flight."""

from __future__ import annotations

import os

os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"

from common import API_KEY, MAX_TOKENS, MODEL, TEMPERATURE, Job, check, measure
from distilabel.models import OpenAILLM
from distilabel.pipeline import Pipeline
from distilabel.steps import LoadDataFromDicts
from distilabel.steps.tasks import TextGeneration


def call_all(job: Job) -> None:
    with Pipeline(name="chats", cache_dir=job.folder) as pipeline:
        rows = [{"instruction": prompt} for prompt in job.prompts]
        loaded = LoadDataFromDicts(data=rows, batch_size=job.in_flight)
        task = TextGeneration(llm=model(job), input_batch_size=job.in_flight)
        loaded >> task
    made = pipeline.run(use_cache=True)
    check(list(made["default"]["train"]["generation"]), job.calls)


def model(job: Job) -> OpenAILLM:
    return OpenAILLM(
        model=MODEL,
        base_url=job.base_url,
        api_key=API_KEY,
        generation_kwargs={"max_new_tokens": MAX_TOKENS, "temperature": TEMPERATURE},
    )


if __name__ == "__main__":
    measure(call_all, separable=False)
