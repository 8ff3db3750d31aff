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


def check_base(address: str) -> None:
    """Find what can be seen to be wrong with a base model's address without loading anything.

    Raises:
        AddressError: it is of no kind that can be tuned, or names a folder that is not there.
    """
    kind, name = split_address(address)
    if kind not in ("hf", "embedded"):
        raise AddressError(
            f"{address!r} cannot be a base model; use embedded:smollm2-135m or hf:ID-or-path"
        )
    is_folder = kind == "hf" and name.startswith((".", "/"))
    if is_folder and not Path(name).is_dir():
        raise AddressError(f"cannot load the base model {address}: no such folder")


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
