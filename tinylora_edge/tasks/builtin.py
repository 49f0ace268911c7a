"""The built-in tasks: files of samples beside this one, the reward of short sentences, and GSM8K.

Where SNIPS is from: snips.LICENSE. `brevity` and `list-lookup` were drawn from word lists for this project;
what a held-out prompt asks for is in no training prompt, and shifted ones have rarer words, other phrasings
and longer lists. Greedy held-out scores of SmolLM2-135M-Instruct (Q4_1) before any training, n = 128:
`list-lookup` .34, `brevity` .13.

`general_prompts.jsonl` is no task: what people ask a model in general. A personalized model is compared with
its base on these prompts (`eval.measure_drift`), and rehearses others of them in training (`Options.keep`).
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from ..errors import MissingExtraError, TrainError
from .answers import final_number
from .files import read_objects, read_samples, split_by_prompt
from .guards import own_words, repeats, without_genitive, words
from .rewards import number, picks_answer
from .sample import Sample
from .task import Completion, Reward, Task

_LONGEST_SENTENCE = 14  # words of a short sentence


def short_sentence(completion: Completion, sample: Sample) -> float:
    """1 if the answer ended by itself, has 4 to 14 words and the noun asked about, and ends with a period.

    Guards: saying the noun back is not enough: two words must be the answer's own, not the question's and
    not function words; a phrase three times in a row gets 0.
    """
    return float(nearly_short_sentence(completion, sample) == 1.0)


def nearly_short_sentence(completion: Completion, sample: Sample) -> float:
    """1 for what `short_sentence` gives 1, and up to 0.5 for what comes near.

    0.05 for an answer of 24 words that ended by itself, and 0.05 more for every word less; half of it without
    a period.

    Guards: those of `short_sentence`; what the token limit cut gets 0, too.
    """
    text = completion.text.strip()
    sequence, noun = words(text), sample.data["noun"]
    named = any(without_genitive(word) in (noun, _plural(noun)) for word in sequence)
    guarded = len(sequence) >= 4 and named and len(own_words(text, sample)) >= 2
    if not (completion.ended and guarded) or repeats(text):
        return 0.0
    if text.endswith(".") and len(sequence) <= _LONGEST_SENTENCE:
        return 1.0
    near = 0.05 + 0.05 * min(9, max(0, 24 - len(sequence)))
    return near if text.endswith(".") else near / 2


def _plural(noun: str) -> str:
    if noun.endswith(("s", "x", "z", "ch", "sh")):
        return f"{noun}es"
    return f"{noun[:-1]}ies" if noun.endswith("y") and noun[-2] not in "aeiou" else f"{noun}s"


def only_intents(samples: Sequence[Sample]) -> list[Sample]:
    """Return samples of SNIPS with the name of each call alone for an answer."""
    names = [json.loads(str(sample.answer))["name"] for sample in samples]
    answers = [json.dumps({"intent": name}) for name in names]
    return [dataclasses.replace(each, answer=text) for each, text in zip(samples, answers, strict=True)]


@dataclasses.dataclass(frozen=True)
class ShippedTask:
    """A task's file, its reward where that is not read off the answers, and other fields of its `Task`."""

    path: Path
    reward: Reward | None = None
    fields: dict[str, Any] = dataclasses.field(default_factory=dict)

    def finish(self, name: str, task: Task) -> Task:
        """Return what is read from the file as the task that is meant."""
        if name == "snips-intents":
            task = dataclasses.replace(
                task, train=only_intents(task.train), held_out=only_intents(task.held_out)
            )
        return dataclasses.replace(task, **self.fields)


_HERE = Path(__file__).parent
_SNIPS = _HERE / "snips.jsonl"
_BRIEF = {"max_tokens": 24, "temperature": 0.7, "shaped": nearly_short_sentence}
SHIPPED: dict[str, ShippedTask] = {
    "brevity": ShippedTask(_HERE / "brevity.jsonl", short_sentence, _BRIEF),
    "list-lookup": ShippedTask(
        _HERE / "list-lookup.jsonl", picks_answer, {"max_tokens": 16, "temperature": 0.5}
    ),
    "snips": ShippedTask(_SNIPS),
    "snips-intents": ShippedTask(_SNIPS, fields={"max_tokens": 32}),
}
"""The shipped tasks by their names."""

BUILTIN: tuple[str, ...] = tuple(sorted([*SHIPPED, "gsm8k"]))
"""The tasks that `load_task` knows by name. `gsm8k` needs a download; `gsm8k:PATH.jsonl` does not."""

GSM8K = "openai/gsm8k"
"""On the hub: grade school word problems (Cobbe et al. 2021, MIT licence)."""
GSM8K_INSTRUCTION = "Put your final answer after ####."
"""Stands behind every problem, after a blank line."""

_CALCULATOR = re.compile(r"<<[^<>]*>>")  # annotations for a calculator, not part of the solution's text


def load_general(split: Literal["train", "held_out"] = "held_out") -> tuple[Sample, ...]:
    """Return the general prompts to measure drift on, or (`train`) those to rehearse.

    Where a rule can check an answer, `data["answers"]` has those that are right.
    """
    found = read_samples(_HERE / "general_prompts.jsonl")
    return tuple(found.train if split == "train" else found.held_out)


def gsm8k(name: str) -> Task:
    """Return all problems: of `gsm8k:PATH`, split by prompt, or of the hub, whose test split is held out."""
    path = name.removeprefix("gsm8k").removeprefix(":")
    if name != "gsm8k" and not path:
        raise TrainError("gsm8k: expected a path behind the colon: gsm8k:PATH.jsonl")
    if path:
        sides = split_by_prompt([_problem(place, row) for place, row in read_objects(Path(path))])
    else:
        sides = _hub_problems("train"), _hub_problems("test")
    return Task(name, *sides, number, max_tokens=256, temperature=0.7)


def _problem(place: str, row: Mapping[str, Any]) -> Sample:
    question, answer = row.get("question"), row.get("answer")
    if not all(isinstance(text, str) and text.strip() for text in (question, answer)):
        raise TrainError(f'{place}: expected the keys "question" and "answer", each with text in it')
    solution = _CALCULATOR.sub("", str(answer)).strip()
    if "####" not in solution or final_number(solution) is None:
        raise TrainError(
            f"{place}: the answer ends in {solution[-40:]!r}, expected '#### n' with one number at its end"
        )
    question = str(question).strip()
    message = {"role": "user", "content": f"{question}\n\n{GSM8K_INSTRUCTION}"}
    return Sample((message,), solution, {"question": question})


def _hub_problems(split: str) -> list[Sample]:
    try:
        import huggingface_hub
        import pyarrow.parquet
    except ModuleNotFoundError as error:
        if error.name not in ("huggingface_hub", "pyarrow", "pyarrow.parquet"):
            raise
        package = "huggingface-hub" if error.name == "huggingface_hub" else "pyarrow"
        raise MissingExtraError("the gsm8k task from the hub", package, "train") from None
    file = f"main/{split}-00000-of-00001.parquet"
    try:
        path = huggingface_hub.hf_hub_download(GSM8K, file, repo_type="dataset")
        rows = pyarrow.parquet.read_table(path, columns=["question", "answer"]).to_pylist()
    # The hub's client lets through what its HTTP library raises, which is another one in each version.
    except Exception as error:
        raise TrainError(
            f"gsm8k: cannot get {file} of {GSM8K} from the hub: {error}. "
            "Without a network use a local copy: gsm8k:PATH.jsonl"
        ) from error
    return [_problem(f"{GSM8K}/{file}:{number}", row) for number, row in enumerate(rows, 1)]
