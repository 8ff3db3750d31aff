"""The options of the seeds step."""

from __future__ import annotations

from typing import Self

from pydantic import model_validator

from selfchat.core.options import Options, result


class SeedsOptions(Options):
    """Which seeds to take, and from where."""

    sources: tuple[str, ...] = result(
        ("builtin",),
        "files, folders of documents, hf:NAME[:CONFIG][:COLUMN] data sets, or builtin",
        min_length=1,
    )
    column: str | None = result(
        None, "column that holds the seeds; found by itself if there is one or its name is usual"
    )
    domain: str | None = result(
        None, "keep only seeds of this domain; a source that names no domains is taken to be of it"
    )
    domain_column: str | None = result(None, "column that holds each row's domain")
    sample: int | None = result(None, "how many seeds to draw; all if not given", ge=1)
    sample_each: int | None = result(None, "how many seeds to draw from each source", ge=1)
    rng_seed: int = result(0, "seed of the random draw", ge=0, lt=1 << 63)
    phrases: int = result(
        0, "key phrases to extract from each document; 0: the rows are the seeds", ge=0
    )

    @model_validator(mode="after")
    def _one_way_to_sample(self) -> Self:
        if self.sample is not None and self.sample_each is not None:
            raise ValueError("choose sample or sample_each, not both")
        return self
