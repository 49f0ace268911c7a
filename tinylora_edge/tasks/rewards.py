"""Rewards: the built-in ones, each guarded against the cheap answers that it invites.

A reward takes a `Completion` and its `Sample` and returns 0.0 or 1.0 (sums and products: between). What
is trained on a reward finds its holes: the plain "ends within 12 words" was won in part by saying the noun
back. So each docstring names its guards, and the tests try exactly those answers. Guards judge form, not
truth: no reward here knows whether a river is made of water.

`parse_reward` makes a reward from text, as the command line and JSONL tasks spell it:

    label                                           a reward
    max_words(12)                                   one with an argument
    0.5*max_words(12) + 0.5*ends_itself             a weighted sum
    ends_itself * (regex("cat") + regex("dog"))     a product: the first gates the second
    json_schema({"type": "object"})                 JSON as an argument, or json_schema("schema.json")
    my_rewards:politeness                           a Python callable of yours, module:function
"""

from __future__ import annotations

import ast
import importlib
import math
import re
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..documents import parse_json
from ..errors import TrainError
from .answers import is_text as is_text  # a name of this module, too
from .answers import json_value, label, number, text
from .guards import contains, count_words, repeats, says_something, words
from .json_answers import has_content, read_answer, stands_in, validator
from .task import Completion, Reward, Sample, name_of


def max_words(n: int) -> Reward:
    """1 if the answer ended by itself within n words.

    Guards: an answer that says nothing of its own gets 0 (empty, marks only, words of the prompt, function
    words), and so does one that repeats a phrase three times in a row. Gluing words together does not
    help: 20 characters count as a word, and in scripts without spaces every character does.
    """
    if not isinstance(n, int) or isinstance(n, bool) or n < 1:
        raise TrainError(f"max_words takes a number of words, 1 or more, not {n!r}")

    def reward(completion: Completion, sample: Sample) -> float:
        short = completion.ended and count_words(completion.text) <= n
        return float(short and says_something(completion.text, sample))

    return _named(reward, f"max_words({n})")


def ends_itself(completion: Completion, sample: Sample) -> float:
    """1 if the answer ended by itself, within the token limit.

    Guards: those of `max_words`. One word of its own is enough: combine it with one that asks for content.
    """
    return float(completion.ended and says_something(completion.text, sample))


def regex(pattern: str) -> Reward:
    """1 if a Python regular expression is found in the answer; anchor it (^...$) to judge all of it.

    Guards: an empty match counts for nothing; an answer that says nothing of its own gets 0, so that
    a prompt which shows the wanted form cannot simply be said back; so does a phrase three times in a row.
    """
    try:
        compiled = re.compile(pattern)
    # The last three are for counts of too many digits, counts that do not fit, and groups nested too deeply.
    except (re.error, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise TrainError(f"regex: {pattern!r} is not a regular expression: {error}") from None

    def reward(completion: Completion, sample: Sample) -> float:
        found = any(match[0] for match in compiled.finditer(completion.text))
        return float(found and says_something(completion.text, sample))

    return _named(reward, f"regex({pattern!r})")


def json_schema(schema: Mapping[str, Any] | bool | str) -> Reward:
    """1 if the answer is one JSON text, bare or in one ``` fence, that fits a JSON Schema.

    The schema is given itself, or as the path of a file. A `$ref` to another document is never fetched.

    Guards: `{}`, nulls and blank strings fit many schemas and say nothing, so there must be at least one
    value, and no string without a letter or digit; text around the JSON, a key given twice and an object
    or array that stands in the prompt as it is get 0; so does a string that repeats a phrase three times.
    """
    fits = validator(schema)

    def reward(completion: Completion, sample: Sample) -> float:
        try:
            value = read_answer(completion.text)
        except ValueError:
            return 0.0
        return float(not stands_in(value, sample.text) and has_content(value) and fits(value))

    return _named(reward, f"json_schema({schema!r})")


def picks_answer(completion: Completion, sample: Sample) -> float:
    """1 if the answer has the sample's answer as a word (or words), and none of `data["others"]`.

    Guards: listing the choices gets 0, since the others are among them; so does an answer that says the
    word twice without any other word, or a phrase three times in a row.
    """
    others = sample.data.get("others")
    if not sample.answer or not isinstance(others, Sequence) or isinstance(others, str):
        raise ValueError('picks_answer needs a sample with an answer and a list "others"')
    sequence, target = words(completion.text), words(sample.answer)
    if not contains(sequence, target) or any(contains(sequence, words(other)) for other in others):
        return 0.0
    stutters = len(sequence) > len(target) and not set(sequence) - set(target)
    return float(not stutters and not repeats(completion.text))


def weighted_sum(terms: Sequence[tuple[float, Reward]]) -> Reward:
    """The sum of weight times reward. Guards: those of its terms, no more.

    A sum invites collecting the easiest term and forgetting the rest. Where one property is worth nothing
    without another, multiply.
    """

    def reward(completion: Completion, sample: Sample) -> float:
        return sum(weight * term(completion, sample) for weight, term in terms)

    return _named(reward, f"({' + '.join(f'{weight!r}*{name_of(term)}' for weight, term in terms)})")


def product(first: Reward, second: Reward) -> Reward:
    """The product of rewards: each gates the other, which is not called behind a zero. Guards: theirs."""

    def reward(completion: Completion, sample: Sample) -> float:
        gate = first(completion, sample)
        return gate * second(completion, sample) if gate else 0.0

    return _named(reward, f"({name_of(first)} * {name_of(second)})")


REWARDS: dict[str, Reward] = {
    "ends_itself": ends_itself,
    "json": json_value,
    "label": label,
    "number": number,
    "picks_answer": picks_answer,
    "text": text,
}
"""Rewards that take no argument, by the name that `parse_reward` knows."""

FACTORIES: dict[str, Callable[[Any], Reward]] = {
    "json_schema": json_schema,
    "max_words": max_words,
    "regex": regex,
}
"""Rewards that take one argument, by the name that `parse_reward` knows."""

_STRING = r"""("(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*')"""
_IMPORT = r"((?:[A-Za-z_]\w*\.)*[A-Za-z_]\w*:[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*)"
_TOKEN = re.compile(f"{_STRING}|{_IMPORT}", re.DOTALL)
_LONGEST = 10_000  # characters of an expression


def parse_reward(text: str, *, allow_import: bool = True) -> Reward:
    """Make a reward from text: numbers, `+`, `-`, `*`, parentheses, and the names of rewards.

    Python's parser reads it, and no code of it is run. Backslashes in strings are kept as they are:
    regex("\\d+") needs no doubling. `allow_import` is for `module:function`, which JSONL files, being data,
    may not name.

    Raises:
        TrainError: the expression is not valid, names a reward that does not exist, or a module or function
            that cannot be imported.
        MissingExtraError: json_schema is used and the package jsonschema is not installed.
    """
    imports: list[str] = []

    def placeholder(found: re.Match[str]) -> str:
        if found[1]:
            return found[1]
        imports.append(found[2])
        return f"import_{len(imports) - 1}_"

    source = _TOKEN.sub(placeholder, text.strip())
    try:
        if len(source) > _LONGEST:
            raise ValueError(f"it is longer than {_LONGEST} characters")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of backslashes, which are taken as they stand
            tree = ast.parse(source, mode="eval").body
        names = {f"import_{number}_": name for number, name in enumerate(imports)}
        weight, reward = _Reader(source, names, allow_import).value(tree)
        if reward is None:
            raise ValueError(f"expected a reward, but this is only the number {weight:g}")
    except (SyntaxError, ValueError, RecursionError, MemoryError, TrainError) as error:
        why = getattr(error, "msg", None) or str(error) or "nested too deeply"
        raise TrainError(f"reward {text!r}: {why}") from error
    return reward if weight == 1.0 else weighted_sum([(weight, reward)])


class _Reader:
    """Makes a reward of the tree of an expression; `imports` are its names of `module:function`."""

    def __init__(self, source: str, imports: Mapping[str, str], allow_import: bool) -> None:
        self._source, self._imports, self._allow_import = source, imports, allow_import

    def value(self, node: ast.expr) -> tuple[float, Reward | None]:
        """Return weight and reward of a node, None for a plain number: 0.5*a stays one term of a sum."""
        if isinstance(node, ast.Constant) and isinstance(node.value, int | float) and node.value is not True:
            if not (node.value and math.isfinite(node.value)):
                raise ValueError(f"expected a finite weight other than 0, not {node.value}")
            return float(node.value), None
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            weight, reward = self.value(node.operand)
            return -weight, reward
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult | ast.Add | ast.Sub):
            (one, first), (other, second) = self.value(node.left), self.value(node.right)
            if isinstance(node.op, ast.Mult):
                both = product(first, second) if first and second else first or second
                return one * other, both
            if first is None or second is None:
                raise ValueError("expected a reward in each term of a sum, found a plain number")
            sign = -1.0 if isinstance(node.op, ast.Sub) else 1.0
            return 1.0, weighted_sum([(one, first), (sign * other, second)])
        if isinstance(node, ast.Name):
            return 1.0, self._named(node.id, [])
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.keywords:
            return 1.0, self._named(node.func.id, node.args)
        raise ValueError(f"{self._segment(node)!r} is no reward: expected numbers, +, -, * and rewards")

    def _named(self, name: str, arguments: list[ast.expr]) -> Reward:
        if name in self._imports:
            return self._imported(self._imports[name])
        if name == "text" and self._source != "text":
            raise ValueError("text stands alone: it has no reward for a completion that a sum could add")
        if name in REWARDS and not arguments:
            return REWARDS[name]
        if name in FACTORIES and len(arguments) == 1:
            return FACTORIES[name](self._argument(arguments[0]))
        if name in REWARDS or name in FACTORIES:
            form = "no argument" if name in REWARDS else f"one argument: {name}(...)"
            raise ValueError(f"{name} takes {form}")
        known = ", ".join(sorted([*REWARDS, *(f"{factory}(...)" for factory in FACTORIES)]))
        raise ValueError(
            f"there is no reward {name!r}: choose from {known}, or a callable as module:function"
        )

    def _argument(self, node: ast.expr) -> Any:
        """Return a number, JSON, or a string with its backslashes as they stand."""
        segment = self._segment(node)
        if re.fullmatch(_STRING, segment, re.DOTALL):
            return segment[1:-1].replace("\\" + segment[0], segment[0])
        try:
            return parse_json(segment)
        except ValueError as error:
            raise ValueError(
                f"the argument {segment!r} is no whole number, string in quotes or JSON: {error}"
            ) from None

    def _segment(self, node: ast.expr) -> str:
        return ast.get_source_segment(self._source, node) or ""

    def _imported(self, name: str) -> Reward:
        if not self._allow_import:
            raise ValueError(f"{name} is code, and a file of samples may not name any")
        module_name, _, function = name.partition(":")
        try:
            value: Any = _import(module_name)
        except Exception as error:
            raise ValueError(
                f"the module {module_name!r} cannot be imported: {type(error).__name__}: {error}"
            ) from error
        for part in function.split("."):
            if not hasattr(value, part):
                raise ValueError(f"the module {module_name!r} has no {function!r}")
            value = getattr(value, part)
        if not callable(value):
            raise ValueError(
                f"{name} is a {type(value).__name__}, expected a callable of a Completion and a Sample"
            )
        return value  # type: ignore[no-any-return]  # Task.score checks what it returns


def _import(name: str) -> Any:
    """Import a module; one in the current folder is found too, as a script's own modules are."""
    here = str(Path.cwd())
    sys.path.append(here)
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(here)


def _named(reward: Reward, name: str) -> Reward:
    reward.__name__ = name  # by which trainers list rewards, and know a run again
    return reward
