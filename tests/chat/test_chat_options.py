from __future__ import annotations

from pathlib import Path

import pytest

from selfchat.chat.options import CHAT_PROMPTS, ChatOptions, chat_settings
from selfchat.core.errors import UsageError
from selfchat.template.prompts import prompt


@pytest.mark.parametrize("name", CHAT_PROMPTS)
def test_a_prompt_is_read_by_its_name(name: str) -> None:
    assert chat_settings(ChatOptions(prompt=name)).prompt == prompt(name)


def test_the_sampling_is_that_of_the_options() -> None:
    sampling = chat_settings(ChatOptions(temperature=0.5, top_p=0.9, max_tokens=7)).sampling
    assert (sampling.temperature, sampling.top_p, sampling.max_tokens) == (0.5, 0.9, 7)


def test_a_prompt_is_read_from_a_text_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_text("Be kind.\n", encoding="utf-8")
    assert chat_settings(ChatOptions(prompt=str(path))).prompt == "Be kind."


def test_an_unknown_prompt_is_refused_with_those_there_are() -> None:
    with pytest.raises(UsageError, match="'pirate'; use demo, baize, baize_healthcare"):
        chat_settings(ChatOptions(prompt="pirate"))


def test_a_prompt_of_the_teacher_is_no_chat_prompt() -> None:
    with pytest.raises(UsageError, match="no chat prompt"):
        chat_settings(ChatOptions(prompt="self_chat"))


@pytest.mark.parametrize(
    ("content", "fault"), [(None, "No such file"), (b" \n", "empty"), (b"\xff", "not UTF-8")]
)
def test_a_prompt_file_of_no_use_is_refused(
    tmp_path: Path, content: bytes | None, fault: str
) -> None:
    path = tmp_path / "mine.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError, match=fault):
        chat_settings(ChatOptions(prompt=str(path)))


@pytest.mark.parametrize("values", [{"temperature": 3}, {"top_p": 0}, {"max_tokens": 0}])
def test_values_out_of_range_are_refused(values: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="chat"):
        ChatOptions.parse(values, "chat")


def test_only_the_seed_of_the_terminal_leaves_the_result_as_it_is() -> None:
    assert set(ChatOptions().result_values()) == {"prompt", "temperature", "top_p", "max_tokens"}
