"""The task `records`: the facts of a sentence, filled into a JSON object of one of two schemas."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from .._split import Draw
from ..task import Completion, Sample, Task
from ._building import ask, generate
from ._json_answers import Values, all_equal, equal, read_object, schema_of
from .words import Words, article

_TEXTS = {
    "owner": ("{name} is {age} years old and has {a_pet}.",),
    "sale": ("{name} sold {an_item} for {price} dollars.",),
}
_REQUESTS = ("Text: {text}\nFill in the JSON object {schema} with the facts. Write only the JSON.",)
_NUMBERS = (3, 60)
_KINDS = ("owner", "sale", "sale")  # sales are harder, so there are more of them

# Shifted: more is said about the same facts, and the request comes in four other ways.
_SHIFTED_TEXTS = {
    "owner": (
        "At the age of {age}, and against the advice of the family, {name} decided to keep {a_pet}.",
        "Nobody in our road believes it, but {name}, who turned {age} this spring, lives with {a_pet}.",
        "The guest who brought {a_pet} along is called {name}. The passport gives {age} years as the age.",
    ),
    "sale": (
        "It took {name} all weekend to find somebody who would pay {price} dollars for {an_item}.",
        "There was {an_item} in the attic, so {name} put up an offer, and at {price} dollars it was gone.",
        "Our accounts for Sunday have one entry: {an_item}, handed over by {name}, {price} dollars in cash.",
    ),
}
_SHIFTED_REQUESTS = (
    "{text}\n\nExtract the facts from this as JSON of the form {schema}, and reply with that alone.",
    "Here is a note for our database: {text} Its columns are {schema}. Give me the row as one JSON object.",
    "Schema: {schema}\nNote: {text}\nJSON, without any explanation:",
    'Read "{text}" and return what it says as {schema}, in JSON, with no other words around it.',
)


def records(seed: int, train: int, held_out: int) -> Task:
    """Facts in a JSON object of a given schema, about an owner of a pet or about a sale: see `true_record`.

    Base: .44 (n = 64).
    """

    def build(side: Words, draw: Draw) -> Sample:
        return _sample(side, draw, _TEXTS, _REQUESTS)

    def build_shifted(side: Words, draw: Draw) -> Sample:
        return _sample(side, draw, _SHIFTED_TEXTS, _SHIFTED_REQUESTS)

    return generate(
        "records",
        build,
        true_record,
        seed,
        train,
        held_out,
        build_shifted=build_shifted,
        max_tokens=40,
        temperature=0.5,
        shaped=nearly_true_record,
    )


def true_record(completion: Completion, sample: Sample) -> float:
    """1 for the JSON object of the schema with the facts: every key, its type, and its value as in the text.

    Guards: the answer ended by itself and is that object alone (one ``` fence may be around it). Texts are
    compared letter by letter, but for upper and lower case; numbers as numbers: "12" is none.
    """
    value, whole = read_object(completion)
    return float(whole and value is not None and all_equal(_folded(value), _folded(sample.data["record"])))


def nearly_true_record(completion: Completion, sample: Sample) -> float:
    """1 for what `true_record` gives 1, and up to 0.5 for what comes near.

    The share of the facts that are right, times 0.5; half of it where the answer goes on behind the object.

    Guards: an object with other keys gets 0, and so does the schema said back.
    """
    value, whole = read_object(completion)
    record: Values = _folded(sample.data["record"])
    if value is None or set(value) != set(record):
        return 0.0
    value = _folded(value)
    if whole and all_equal(value, record):
        return 1.0
    near = 0.5 * sum(equal(value[key], one) for key, one in record.items()) / len(record)
    return near if whole else near / 2


def _folded(record: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value.casefold() if isinstance(value, str) else value for key, value in record.items()}


def _sample(
    side: Words, draw: Draw, texts: Mapping[str, tuple[str, ...]], requests: tuple[str, ...]
) -> Sample:
    kind = draw.one(_KINDS)
    name, number = draw.one(side.names), draw.between(*_NUMBERS)
    record: Values
    if kind == "owner":
        pet = draw.one(side.animals)
        record = {"name": name, "age": number, "pet": pet}
        text = draw.one(texts[kind]).format(name=name, age=number, a_pet=article(pet))
    else:
        item = draw.one(side.things)
        record = {"seller": name, "item": item, "price": number}
        text = draw.one(texts[kind]).format(name=name, price=number, an_item=article(item))
    return ask(
        draw.one(requests).format(text=text, schema=schema_of(record)),
        answer=json.dumps(record),
        record=record,
    )
