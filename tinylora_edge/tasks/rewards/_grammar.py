"""The text form of rewards: a recursive-descent parser that knows no reward, only how they combine.

    sum      = ["-"] product {("+" | "-") product}
    product  = factor {"*" factor}
    factor   = number | "(" sum ")" | name ["(" [argument] ")"] | module ":" function
    argument = number | word | string | JSON object | JSON array

A string is in single or double quotes. Backslashes in it stay as they are, but for a backslash before the
quote character, so that a regular expression is written once and not escaped twice.
"""

from __future__ import annotations

import importlib
import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from ...errors import TrainError
from ...limits import DIGITS
from ..task import Reward

_SPACE = re.compile(r"\s*")
_NUMBER = re.compile(r"(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?(?![\w.])")
_WHOLE = re.compile(r"-?[0-9]+(?![\w.])")
_IMPORT = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*")
_NAME = re.compile(r"[A-Za-z_][\w-]*")
_STRING = re.compile(r"""(?P<quote>["'])(?P<body>(?:\\.|(?!(?P=quote))[^\\])*)(?P=quote)""", re.DOTALL)
_DEEPEST = 50

_Sum = Callable[[Sequence[tuple[float, Reward]]], Reward]
_Product = Callable[[Sequence[Reward]], Reward]


def parse(
    text: str,
    rewards: Mapping[str, Reward],
    factories: Mapping[str, Callable[[Any], Reward]],
    weighted_sum: _Sum,
    product: _Product,
    *,
    allow_import: bool,
) -> Reward:
    """Return the reward that a text describes; `rewards.parse_reward` says what it raises."""
    return _Parser(text, rewards, factories, weighted_sum, product, allow_import).parse()


class _Parser:
    """The parser of one expression: a method a rule of the grammar."""

    def __init__(
        self,
        text: str,
        rewards: Mapping[str, Reward],
        factories: Mapping[str, Callable[[Any], Reward]],
        weighted_sum: _Sum,
        product: _Product,
        allow_import: bool,
    ) -> None:
        self._text = text
        self._at = 0
        self._depth = 0
        self._rewards = rewards
        self._factories = factories
        self._weighted_sum = weighted_sum
        self._product = product
        self._allow_import = allow_import

    def parse(self) -> Reward:
        weight, reward = self._sum()
        if self._peek():
            self._fail("expected +, -, * or the end")
        if reward is None:
            self._fail(f"expected a reward, but this is only the number {weight:g}", at=0)
        return reward if weight == 1.0 else self._weighted_sum([(weight, reward)])

    # Each level returns a weight and a reward, None for a plain number: 0.5*a stays one term of a sum.

    def _sum(self) -> tuple[float, Reward | None]:
        sign = -1.0 if self._take("-") else 1.0
        terms = []
        while True:
            start = self._at
            weight, reward = self._term()
            terms.append((sign * weight, reward, start))
            if self._take("+"):
                sign = 1.0
            elif self._take("-"):
                sign = -1.0
            else:
                break
        if len(terms) == 1:
            return terms[0][:2]
        for _, reward, start in terms:
            if reward is None:
                self._fail("expected a reward in each term of a sum, found a plain number", at=start)
        return 1.0, self._weighted_sum([(weight, reward) for weight, reward, _ in terms if reward])

    def _term(self) -> tuple[float, Reward | None]:
        weight = 1.0
        factors = []
        while True:
            number, reward = self._factor()
            weight *= number
            if reward is not None:
                factors.append(reward)
            if not self._take("*"):
                break
        if not factors:
            return weight, None
        return weight, factors[0] if len(factors) == 1 else self._product(factors)

    def _factor(self) -> tuple[float, Reward | None]:
        if number := self._match(_NUMBER):
            value = float(number[0])
            if value in (float("inf"), 0.0):
                self._fail(f"expected a finite weight other than 0, not {number[0]}", at=number.start())
            return value, None
        if self._take("("):
            self._depth += 1
            if self._depth > _DEEPEST:
                self._fail(f"expected at most {_DEEPEST} parentheses inside each other")
            inner = self._sum()
            self._expect(")")
            self._depth -= 1
            return inner
        if found := self._match(_IMPORT):
            return 1.0, self._imported(found)
        if found := self._match(_NAME):
            return 1.0, self._built_in(found)
        raise self._error("expected a reward, a number or (")

    def _built_in(self, found: re.Match[str]) -> Reward:
        name = found[0]
        if name not in self._rewards and name not in self._factories:
            known = ", ".join(sorted([*self._rewards, *(f"{factory}(...)" for factory in self._factories)]))
            self._fail(
                f"there is no reward {name!r}: choose from {known}, or a callable as module:function",
                at=found.start(),
            )
        arguments = []
        opened = self._take("(")
        if opened and not self._take(")"):
            arguments.append(self._argument())
            self._expect(")")
        if name in self._rewards:
            if arguments:
                self._fail(f"{name} takes no argument", at=found.start())
            return self._rewards[name]
        if not arguments:
            self._fail(f"{name} takes one argument: {name}(...)", at=found.start())
        try:
            return self._factories[name](arguments[0])
        except TrainError as error:
            self._fail(str(error), at=found.start())

    def _argument(self) -> Any:
        if whole := self._match(_WHOLE):
            if len(whole[0].lstrip("-")) > DIGITS:
                self._fail(f"expected a whole number of at most {DIGITS} digits", at=whole.start())
            return int(whole[0])
        if string := self._match(_STRING):
            return string["body"].replace("\\" + string["quote"], string["quote"])
        if self._peek() in ("{", "["):
            try:
                value, self._at = json.JSONDecoder().raw_decode(self._text, self._at)
            except (ValueError, RecursionError) as error:
                self._fail(f"expected JSON: {error}")
            return value
        if word := self._match(_NAME):
            return {"true": True, "false": False}.get(word[0], word[0])
        raise self._error("expected an argument: a whole number, a word, a quoted string or JSON")

    def _imported(self, found: re.Match[str]) -> Reward:
        if not self._allow_import:
            self._fail(f"{found[0]} is code, and a file of samples may not name any", at=found.start())
        module_name, _, function = found[0].partition(":")
        try:
            value: Any = _import(module_name)
        except Exception as error:
            self._fail(
                f"the module {module_name!r} cannot be imported: {type(error).__name__}: {error}",
                at=found.start(),
                cause=error,
            )
        for part in function.split("."):
            if not hasattr(value, part):
                self._fail(f"the module {module_name!r} has no {function!r}", at=found.start())
            value = getattr(value, part)
        if not callable(value):
            self._fail(
                f"{found[0]} is a {type(value).__name__}, expected a callable that takes a Completion and "
                "a Sample",
                at=found.start(),
            )
        return value  # type: ignore[no-any-return]  # what it returns is checked at every call, by Task.score

    def _match(self, pattern: re.Pattern[str]) -> re.Match[str] | None:
        self._skip()
        match = pattern.match(self._text, self._at)
        if match:
            self._at = match.end()
        return match

    def _take(self, character: str) -> bool:
        if self._peek() != character:
            return False
        self._at += 1
        return True

    def _expect(self, character: str) -> None:
        if not self._take(character):
            self._fail(f"expected {character}")

    def _peek(self) -> str:
        self._skip()
        return self._text[self._at : self._at + 1]

    def _skip(self) -> None:
        space = _SPACE.match(self._text, self._at)
        self._at = space.end() if space else self._at

    def _fail(self, message: str, *, at: int | None = None, cause: Exception | None = None) -> NoReturn:
        raise self._error(message, at=at) from cause

    def _error(self, message: str, *, at: int | None = None) -> TrainError:
        at = self._at if at is None else at
        rest = self._text[at : at + 20]
        where = f"at {rest!r}" if rest else "at the end"
        return TrainError(f"reward {self._text!r}, character {at + 1} ({where}): {message}")


def _import(name: str) -> Any:
    """Import a module; one in the current folder is found too, as a script's own modules are."""
    here = str(Path.cwd())
    added = here not in sys.path
    if added:
        sys.path.append(here)
    try:
        return importlib.import_module(name)
    finally:
        if added and here in sys.path:
            sys.path.remove(here)
