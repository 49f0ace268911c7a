"""The task `tool-calls`: a call of one of four functions (tools), as JSON. Base: .16 (n = 64)."""

from __future__ import annotations

import json
from collections.abc import Mapping

from ..answers import json_value
from ..task import Draw, Sample
from .words import GeneratedTask, Words, article, ask

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


def _call_sample(side: Words, draw: Draw, texts: Mapping[str, str], requests: tuple[str, ...]) -> Sample:
    kinds = draw.one(_OFFERS)
    offered = [draw.some(tuple(_FUNCTIONS[kind]), _FUNCTIONS_OFFERED // len(kinds)) for kind in kinds]
    chosen = draw.below(len(kinds))
    function = draw.one(offered[chosen])
    values = {"name": draw.one(side.names), "item": draw.one(side.things)}
    text = texts[function].format(name=values["name"], item=article(values["item"]))
    call = {"tool": function, "arguments": {key: values[key] for key in kinds[chosen]}}
    choice = " or ".join(
        f'{{"tool": {" or ".join(map(json.dumps, functions))}, "arguments": {{"{kind[0]}": string}}}}'
        for kind, functions in zip(kinds, offered, strict=True)
    )
    return ask(
        draw.one(requests).format(text=text, choice=choice),
        answer=json.dumps(call),
        offer={name: kind for kind, functions in zip(kinds, offered, strict=True) for name in functions},
        text=text,
    )


TOOL_CALLS = GeneratedTask(
    "tool-calls",
    build=lambda side, draw: _call_sample(side, draw, _CALLS, (_CALL_REQUEST,)),
    build_shifted=lambda side, draw: _call_sample(side, draw, _SHIFTED_CALLS, _SHIFTED_CALL_REQUESTS),
    reward=json_value,
    max_tokens=40,
    temperature=0.5,
)
