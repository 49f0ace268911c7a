"""Rewards: the built-in ones, each guarded against the cheap answers that it invites.

A reward takes a `Completion` and its `Sample` and returns 0.0 or 1.0 (sums and products: between). What
is trained on a reward finds its holes: the plain "ends within 12 words" was won in part by saying the noun
back. So each docstring has a sentence that starts with "Guard", and the tests try exactly those answers.
Guards judge form, not truth: no reward here knows whether a river is made of water.

`parse_reward` makes a reward from text, as the command line and JSONL tasks spell it:

    exact_number                                    a reward
    max_words(12)                                   one with an argument
    0.5*max_words(12) + 0.5*ends_itself             a weighted sum
    lowercase * (regex("cat") + regex("dog"))       a product: the first gates the second
    json_schema({"type": "object"})                 JSON as an argument, or json_schema("schema.json")
    my_rewards:politeness                           a Python callable of yours, module:function
"""

from .builtin import (
    FACTORIES,
    REWARDS,
    ends_itself,
    exact_number,
    json_schema,
    language,
    lowercase,
    max_words,
    parse_reward,
    picks_answer,
    product,
    regex,
    starts_with,
    weighted_sum,
)

__all__ = [
    "FACTORIES",
    "REWARDS",
    "ends_itself",
    "exact_number",
    "json_schema",
    "language",
    "lowercase",
    "max_words",
    "parse_reward",
    "picks_answer",
    "product",
    "regex",
    "starts_with",
    "weighted_sum",
]
