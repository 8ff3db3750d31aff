"""The options of the evaluate step."""

from __future__ import annotations

from selfchat.core.options import Options, result


class EvaluateOptions(Options):
    """How much is asked of the models."""

    max_tokens: int = result(200, "longest reply in tokens, for health and probes", ge=1)
    greedy: int = result(64, "most held-out replies that each model decodes greedily", ge=1)
    samples: int = result(200, "sampled replies drawn to count leaked markers", ge=0)
    rng_seed: int = result(
        0, "seed of the choice of prompts, the sampling and the intervals", ge=0, lt=1 << 63
    )
    batch: int = result(16, "replies drawn together; sampled ones depend on it", ge=1)
