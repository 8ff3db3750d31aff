"""NVIDIA NeMo Data Designer: a column of text from a seed file, resumed where possible."""

from __future__ import annotations

import json
import os
from pathlib import Path

os.environ["NEMO_TELEMETRY_ENABLED"] = "false"

import data_designer.config as dd  # reads the environment when imported
from common import API_KEY, MAX_TOKENS, MODEL, TEMPERATURE, Job, check, measure
from data_designer.interface import DataDesigner


def call_all(job: Job) -> None:
    provider = dd.ModelProvider(name="loopback", endpoint=job.base_url, api_key=API_KEY)
    designer = DataDesigner(artifact_path=job.folder, model_providers=[provider])
    designer.set_run_config(dd.RunConfig(otel_metrics_port=None))
    results = designer.create(
        columns(job), num_records=job.calls, dataset_name="chats", resume=dd.ResumeMode.IF_POSSIBLE
    )
    check(list(results.load_dataset()["transcript"]), job.calls)


def columns(job: Job) -> dd.DataDesignerConfigBuilder:
    model = dd.ModelConfig(
        alias="teacher",
        model=MODEL,
        provider="loopback",
        skip_health_check=True,
        inference_parameters=dd.ChatCompletionInferenceParams(
            temperature=TEMPERATURE, max_tokens=MAX_TOKENS, max_parallel_requests=job.in_flight
        ),
    )
    builder = dd.DataDesignerConfigBuilder(model_configs=[model])
    builder.with_seed_dataset(dd.LocalFileSeedSource(path=str(seed_file(job))))
    builder.add_column(
        dd.LLMTextColumnConfig(name="transcript", prompt="{{ prompt }}", model_alias="teacher")
    )
    return builder


def seed_file(job: Job) -> Path:
    path = job.folder / "prompts.jsonl"
    lines = [json.dumps({"prompt": prompt}) + "\n" for prompt in job.prompts]
    path.write_text("".join(lines), "utf-8")
    return path


if __name__ == "__main__":
    measure(call_all, separable=True)
