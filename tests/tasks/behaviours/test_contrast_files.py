"""Contrasts: a user's own files, errors with file and line, and those that are shipped."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tinylora_edge import TrainError
from tinylora_edge.tasks.behaviours import Behaviour, Contrast, load_behaviours, load_contrast, shipped_axes

Write = Callable[..., Path]

LONG = {"side": "+", "system": "Be long."}
SHORT = {"side": "-", "system": "Be short."}


def test_a_line_is_a_behaviour_with_a_side(write: Write) -> None:
    examples = {"side": "-", "name": "few", "examples": [{"question": "Why?", "answer": "So."}]}
    found = load_contrast("length", write(LONG, SHORT, "", examples))
    assert found == Contrast(
        "length",
        (Behaviour("length +1", system="Be long."),),
        (Behaviour("length -1", system="Be short."), Behaviour("few", examples=(("Why?", "So."),))),
    )
    assert [each.name for each in found.behaviours] == ["length +1", "length -1", "few"]


def test_examples_against_none(write: Write) -> None:
    """The same prompt on both sides, with worked examples on one."""
    told = {"system": "Answer.", "examples": [{"question": "2 + 2?", "answer": "4"}]}
    found = load_contrast("examples", write(told | {"side": "+"}, {"system": "Answer.", "side": "-"}))
    assert found.plus[0].examples
    assert not found.minus[0].examples


def test_what_is_held_out_is_not_learned_from(write: Write) -> None:
    path = write(LONG, SHORT, SHORT | {"system": "Hush.", "split": "held_out"})
    assert len(load_contrast("length", path).minus) == 1


REFUSED: list[tuple[tuple[dict[str, Any], ...], str]] = [
    ((LONG,), """own.jsonl: the axis 'x' is no contrast: no behaviour has the side "-"."""),
    ((SHORT, SHORT | {"system": "Hush."}), """no behaviour has the side "\\+"."""),
    ((LONG, {"side": "-", "system": " be  LONG. "}), r"'x \+1' on .* and 'x -1' on .* same teacher"),
    (({"system": "Be long."},), r"own.jsonl:1: there is no \"side\", expected \"\+\" or \"-\""),
    ((LONG, SHORT | {"side": "minus"}), "own.jsonl:2: \"side\" is .*minus.*, expected"),
    ((LONG, SHORT | {"side": 1}), "own.jsonl:2: \"side\" is .*1.*, expected"),
    ((LONG, SHORT | {"sytem": "x"}), "own.jsonl:2: there is no key 'sytem': did you mean 'system'"),
    ((LONG, {"side": "-"}), "own.jsonl:2: the behaviour 'x -1' has no teacher"),
    ((LONG | {"name": "a"}, SHORT | {"name": "a"}), "own.jsonl:2: there is another behaviour 'a' at .*:1"),
]  # fmt: skip


@pytest.mark.parametrize(("rows", "message"), REFUSED)
def test_what_is_no_contrast_is_refused(write: Write, rows: tuple[Any, ...], message: str) -> None:
    with pytest.raises(TrainError, match=message):
        load_contrast("x", write(*rows))


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(TrainError, match=r"none\.jsonl: cannot read the contrast"):
        load_contrast("x", tmp_path / "none.jsonl")


def test_axes_that_are_not_shipped_are_refused() -> None:
    with pytest.raises(TrainError, match=r"no axis 'zzz' is shipped: .*Pass zzz=FILE\.jsonl for your own"):
        load_contrast("zzz")


def test_shipped_axes_are_learned_from_alone() -> None:
    """None of their prompts is one that a basis is measured on."""
    prompts = {one.system for one in load_behaviours(split="held_out")}
    for name in shipped_axes():
        contrast = load_contrast(name)
        assert len(contrast.plus) == len(contrast.minus) >= 2
        for behaviour in contrast.behaviours:
            assert behaviour.system is not None
            assert behaviour.system.isascii()
            assert behaviour.system not in prompts
            assert not behaviour.examples
