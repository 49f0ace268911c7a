"""Context distillation: a prompt becomes a vector, by gradients, on a host."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from os import PathLike
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ... import runtime
from ..._system import cores
from ...basis import Basis
from ...errors import TrainError
from ...formats.bundle import Bundle
from ...runtime.llama.model import TinyLoraLlama
from ...tasks.behaviours import Behaviour
from ...vector import MicroVector
from ..model import load_model
from .learning import NOISE
from .lessons import Lesson, prepare_lessons
from .student import Student

_SHOWN = 3
_SHOWN_TOKENS = 40


@dataclass(frozen=True, kw_only=True)
class DistillSettings:
    """The settings of distilling a prompt.

    Attributes:
        max_tokens: of an answer.
        temperature: of the answers.
        steps: of Adam.
        lr: of the coordinates, in the norm of R.
        seed: of the answers.
    """

    max_tokens: int = 24
    temperature: float = 0.8
    steps: int = 16
    lr: float = 0.2
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.max_tokens, self.steps) < 1:
            raise TrainError(f"max_tokens and steps are at least 1, not {self.max_tokens} and {self.steps}")


@dataclass(frozen=True)
class Shown:
    """The answers to one held-out question, greedy.

    Attributes:
        question: that was asked.
        bare, prompted, personalized: the answers without the prompt, with it, and with the vector instead.
    """

    question: str
    bare: str
    prompted: str
    personalized: str


@dataclass(frozen=True, repr=False)
class Distilled:
    """A prompt as a vector, and how much of it the vector holds.

    Attributes:
        vector: fp32.
        before: KL from the prompted model to the bare one on held-out questions, in nats a token.
        after: the same with the vector.
        told: tokens of a prompt with the teacher, mean over the held-out questions.
        bare: the same without.
        told_s, bare_s: seconds to the first token, median over the held-out questions, on this machine.
        shown: answers side by side.
        seconds: that it took.
    """

    vector: MicroVector
    before: float
    after: float
    told: float
    bare: float
    told_s: float
    bare_s: float
    shown: tuple[Shown, ...]
    seconds: float

    @property
    def share(self) -> float:
        """Share of the divergence on held-out questions that the vector closes; below 0 it does harm."""
        return 1 - self.after / self.before

    def __repr__(self) -> str:
        return (
            f"Distilled({self.share:.3f} of {self.before:.3f} nats a token closed, "
            f"{self.bare:.0f} tokens instead of {self.told:.0f}, {self.seconds:.0f} s, {self.vector!r})"
        )


def distill(
    bundle: str | PathLike[str],
    behaviour: Behaviour,
    questions: Sequence[str],
    held_out: Sequence[str],
    *,
    settings: DistillSettings | None = None,
    weights: str | PathLike[str] | None = None,
    dtype: str | None = None,
    workers: int | None = None,
) -> Distilled:
    """Find the vector that does without a prompt what the model does with it (context distillation).

    The prompted model answers questions in the deployed engine; v is fitted to its next-token distributions
    without the prompt, by Adam on the exact forward KL.

    Args:
        bundle: with a GGUF base. Its basis may be learned or not.
        behaviour: the teacher: a system prompt, worked examples, or both.
        questions: to learn on.
        held_out: to measure on, none of them among `questions`.
        settings: of the run.
        weights: Hugging Face directory to learn on; None dequantizes the deployed GGUF.
        dtype: of the weights that learn, `bf16` or `fp32`; None takes what the processor is fast at.
        workers: cores to use; None takes every core.

    Raises:
        TrainError: no questions, a question on both sides, a teacher that changes nothing, a prompt that
            passes the model's context.
        FileNotFoundError: a part of the bundle is missing.
        MissingExtraError: torch, transformers or llama-cpp-python is not installed.
    """
    began = time.monotonic()
    settings, workers = settings or DistillSettings(), workers or cores()
    both = sorted(set(questions) & set(held_out))
    if not questions or not held_out or both:
        raise TrainError(
            f"distilling takes questions to learn on and others to measure on, not {len(questions)} and "
            f"{len(held_out)} with {len(both)} on both sides"
        )
    found = Bundle.find(bundle)
    with ExitStack() as stack:
        llm = stack.enter_context(
            closing(runtime.load(bundle, engine="llama", n_ctx=2048, n_threads=workers))
        )
        lesson, check = prepare_lessons(
            llm,
            [(behaviour, questions), (behaviour, held_out)],
            max_tokens=settings.max_tokens,
            temperature=settings.temperature,
            seed=settings.seed,
            n_threads=workers,
        )
        pool = stack.enter_context(
            ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(workers,))
        )
        model = load_model(weights or found.base, dtype)
        model.set_attn_implementation("eager")
        student = pool.submit(Student, model, found.basis).result()
        stack.callback(student.close)
        values, before, after = pool.submit(_fit, student, found.basis, lesson, check, settings).result()
        vector = MicroVector(values)
        shown = _side_by_side(llm, behaviour, list(held_out)[:_SHOWN], vector)
        told_s, bare_s = (
            _first_token(llm, [make(question) for question in held_out[:8]])
            for make in (behaviour.messages, behaviour.bare)
        )
    return Distilled(
        vector,
        before,
        after,
        float(np.mean([len(each) for each in check.told])),
        float(np.mean([len(each) for each in check.bare])),
        told_s,
        bare_s,
        shown,
        time.monotonic() - began,
    )


def directions_of(basis: Basis) -> NDArray[np.float32]:
    """Return what each value of v adds to R, in order: float32 [n, M, r, r]."""
    count, shape = basis.size, (len(basis.modules), basis.rank, basis.rank)
    found = np.zeros((count, *shape), np.float32)
    for module, group in enumerate(basis.tying):
        found[group * basis.u : (group + 1) * basis.u, module] = basis.projections[module]
    return found


def _fit(
    student: Student, basis: Basis, lesson: Lesson, check: Lesson, settings: DistillSettings
) -> tuple[NDArray[np.float32], float, float]:
    directions = directions_of(basis)
    norms = np.linalg.norm(directions.reshape(len(directions), -1), axis=1)
    units = directions / norms[:, None, None, None]
    before = student.divergence(check)
    if before < NOISE:
        raise TrainError(
            f"the prompt changes nothing: the answers that it gives are {before:.4f} nats a token from the "
            f"bare model's, and below {NOISE} there is only noise. Write a prompt that the model follows"
        )
    fit = student.fit(lesson, steps=settings.steps, lr=settings.lr, directions=units)
    values = (fit.values / norms).astype(np.float32).reshape(basis.groups, basis.u)
    return values, before, student.divergence(check, basis.R(values))


def _side_by_side(
    llm: TinyLoraLlama, behaviour: Behaviour, questions: Sequence[str], vector: MicroVector
) -> tuple[Shown, ...]:
    def say(messages: Any) -> str:
        done: Any = llm.create_chat_completion(messages, max_tokens=_SHOWN_TOKENS, temperature=0.0)
        return str(done["choices"][0]["message"]["content"])

    shown = []
    for question in questions:
        bare, prompted = say(behaviour.bare(question)), say(behaviour.messages(question))
        with llm.using(vector):
            shown.append(Shown(question, bare, prompted, say(behaviour.bare(question))))
    return tuple(shown)


def _first_token(llm: TinyLoraLlama, prompts: Sequence[Any]) -> float:
    """Return the median time to the first token, nothing of the prompt being in the cache."""
    taken = []
    for messages in prompts:
        llm.reset()
        began = time.perf_counter()
        llm.create_chat_completion(messages, max_tokens=1, temperature=0.0)
        taken.append(time.perf_counter() - began)
    return float(np.median(taken))
