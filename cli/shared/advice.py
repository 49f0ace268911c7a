"""Advice beside an error: options that do what it asks for in Python's words, and names that were meant."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...errors import TinyLoraError, VectorError
from . import console
from .nearest import guess


@dataclass(frozen=True)
class _Advice:
    """An option, and how an error asks for what it does.

    Attributes:
        option: its name; empty where only another command helps.
        value: what stands behind it.
        needs: what `error.needs` is where a key was lacking; empty: the message says it.
        words: how a message says it.
        elsewhere: words of a command that has the option; empty: a command that lacks it says nothing.
    """

    option: str
    value: str
    needs: str = ""
    words: str = ""
    elsewhere: tuple[str, ...] = ()

    def answers(self, error: TinyLoraError) -> bool:
        """Tell whether the error asks for this."""
        if self.needs:
            return isinstance(error, VectorError) and error.needs == self.needs
        return re.search(self.words, str(error)) is not None


_ADVICE = (
    _Advice("--mac", "KEY", needs="mac", elsewhere=("vector", "verify", "FILE", "BUNDLE")),
    _Advice("--key", "FILE", needs="signature", elsewhere=("vector", "verify", "FILE", "BUNDLE")),
    _Advice("--budget", "AMOUNT", words=r"budget of .* is too small"),
    _Advice("--prompts", "N", words=r"\bsettings\.prompts\b"),
    _Advice("--max-tokens", "N", words=r"\bmax_tokens\b"),
    _Advice(
        "--format", "both", words=r"\bexport_(onnx|gguf)\b", elsewhere=("export", "MODEL", "-o", "BUNDLE")
    ),
    _Advice("--add-base", "FILE", words=r"\badd_base\(", elsewhere=("export", "BUNDLE")),
    _Advice("", "", words=r"\btoken_hex\(", elsewhere=("keygen", "FILE", "--mac")),
    _Advice(
        "--candidates",
        "FILE.jsonl",
        words=r"\bcandidates=load_candidates\(",
        elsewhere=("eval", "BUNDLE", "--task", "TASK", "--against", "prompt"),
    ),
    _Advice("--reward", "SPEC", words=r"\breward=\.\.\."),
    _Advice(
        "--sequence",
        "N",
        words=r"\bsequence=\d",
        elsewhere=("vector", "pack", "FILE", "BUNDLE", "-o", "OUTPUT"),
    ),
)


def advise(error: TinyLoraError | OSError, context: Any, typed: Mapping[str, Any] | None = None) -> None:
    """Add to an error what helps: options that do what it asks for, and the name that was probably meant.

    The options are those of the command that ran into the error. Where it lacks one, a command is named that
    has it. Nothing is added twice. `console.describe` says what was added.

    Args:
        error: what was raised. It is changed.
        context: the click context of the command, which is at hand only while the command runs.
        typed: what was typed, by the parameters' names. None: the command's own parameters.
    """
    if hasattr(error, console.ADVICE):
        return
    has = {option for parameter in context.command.params for option in parameter.opts}
    wanted = [each for each in _ADVICE if isinstance(error, TinyLoraError) and each.answers(error)]
    said = [f"{each.option} {each.value}" for each in wanted if each.option in has]
    said += [
        console.command(*each.elsewhere, *filter(None, (each.option, each.value)))
        for each in wanted
        if each.option not in has and each.elsewhere
    ]
    advice = [f"on the command line: {', '.join(said)}"] if said else []
    if meant := guess(error, context.params if typed is None else typed):
        advice.append(f"did you mean {meant}?")
    if advice:
        setattr(error, console.ADVICE, "; ".join(advice))
