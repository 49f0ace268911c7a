"""How far a vector moves a model on prompts that nobody trained on, and how far a graph is from its GGUF.

A vector's drift has two figures. The divergence KL(base || personalized) is estimated on answers that the
base draws: the mean over their tokens of log p_base - log p_personalized, which takes forward passes alone.
And the greedy answers of both are judged by rule: whether they repeat themselves, and, where a rule can tell,
whether they are right.

The two forms of a model round in different places, and a graph's weights may be quantized further. Users see
words and not logits, so `measure_parity` counts the answers that are the same.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from os import PathLike
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import TrainError
from ..runtime.load import LLAMA, ONNX, load
from ..runtime.model import PersonalizedModel
from ..tasks import Prompt, Sample
from ..tasks.load import load_general
from ..tasks.rewards import repeats, words
from ..vector import MicroVector

_DRAWN = 32  # tokens of an answer that the divergence is estimated on, at most
_REPEATED_RUN, _TIMES = 4, 3  # an answer that has a run of 4 words 3 times repeats itself
_JUDGED = 64  # tokens of an answer that is judged, at most: long enough to begin to repeat itself
_SHOWN = 5  # examples of answers that differ, at most
PROMPTS, TOKENS, BEGINNING = 16, 24, 8  # of parity: prompts, tokens of an answer, and of its beginning
_N_CTX = 64  # tokens of the model's own context, which stays empty: batches have contexts of their own


def faults(base: Sequence[bool], vector: Sequence[bool]) -> dict[str, int]:
    """Count the greedy answers to the same prompts that have a fault.

    Returns:
        `judged`: answers of each; `base`, `vector`: those of each that have the fault; `new`: prompts on
        which the vector's answer alone has it.
    """
    new = sum(there and not here for here, there in zip(base, vector, strict=True))
    return {"judged": len(base), "base": sum(base), "vector": sum(vector), "new": new}


@dataclass(frozen=True)
class Drift:
    """The distance of a personalized model from its base.

    Attributes:
        kl: KL(base || personalized) in nats a token, estimated on answers that the base drew at temperature
            1. Near 0 the estimate may be negative.
        standard_error: of `kl`, between prompts; NaN for a single one.
        prompts: prompts that were asked.
        tokens: tokens of the base's answers.
        repeating: answers that repeat themselves (`faults`).
        wrong: wrong answers (`faults`) to the prompts that a rule can check.
        changed: how many greedy answers differ from the base's; and `examples` of them, the first ones that
            do: `asked`, `base`, `vector`.
    """

    kl: float
    standard_error: float
    prompts: int
    tokens: int
    repeating: dict[str, int]
    wrong: dict[str, int]
    changed: int
    examples: list[dict[str, str]]


def measure_drift(
    llm: PersonalizedModel,
    vector: MicroVector | None,
    prompts: Sequence[Prompt | Sample] | None = None,
    *,
    count: int | None = None,
    n_threads: int | None = None,
    answered: Callable[[], None] = lambda: None,
) -> Drift:
    """Measure how far a vector moves the model from its base on general prompts, by forward passes alone.

    Args:
        llm: a loaded model, of either engine. Neither its vector nor its context is touched.
        vector: the one to measure; None, the base itself, has a drift of 0. Where a vector lies beneath it,
            the drift is from that one.
        prompts: texts, lists of chat messages, or samples. A sample with an `answer`, or with `answers` in
            its data, is checked for being right. None: those that are shipped (`tasks.load.load_general`).
        count: ask only the first `count` prompts.
        n_threads: cores to use; by default all that the engine would take.
        answered: called five times a prompt, as it goes on.

    Raises:
        TrainError: there are no prompts, or one has no room in the model's context.
        VectorError: the vector fits no basis of the model, or makes its logits non-finite.
    """
    samples = [Sample.of(prompt) for prompt in (load_general() if prompts is None else prompts)[:count]]
    if not samples:
        raise TrainError("there are no prompts to measure the drift on: pass at least one")
    with llm.batch(samples, max(_DRAWN, _JUDGED), n_threads=n_threads) as batch:
        tokens = batch.encode(samples)
        under = None if vector is None else vector.under
        drawn = batch.generate(tokens, vectors=under, max_tokens=_DRAWN, temperature=1.0, answered=answered)
        answers = [[each.tokens.tolist()] for each in drawn]  # never empty, as the end is a token too
        found = batch.score_each([under, vector], tokens, answers, answered=answered)
        gaps = [here.astype(np.float64) - there for (here,), (there,) in zip(*found, strict=True)]
        base, own = batch.answer_each([under, vector], samples, max_tokens=_JUDGED, answered=answered)
    changed = [
        {"asked": sample.text, "base": here.text, "vector": there.text}
        for sample, here, there in zip(samples, base, own, strict=True)
        if here.text != there.text
    ]
    known = [(i, expected) for i, sample in enumerate(samples) if (expected := right_answers(sample))]
    return Drift(
        *divergence(gaps),
        prompts=len(samples),
        tokens=sum(map(len, gaps)),
        repeating=faults(*([repeats_itself(answer.text) for answer in side] for side in (base, own))),
        wrong=faults(
            *([not is_right(side[i].text, expected) for i, expected in known] for side in (base, own))
        ),
        changed=len(changed),
        examples=changed[:_SHOWN],
    )


def divergence(gaps: Sequence[NDArray[np.float64]]) -> tuple[float, float]:
    """Return the mean of log p_base - log p_personalized in nats a token, and its standard error.

    `gaps` are these differences, an array for each answer. Answers are independent, but the tokens of one
    need not be: the error is that of a ratio of sums over answers (Cochran, Sampling Techniques, 1977,
    section 2.11), NaN for a single answer.
    """
    sums, tokens, n = np.array([each.sum() for each in gaps]), np.array([*map(len, gaps)]), len(gaps)
    mean = float(sums.sum() / tokens.sum())
    if n < 2:
        return mean, math.nan
    squares = float(((sums - mean * tokens) ** 2).sum())
    return mean, math.sqrt(n / (n - 1) * squares) / float(tokens.sum())


def right_answers(sample: Sample) -> tuple[str, ...]:
    """Return the answers to a prompt that are right, or nothing where no rule can check it."""
    found = sample.data.get("answers") or sample.answer or ()
    return tuple(map(str, found if isinstance(found, list | tuple) else (found,)))


def repeats_itself(text: str) -> bool:
    """Tell whether a text has up to 8 words three times in a row, or 4 words three times anywhere."""
    sequence = words(text)
    runs = Counter(tuple(sequence[i : i + _REPEATED_RUN]) for i in range(len(sequence) - _REPEATED_RUN + 1))
    return max(runs.values(), default=0) >= _TIMES or repeats(text)


def is_right(text: str, answers: Sequence[str]) -> bool:
    """Tell whether one of the right answers is in a text as whole words or a whole number: 112 has no 12."""
    return any(
        re.search(rf"(?<!\w)(?<!\d[.,]){re.escape(answer)}(?!\w|[.,]\d)", text, re.IGNORECASE)
        for answer in answers
    )


def measure_parity(bundle: str | PathLike[str], *, n_threads: int | None = None) -> dict[str, Any]:
    """Compare the greedy answers of a bundle's GGUF with those of its graph: 24 tokens, 16 general prompts.

    Each engine is loaded and closed in turn.

    Returns:
        The number of prompts; answers that are the `same`, token for token; those whose first 8 tokens are
        (`begin_alike`); and those without a word, by the form (`empty`).

    Raises:
        MissingExtraError: an engine is not installed.
        TinyLoraError: an engine cannot run its form.
    """
    answers, empty, samples = [], {}, load_general()[:PROMPTS]
    for form in (LLAMA, ONNX):
        with (
            closing(load(bundle, engine=form, n_ctx=_N_CTX)) as llm,
            llm.batch(samples, TOKENS, n_threads=n_threads) as batch,
        ):
            found = batch.generate(batch.encode(samples), max_tokens=TOKENS)
            texts = [batch.completion(one).text for one in found]
        answers.append([one.tokens.tolist() for one in found])
        empty[form] = sum(not text.strip() for text in texts)
    pairs = list(zip(*answers, strict=True))
    same = sum(here == there for here, there in pairs)
    alike = sum(here[:BEGINNING] == there[:BEGINNING] for here, there in pairs)
    return {"prompts": len(pairs), "same": same, "begin_alike": alike, "empty": empty}
