"""The learning of a basis: from what behaviours ask of R to the directions that are worth a number."""

from __future__ import annotations

import hashlib
import json
import math
import random
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ... import runtime
from ..._system import atomic_write, cores
from ...basis import Basis
from ...errors import TrainError
from ...formats.bundle import Bundle
from ...projection import EXPLICIT
from ...runtime.distillation.replacement import NOISE
from ...tasks.behaviours import Behaviour, load_behaviours, load_questions
from ...tying import tie
from ..model import load_model
from .directions import coordinates, learned_directions, prior_of, tiled_directions
from .lessons import Lesson, prepare_lessons
from .student import Fit, Student

FORMS: tuple[str, ...] = ("dense", "tiled")
Report = Callable[[dict[str, Any]], None]


@dataclass(frozen=True, kw_only=True)
class LearnSettings:
    """The settings of learning a basis.

    Attributes:
        directions: n, how many numbers a vector has.
        form: `dense` (each direction spans all modules, u = n), or `tiled` (one direction a tile of modules,
            u = 1: a swap is n scales).
        questions: asked of each behaviour.
        max_tokens: of an answer.
        temperature: of the answers.
        steps: of Adam on all M r^2 numbers of R, for each behaviour.
        lr: of these steps.
        seed: of questions and answers.
    """

    directions: int = 13
    form: str = "dense"
    questions: int = 8
    max_tokens: int = 14
    temperature: float = 0.8
    steps: int = 4
    lr: float = 0.04
    seed: int = 0

    def __post_init__(self) -> None:
        if self.form not in FORMS:
            raise TrainError(f"unknown form {self.form!r}: choose one of {', '.join(FORMS)}")
        counts = (self.directions, self.questions, self.max_tokens, self.steps)
        if min(counts) < 1:
            raise TrainError(f"directions, questions, max_tokens and steps are at least 1, not {counts}")


@dataclass(frozen=True, repr=False)
class Learned:
    """A basis with learned projections, and what it was learned from.

    Attributes:
        basis: explicit projections, with the prior of the behaviours' vectors.
        behaviours: of each behaviour its name, and KL to the prompted model before and after its steps, in
            nats a token.
        energy: share of the solutions' squared norm that the directions hold, in order; float64 [n].
        seconds: that it took, in all sittings together.
    """

    basis: Basis
    behaviours: tuple[tuple[str, float, float], ...]
    energy: NDArray[np.float64]
    seconds: float

    def __repr__(self) -> str:
        return (
            f"Learned({self.basis.size} directions of {len(self.behaviours)} behaviours hold "
            f"{self.energy.sum():.3f} of their R, {self.seconds:.0f} s, {self.basis!r})"
        )


def learn(
    bundle: str | PathLike[str],
    folder: str | PathLike[str],
    *,
    behaviours: Sequence[Behaviour] | None = None,
    settings: LearnSettings | None = None,
    weights: str | PathLike[str] | None = None,
    dtype: str | None = None,
    workers: int | None = None,
    report: Report = lambda figures: None,
) -> Learned:
    """Learn which directions of R are worth a number, for the model of a bundle.

    For each behaviour the prompted model answers questions, and all M r^2 numbers of R are fitted to its
    next-token distributions without the prompt. The first right singular vectors of these solutions are the
    directions. The factors stay, so a learned basis belongs to the same deployed files.

    Args:
        bundle: with a GGUF base, and a basis as `export` makes it.
        folder: keeps a file for each behaviour that is done; learning goes on from there. It is made.
        behaviours: to learn from; None for those that are shipped.
        settings: of the run.
        weights: Hugging Face directory to learn on; None dequantizes the deployed GGUF.
        dtype: of the weights that learn, `bf16` or `fp32`; None takes what the processor is fast at.
        workers: behaviours that are learned at once, a core each; None takes every core.
        report: called after each behaviour with its figures.

    Raises:
        TrainError: fewer behaviours than directions, projections that are explicit already, a teacher that
            changes nothing, a prompt that passes the model's context.
        FileNotFoundError: a part of the bundle is missing.
        MissingExtraError: torch, transformers or llama-cpp-python is not installed.
        OSError: the folder cannot be written.
    """
    settings = settings or LearnSettings()
    found, folder = Bundle.find(bundle), Path(folder)
    chosen = list(load_behaviours(split="learn") if behaviours is None else behaviours)
    _check(found.basis, chosen, settings)
    folder.mkdir(parents=True, exist_ok=True)
    general = load_questions(split="learn")
    asked = [(each, questions_of(each, general, settings)) for each in chosen]
    paths = [folder / f"{_key(found.basis, each, asks, settings)}.npz" for each, asks in asked]
    missing = [i for i, path in enumerate(paths) if not path.exists()]
    if missing:
        _solve(
            found,
            [asked[i] for i in missing],
            [paths[i] for i in missing],
            settings,
            (weights, dtype, workers or cores()),
            lambda figures: report(
                {**figures, "of": len(paths), "done": len(paths) - len(missing) + figures["done"]}
            ),
        )
    solutions, records, seconds = [], [], 0.0
    for (behaviour, _), path in zip(asked, paths, strict=True):
        with np.load(path) as file:
            solutions.append(file["r"])
            records.append((behaviour.name, float(file["before"]), float(file["after"])))
            seconds += float(file["seconds"])
    return _assemble(found.basis, np.stack(solutions), tuple(records), seconds, settings)


def questions_of(behaviour: Behaviour, general: Sequence[str], settings: LearnSettings) -> list[str]:
    """Return the questions that a behaviour is asked: its own, or a draw of the general ones.

    Raises:
        TrainError: it has fewer questions of its own than are asked.
    """
    pool = list(behaviour.questions or general)
    if len(pool) < settings.questions:
        raise TrainError(
            f"behaviour {behaviour.name!r} has {len(pool)} questions, and {settings.questions} are asked: "
            "give it more, or lower questions"
        )
    return random.Random(f"{settings.seed} {behaviour.name}").sample(pool, settings.questions)


def _check(basis: Basis, chosen: Sequence[Behaviour], settings: LearnSettings) -> None:
    if basis.projection == EXPLICIT:
        raise TrainError(
            f"basis {basis.id} has explicit projections already: learn from the bundle that export wrote"
        )
    if len(chosen) < settings.directions:
        raise TrainError(
            f"{len(chosen)} behaviours cannot teach {settings.directions} directions: give more "
            "behaviours, or ask for fewer directions"
        )
    if settings.directions > len(basis.modules) * basis.rank**2:
        raise TrainError(
            f"R has {len(basis.modules) * basis.rank**2} numbers, fewer than {settings.directions} directions"
        )


def _key(basis: Basis, behaviour: Behaviour, questions: Sequence[str], settings: LearnSettings) -> str:
    """Return what stands for everything that decides a solution."""
    decides = {k: v for k, v in asdict(settings).items() if k not in ("directions", "form")}
    facts = [basis.digest, asdict(behaviour), list(questions), decides]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]


def _solve(
    found: Bundle,
    asked: Sequence[tuple[Behaviour, Sequence[str]]],
    paths: Sequence[Path],
    settings: LearnSettings,
    machine: tuple[str | PathLike[str] | None, str | None, int],
    report: Report,
) -> None:
    """Fit R to each behaviour, and keep each solution in its file."""
    weights, dtype, workers = machine
    began = time.monotonic()
    with ExitStack() as stack:
        llm = runtime.load(found.basis_path.parent, engine="llama", n_ctx=64, n_threads=workers)
        with closing(llm):
            lessons = prepare_lessons(
                llm,
                asked,
                max_tokens=settings.max_tokens,
                temperature=settings.temperature,
                seed=settings.seed,
                n_threads=workers,
            )
        sampled = (time.monotonic() - began) / len(lessons)
        # torch in threads of its own: oneDNN's bfloat16 releases the AMX tiles of llama.cpp's threads.
        pool = stack.enter_context(
            ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,))
        )
        stack.callback(pool.shutdown, cancel_futures=True)
        model = load_model(weights or found.base, dtype)
        model.set_attn_implementation("eager")
        student = pool.submit(Student, model, found.basis).result()
        stack.callback(student.close)

        def work(lesson: Lesson) -> tuple[Fit, float, float]:
            start = time.monotonic()
            fit = student.fit(lesson, steps=settings.steps, lr=settings.lr)
            after = student.divergence(lesson, fit.values)
            return fit, after, (time.monotonic() - start) / workers + sampled

        for number, (lesson, path, made) in enumerate(
            zip(lessons, paths, pool.map(work, lessons), strict=True), 1
        ):
            fit, after, seconds = made
            if fit.before < NOISE:
                raise TrainError(
                    f"the teacher of behaviour {lesson.name!r} changes nothing: its answers are "
                    f"{fit.before:.4f} nats a token from the bare model's, and below {NOISE} there is only "
                    "noise. Leave it out, or ask it other questions"
                )
            with atomic_write(path) as file:
                np.savez(file, r=fit.values, before=fit.before, after=after, seconds=seconds)
            report(
                {
                    "event": "behaviour",
                    "name": lesson.name,
                    "done": number,
                    "before": fit.before,
                    "after": after,
                }
            )


def _assemble(
    basis: Basis,
    solutions: NDArray[np.float32],
    records: tuple[tuple[str, float, float], ...],
    seconds: float,
    settings: LearnSettings,
) -> Learned:
    count = settings.directions
    if settings.form == "tiled":
        tying = tie(basis.modules, "tiled", count)
        directions = tiled_directions(solutions, tying)
    else:
        directions = learned_directions(solutions, count)
    places = coordinates(solutions, directions)
    energy = (places**2).sum(0) / (solutions.astype(np.float64) ** 2).sum()
    # Each as long as a tile of the paper's random P, so that step sizes and probes mean the same.
    length = math.sqrt(len(basis.modules) * basis.rank / count)
    directions = (directions * length).astype(np.float32)
    prior = prior_of(places / length) if len(places) > 1 else None
    if settings.form == "dense":
        made = basis.with_projections(directions, prior=prior)
    else:
        made = basis.with_projections(directions.sum(0), groups=count, prior=prior)
    return Learned(made, records, energy, seconds)
