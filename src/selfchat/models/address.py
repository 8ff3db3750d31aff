"""From an address such as `openai:gpt-4o-mini` to a model."""

from __future__ import annotations

from pathlib import Path

from selfchat.models.base import AddressError, Model

KINDS = "openai:MODEL, embedded:smollm2-135m, hf:ID-or-path, run:DIR or scripted:FILE"


def split_address(address: str) -> tuple[str, str]:
    """`kind:name`, both given.

    Raises:
        AddressError: it has another shape.
    """
    kind, colon, name = address.partition(":")
    if not colon or not name:
        raise AddressError(f"{address!r} is no model address; use {KINDS}")
    return kind, name


def open_teacher(
    address: str,
    base_url: str | None = None,
    key_variable: str = "OPENAI_API_KEY",
    timeout: float = 600.0,
) -> Model:
    """Open the model that an address names, ready to be asked.

    Raises:
        UsageError: no such kind or model, or no key.
    """
    kind, name = split_address(address)
    if kind == "openai":
        from selfchat.models.remote import RemoteModel

        return RemoteModel(name, base_url, key_variable, timeout)
    if kind == "embedded":
        from selfchat.models.embedded import EmbeddedModel

        return EmbeddedModel(name)
    if kind == "scripted":
        from selfchat.models.scripted import ScriptedModel

        return ScriptedModel(Path(name))
    raise AddressError(f"{address!r} cannot be a teacher; use {KINDS}")
