"""The one protocol for every language model: teacher, student and judge."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, Protocol

from selfchat.core.errors import SelfchatError, UsageError
from selfchat.core.records import Message, Reason, Role, Sampling, Usage

FinishReason = Literal["stop", "length", "content_filter"]


class Request(NamedTuple):
    """What is asked of a model: to say the next thing, as the assistant or as the user."""

    messages: tuple[Message, ...]
    sampling: Sampling
    rng_seed: int = 0
    speaker: Role = "assistant"


class Reply(NamedTuple):
    """What a model answered; `usage` is None when it did not say."""

    text: str
    finish: FinishReason
    usage: Usage | None
    model: str = ""
    request_id: str = ""


class Model(Protocol):
    """A language model behind an address.

    An answer comes in two steps, so that it can be put on disk before anyone makes sense of it.
    """

    address: str
    provider: str
    speaks_as_user: bool  # whether it can continue a conversation as the user

    async def send(self, request: Request) -> str:
        """Ask, and return the raw answer.

        Raises:
            Busy: worth trying again; Lost when it may have cost.
            Refused: this request will never be answered.
            SelfchatError: no request will be answered (wrong key, no such model, quota gone).
        """
        ...

    def read(self, raw: str) -> Reply:
        """Make sense of a raw answer; raises Refused when it makes none."""
        ...

    async def close(self) -> None: ...


class Busy(Exception):
    """The call failed in a way that may pass; `retry_after` is in seconds when the server said."""

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Unreachable(Busy):
    """No connection was made."""


class Lost(Busy):
    """The request was sent and the answer lost: the call may have cost."""


class Refused(Exception):
    """This request was refused or its answer is of no use: it becomes a rejection."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


class Unwelcome(Refused):
    """The endpoint finds fault with this request, and perhaps with every other."""


class ModelFailed(SelfchatError):
    """No call can succeed: wrong key, no such model, quota gone, endpoint down."""


class AddressError(UsageError):
    """A model's address makes no sense."""


def request_values(request: Request) -> dict[str, Any]:
    """The request as JSON values, for keys and journals."""
    return {
        "messages": [[message.role, message.content] for message in request.messages],
        "sampling": request.sampling.model_dump(),
        "rng_seed": request.rng_seed,
        "speaker": request.speaker,
    }
