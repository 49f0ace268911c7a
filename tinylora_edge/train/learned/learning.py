"""The learning of a basis: from what behaviours ask of R to the directions that are worth a number."""

from __future__ import annotations

import hashlib
import itertools
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

from ... import runtime
from ...axes import check_names
from ...basis import Basis
from ...errors import TrainError
from ...formats.bundle import Bundle
from ...projection import EXPLICIT
from ...runtime.distillation.replacement import NOISE
from ...runtime.llama.model import TinyLoraLlama
from ...runtime.llama.requantize import half_copy, half_type
from ...system import atomic_write, cores
from ...tasks.behaviours import Behaviour, Contrast, load_behaviours, load_questions
from ...tying import tie
from ..model import load_model
from .contrasts import Axis, named_axes, question_slopes
from .device import find_device
from .directions import Matrix, learned_directions, prior_of, tiled_directions
from .lessons import Lesson, prepare_lessons
from .metric import Metric
from .settings import LearnSettings
from .student import Slopes, Student

Report = Callable[[dict[str, Any]], None]


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
        axes: the named axes, which are the first values.
    """

    basis: Basis
    behaviours: tuple[tuple[str, float, float], ...]
    energy: NDArray[np.float64]
    seconds: float
    axes: tuple[Axis, ...] = ()

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
    axes: Sequence[Contrast] = (),
    settings: LearnSettings | None = None,
    weights: str | PathLike[str] | None = None,
    dtype: str | None = None,
    workers: int | None = None,
    device: str | None = None,
    report: Report = lambda figures: None,
) -> Learned:
    """Learn which directions of R are worth a number, for the model of a bundle.

    For each behaviour the prompted model answers questions, and the slope of the KL from its next-token
    distributions to those without the prompt is taken in all M r^2 numbers of R. Slopes divided by the square
    root of the Fisher information are steps in nats; their first principal directions, each behaviour
    counting alike, are the basis. The factors stay, so it belongs to the same deployed files.

    Named axes are the first values. An axis is the step of its plus side less that of its minus side, less
    what the axes before it hold, one unit of effect long. The other directions are found in what the axes
    leave, and are called "learned-1" and so on.

    Args:
        bundle: with a GGUF base, and a basis as `export` makes it.
        folder: keeps a file for each behaviour that is done; learning goes on from there. It is made.
        behaviours: to learn from; None for those that are shipped.
        axes: the named axes, in order; at most n.
        settings: of the run.
        weights: Hugging Face directory to learn on; None dequantizes the deployed GGUF.
        dtype: of the weights that learn, `bf16` or `fp32`; None takes what the processor is fast at.
        workers: behaviours that are learned at once, a core each; None takes every core. A GPU takes one
            after the other.
        device: of torch that slopes are taken on, such as `cpu` or `cuda:1`; None takes a CUDA GPU where
            torch finds one. On a GPU llama.cpp answers with all layers there, if it was built for one.
        report: called with each behaviour that has its answers (`event` is "answers"), and with the figures
            of each whose slope is taken ("behaviour").

    Raises:
        TrainError: fewer behaviours than directions, projections that are explicit already, a device that
            torch does not have, a teacher that changes nothing, a prompt that passes the model's context, an
            axis whose contrast is empty, named axes in the form `tiled`.
        BasisError: an axis has a name that none can have.
        FileNotFoundError: a part of the bundle is missing.
        MissingExtraError: torch, transformers or llama-cpp-python is not installed.
        OSError: the folder cannot be written.
    """
    settings = settings or LearnSettings()
    found = Bundle.find(bundle)
    chosen = list(load_behaviours(split="learn") if behaviours is None else behaviours)
    _check(found.basis, chosen, axes, settings)
    paths = take_slopes(
        found,
        folder,
        chosen,
        axes=axes,
        settings=settings,
        weights=weights,
        dtype=dtype,
        workers=workers,
        device=device,
        report=report,
    )
    return _assemble(found.basis, [each.name for each in chosen], axes, paths, settings)


def take_slopes(
    found: Bundle,
    folder: str | PathLike[str],
    behaviours: Sequence[Behaviour],
    *,
    axes: Sequence[Contrast] = (),
    settings: LearnSettings,
    weights: str | PathLike[str] | None = None,
    dtype: str | None = None,
    workers: int | None = None,
    device: str | None = None,
    report: Report = lambda figures: None,
) -> list[Path]:
    """Take the slopes of behaviours and of the sides of axes; return the file of each, in order.

    Arguments and errors are those of `learn`. A file has the attributes of `Slopes` and is not taken again.
    """
    folder, place = Path(folder), find_device(device)
    folder.mkdir(parents=True, exist_ok=True)
    general = load_questions(split="learn")
    asked = [_Asked(each, questions_of(each, general, settings), settings, False) for each in behaviours]
    for axis in axes:
        # The sides are asked the same, so that they do not differ in their questions.
        asked += [
            _Asked(
                each, questions_of(each, general, settings.of_axes, draw=axis.name), settings.of_axes, True
            )
            for each in axis.behaviours
        ]
    paths = [folder / f"{each.key(found.basis)}.npz" for each in asked]
    missing = [i for i, path in enumerate(paths) if not path.exists()]
    if missing:
        _solve(
            found,
            [asked[i] for i in missing],
            [paths[i] for i in missing],
            (weights, dtype, workers or cores(), place),
            lambda figures: report(
                {**figures, "of": len(paths), "done": len(paths) - len(missing) + figures["done"]}
            ),
        )
    return paths


def questions_of(
    behaviour: Behaviour, general: Sequence[str], settings: LearnSettings, *, draw: str | None = None
) -> list[str]:
    """Return the questions that a behaviour is asked: its own, or a draw of the general ones.

    Args:
        behaviour: that is asked.
        general: questions for behaviours that have none.
        settings: how many, and the seed.
        draw: what the draw depends on beside the seed; None for the behaviour's name.

    Raises:
        TrainError: it has fewer questions of its own than are asked.
    """
    pool = list(behaviour.questions or general)
    if len(pool) < settings.questions:
        raise TrainError(
            f"behaviour {behaviour.name!r} has {len(pool)} questions, and {settings.questions} are asked: "
            "give it more, or lower questions"
        )
    return random.Random(f"{settings.seed} {draw or behaviour.name}").sample(pool, settings.questions)


@dataclass(frozen=True)
class _Asked:
    """A behaviour that is asked, its questions, and whether it is a side of an axis."""

    behaviour: Behaviour
    questions: list[str]
    settings: LearnSettings
    of_axis: bool

    def key(self, basis: Basis) -> str:
        """Return what stands for everything that decides a slope."""
        decides = ("questions", "max_tokens", "temperature", "seed")
        facts = [
            basis.digest,
            asdict(self.behaviour),
            self.questions,
            {name: getattr(self.settings, name) for name in decides},
        ]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]


def _check(
    basis: Basis, chosen: Sequence[Behaviour], axes: Sequence[Contrast], settings: LearnSettings
) -> None:
    if basis.projection == EXPLICIT:
        raise TrainError(
            f"basis {basis.id} has explicit projections already: learn from a bundle that was exported with "
            "--projection random"
        )
    if axes and settings.form == "tiled":
        raise TrainError(
            "a value of the form 'tiled' is one tile of modules, and a named axis needs all of them: choose "
            "the form 'dense', or leave the axes out"
        )
    missing = settings.directions - len(axes)
    if missing < 0:
        raise TrainError(
            f"{len(axes)} named axes do not fit into {settings.directions} numbers: ask for more numbers, or "
            "name fewer axes"
        )
    if len(chosen) < missing:
        raise TrainError(
            f"{len(chosen)} behaviours cannot teach {missing} directions: give more behaviours, or ask for "
            "fewer directions"
        )
    check_names(_names([axis.name for axis in axes], settings), settings.directions)
    if settings.directions > len(basis.modules) * basis.rank**2:
        raise TrainError(
            f"R has {len(basis.modules) * basis.rank**2} numbers, fewer than {settings.directions} directions"
        )


def _names(axes: Sequence[str], settings: LearnSettings) -> tuple[str, ...]:
    """Return the names of all values, none where no axis has one."""
    rest = range(1, settings.directions - len(axes) + 1)
    return (*axes, *(f"learned-{number}" for number in rest)) if axes else ()


def _solve(
    found: Bundle,
    asked: Sequence[_Asked],
    paths: Sequence[Path],
    machine: tuple[str | PathLike[str] | None, str | None, int, torch.device],
    report: Report,
) -> None:
    """Take the slopes of each behaviour, and keep them in its file; until then, its answers beside it."""
    weights, dtype, workers, device = machine
    files = [path.with_suffix(".answers") for path in paths]
    on_cpu = device.type == "cpu"
    passes = workers if on_cpu else 1  # at the same time
    began = time.monotonic()
    with ExitStack() as stack:
        with _teachers(found, paths[0].parent, workers, on_cpu=on_cpu) as llm:
            lessons = list[Lesson]()
            for of_axis in (False, True):  # as they are in order: behaviours, then axes
                mine = [
                    (each, file) for each, file in zip(asked, files, strict=True) if each.of_axis == of_axis
                ]
                lessons += _lessons(llm, mine, workers, len(lessons), report)
        sampled = (time.monotonic() - began) / len(lessons)
        # torch in threads of its own: oneDNN's bfloat16 releases the AMX tiles of llama.cpp's threads.
        pool = stack.enter_context(
            ThreadPoolExecutor(passes, initializer=torch.set_num_threads, initargs=(1,))
        )
        stack.callback(pool.shutdown, cancel_futures=True)
        model = load_model(weights or found.base, dtype).to(device)
        model.set_attn_implementation("eager")
        student = pool.submit(Student, model, found.basis).result()
        stack.callback(student.close)

        def work(lesson: Lesson) -> tuple[Slopes, float]:
            start = time.monotonic()
            slopes = student.slopes(lesson, seed=(asked[0].settings.seed, *lesson.name.encode()))
            return slopes, (time.monotonic() - start) / passes + sampled

        taken = zip(asked, lessons, paths, files, pool.map(work, lessons), strict=True)
        for number, (each, lesson, path, answers, (slopes, seconds)) in enumerate(taken, 1):
            # A side of an axis may be as the bare model is: what counts is how the sides differ.
            if slopes.before < NOISE and not each.of_axis:
                raise TrainError(
                    f"the teacher of behaviour {lesson.name!r} changes nothing: its answers are "
                    f"{slopes.before:.4f} nats a token from the bare model's, and below {NOISE} there is "
                    "only noise. Leave it out, or ask it other questions"
                )
            with atomic_write(path) as file:
                np.savez(file, **vars(slopes), seconds=seconds)
            answers.unlink(missing_ok=True)
            report({"event": "behaviour", "name": lesson.name, "done": number, "before": slopes.before})


def _lessons(
    llm: TinyLoraLlama, asked: Sequence[tuple[_Asked, Path]], workers: int, before: int, report: Report
) -> list[Lesson]:
    """Return the lessons of behaviours that are asked with the same settings, after so many others."""
    if not asked:
        return []
    settings = asked[0][0].settings
    done = itertools.count(before + 1)
    return prepare_lessons(
        llm,
        [(each.behaviour, each.questions) for each, _ in asked],
        max_tokens=settings.max_tokens,
        temperature=settings.temperature,
        seed=settings.seed,
        n_threads=workers,
        files=[file for _, file in asked],
        report=lambda name: report({"event": "answers", "name": name, "done": next(done)}),
    )


@contextmanager
def _teachers(found: Bundle, folder: Path, workers: int, *, on_cpu: bool) -> Iterator[TinyLoraLlama]:
    """Open the deployed model, or where that is faster a copy of it in 16 bits, which is not kept."""
    if on_cpu and half_type() is not None:
        with half_copy(found.base, folder / "teachers", found.basis, workers) as llm:
            yield llm
    else:
        room: dict[str, Any] = {"n_ctx": 64, "n_threads": workers, "n_gpu_layers": 0 if on_cpu else -1}
        deployed = runtime.load(found.basis_path.parent, engine="llama", **room)
        with closing(deployed) as llm:
            yield llm


def _assemble(
    basis: Basis,
    names: Sequence[str],
    axes: Sequence[Contrast],
    paths: Sequence[Path],
    settings: LearnSettings,
) -> Learned:
    """Return the basis of all slopes that were kept: those of the behaviours, then those of the axes."""
    means, sides, scores = list[NDArray[np.float32]](), list[Matrix](), []
    tokens, before, seconds = 0, [], 0.0
    for number, path in enumerate(paths):
        with np.load(path) as file:
            count = int(file["tokens"].sum())
            if number < len(names):
                means.append(file["divergence"].sum(0).reshape(-1) / count)
                before.append(float(file["before"]))
            else:
                sides.append(question_slopes(file["divergence"], file["tokens"]))
            scores.append(file["score"].reshape(len(file["score"]), -1))
            tokens += count
            seconds += float(file["seconds"])
    metric = Metric.of(np.concatenate(scores), tokens)
    slopes = np.array(means, np.float32).reshape(len(means), len(metric.root))
    made_of, first = named_axes(_contrasts(axes, sides), metric)
    if settings.form == "tiled":
        tying = np.repeat(tie(basis.modules, "tiled", settings.directions), basis.rank**2)
        found = tiled_directions(slopes, metric, tying)
    else:
        found = learned_directions(slopes, metric, settings.directions, first)
    directions = found.directions.reshape(-1, len(basis.modules), basis.rank, basis.rank)
    prior = prior_of(found.places) if len(names) > 1 else None
    if settings.form == "dense":
        called = _names([axis.name for axis in axes], settings)
        made = basis.with_projections(directions, axes=called, prior=prior)
    else:
        made = basis.with_projections(directions.sum(0), groups=len(directions), prior=prior)
    records = tuple(zip(names, before, found.shares.tolist(), strict=True))
    return Learned(made, records, found.energy, seconds, made_of)


def _contrasts(axes: Sequence[Contrast], slopes: Sequence[Matrix]) -> list[tuple[str, Matrix]]:
    """Return of each axis its name, and by question its plus side's slope less its minus side's."""
    found, rest = [], iter(slopes)
    for axis in axes:
        plus, minus = (np.mean([next(rest) for _ in side], axis=0) for side in (axis.plus, axis.minus))
        found.append((axis.name, plus - minus))
    return found
