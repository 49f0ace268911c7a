"""Context distillation: a prompt becomes a vector, by gradients, on a host."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack, closing
from os import PathLike

import numpy as np
from numpy.typing import NDArray

from .. import runtime
from ..errors import TrainError
from ..formats.bundle import load_bundle
from ..projection import NUMBERS
from ..runtime.batch import Batch
from ..runtime.learning.contrast import (
    SHOWN_TOKENS,
    Contrast,
    Distilled,
    Lesson,
    divergence_before,
    measure,
)
from ..system import cores
from ..tasks.behaviours import Behaviour
from ..vector import MicroVector
from .adapter import Adapter
from .learner import Learner
from .model import load_model
from .student import fit, prepare_lessons, slopes

_EFFECT = 0.24
"""Nats, root mean square, that a direction moves a token by in most vectors: of a basis without a prior."""
_TEMPERATURE = 0.8  # of the answers


def distill(
    bundle: str | PathLike[str],
    behaviour: Behaviour,
    questions: Sequence[str],
    held_out: Sequence[str],
    *,
    numbers: int = NUMBERS,
    max_tokens: int = 24,
    steps: int = 8,
    seed: int = 0,
    weights: str | PathLike[str] | None = None,
    dtype: str | None = None,
    workers: int | None = None,
) -> Distilled:
    """Find the vector that does without a prompt what the model does with it (context distillation).

    The prompted model answers questions in the deployed engine; v is fitted to its next-token distributions
    without the prompt, by the exact forward KL, as far as the answers outweigh the basis's prior (about 0: a
    prompt may want the opposite of what most do).

    Args:
        bundle: with a GGUF base.
        behaviour: the teacher: a system prompt, worked examples, or both.
        questions: to learn on.
        held_out: to measure on, none of them among `questions`.
        numbers: of the vector: the bundle's learned ones, or the paper's where it has none of so many.
        max_tokens: of an answer.
        steps: of L-BFGS.
        seed: of the answers.
        weights: Hugging Face directory to learn on; None dequantizes the deployed GGUF.
        dtype: of the weights that learn, `bf16` or `fp32`; None takes what the processor is fast at.
        workers: cores to use; None takes every core.

    Raises:
        BasisError: no projection has so many numbers.
        TrainError: no questions, a question on both sides, a teacher that changes nothing, a prompt that
            passes the model's context.
    """
    began = time.monotonic()
    workers = workers or cores()
    both = sorted(set(questions) & set(held_out))
    if not questions or not held_out or both:
        raise TrainError(
            f"distilling takes questions to learn on and others to measure on, not {len(questions)} and "
            f"{len(held_out)} with {len(both)} on both sides"
        )
    found = load_bundle(bundle)
    basis = found.basis(numbers=numbers)
    with ExitStack() as stack:
        llm = stack.enter_context(closing(runtime.load(bundle, engine="llama", n_ctx=64, n_threads=workers)))
        lesson, check = prepare_lessons(
            llm,
            [(behaviour, questions), (behaviour, held_out)],
            max_tokens=max_tokens,
            temperature=_TEMPERATURE,
            seed=seed,
            n_threads=workers,
        )
        room = max(map(len, [*check.told, *check.bare])) + max(max_tokens, SHOWN_TOKENS)
        batch = stack.enter_context(Batch(llm, n_ctx_seq=room, n_threads=workers))
        contrast = Contrast(batch, check)
        before = divergence_before(contrast)
        model = load_model(weights or found.base, dtype)
        adapter = stack.enter_context(Adapter(model, basis))
        learner = Learner(model, adapter, temperature=1.0, workers=workers)
        stack.callback(learner.close)
        spread = spread_of(learner, lesson, seed)
        vector = MicroVector(fit(learner, lesson, steps=steps, spread=spread)[0], basis=basis.digest)
        replacement = measure(batch, behaviour, held_out, contrast, before, vector)
    return Distilled(vector, replacement, time.monotonic() - began)


def spread_of(learner: Learner, lesson: Lesson, seed: int) -> NDArray[np.float64]:
    """Return how far vectors are from 0 before anything is known of them: float64 [n, n], v = spread z.

    The basis's prior says it. Without one, every value may move a token of the lesson by `_EFFECT`, in the
    mean, and the bare model's slopes say how much that is.
    """
    basis = learner.adapter.basis
    if basis.prior is not None:
        return basis.prior.spread
    (found,) = learner.map(lambda each: slopes(learner, each, seed=(seed, 6)), [lesson])
    score = np.array([basis.projection.adjoint(each) for each in found.score])
    information = float((score**2).sum(0).mean()) / int(found.tokens.sum())
    return np.asarray(_EFFECT / information**0.5 * np.eye(basis.size))
