"""Which kernels are taken on a card: here the processor stands in for one."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import NoReturn

import pytest
import torch

from interpreter import interpreted
from selfchat.kernels import best
from selfchat.kernels.best import unlike
from selfchat.kernels.flash import Flash
from selfchat.kernels.native import native
from selfchat.kernels.plain import Activation

interpreted()  # here, the rest of the file needs Triton

from selfchat.kernels.gpu import Triton  # noqa: E402

HERE = torch.device("cpu")
OWN, LIBRARY = Triton((9, 0)).name, Triton((9, 0), library=True).name


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """A card of this compute capability, on which the library is the faster.

    Of the trials one is made; all are in a test of their own.
    """
    capability = getattr(request, "param", (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    every = best._trials
    monkeypatch.setattr(
        best, "_trials", lambda *given: (trial for trial in every(*given) if trial[0] == "the gate")
    )
    monkeypatch.setattr(best, "has_fp8", lambda device: capability >= (8, 9))
    monkeypatch.setattr(
        best, "_product_seconds", lambda kernels, device: 1.0 if kernels.name == LIBRARY else 2.0
    )


def test_the_programs_for_older_cards_pass_the_trial_that_is_made_before_they_are_used() -> None:
    """Those for newer ones do in the runs of `test_on_a_card.py`."""
    assert unlike(Triton((8, 0)), HERE, ("int8", "fp8")) == ""


def test_a_kernel_that_computes_something_else_is_found_out() -> None:
    class Off(Triton):
        def gated(
            self, gate: torch.Tensor, up: torch.Tensor, activation: Activation
        ) -> torch.Tensor:
            return super().gated(gate, up, activation) * 1.1

    class Failing(Triton):
        def gated(
            self, gate: torch.Tensor, up: torch.Tensor, activation: Activation
        ) -> torch.Tensor:
            raise RuntimeError("no such instruction\non this card")

    assert unlike(Off((8, 0)), HERE, ()) == "the gate gives other results on this card"
    assert unlike(Failing((8, 0)), HERE, ()) == ("the gate fails on this card: no such instruction")


@pytest.mark.usefixtures("card")
@pytest.mark.parametrize(
    ("wanted", "taken"), [(None, LIBRARY), (OWN, OWN), (LIBRARY, LIBRARY), ("other", LIBRARY)]
)
def test_the_fastest_is_taken_unless_a_run_began_with_another(
    wanted: str | None, taken: str
) -> None:
    kernels, lacking = best._for_card(HERE, wanted)
    assert (kernels.name, lacking) == (taken, "")


@pytest.mark.usefixtures("card")
@pytest.mark.parametrize(
    ("card", "taken"), [((8, 0), OWN), ((7, 5), Flash.name)], indirect=["card"]
)
def test_older_cards_get_what_they_can_do(taken: str) -> None:
    assert best._for_card(HERE, None)[0].name == taken


def failing(why: str) -> Callable[..., NoReturn]:
    """A kernel that cannot run."""

    def fail(*arguments: object, **named: object) -> NoReturn:
        raise RuntimeError(why)

    return fail


@pytest.mark.usefixtures("card")
def test_a_program_that_is_wrong_here_is_left_out_with_the_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Triton, "gated", failing("ptxas fatal: unknown card\nand more"))
    kernels, lacking = best._for_card(HERE, None)
    assert kernels.name == Flash.name
    assert lacking == (
        "the Triton kernels are left out, as the gate fails on this card: ptxas fatal: unknown card"
    )


@pytest.mark.usefixtures("card")
@pytest.mark.parametrize("card", [(7, 5)], indirect=True)
def test_where_torchs_attention_fails_the_plain_one_is_taken_and_it_is_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Flash, "gated", failing("only Ampere cards or newer"))
    kernels, lacking = best._for_card(HERE, None)
    assert kernels.name == "plain"
    assert lacking == (
        "torch's attention is left out, as the gate fails on this card: only Ampere cards or newer"
    )


@pytest.mark.usefixtures("card")
def test_without_triton_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "selfchat.kernels.gpu", None)
    kernels, lacking = best._for_card(HERE, None)
    assert (kernels.name, lacking) == (
        Flash.name,
        "tuning is faster with Triton: pip install triton",
    )


def test_a_processor_gets_its_own_or_the_plain_ones_it_began_with() -> None:
    assert best.best_kernels(HERE, "plain")[0].name == "plain"
    assert best.best_kernels(HERE)[0].name in ("plain", native().name)
