"""What can be chosen about collecting."""

from __future__ import annotations

from typing import Literal

from selfchat.core.options import Options, execution, result

Strategy = Literal["transcript", "turns"]


class CollectOptions(Options):
    """The section `[collect]` of a recipe."""

    teacher: str = result("embedded:smollm2-135m", "address of the model that talks with itself")
    strategy: Strategy = result(
        "transcript", "the whole transcript in one call, or turn by turn (dearer, for small models)"
    )
    max_turns: int = result(4, "turns after which a dialogue by turns is over", ge=1)
    min_turns: int = result(1, "dialogues with fewer whole turns are rejected", ge=1)
    transcript_tokens: int = result(1024, "most tokens of a transcript in one call", ge=1)
    reply_tokens: int = result(512, "most tokens of a reply, by turns", ge=1)
    user_tokens: int = result(64, "most tokens of a user's line, by turns", ge=1)
    temperature: float = result(1.0, "sampling temperature", ge=0, le=2)
    top_p: float = result(1.0, "nucleus sampling's share of probability", gt=0, le=1)
    retries: int = result(0, "times that a cut or repeated answer is drawn again, by turns", ge=0)
    rng_seed: int = result(0, "seed of every random choice")
    base_url: str | None = execution(None, "endpoint of an OpenAI-compatible server")
    api_key_env: str = execution("OPENAI_API_KEY", "environment variable that holds the API key")
    concurrency: int = execution(32, "dialogues in flight", ge=1)
    rpm: int | None = execution(None, "most requests a minute", ge=1)
    tpm: int | None = execution(None, "most tokens a minute", ge=1)
    max_cost: float | None = execution(None, "dollars that are never exceeded", gt=0)
    max_tokens: int | None = execution(None, "tokens that are never exceeded", ge=1)
    timeout: float = execution(600.0, "seconds after which a call is given up", gt=0)
    price_in: float | None = execution(None, "dollars per million prompt tokens", ge=0)
    price_out: float | None = execution(None, "dollars per million answer tokens", ge=0)

    @property
    def longest_answer(self) -> int:
        """Most tokens of what the strategy asks for."""
        by_turns = self.strategy == "turns"
        return self.reply_tokens if by_turns else self.transcript_tokens
