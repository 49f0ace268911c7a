"""The tasks that ask for JSON: `records`, the facts of a sentence, and `tool-calls`, a call of a function."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ..files import Draw
from ..guards import words
from ..json_answers import Values, all_equal, equal, read_object, schema_of
from ..task import Completion, Sample, Task
from .building import ask, generate
from .words import Words, article

_RECORDS = {
    "owner": ("{name} is {age} years old and has {a_pet}.",),
    "sale": ("{name} sold {an_item} for {price} dollars.",),
}
_RECORD_REQUESTS = ("Text: {text}\nFill in the JSON object {schema} with the facts. Write only the JSON.",)
_NUMBERS = (3, 60)
_KINDS = ("owner", "sale", "sale")  # sales are harder, so there are more of them

# Shifted: more is said about the same facts, and the request comes in four other ways.
_SHIFTED_RECORDS = {
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
_SHIFTED_RECORD_REQUESTS = (
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
        return _record_sample(side, draw, _RECORDS, _RECORD_REQUESTS)

    def build_shifted(side: Words, draw: Draw) -> Sample:
        return _record_sample(side, draw, _SHIFTED_RECORDS, _SHIFTED_RECORD_REQUESTS)

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


def _record_sample(
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


# The functions, called tools in prompts, by the arguments that they take, and how people ask for them.
_FUNCTIONS: Mapping[tuple[str, ...], Mapping[str, str]] = {
    ("name",): {
        "call": "Please call {name}.",
        "follow": "Follow {name}.",
        "greet": "Greet {name} for me.",
        "invite": "Invite {name}.",
        "thank": "Thank {name} for me.",
        "visit": "Visit {name} today.",
    },
    ("item",): {
        "buy": "Buy {item}.",
        "clean": "Please clean {item}.",
        "find": "Find {item} for me.",
        "repair": "Repair {item}.",
        "return": "Return {item} today.",
        "sell": "Sell {item}.",
    },
}
_CALLS = {name: text for group in _FUNCTIONS.values() for name, text in group.items()}
_ALIKE, _MIXED = ((("name",),), (("item",),)), (("name",), ("item",))
_OFFERS = (*_ALIKE, *_ALIKE, _MIXED)  # whose functions a prompt offers
_FUNCTIONS_OFFERED = 4
_CALL_REQUEST = "Text: {text}\nFill in the JSON object {choice} with the facts. Write only the JSON."

# Shifted: longer requests, with a reason, and four other ways to show the choice.
_SHIFTED_CALLS: Mapping[str, str] = {
    "call": "It is urgent, so call {name} at once, even if it is late.",
    "follow": "Stay close and follow {name}, who knows the way.",
    "greet": "When the party begins, remember to greet {name}, who is shy.",
    "invite": "There is one seat left at dinner, so let us invite {name} too.",
    "thank": "After all that work it is only fair to thank {name} in person.",
    "visit": "It has been years, so on Sunday I would like to visit {name} again.",
    "buy": "Ours broke last week, so please buy {item} in town, and pay in cash.",
    "clean": "Before the guests come tonight, clean {item} that is full of mud.",
    "find": "I am in a hurry and cannot find {item} that was here a moment ago.",
    "repair": "It fell down and no longer works: who could repair {item} like this?",
    "return": "The shop made a mistake, and so we will return {item} tomorrow.",
    "sell": "We are short of money this month, so try to sell {item} for us.",
}
_SHIFTED_CALL_REQUESTS = (
    "Request: {text}\nComplete the JSON object {choice} to fit the request. Write no other text.",
    "{text}\nWrite this as the JSON object {choice}, and write nothing else.",
    "Message: {text}\nPut what it asks for into the JSON object {choice}. Give only the JSON.",
    "Sentence: {text}\nWhich tool is meant? Enter that one into {choice}, and reply with the JSON object.",
)


def tool_calls(seed: int, train: int, held_out: int) -> Task:
    """A call of one of four functions (tools), as JSON: see `right_call`. Base: .16 (n = 64)."""

    def build(side: Words, draw: Draw) -> Sample:
        return _call_sample(side, draw, _CALLS, (_CALL_REQUEST,))

    def build_shifted(side: Words, draw: Draw) -> Sample:
        return _call_sample(side, draw, _SHIFTED_CALLS, _SHIFTED_CALL_REQUESTS)

    return generate(
        "tool-calls",
        build,
        right_call,
        seed,
        train,
        held_out,
        build_shifted=build_shifted,
        max_tokens=40,
        temperature=0.5,
        shaped=nearly_right_call,
    )


def right_call(completion: Completion, sample: Sample) -> float:
    """1 for the call that is asked for: its function, and its arguments with their types and true values.

    Guards: the answer ended by itself and is one JSON object with no other key and nothing beside it (one ```
    fence may be around it), so that calling several functions, or giving all arguments that exist, gets 0.
    """
    value, whole = read_object(completion)
    return float(whole and _is_call(value, sample))


def nearly_right_call(completion: Completion, sample: Sample) -> float:
    """1 for what `right_call` gives 1, and up to 0.5 for what comes near.

    0.1 for a call of any function on offer whose arguments fit its schema, 0.2 more for the right function,
    and 0.2 more for the right arguments; half of it where the answer goes on behind the JSON object.

    Guards: texts in the arguments must come from the request, so that one call for all prompts gets 0.
    """
    value, whole = read_object(completion)
    if value is None or not _fits(value, sample):
        return 0.0
    if whole and _is_call(value, sample):
        return 1.0
    call = sample.data["call"]
    near = 0.1 + 0.2 * bool(value["tool"] == call["tool"])
    near += 0.2 * all_equal(value["arguments"], call["arguments"])
    return near if whole else near / 2


def _is_call(value: Any, sample: Sample) -> bool:
    call = sample.data["call"]
    return (
        isinstance(value, Mapping)
        and set(value) == set(call)
        and value["tool"] == call["tool"]
        and all_equal(value["arguments"], call["arguments"])
    )


def _fits(value: Mapping[str, Any], sample: Sample) -> bool:
    """Whether a value is a call of a function on offer, each argument a text from the request."""
    if set(value) != {"tool", "arguments"} or not isinstance(value["tool"], str):
        return False
    keys = sample.data["offer"].get(value["tool"])
    arguments = value["arguments"]
    if keys is None or not isinstance(arguments, Mapping) or set(arguments) != set(keys):
        return False
    given = set(words(sample.data["text"]))
    return all(
        isinstance(text, str) and bool(words(text)) and set(words(text)) <= given
        for text in arguments.values()
    )


def _call_sample(side: Words, draw: Draw, texts: Mapping[str, str], requests: tuple[str, ...]) -> Sample:
    kinds = draw.one(_OFFERS)
    offered = [draw.some(tuple(_FUNCTIONS[kind]), _FUNCTIONS_OFFERED // len(kinds)) for kind in kinds]
    chosen = draw.below(len(kinds))
    function = draw.one(offered[chosen])
    values = {"name": draw.one(side.names), "item": draw.one(side.things)}
    text = texts[function].format(name=values["name"], item=article(values["item"]))
    call = {"tool": function, "arguments": {key: values[key] for key in kinds[chosen]}}
    choice = " or ".join(
        _schema(functions, {key: values[key] for key in kind})
        for kind, functions in zip(kinds, offered, strict=True)
    )
    return ask(
        draw.one(requests).format(text=text, choice=choice),
        answer=json.dumps(call),
        call=call,
        offer={name: kind for kind, functions in zip(kinds, offered, strict=True) for name in functions},
        text=text,
    )


def _schema(functions: list[str], arguments: Mapping[str, str]) -> str:
    names = " or ".join(f'"{name}"' for name in functions)
    return f'{{"tool": {names}, "arguments": {schema_of(arguments)}}}'
