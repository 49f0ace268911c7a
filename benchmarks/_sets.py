"""Public data sets that vectors are trained and measured on: SNIPS as calls, CLINC150, IFEval.

A set is read from a checkout of its repository.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from tinylora_edge.tasks import Sample

FUNCTIONS = (
    *("AddToPlaylist", "BookRestaurant", "GetWeather", "PlayMusic", "RateBook"),
    *("SearchCreativeWork", "SearchScreeningEvent"),
)
FULL = 2000
"""About how many utterances an intent has in SNIPS's large training files."""
OUT_OF_SCOPE = "oos"


@dataclass(frozen=True)
class PublicSet:
    """Samples to train on, samples to measure on, and the set's own figures of answers."""

    name: str
    train: Sequence[Sample]
    test: Sequence[Sample]
    batch: int = 16
    steps: int = 100
    max_tokens: int | None = None  # of an answer; None: those of the longest given one
    folder: Path | None = None
    schema: dict[str, Any] | None = None  # to which answers can be constrained
    functions: Mapping[str, Iterable[str]] = field(default_factory=dict)  # name -> arguments

    def thinned(self, n: int | None) -> PublicSet:
        """Return the set with every k-th test sample, of about n; None: all of them."""
        return self if n is None else replace(self, test=self.test[:: max(len(self.test) // n, 1)])

    def figures(self, answers: Sequence[str]) -> dict[str, Any]:
        """Return the set's own figures of answers to the test samples."""
        gold = [str(sample.answer) for sample in self.test]
        if self.name == "ifeval":
            return followed(answers, self)
        return slot_figures(answers, gold) if self.name == "snips" else intent_figures(answers, gold)


def snips(folder: Path, each: int, seed: int) -> PublicSet:
    """Return SNIPS's custom intents (Coucke et al., 2018, arXiv 1805.10190; CC0) as calls in JSON.

    Args:
        folder: `2017-06-custom-intent-engines` of github.com/sonos/nlu-benchmark.
        each: utterances an intent, drawn from the 300 of the small training files as there; from `FULL` on
            all of the large ones.
        seed: of the draw.
    """
    test = [row for name in FUNCTIONS for row in _calls(folder, name, "validate_{}")]
    unseen = {utterance for utterance, _ in test}
    train = []
    for number, name in enumerate(FUNCTIONS):
        rows = _calls(folder, name, "train_{}_full" if each >= FULL else "train_{}")
        rows = [row for row in dict(rows).items() if row[0] not in unseen]
        if each < FULL:
            rows = [rows[i] for i in np.random.default_rng((seed, number)).permutation(len(rows))[:each]]
        train += rows

    def samples(rows: Sequence[tuple[str, dict[str, Any]]]) -> list[Sample]:
        return [Sample(utterance, json.dumps(call, ensure_ascii=False)) for utterance, call in rows]

    arguments = defaultdict[str, dict[str, None]](dict)
    for _, call in train:
        arguments[call["name"]].update(dict.fromkeys(call["arguments"]))
    schema = {"anyOf": [_call_schema(name, keys) for name, keys in arguments.items()]}
    return PublicSet(
        "snips", samples(train), samples(test), batch=8, steps=80, schema=schema, functions=arguments
    )


def _call_schema(name: str, keys: Iterable[str]) -> dict[str, Any]:
    """Return the schema of a function's calls, its arguments in the order in which they were first seen."""
    arguments = {"properties": {key: {"type": "string"} for key in keys}}
    return {
        "type": "object",
        "properties": {
            "name": {"const": name},
            "arguments": {"type": "object", "additionalProperties": False, **arguments},
        },
        "required": ["name", "arguments"],
        "additionalProperties": False,
    }


def _calls(folder: Path, name: str, file: str) -> list[tuple[str, dict[str, Any]]]:
    """Return an intent's utterances and calls; where a slot occurs twice, the first counts."""
    data = (folder / name / f"{file.format(name)}.json").read_bytes()
    rows = json.loads(data.decode("utf-8", "replace"))[name]  # a file has bytes of surrogates
    found = []
    for row in rows:
        arguments: dict[str, str] = {}
        for part in row["data"]:
            if "entity" in part:
                arguments.setdefault(part["entity"], part["text"].strip())
        utterance = "".join(part["text"] for part in row["data"]).strip()
        found.append((utterance, {"name": name, "arguments": arguments}))
    return found


def call_of(text: str) -> tuple[str, dict[str, str]] | None:
    """Return the name and the arguments of a text that is a call; None where it is none."""
    try:
        call = json.loads(text)
        return str(call["name"]), {str(key): str(value) for key, value in call["arguments"].items()}
    except (ValueError, TypeError, KeyError, AttributeError):
        return None


def slot_figures(answers: Sequence[str], gold: Sequence[str]) -> dict[str, Any]:
    """Return shares of right calls and right names, and the F1 of slots, macro over those of the gold calls.

    A slot is an argument of an intent, and right where intent, argument and value are.
    """
    right, predicted, there = Counter[Any](), Counter[Any](), Counter[Any]()
    calls = names = left_out = elsewhere = 0
    for answer, wanted in zip(answers, gold, strict=True):
        name, arguments = call_of(wanted) or ("", {})
        there.update((name, key) for key in arguments)
        called, values = call_of(answer) or ("", {})
        calls += (called, values) == (name, arguments)
        predicted.update((called, key) for key in values)
        if called != name:
            elsewhere += len(arguments)
            continue
        names += 1
        left_out += len(arguments.keys() - values.keys())
        right.update((name, k) for k, v in values.items() if arguments.get(k) == v)
    by_slot = {slot: 2 * right[slot] / (predicted[slot] + there[slot]) for slot in there}
    by_intent = defaultdict(list)
    for (name, _), f1 in by_slot.items():
        by_intent[name].append(f1)
    return {
        "score": calls / len(gold),
        "names": names / len(gold),
        "slot_f1": statistics.mean(by_slot.values()),
        "slot_f1_micro": 2 * right.total() / (predicted.total() + there.total()),
        "slots": len(by_slot),
        "arguments": {
            "given": there.total(),
            "right": right.total(),
            "of another function, or of no call": elsewhere,
            "left out": left_out,
            "other value": there.total() - right.total() - elsewhere - left_out,
        },
        "by_intent": {name: statistics.mean(f1) for name, f1 in by_intent.items()},
    }


def others(folder: Path, who: str, size: str) -> dict[str, float]:
    """Return the F1 of a service on each slot, the mean of its runs, as the set's repository records it."""
    found = {}
    for name in FUNCTIONS:
        rows = json.loads((folder / name / f"{who}.json").read_text("utf-8"))["intents"][name]["slots"]
        for slot, row in rows.items():
            key = size if size in row["recall"] else next(iter(row["recall"]))
            pairs = zip(row["precision"][key], row["recall"][key], strict=True)
            found[f"{name}.{slot}"] = statistics.mean(
                2 * p * r / (p + r) if p * r > 0 else 0 for p, r in pairs
            )
    return found


def clinc(folder: Path) -> PublicSet:
    """Return CLINC150 (Larson et al., 2019; CC BY 3.0): 150 intents, and `oos` for what is out of scope.

    `folder` is `data` of github.com/clinc/oos-eval, of which `data_full.json` is read.
    """
    rows = json.loads((folder / "data_full.json").read_text("utf-8"))

    def samples(*splits: str) -> list[Sample]:
        return [Sample(text, label) for split in splits for text, label in rows[split]]

    return PublicSet("clinc", samples("train", "oos_train"), samples("test", "oos_test"))


def intent_figures(answers: Sequence[str], gold: Sequence[str]) -> dict[str, Any]:
    """Return accuracy in scope and the recall of what is out of scope, as Larson et al. measure."""
    hits = [answer.strip() == wanted for answer, wanted in zip(answers, gold, strict=True)]
    inside = [hit for hit, wanted in zip(hits, gold, strict=True) if wanted != OUT_OF_SCOPE]
    outside = [hit for hit, wanted in zip(hits, gold, strict=True) if wanted == OUT_OF_SCOPE]
    return {
        "score": statistics.mean(hits),
        "in_scope": statistics.mean(inside),
        "oos_recall": statistics.mean(outside),
    }


def tf_idf(data: PublicSet, count: int | None) -> tuple[list[str], int]:
    """Return the labels that logistic regression on TF-IDF of words gives, and its float32 bytes.

    Trained on a draw of `count` samples, or on all. It needs scikit-learn.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    order = np.random.default_rng((0, 3, 0)).permutation(len(data.train))[:count]
    words, model = (
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True),
        LogisticRegression(C=100, max_iter=200),
    )
    pipe = make_pipeline(words, model)
    pipe.fit([data.train[i].text for i in order], [data.train[i].answer for i in order])
    terms = sum(len(term.encode()) + 5 for term in words.vocabulary_)  # with a weight and an end for each
    return list(pipe.predict([sample.text for sample in data.test])), 4 * (model.coef_.size) + terms


def ifeval(folder: Path) -> PublicSet:
    """Return IFEval's 541 prompts (Zhou et al., 2023, arXiv 2311.07911; Apache 2.0), which nobody trains on.

    `folder` has the package `instruction_following_eval` with its data and its checkers, which need nltk with
    its model of sentences, langdetect and immutabledict. Answers are cut at 256 tokens.
    """
    text = (folder / "instruction_following_eval/data/input_data.jsonl").read_text("utf-8")
    rows = [json.loads(line) for line in text.splitlines()]
    samples = [Sample(row["prompt"], data=row) for row in rows]
    return PublicSet("ifeval", [], samples, max_tokens=256, folder=folder)


def followed(answers: Sequence[str], data: PublicSet) -> dict[str, Any]:
    """Return the shares of prompts and of instructions that answers follow, by IFEval's strict checkers."""
    sys.path.insert(0, str(data.folder))
    from instruction_following_eval.evaluation import dict_to_input_example, test_instruction_following

    found = [
        test_instruction_following(dict_to_input_example(dict(sample.data)), answer)
        for sample, answer in zip(data.test, answers, strict=True)
    ]
    each = [kept for one in found for kept in one.follow_instruction_list]
    prompts = [bool(one.follow_all_instructions) for one in found]
    return {"score": statistics.mean(prompts), "instructions": statistics.mean(each), "followed": prompts}
