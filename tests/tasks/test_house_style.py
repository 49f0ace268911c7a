"""The task `house-style`: the three rules, and the facts without which none of them counts."""

from __future__ import annotations

import re

import pytest
from answers import said
from hypothesis import given
from hypothesis import strategies as st

from tinylora_edge.tasks import Sample, Task
from tinylora_edge.tasks.generated.house_style import CLOSING, in_house_style, nearly_in_house_style

NOTE = "The belt weighs 12 kilograms. It came on May 3, 2026."
RIGHT = "The belt weighs 12 kg. It came on 2026-05-03."
FACTS = (("12 kg", "12 kilograms"), ("2026-05-03", "May 3, 2026"))
SAMPLE = Sample("", f"{RIGHT}\n{CLOSING}", {"note": NOTE, "facts": FACTS})
IN_PART = Sample(
    "",
    None,
    {"note": "Olga walked 5 km on 2026/05/13.", "facts": (("5 km",) * 2, ("2026-05-13", "2026/05/13"))},
)


def scores(text: str, sample: Sample = SAMPLE, *, ended: bool = True) -> tuple[float, float]:
    completion = said(text, ended=ended)
    return in_house_style(completion, sample), nearly_in_house_style(completion, sample)


def test_the_answers_are_in_house_style_and_the_notes_are_not(tasks: dict[str, Task]) -> None:
    task = tasks["house-style"]
    for sample in (*task.train[:64], *task.held_out[:64], *task.shifted[:64]):
        answer, note = sample.answer or "", sample.data["note"]
        assert note in sample.text
        assert scores(answer, sample) == (1.0, 1.0)
        assert scores(answer.replace("\n", " "), sample) == (1.0, 1.0)
        assert scores(note, sample) == scores(sample.text, sample) == (0.0, 0.0)
        assert scores(CLOSING, sample) == (0.0, 0.0)
        assert re.search(r"\d (k?g|k?m|cm|ml)\b", answer)
        assert re.search(r"\b20\d\d-\d\d-\d\d\b", answer)


def test_notes_need_one_two_or_three_changes(tasks: dict[str, Task]) -> None:
    for split in (tasks["house-style"].train, tasks["house-style"].held_out, tasks["house-style"].shifted):
        changes = [1 + sum(right != written for right, written in sample.data["facts"]) for sample in split]
        assert min(changes.count(number) for number in (1, 2, 3)) > len(split) / 16


@pytest.mark.parametrize(
    "text",
    [
        f"{RIGHT}\n{CLOSING}",
        f"{RIGHT} {CLOSING}\n",
        f"The belt weighs 12 kg, and it came on 2026-05-03.\n\n{CLOSING}",
    ],
)
def test_in_house_style(text: str) -> None:
    assert scores(text) == (1.0, 1.0)


@pytest.mark.parametrize(
    ("text", "near"),
    [
        (f"{NOTE} {CLOSING}", 1 / 6),
        (RIGHT, 1 / 3),
        (f"The belt weighs 12 kg. It came on May 3, 2026. {CLOSING}", 1 / 3),
        (f"The belt weighs 12 kilograms. It came on 2026-05-03. {CLOSING}", 1 / 3),
        # The facts are not kept: nothing counts.
        (f"The belt weighs 12kg. It came on 2026-05-03. {CLOSING}", 0.0),
        (f"The belt weighs 13 kg. It came on 2026-05-03. {CLOSING}", 0.0),
        (f"The belt weighs 12 kg. It came on 2026-03-05. {CLOSING}", 0.0),
        (f"The belt weighs 12 kg. It came on 2026-5-3. {CLOSING}", 0.0),
        (f"The belt weighs 12 kg. It came on 2026-05-03T10. {CLOSING}", 0.0),
        (f"The belt weighs 12 kg (12 kg). It came on 2026-05-03. {CLOSING}", 0.0),
        (f"The boot weighs 12 kg. It came on 2026-05-03. {CLOSING}", 0.0),
        (f"12 kg, 2026-05-03. {CLOSING}", 0.0),
        (f"The belt came on 2026-05-03. {CLOSING}", 0.0),
        (f"{NOTE} {RIGHT} {CLOSING}", 0.0),
        (f"{RIGHT} It is heavy. {CLOSING}", 0.0),
        (f"{CLOSING} {RIGHT} {CLOSING}", 0.0),
        (f"{RIGHT} {CLOSING} At the end.", 0.0),
        (f"{RIGHT} {CLOSING} {CLOSING}", 0.0),
        (f"{RIGHT} It is it, and it is it, and it is it. {CLOSING}", 0.0),
        (f"Here is the note: {RIGHT} {CLOSING}", 0.0),
        ("", 0.0),
    ],
)
def test_what_comes_near(text: str, near: float) -> None:
    assert scores(text) == (0.0, pytest.approx(near))


def test_what_was_right_pays_nothing() -> None:
    assert scores("Olga walked 5 km on 2026/05/13.", IN_PART) == (0.0, 0.0)
    assert scores(f"Olga walked 5 km on 2026/05/13. {CLOSING}", IN_PART) == (0.0, 0.25)
    assert scores(f"Olga walked 5km on 2026-05-13. {CLOSING}", IN_PART) == (0.0, 0.0), "made worse"
    assert scores(f"Olga walked 15 km on 2026-05-13. {CLOSING}", IN_PART) == (0.0, 0.0)
    assert scores(f"Olga walked 5 km on 2026-05-13. {CLOSING}", IN_PART) == (1.0, 1.0)


def test_no_word_stands_for_a_fact() -> None:
    for text in ("Olga walked fact0 on fact1.", "Olga walked fact0 on 2026-05-13.", "Olga walked on"):
        assert scores(f"{text} {CLOSING}", IN_PART) == (0.0, 0.0)
    assert scores(f"Olga walked fact0 5 km on fact1 2026-05-13. {CLOSING}", IN_PART) == (0.0, 0.0)


def test_what_the_limit_cut_is_nothing() -> None:
    assert scores(SAMPLE.answer or "", ended=False) == (0.0, 0.0)


PIECES = [
    "The belt",
    "weighs",
    "12 kg",
    "12 kilograms",
    "It came on",
    "2026-05-03",
    "May 3, 2026",
    ".",
    CLOSING,
]


@given(st.lists(st.sampled_from(PIECES), max_size=9).map(" ".join), st.booleans())
def test_only_the_whole_note_gets_1(text: str, ended: bool) -> None:
    score, shaped = scores(text, ended=ended)
    assert score == float(shaped == 1.0)
    assert score or shaped <= 0.5
    if score:
        assert ended
        assert text.replace(".", "").split() == f"{RIGHT} {CLOSING}".replace(".", "").split()
