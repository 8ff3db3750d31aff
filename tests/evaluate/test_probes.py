from __future__ import annotations

from selfchat.core.records import stable_id
from selfchat.evaluate.probes import probes


def test_the_questions_are_the_papers() -> None:
    found = probes()
    assert [(probe.table, len(probe.questions)) for probe in found] == [
        (4, 1),
        (5, 1),
        (6, 1),
        (7, 1),
        (7, 1),
        (8, 2),
        (9, 4),
    ]
    assert found[0].questions == ("What is the capital of Tanzania?",)
    assert found[2].questions[0].endswith("I find them quite re-markable.")
    assert stable_id([probe.questions for probe in found]) == "8d45059e6f56a899"


def test_no_trace_of_the_print_is_left() -> None:
    text = "".join(question for probe in probes() for question in probe.questions)
    assert not set("ﬁﬂ\n") & set(text)
