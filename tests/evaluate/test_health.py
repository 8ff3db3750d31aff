from __future__ import annotations

import pytest

from selfchat.evaluate.health import Traits, examine, repeats_itself, summarise

STOPS = ("[|Human|]", "[|AI|]")
SPECIALS = ("<|im_start|>", "<|im_end|>", "  ")


def look(body: str, shown: str | None = None, ended: bool = False) -> Traits:
    return examine(body, body if shown is None else shown, ended, 5, STOPS, SPECIALS)


def test_an_end_token_is_a_stop_by_itself() -> None:
    traits = look(" Fine.", ended=True)
    assert traits.ending == "end_token" and traits.stopped
    assert not traits.leaked_raw and not traits.leaked_shown


def test_the_closing_marker_is_a_stop_and_no_leak() -> None:
    traits = look(" Fine.\n[|Human|]", shown="Fine.")
    assert traits.ending == "closing_marker" and traits.stopped
    assert not traits.leaked_raw and not traits.leaked_shown


def test_the_other_marker_is_a_leak_and_no_stop() -> None:
    traits = look(" Fine.\n[|AI|]", shown="Fine.")
    assert traits.ending == "wrong_marker" and not traits.stopped
    assert traits.leaked_raw and not traits.leaked_shown


def test_the_cap_is_no_stop() -> None:
    traits = look(" And then")
    assert traits.ending == "length" and not traits.stopped


@pytest.mark.parametrize(
    "text", ["so [| human |] x", "［｜ＡＩ｜］", "a <|im_start|> b", "cut off [|Hum", "cut off [|"]
)
def test_disguised_special_and_broken_markers_leak(text: str) -> None:
    traits = look(text)
    assert traits.leaked_raw and traits.leaked_shown


@pytest.mark.parametrize("text", ["two  spaces", "a list [1, 2", "the human and the AI", "x ["])
def test_ordinary_text_does_not_leak(text: str) -> None:
    assert not look(text).leaked_raw


def test_a_marker_without_the_format_is_a_leak() -> None:
    traits = examine("Hi [|Human|] you", "Hi [|Human|] you", True, 5, (), ())
    assert traits.stopped and traits.leaked_shown


def test_repetition() -> None:
    gram = "one two three four five six seven eight"
    assert repeats_itself(f"{gram} {gram} {gram}")
    assert not repeats_itself(f"{gram} and {gram}")
    assert repeats_itself(
        "Water boils at a hundred degrees. Yes. WATER boils at a hundred degrees!"
    )
    assert not repeats_itself("Yes. No. Yes. No.")
    assert repeats_itself("ha " * 10)
    assert not repeats_itself("")


def test_summary() -> None:
    health = summarise([look("a b", ended=True), look("a b c d")])
    assert health.stopped.value == 0.5 and health.stopped.n == 2
    assert health.mean_words == 3 and health.tokens == 10
    assert health.endings == {"end_token": 1, "length": 1}
