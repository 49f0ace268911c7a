"""The learning of a basis: from what behaviours ask of R to the directions that are worth a number."""

from __future__ import annotations

import hashlib
import json
import random
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..._system import atomic_write, cores
from ...basis import Basis
from ...errors import TrainError
from ...formats.bundle import Bundle
from ...projection import EXPLICIT
from ...runtime.distillation.replacement import NOISE
from ...runtime.llama.model import TinyLoraLlama
from ...runtime.llama.requantize import bf16_is_faster, requantize
from ...tasks.behaviours import Behaviour, load_behaviours, load_questions
from ...tying import tie
from ..model import load_model
from .directions import learned_directions, prior_of, tiled_directions
from .lessons import Lesson, prepare_lessons
from .metric import Metric
from .student import Slopes, Student

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
        seed: of questions, answers, and tokens that are drawn.
    """

    directions: int = 13
    form: str = "dense"
    questions: int = 8
    max_tokens: int = 14
    temperature: float = 0.8
    seed: int = 0

    def __post_init__(self) -> None:
        if self.form not in FORMS:
            raise TrainError(f"unknown form {self.form!r}: choose one of {', '.join(FORMS)}")
        counts = (self.directions, self.questions, self.max_tokens)
        if min(counts) < 1:
            raise TrainError(f"directions, questions and max_tokens are at least 1, not {counts}")


@dataclass(frozen=True, repr=False)
class Learned:
    """A basis with learned projections, and what it was learned from.

    Attributes:
        basis: explicit projections, with the prior of the behaviours' vectors. A unit is alike in all values:
            near zero, a vector v moves the model by at most about |v|^2 / 2 nats a token.
        behaviours: of each behaviour its name, the KL from the prompted model to the bare one, in nats a
            token, and the share of what it asks of R that the directions hold.
        energy: share of all that the directions hold, in order; float64 [n].
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

    For each behaviour the prompted model answers questions, and the slope of the KL from its next-token
    distributions to those without the prompt is taken in all M r^2 numbers of R. Slopes divided by the square
    root of the Fisher information are steps in nats; their first principal directions, each behaviour
    counting alike, are the basis. The factors stay, so it belongs to the same deployed files.

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
    return _assemble(found.basis, [behaviour.name for behaviour, _ in asked], paths, settings)


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
    """Take the slopes of each behaviour, and keep them in its file."""
    weights, dtype, workers = machine
    began = time.monotonic()
    with ExitStack() as stack:
        with _teachers(found, paths[0].parent, workers) as llm:
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

        def work(lesson: Lesson) -> tuple[Slopes, float]:
            start = time.monotonic()
            slopes = student.slopes(lesson, seed=(settings.seed, *lesson.name.encode()))
            return slopes, (time.monotonic() - start) / workers + sampled

        for number, (lesson, path, (slopes, seconds)) in enumerate(
            zip(lessons, paths, pool.map(work, lessons), strict=True), 1
        ):
            if slopes.before < NOISE:
                raise TrainError(
                    f"the teacher of behaviour {lesson.name!r} changes nothing: its answers are "
                    f"{slopes.before:.4f} nats a token from the bare model's, and below {NOISE} there is "
                    "only noise. Leave it out, or ask it other questions"
                )
            with atomic_write(path) as file:
                np.savez(file, **vars(slopes), seconds=seconds)
            report({"event": "behaviour", "name": lesson.name, "done": number, "before": slopes.before})


@contextmanager
def _teachers(found: Bundle, folder: Path, workers: int) -> Iterator[TinyLoraLlama]:
    """Open the deployed model, or where that is faster a copy of it in bfloat16, which is not kept."""
    with ExitStack() as stack:
        base = found.base
        if bf16_is_faster():
            base = folder / "teachers-bf16.gguf"
            stack.callback(base.unlink, missing_ok=True)
            requantize(found.base, base)
        # Not through `load`: the copy is ours, and no basis lists it.
        llm = TinyLoraLlama(str(base), basis=found.basis, n_ctx=64, n_threads=workers, verbose=False)
        yield stack.enter_context(closing(llm))


def _assemble(basis: Basis, names: Sequence[str], paths: Sequence[Path], settings: LearnSettings) -> Learned:
    """Return the basis of all slopes that were kept."""
    slopes, scores, tokens, before, seconds = [], [], 0, [], 0.0
    for path in paths:
        with np.load(path) as file:
            count = int(file["tokens"].sum())
            slopes.append(file["divergence"].sum(0).reshape(-1) / count)
            scores.append(file["score"].reshape(len(file["score"]), -1))
            tokens += count
            before.append(float(file["before"]))
            seconds += float(file["seconds"])
    metric = Metric.of(np.concatenate(scores), tokens)
    if settings.form == "tiled":
        tying = np.repeat(tie(basis.modules, "tiled", settings.directions), basis.rank**2)
        found = tiled_directions(np.stack(slopes), metric, tying)
    else:
        found = learned_directions(np.stack(slopes), metric, settings.directions)
    directions = found.directions.reshape(-1, len(basis.modules), basis.rank, basis.rank)
    prior = prior_of(found.places) if len(paths) > 1 else None
    if settings.form == "dense":
        made = basis.with_projections(directions, prior=prior)
    else:
        made = basis.with_projections(directions.sum(0), groups=len(directions), prior=prior)
    records = tuple(zip(names, before, found.shares.tolist(), strict=True))
    return Learned(made, records, found.energy, seconds)
