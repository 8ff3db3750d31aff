"""From the text of a transcript to its messages, or to the reason why it cannot be read.

A transcript's markers are `[Human]` and `[AI]` at the beginning of a line, as the paper's template
asks for (appendix A), and what models make of them: other case, bold, bars, a colon. Where a text
can be read in two ways it is rejected: what is returned is what was said.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from selfchat.core.records import Message, Reason, Role


class Unreadable(Exception):
    """The text is no transcript; `reason` and `detail` say why."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


class _Marker(NamedTuple):
    start: int  # where its line begins
    end: int  # where the message begins
    role: Role
    bold: str  # emphasis that was opened before the marker and not closed right after it
    in_code: bool


_NAME = r"\[\s?(?:\*\*)?\|?\s?(human|ai)\s?\|?(?:\*\*)?\s?\]"
_AT_LINE = re.compile(
    rf"^[ \t]{{0,3}}(?P<open>\*\*|__|\*|_)?{_NAME}:?(?P<close>\*\*|__|\*|_)?:?", re.IGNORECASE
)
_ANYWHERE = re.compile(_NAME, re.IGNORECASE)
_FENCE = re.compile(r"^[ \t]{0,3}(`{3,}|~{3,})(.*)$")
_CODE = re.compile(
    r"^[ \t]{0,3}(`{3,}|~{3,}).*?^[ \t]{0,3}\1[`~]*[ \t]*$|(`+)[^\n]*?\2", re.M | re.S
)
_CUT_MARKER = re.compile(r"(?:\*\*)?\[\|?(?:h(?:u(?:m(?:a(?:n)?)?)?)?|a(?:i)?)?\|?", re.IGNORECASE)
_INTRODUCTION = re.compile(
    r"(sure|certainly|of course|okay|ok|here|below|transcript)\b", re.IGNORECASE
)


def parse_transcript(text: str, cut: bool = False) -> tuple[Message, ...]:
    """Read a transcript's whole turns.

    A last user message without a reply is left out, and so is the last turn when the text was cut.
    Text before the first `[Human]` is an introduction and is left out; before a first `[AI]` it is
    the user's message whose marker is missing.

    Args:
        cut: whether the answer was ended by a limit on its length.

    Raises:
        Unreadable: with the reason.
    """
    text = text.replace("\r\n", "\n")
    markers = _find_markers(text)
    if not markers:
        raise Unreadable(Reason.UNPARSABLE, "no marker")
    spoken = _one_reading(text, markers)
    if cut or _CUT_MARKER.fullmatch(text.rstrip().rpartition("\n")[2].strip()):
        spoken = spoken[:-1]
    if spoken and spoken[-1][0] == "user":
        spoken = spoken[:-1]
    if not spoken:
        raise Unreadable(*_why_nothing(markers, cut))
    for role, content in spoken:
        if not content:
            raise Unreadable(Reason.EMPTY_TURN, f"the {role} says nothing")
        if _ANYWHERE.search(_CODE.sub("", content)):
            raise Unreadable(Reason.MARKER_LEAK, f"a marker within a message: {content[:60]!r}")
    return tuple(Message(role=role, content=content) for role, content in spoken)


def _find_markers(text: str) -> list[_Marker]:
    found, fence, position = [], "", 0
    for line in text.splitlines(keepends=True):
        body = line.rstrip("\n")
        if match := _AT_LINE.match(body):
            role: Role = "user" if match[2].lower() == "human" else "assistant"
            opened, closed = match["open"] or "", match["close"] or ""
            end = match.start("close") if closed and closed != opened else match.end()
            bold = "" if closed == opened else opened
            found.append(_Marker(position, position + end, role, bold, bool(fence)))
            body = body[match.end() :].lstrip()
        fence = _fence_after(body, fence)
        position += len(line)
    return found


def _fence_after(line: str, fence: str) -> str:
    """The code fence that is open after a line, given the one open before it."""
    match = _FENCE.match(line)
    if match is None:
        return fence
    if not fence:
        return match[1]
    closes = match[1].startswith(fence) and not match[2].strip()
    return "" if closes else fence


_Spoken = list[tuple[Role, str]]


def _one_reading(text: str, markers: Sequence[_Marker]) -> _Spoken:
    """What was said, when only one reading of the markers makes sense.

    A marker within a code block is part of a message, unless the block was never closed: then it is
    a marker. When both readings make a conversation, nobody can tell.
    """
    outside = [marker for marker in markers if not marker.in_code]
    readings = [markers] if len(outside) == len(markers) else [markers, outside]
    faults, conversations = [], []
    for reading in readings:
        try:
            conversations.append(_split(text, reading))
        except Unreadable as fault:
            faults.append(fault)
    if len(conversations) > 1:
        raise Unreadable(Reason.UNPARSABLE, "markers in a code block can be read in two ways")
    if not conversations:
        raise faults[-1]
    return conversations[0]


def _split(text: str, markers: Sequence[_Marker]) -> _Spoken:
    if not markers:
        raise Unreadable(Reason.UNPARSABLE, "no marker outside code")
    spoken = _leading(text[: markers[0].start], markers[0].role)
    ends = [marker.start for marker in markers[1:]] + [len(text)]
    for marker, end in zip(markers, ends, strict=True):
        content = _content(text[marker.end : end], marker.bold)
        if spoken and spoken[-1][0] == marker.role:
            if spoken[-1][1]:
                raise Unreadable(Reason.UNPARSABLE, f"two messages by the {marker.role} in a row")
            spoken.pop()
        spoken.append((marker.role, content))
    return spoken


def _leading(text: str, first: Role) -> _Spoken:
    text = text.strip()
    if first == "user":
        return []
    if not text:
        raise Unreadable(Reason.UNPARSABLE, "begins with the AI")
    if "\n\n" in text or text.endswith(":") or _INTRODUCTION.match(text):
        raise Unreadable(Reason.UNPARSABLE, "the first marker is missing")
    return [("user", text)]


def _content(text: str, bold: str) -> str:
    text = text.strip()
    if not bold or not text:
        return text
    if text.endswith(bold):
        return text[: -len(bold)].rstrip()
    raise Unreadable(Reason.UNPARSABLE, "emphasis that is not closed")


def _why_nothing(markers: Sequence[_Marker], cut: bool) -> tuple[Reason, str]:
    roles = {marker.role for marker in markers}
    if len(roles) == 1:
        return Reason.ONE_SIDED, f"only the {roles.pop()} speaks"
    if cut:
        return Reason.TRUNCATED, "cut before the first reply was over"
    return Reason.TOO_FEW_TURNS, "no whole turn"
