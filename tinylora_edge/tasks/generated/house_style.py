"""The task `house-style`: a note as a style sheet demands, its facts kept. Base: .17 (n = 64)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..guards import FUNCTION_WORDS, repeats, words
from ..task import Completion, Draw, Sample
from .words import GeneratedTask, Words, ask

CLOSING = "Thank you."
"""The line that every text in house style ends with."""

_MONTHS = (
    *("January", "February", "March", "April", "May", "June"),
    *("July", "August", "September", "October", "November", "December"),
)
_AMOUNTS, _YEARS, _DAYS = (3, 90), (2024, 2029), (1, 28)
_MORE_FUNCTION_WORDS = 3  # that an answer may have beside the note's: it may join two sentences by "and it"


@dataclass(frozen=True)
class _Kind:
    """A kind of note: what it says, by unit, and how its amounts and dates may be written at first."""

    notes: Mapping[tuple[str, str], tuple[str, ...]]
    amounts: tuple[str, ...]
    dates: tuple[str, ...]
    requests: tuple[str, ...]


_REQUEST = (
    '{note}\n\nRepeat this with short units (kg, km, cm), the date as year-month-day, and "{closing}" at the '
    "end."
)
_USUAL = _Kind(
    {
        ("kg", "kilograms"): ("The {item} weighs {amount}. It came on {date}.",),
        ("km", "kilometers"): ("{name} walked {amount} on {date}.",),
        ("cm", "centimeters"): ("The {item} measures {amount}. {name} bought it on {date}.",),
    },
    ("{n} {u}", "{n} {u}", "{n} {u}", "{n}{u}", "{n} {w}"),
    (*("{y}-{m:02}-{d:02}",) * 3, "{y}/{m:02}/{d:02}", "{M} {d}, {y}"),
    (_REQUEST,),
)
_LAST = '"{closing}" at its end.'
_SHIFTED = _Kind(
    {
        ("g", "grams"): (
            "The {item} that {name} ordered weighs only {amount}, and it was sent on {date}.",
            "{name} put {amount} of spice into the sauce, and that was on {date}.",
        ),
        ("m", "meters"): (
            "The {item} stood {amount} from the entrance until {date}, when {name} took it away.",
            "From the corner it is {amount} to the {item}, as {name} measured on {date}.",
        ),
        ("ml", "milliliters"): (
            "The recipe of {name}, written down on {date}, asks for {amount} of cream.",
            "{name} spilled {amount} of ink over the {item}, and that was on {date}.",
        ),
    },
    ("{n} {u}", "{n} {u}", "{n}{u}", "{n} {w}"),
    ("{y}-{m:02}-{d:02}", "{y}-{m:02}-{d:02}", "{y}/{m:02}/{d:02}", "{d} {M} {y}"),
    (
        "{note}\n\nSay this again with brief units (g, m, ml), an ISO date, and " + _LAST,
        "{note}\n\nWrite this once more: short units (g, m, ml), the date as year, month and day, and "
        + _LAST,
        "Copy the next note with abbreviated units, the date as year-month-day, and " + _LAST + "\n\n{note}",
        "Note: {note}\n\nEdit the note to have metric abbreviations, a date of the form YYYY-MM-DD, and "
        + _LAST,
    ),
)


def in_house_style(completion: Completion, sample: Sample) -> float:
    """1 for the note with its facts, in which the rules of the style sheet hold; 0 for anything else.

    The rules: the amount is a number, a space and the unit's abbreviation; the date is year-month-day, with
    hyphens and two digits for month and day; and the text ends with the closing line, once.

    Guards: the answer ended by itself. It has the note's content words, amount and date, each once and in
    their order, no word of its own but a few function words, and no other number.
    """
    text = completion.text.strip()
    body = text.removesuffix(CLOSING)
    if not completion.ended or body == text or repeats(text) or not _keeps_facts(body, sample):
        return 0.0
    return float(all(_pattern(right).search(body) for right, _ in sample.data["facts"]))


def _keeps_facts(body: str, sample: Sample) -> bool:
    if not all(any(_pattern(form).search(body) for form in fact) for fact in sample.data["facts"]):
        return False  # the words that stand for facts below are none
    answer, note = (_skeleton(text, sample) for text in (body, sample.data["note"]))
    contents = [[word for word in text if word not in FUNCTION_WORDS] for text in (answer, note)]
    return contents[0] == contents[1] and len(answer) <= len(note) + _MORE_FUNCTION_WORDS


def _skeleton(text: str, sample: Sample) -> list[str]:
    """Return the words of a text, with one word for each of the note's facts, in either form."""
    for number, fact in enumerate(sample.data["facts"]):
        for form in dict.fromkeys(fact):
            text = _pattern(form).sub(f" fact{number} ", text)
    return words(text)


def _pattern(form: str) -> re.Pattern[str]:
    return re.compile(rf"(?<![\w.,/-]){re.escape(form)}(?![\w/-]|[.,]\d)")


def _sample(side: Words, draw: Draw, kind: _Kind) -> Sample:
    unit = draw.one(tuple(kind.notes))
    amount: dict[str, Any] = {"n": draw.between(*_AMOUNTS), "u": unit[0], "w": unit[1]}
    month = draw.between(1, len(_MONTHS))
    date: dict[str, Any] = {
        "y": draw.between(*_YEARS),
        "m": month,
        "M": _MONTHS[month - 1],
        "d": draw.between(*_DAYS),
    }
    facts = (
        ("{n} {u}".format(**amount), draw.one(kind.amounts).format(**amount)),
        ("{y}-{m:02}-{d:02}".format(**date), draw.one(kind.dates).format(**date)),
    )
    template, words_of_note = draw.one(kind.notes[unit]), (draw.one(side.things), draw.one(side.names))
    forms = (
        template.format(amount=amount_, date=date_, item=words_of_note[0], name=words_of_note[1])
        for amount_, date_ in zip(*facts, strict=True)
    )
    rewritten, note = forms
    request = draw.one(kind.requests).format(note=note, closing=CLOSING)
    return ask(request, f"{rewritten}\n{CLOSING}", note=note, facts=facts)


HOUSE_STYLE = GeneratedTask(
    "house-style",
    build=lambda side, draw: _sample(side, draw, _USUAL),
    build_shifted=lambda side, draw: _sample(side, draw, _SHIFTED),
    reward=in_house_style,
    max_tokens=48,
    temperature=0.5,
)
