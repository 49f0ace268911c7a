"""`learn`: the directions of R that are worth a number, found once per model.

Near R = 0 the KL divergence of the changed model from the base is 1/2 R^T F R nats a token, F being the
Fisher information of the model's next token (Amari, "Natural gradient works efficiently in learning", 1998).
A behaviour is a prompt that the model follows. For many behaviours the slope g of the KL from the prompted
model is taken in all M k^2 numbers of R at rank 2. The step -F^-1 g is what the behaviour asks of R. The
learned projection is the first principal directions of all steps, with lengths measured in nats; where the
steps lie in these directions gives the prior. Where users have vectors already, the principal directions of
their R make a projection too (`learn_from`).
"""

from __future__ import annotations

import hashlib
import json
import random
import time
from collections import Counter
from collections.abc import Generator, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from .. import runtime
from ..basis import Basis
from ..errors import TrainError
from ..formats.bundle import Bundle, load_bundle
from ..process import cores
from ..projection import NUMBERS, RANK, Projection
from ..runtime.learning.state import Report
from ..runtime.llama.model import TinyLoraLlama
from ..tasks import Prompt, Sample
from ..tasks.behaviours import Behaviour, load_behaviours, load_questions
from ..writes import atomic_write
from .adapter import Adapter, default_dtype, load_model, one_thread
from .learner import Learner, chosen_logprobs, divergences

Matrix = NDArray[np.float64]
Tokens = NDArray[np.int32]

NOISE = 0.01
"""Nats a token: a behaviour that changes the answers by less is refused. Quantized activations alone change
those of a small model by a fifth of it."""
_ROWS = 64  # rows of logits in memory at once
QUESTIONS, TOKENS = 8, 14
"""Questions that each behaviour is asked, and tokens of an answer at most."""
_TEMPERATURE, _SEED = 0.8, 0

SHRINKAGE = 0.1
"""Share of F's mean eigenvalue that is added to its diagonal: with few samples, F is too small along
directions that they leave out."""
_WEAK = 1.0
"""Squared length of a step, in units of effect, that shortening halves. Shorter steps are mostly noise."""


@dataclass(frozen=True)
class Learned:
    """A learned projection, and what it was learned from.

    Attributes:
        projection: with the prior of the behaviours' vectors. A unit has the same effect in every value: near
            zero, a vector v moves the model by at most about |v|^2 / 2 nats a token.
        behaviours: of each behaviour its name, the KL from the prompted model to the bare one, in nats a
            token, and the share of its step's squared length that the directions hold. Empty where users'
            vectors were learned from.
        energy: share of the steps' squared lengths that each direction holds, in order; float64 [n].
        seconds: the time that it took, with that of slopes from earlier runs.
    """

    projection: Projection
    behaviours: tuple[tuple[str, float, float], ...]
    energy: NDArray[np.float64]
    seconds: float


def learn(
    bundle: str | PathLike[str],
    folder: str | PathLike[str],
    *,
    behaviours: Sequence[Behaviour] | None = None,
    directions: int = NUMBERS,
    weights: str | PathLike[str] | None = None,
    report: Report = lambda figures: None,
) -> Learned:
    """Learn a projection for the leading 2 directions of a bundle's factors (`add_projection` puts it there).

    Args:
        bundle: one with a GGUF base.
        folder: keeps the slopes of each behaviour; those found there are not computed again, so that an
            interrupted run goes on.
        behaviours: to learn from, at least as many as there are directions; None takes the shipped ones.
        directions: how many to learn.
        weights: Hugging Face directory to learn on; None dequantizes the deployed GGUF.
        report: called with the figures of each behaviour whose slope is taken.

    Raises:
        TrainError: fewer behaviours than directions, a teacher that changes nothing, a prompt
            that passes the model's context.
    """
    found = load_bundle(bundle)
    basis = found.basis(rank=min(RANK, found.factors.rank))
    chosen = list(load_behaviours() if behaviours is None else behaviours)
    _check(directions, basis)
    twice = [name for name, times in Counter(each.name for each in chosen).items() if times > 1]
    if twice:
        raise TrainError(f"two behaviours are called {twice[0]!r}: give yours another name")
    if len(chosen) < directions:
        raise TrainError(
            f"{len(chosen)} behaviours cannot teach {directions} directions: give more behaviours, or ask "
            "for fewer directions"
        )
    general = load_questions()
    pairs = [(each, questions_of(each, general)) for each in chosen]
    paths = [Path(folder) / f"{_key(basis, *each, weights)}.npz" for each in pairs]
    missing = {path: each for path, each in zip(paths, pairs, strict=True) if not path.exists()}
    if missing:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with closing(_slopes(found, basis, [*missing.values()], weights)) as taken:
            first = len(paths) - len(missing) + 1
            for done, (path, (name, slope, seconds)) in enumerate(zip(missing, taken, strict=True), first):
                with atomic_write(path) as file:
                    np.savez(file, **vars(slope), seconds=seconds)
                report({"name": name, "done": done, "of": len(paths), "before": slope.before})
    return _assembled(basis, [each.name for each in chosen], paths, directions)


def questions_of(behaviour: Behaviour, general: Sequence[str]) -> list[str]:
    """Return the questions that a behaviour is asked: a draw of its own, or of the general ones."""
    pool = list(behaviour.questions or general)
    if len(pool) < QUESTIONS:
        raise TrainError(
            f"behaviour {behaviour.name!r} has {len(pool)} questions, and {QUESTIONS} are asked: give it more"
        )
    return random.Random(f"{_SEED} {behaviour.name}").sample(pool, QUESTIONS)


def information(scores: ArrayLike, tokens: int) -> Matrix:
    """Return the Fisher information F of R, in nats a token: float64 [D, D], positive definite, D = M k^2.

    Each of the `scores`, [K, D], is the slope of the summed log-probability of tokens that were drawn from
    the model. `tokens` is the number of all these tokens.
    """
    flat = np.asarray(scores, np.float64)
    found = flat.T @ flat / tokens
    found[np.diag_indices_from(found)] += SHRINKAGE * float(np.trace(found)) / len(found)
    return np.asarray(found)


@dataclass(frozen=True)
class Directions:
    """Directions of R, and where behaviours lie in them.

    Attributes:
        directions: float32 [n, D], orthonormal by the Fisher information: a unit is a unit of effect.
        places: float64 [K, n], the step of each behaviour in them.
        shares: float64 [K], share of the squared length of each behaviour's step that they hold.
        energy: float64 [n], share of all shortened steps' squared lengths that each direction holds.
    """

    directions: NDArray[np.float32]
    places: Matrix
    shares: Matrix
    energy: Matrix


def learned_directions(slopes: NDArray[np.float32], fisher: Matrix, count: int) -> Directions:
    """Return the `count` directions in which natural-gradient steps differ from zero the most.

    A step is -F^-1 g, for `slopes` g, float32 [K, D], in nats a token. In whitened coordinates its squared
    length is twice the nats that it promises, and noise is alike in all directions. Each step is shortened to
    a length below 1, so that a task that the bare model fails outright does not fill the basis alone. Steps
    are not centred: what all behaviours share is worth a number too. Signs are canonical: the entry of
    largest magnitude is positive.
    """
    if not np.isfinite(slopes).all():
        raise TrainError("the slope of a behaviour is not finite: the model computes infinities or NaN")
    values, vectors = np.linalg.eigh(fisher)
    inverse_root = (vectors * values**-0.5) @ vectors.T
    steps = -slopes.astype(np.float64) @ inverse_root
    weighted = _shortened(steps)
    axes = np.linalg.svd(weighted, full_matrices=False)[2][:count]
    directions = axes @ inverse_root
    signs = np.sign(directions[np.arange(count), np.abs(directions).argmax(1)])[:, None]
    places = steps @ (axes * signs).T
    shares = (places**2).sum(1) / np.maximum((steps**2).sum(1), 1e-30)
    energy = ((weighted @ axes.T) ** 2).sum(0) / max(float((weighted**2).sum()), 1e-30)
    return Directions((directions * signs).astype(np.float32), places, shares, energy)


def prior_of(places: Matrix) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return mean and covariance of vectors that behaviours asked for: float32 [n] and [n, n].

    Places, float64 [K, n], are shortened as steps are. A tenth of the mean variance is added to each entry of
    the covariance's diagonal, so that a few behaviours rule no direction out.
    """
    return _moments(_shortened(places))


def _moments(places: Matrix) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    mean = places.mean(0)
    covariance = np.cov(places, rowvar=False, ddof=1).reshape(len(mean), len(mean))
    covariance = covariance + np.eye(len(mean)) * 0.1 * max(float(np.trace(covariance)) / len(mean), 1e-12)
    return mean.astype(np.float32), ((covariance + covariance.T) / 2).astype(np.float32)


def learn_from(basis: Basis, vectors: ArrayLike, count: int) -> Learned:
    """Learn a projection from users' own vectors: the first `count` principal directions of their R.

    Not centred: what all users share is worth a number too. A unit of each number is its root mean square
    over the users, and the prior is that of their vectors.

    Args:
        basis: all entries of a square R.
        vectors: one a user, [K, n].
        count: how many directions, fewer than there are users.

    TrainError: a basis of another kind, more directions than R has numbers, too few users, or vectors that
    differ in fewer directions.
    """
    began, values = time.monotonic(), np.asarray(vectors, np.float64)
    if basis.projection.kind != "entries" or basis.shape != (basis.rank, basis.rank):
        raise TrainError(
            f"vectors of basis {basis.id} are not all entries of a square R: learn from those of --rank 8"
        )
    _check(count, basis)
    if len(values) <= count:
        raise TrainError(
            f"{len(values)} users' vectors cannot teach {count} directions: ask for fewer numbers"
        )
    axes = np.linalg.svd(values, full_matrices=False)[2][:count]
    axes *= np.sign(axes[np.arange(count), np.abs(axes).argmax(1)])[:, None]
    places = values @ axes.T
    squares = (places**2).sum(0)
    if squares.min() <= 1e-9 * squares.max():
        raise TrainError(f"the users' vectors differ in fewer than {count} directions: ask for fewer numbers")
    units = np.sqrt(squares / len(values))
    shape = count, len(basis.modules), *basis.shape
    prior = _moments(places / units)
    projection = Projection.learned(basis.modules, (axes * units[:, None]).reshape(shape), prior)
    return Learned(projection, (), squares / (values**2).sum(), time.monotonic() - began)


def _check(count: int, basis: Basis) -> None:
    if not 1 <= count <= basis.size:
        raise TrainError(f"directions are 1 to {basis.size}, the numbers of R, not {count}")


def _shortened(steps: Matrix) -> Matrix:
    return np.asarray(steps / np.sqrt((steps**2).sum(1, keepdims=True) + _WEAK))


def _slopes(
    found: Bundle,
    basis: Basis,
    pairs: Sequence[tuple[Behaviour, list[str]]],
    weights: str | PathLike[str] | None,
) -> Generator[tuple[str, Slopes, float], None, None]:
    """Yield name, slopes and seconds of each behaviour, after the deployed engine has answered for all."""
    on_gpu = torch.cuda.is_available()
    device, passes = ("cuda", 1) if on_gpu else ("cpu", cores())  # `passes` run at the same time
    began = time.monotonic()
    room: dict[str, Any] = {"n_ctx": 64, "n_threads": cores(), "n_gpu_layers": -1 if on_gpu else 0}
    with closing(runtime.load(found.base, engine="llama", **room)) as llm:
        lessons = prepare_lessons(llm, pairs)
    sampled = (time.monotonic() - began) / len(lessons)

    def work(lesson: Lesson) -> tuple[str, Slopes, float]:
        start = time.monotonic()
        found = slopes(learner, lesson, seed=(_SEED, *lesson.name.encode()))
        return lesson.name, found, (time.monotonic() - start) / passes + sampled

    with ExitStack() as stack:
        stack.enter_context(one_thread())
        model = load_model(weights or found.base, default_dtype(on_gpu)).to(device)
        adapter = stack.enter_context(Adapter(model, basis).to(device))
        learner = Learner(model, adapter, temperature=1.0, workers=passes)
        stack.callback(learner.close)
        for name, slope, seconds in learner.map(work, lessons):
            if slope.before < NOISE:
                raise TrainError(
                    f"the teacher of behaviour {name!r} changes nothing: its answers are "
                    f"{abs(slope.before):.4f} nats a token from the bare model's, and below {NOISE} there is "
                    "only noise. Leave it out, or ask it other questions"
                )
            yield name, slope, seconds


def _assembled(basis: Basis, names: Sequence[str], paths: Sequence[Path], count: int) -> Learned:
    means, scores, before = list[NDArray[np.float32]](), [], []
    tokens, seconds = 0, 0.0
    for path in paths:
        with np.load(path) as file:
            drawn = int(file["tokens"].sum())
            means.append(file["divergence"].sum(0).reshape(-1) / drawn)
            scores.append(file["score"].reshape(len(file["score"]), -1))
            before.append(float(file["before"]))
            tokens += drawn
            seconds += float(file["seconds"])
    fisher = information(np.concatenate(scores), tokens)
    found = learned_directions(np.array(means, np.float32), fisher, count)
    directions = found.directions.reshape(-1, len(basis.modules), basis.rank, basis.rank)
    prior = prior_of(found.places) if len(names) > 1 else None
    made = Projection.learned(basis.modules, directions, prior)
    records = tuple(zip(names, before, found.shares.tolist(), strict=True))
    return Learned(made, records, found.energy, seconds)


def _key(
    basis: Basis, behaviour: Behaviour, questions: list[str], weights: str | PathLike[str] | None
) -> str:
    """Return a hash of everything that a behaviour's slopes depend on."""
    what = basis.digest, asdict(behaviour), questions, weights and str(weights)
    facts = [*what, TOKENS, _TEMPERATURE, _SEED]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]


# The slopes of a behaviour: the deployed engine answers questions under the behaviour's prompt, and the bare
# model in torch reads the answers without that prompt.


@dataclass(frozen=True)
class Lesson:
    """The questions of one behaviour as token ids, with the answers that the prompted model gave.

    Attributes:
        name: of the behaviour.
        prompted: for each question its prompt behind the teacher's messages, int32 [n].
        unprompted: the same without those messages.
        answers: sampled from the prompted model, each with its end token if it ended, int32 [n].
    """

    name: str
    prompted: list[Tokens]
    unprompted: list[Tokens]
    answers: list[Tokens]


def prepare_lessons(llm: TinyLoraLlama, chosen: Sequence[tuple[Behaviour, Sequence[str]]]) -> list[Lesson]:
    """Have the deployed model answer under each behaviour's teacher, and return the lessons in order.

    A lesson depends on its behaviour and its questions alone. TrainError: a prompt with its answer passes the
    model's context. VectorError: there is no chat template.
    """

    def encode(prompts: Sequence[Prompt | Sample]) -> list[Tokens]:
        return [np.array(llm.encode(prompt)[0], np.int32) for prompt in prompts]

    lessons, teachers = [], [[each.prompted(question) for question in asked] for each, asked in chosen]
    with llm.batch([sample for samples in teachers for sample in samples], TOKENS, sequences=16) as batch:
        for (behaviour, questions), samples in zip(chosen, teachers, strict=True):
            prompted = encode(samples)
            drawn = batch.generate(
                [prompt.tolist() for prompt in prompted],
                max_tokens=TOKENS,
                temperature=_TEMPERATURE,
                seed=(_SEED, *behaviour.name.encode()),
            )
            answers = [each.tokens for each in drawn]
            lessons.append(Lesson(behaviour.name, prompted, encode(questions), answers))
    return lessons


@dataclass(frozen=True)
class Slopes:
    """The slopes of a lesson at R = 0, for each of its questions, summed over the tokens of the answer.

    Attributes:
        divergence: float32 [questions, M, k, k], of the KL to the prompted model, in nats.
        score: float32 [questions, M, k, k], of the log-probabilities of tokens that the bare model draws at
            the same places. The expected outer product of a score is the Fisher information of the answer.
        before: KL at R = 0, in nats a token.
        tokens: int32 [questions], of each answer.
    """

    divergence: NDArray[np.float32]
    score: NDArray[np.float32]
    before: float
    tokens: NDArray[np.int32]


def slopes(learner: Learner, lesson: Lesson, *, seed: Sequence[int]) -> Slopes:
    """Return the slopes of a lesson at R = 0: of its KL, and of what the bare model would say itself.

    Several threads may call it at once, for different lessons.
    """
    basis, answers = learner.adapter.basis, [[answer] for answer in lesson.answers]
    with torch.no_grad():
        teacher = learner.outputs(lesson.prompted, answers)
    shape = len(basis.modules), len(answers), basis.rank, basis.rank
    r = torch.zeros(shape, device=teacher.device, requires_grad=True)
    outputs = learner.outputs(lesson.unprompted, answers, r)
    found = divergences(outputs, teacher, learner.head)
    dice = torch.Generator(teacher.device)
    dice.manual_seed(int(np.random.SeedSequence(seed).generate_state(1)[0]))
    (divergence,) = torch.autograd.grad(found.sum(), [r], retain_graph=True)
    (score,) = torch.autograd.grad(_drawn(outputs, learner.head, dice).sum(), [r])
    tokens = np.array([len(answer) for answer in lesson.answers], np.int32)
    divergence, score = divergence.swapaxes(0, 1).cpu(), score.swapaxes(0, 1).cpu()
    return Slopes(divergence.numpy(), score.numpy(), float(found.detach().mean()), tokens)


def _drawn(outputs: Tensor, head: Tensor | None, dice: torch.Generator) -> Tensor:
    """Return the log-probabilities of tokens that the model draws itself at these places."""
    drawn = []
    with torch.no_grad():
        for rows in outputs.split(_ROWS):
            logits = rows if head is None else rows @ head.mT
            drawn.append(torch.multinomial(torch.softmax(logits.float(), -1), 1, generator=dice))
    return chosen_logprobs(outputs, head, torch.cat(drawn)[:, 0], 1.0)
