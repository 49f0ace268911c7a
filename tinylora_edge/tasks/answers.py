r"""Rewards that compare with the sample's own answer, and which of them the answers of a file ask for.

label     few different short answers: the answer and nothing else, upper and lower case as given
json      objects, lists, calls of tools: the same values; GRPO learns from the share of them (`json_fields`)
number    numbers: the number at which the answer arrives
text      everything else: no completion has a reward, see `text`
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from decimal import Decimal

from .guards import copies
from .json_answers import Path, leaves, read_answer, stands_in
from .numbers import final_number
from .sample import CALL_BEGIN, Sample
from .task import Completion, Reward, name_of

_SHORT = 64  # characters of a label
_FEW_NUMBERS = 10  # different whole ones at most are labels, such as 0 and 1, or one to five stars
_PLAIN = re.compile(  # no leading zero, which telephone numbers and postal codes have
    r"[-+\u2212]?[$€£¥₹]?[-\u2212]?(?:0|[1-9][0-9]{0,2}(?:,[0-9]{3})+|[1-9][0-9]*)?(?:\.[0-9]+)?\s?%?"
)


def label(completion: Completion, sample: Sample) -> float:
    """1 if the answer ended by itself and is the sample's answer and nothing else.

    White space around both does not matter; upper and lower case do, as they do to the program that reads it.

    Guards: none is needed against an answer that is given whole. The most frequent answer, said to every
    prompt, earns its share of the samples.
    """
    return float(completion.ended and completion.text.strip() == _reference(label, sample).strip())


def json_value(completion: Completion, sample: Sample) -> float:
    """1 if the answer ended by itself and is JSON of the same value as the sample's answer.

    Order of keys and white space do not matter, 1 is 1.0, and one ``` fence may stand around it.

    Guards: text around the JSON and a key that is there twice get 0.
    """
    return float(_fields(completion) == leaves(read_answer(_reference(json_value, sample))))


def json_fields(completion: Completion, sample: Sample) -> float:
    """The share of fields that are right: 1 where `json` gives 1, 0 for what is no JSON.

    The fields are all leaves of both values, nested ones by their path, so that one too many costs as much
    as one that is missing.

    Guards: those of `json`; and a wrong object that stands in the prompt as it is gets 0.
    """
    found, right = _fields(completion), leaves(read_answer(_reference(json_value, sample)))
    if found is None or (found != right and stands_in(completion.text, sample.text)):
        return 0.0
    return len(found.items() & right.items()) / len(found.keys() | right.keys())


def number(completion: Completion, sample: Sample) -> float:
    r"""1 if the answer arrives at the number at which the reference answer arrives.

    One grammar reads both (`numbers.final_number`): a number behind `####` or in `\boxed{}`, else the answer
    as a whole, or its end behind `=`, a colon or "is". Commas, currency and percent signs, a trailing period
    and trailing zeros do not matter: $1,000.00 is 1000.

    Guards: an answer whose marks disagree, or hold more than a number, gets 0; so does a number that the
    token limit may have cut, and an answer that is a piece of the prompt, 4 words or more.
    """
    expected = None if sample.answer is None else final_number(sample.answer)
    if expected is None:
        raise ValueError(f"number needs a sample whose answer has a number, not {sample.answer!r}")
    if copies(completion.text, sample):
        return 0.0
    return float(final_number(completion.text, complete=completion.ended) == expected)


def text(completion: Completion, sample: Sample) -> float:
    """No completion has this reward: a ValueError.

    Free text has many right answers, and none is compared. What is measured is minus the nats a token of
    the reference answer (`Batch.score`; higher is better), and what learns from it is SFT.
    """
    raise ValueError(
        "text has no reward for a completion: it is measured by the nats a token of the reference answers, "
        "and learned by SFT. Name a reward that judges completions, such as label or max_words(12)"
    )


json_value.__name__ = "json"  # by which it is named


def shaped(reward: Reward) -> Reward | None:
    """Return what GRPO and tuning learn from where a reward has credit for coming near (`Task.shaped`)."""
    return json_fields if reward is json_value else None


def is_text(reward: Reward) -> bool:
    """Whether a task is measured by the nats of its answers and not by judging completions."""
    return reward is text


def unfit(reward: Reward, answer: str | None) -> str | None:
    """Say what is wrong with a sample's answer for one of these rewards, or None."""
    if reward not in (label, json_value, number, text):
        return None
    if answer is None:
        return f'there is no "answer", with which the reward {name_of(reward)} compares'
    if reward is json_value and not _is_json(answer):
        return f"the answer is {answer[:40]!r}, expected a JSON object or list: the reward is json"
    if reward is number and final_number(answer) is None:
        return f"the answer is {answer[:40]!r}, expected one number: the reward is number"
    return None


def read_off(answers: Sequence[str]) -> tuple[Reward, str]:
    """Return the reward that answers ask for, and why, as the rest of a sentence."""
    times = Counter(answer.strip() for answer in answers)
    structured = sum(count for answer, count in times.items() if _is_json(answer))
    if structured == len(answers):
        return json_value, f"as all {len(answers):,} answers are JSON"
    short = all(len(answer) <= _SHORT and "\n" not in answer for answer in times)
    few = short and 2 * len(times) <= len(answers)
    if all(map(_is_number, times)) and not (few and len(times) <= _FEW_NUMBERS):
        return number, f"as all {len(answers):,} answers are numbers"
    mixed = ""
    if 2 * structured > len(answers):
        other = next(answer for answer in times if not _is_json(answer))
        mixed = f"; {structured:,} are JSON, but {other[:40]!r} is not"
    if few:
        (most, count) = times.most_common(1)[0]
        share = f"{most!r} is {100 * count / len(answers):.0f} % of all"
        return label, f"read off {len(times):,} different answers, of which {share}{mixed}"
    why = f"as {len(times):,} of {len(answers):,} answers are different"
    if not short:
        why += f", and some longer than {_SHORT} characters or a line"
    return text, f"{why}{mixed}: measured by the nats a token of the reference answers"


def _reference(reward: Reward, sample: Sample) -> str:
    if sample.answer is None:
        raise ValueError(f"{name_of(reward)} needs a sample with an answer")
    return sample.answer


def _fields(completion: Completion) -> dict[Path, str | float | Decimal] | None:
    try:
        return leaves(read_answer(completion.text)) if completion.ended else None
    except ValueError:
        return None


def _is_json(answer: str) -> bool:
    if not answer.lstrip().startswith(("{", "[", "```", CALL_BEGIN)):
        return False
    try:
        return isinstance(read_answer(answer), dict | list)
    except ValueError:
        return False


def _is_number(answer: str) -> bool:
    marked = "####" in answer or "\\boxed{" in answer
    return bool(marked or _PLAIN.fullmatch(answer)) and final_number(answer) is not None
