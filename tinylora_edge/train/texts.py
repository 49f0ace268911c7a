"""A user's own texts, learned on a shared vector in a few full steps: in seconds, with no text held back.

A full step follows one gradient over all of the texts, or as many as `TOKENS` allows, in whitened coordinates
(`learner.whitened`). These come from texts of others: they are made once for the shared vector, and lie
beside it in a file of second moments. A step goes against the gradient with its singular values made equal
(`ModuleWhitening.direction`), and has a known length in R, shorter from step to step. So few steps cannot go
far wrong: nothing is validated, and every text is learned from.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray

from .. import runtime
from ..basis import Bases, Basis
from ..errors import TrainError
from ..eval.measure import Evaluation, held_out
from ..formats.bundle import Bundle, BundleOrPath, load_bundle
from ..jsonio import parse_json
from ..process import cores
from ..projection import Whitening
from ..runtime.learning.state import Report, picked
from ..runtime.model import admit
from ..tasks import Sample, Task
from ..tasks.files import rank
from ..vector import AdmittedVector, MicroVector, Policy
from ..wire.values import BITS
from .adapter import Adapter, default_dtype, give_back, load_model, one_thread
from .learner import Group, Learner, ModuleWhitening, coordinates, rounded, tokens_of, whitened
from .options import Q4_FROM, Options, Outcome, Phase, Result, write_result

Moments = list[list[NDArray[np.float64]]]
"""For each module the second moments of A x, [q, q], and of B' d, [p, p]: `Learner.moments`."""

LENGTHS = 6.0, 4.0, 3.0, 2.0, 1.5
"""Lengths of the full steps: the Frobenius norm of each step in R."""

PLAIN = 0.1
"""Share of these lengths that steps have where R is not whitened. With whole lengths, vectors of 840 numbers
were worse than the shared vector alone."""

MOMENTUM = 0.3
"""Share of the sum of earlier gradients that is added to a step's own gradient."""

TOKENS = 15
"""Tokens of a step for each text of the user, counted as 100 texts where there are fewer. Where the texts
have more tokens, a step takes as many texts as fit, and the next step the next ones: this bounds the time of
a step."""

FEWEST = 20
"""Fewest texts of a user."""

MOST = 1000
"""Most texts of a user that are learned, the last ones: this bounds a user's time."""

OTHERS = 256
"""Most texts of others that the moments come from."""

_OWN_BUDGET = "minutes", "steps", "lr", "start"  # options of the trainer's loop

_HELD_OUT = 10  # where a gain is measured, one of so many texts is held out, and 5 texts at least


def steps_of(texts: int) -> int:
    """Return the number of full steps for so many texts: more of them bear more steps."""
    return 3 + sum(texts >= more for more in (100, 200))


def in_full_steps(task: Task, options: Options) -> bool:
    """Whether a run learns in full steps: texts without prompts, on a shared vector, and no budget given."""
    given = any(getattr(options, name) is not None for name in _OWN_BUDGET) or options.keep
    return options.under is not None and all(each.unprompted for each in task.train) and not given


def framing(options: Options, basis: Basis) -> Options:
    """Return options that name the dtype of frames, where entries are tall and none is named."""
    tall = basis.entries and basis.shape[0] >= Q4_FROM
    return replace(options, frame_dtype="q4") if tall and options.frame_dtype is None else options


@dataclass(frozen=True)
class Learned:
    """What was learned of a user's texts.

    Attributes:
        values: v as its frame holds it, float32 [n].
        losses: nats a token of each step's texts, before it.
        tokens: of all texts.
        seconds: of learning, and of measuring where that was asked for.
        measured: rewards of held-out texts (minus nats a token), without and with a vector of the user's own
            that was learned from the other texts alone; None where it was not asked for.
    """

    values: NDArray[np.float32]
    losses: tuple[float, ...]
    tokens: int
    seconds: float
    measured: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None

    @property
    def gain(self) -> float | None:
        """Nats a token by which the vector is better on held-out texts, the mean over them."""
        return None if self.measured is None else float((self.measured[1] - self.measured[0]).mean())


class Texts:
    """A model with a shared vector, on which texts of one user after another are learned; close it at last.

    Attributes:
        basis: of the vectors that are learned.
        options: with the dtypes of weights and frames.
        lengths: of the steps, in R; empty: those of `LENGTHS`, as many as the texts bear.

    Raises: what `train` raises of a bundle, options and a shared vector.
    """

    def __init__(self, bundle: BundleOrPath, options: Options) -> None:
        found = load_bundle(bundle)
        self.basis = options.basis(found.bases)
        options = replace(options, dtype=options.dtype or default_dtype())
        self.options = framing(options, self.basis)
        self.lengths: Sequence[float] = ()
        with ExitStack() as stack:
            stack.enter_context(one_thread())
            policy = Policy(keys=options.keys)
            self.shared = admit(options.under or b"", found.bases, policy, beneath=True)
            weights, threads = weights_of(found, options), options.workers or cores()
            self.llm = stack.enter_context(closing(runtime.load(found, n_ctx=64, n_threads=threads)))
            model = load_model(weights, options.dtype)
            adapter = stack.enter_context(Adapter(model, self.basis, self.shared))
            self.learner = Learner(model, adapter, temperature=1.0, workers=threads)
            stack.callback(self.learner.close)
            self._coordinates: Whitening | ModuleWhitening | None = None
            if (data := options.whitening) is not None:
                self._coordinates = coordinates(
                    self.basis, lambda: read_whitening(data, self.basis, self.shared)
                )
            self._stack = stack.pop_all()

    def close(self) -> None:
        """Let go of model and engine."""
        self._stack.close()

    def groups(self, samples: Sequence[Sample], *, left_out: bool = False) -> list[Group]:
        """Return texts as the learner takes them. TrainError: one is longer than the model's context, and
        is not to be `left_out`."""
        found, one = [], np.ones(1, np.float32)
        for sample in samples:
            prompt, answer = self.llm.encode(sample)[0], self.llm.encode_answer(sample)
            if (tokens := len(prompt) + len(answer)) <= self.llm.longest:
                found.append(Group(np.array(prompt, np.int32), [np.array(answer, np.int32)], one))
            elif not left_out:
                raise TrainError(
                    f"the text {str(sample.answer)[:60]!r} has {tokens} tokens, which pass the model's "
                    f"context of {self.llm.longest}: shorten it, or leave it out"
                )
        return found

    def whitening(self, samples: Sequence[Sample]) -> bytes:
        """Return the file of the shared vector, made of 256 of these texts, which are not the user's own."""
        chosen = picked(len(samples), 0, min(OTHERS, len(samples)), (self.options.seed, 3))
        self.learner.adapter.set(np.zeros(self.basis.size))
        groups = self.groups([samples[number] for number in chosen], left_out=True)
        moments = self.learner.moments(groups)
        tensors = {}
        for module, pair in zip(self.basis.modules, moments, strict=True):
            for side, moment in zip(_SIDES, pair, strict=True):
                unit = moment / max(float(moment.trace()), 1e-30)
                tensors[f"{module}.{side}"] = unit.astype(np.float16)
        about = {"factors": self.basis.factors.digest, "under": self.shared.digest.hex()}
        return bytes(safetensors.numpy.save(tensors, about))

    def learn(
        self,
        samples: Sequence[Sample],
        measured: Sequence[Sample] = (),
        report: Report = lambda metrics: None,
    ) -> Learned:
        """Learn texts. Where some are to be `measured`, a vector is first learned from the others alone.

        TrainError: they are too few, one is too long, or those measured leave none.
        """
        began, samples = time.monotonic(), [*samples][-MOST:]
        if len(samples) < FEWEST:
            raise TrainError(f"{len(samples)} texts, and at least {FEWEST} are needed: add more")
        scores = None
        if measured:
            apart = {rank(sample) for sample in measured}
            rest = [sample for sample in samples if rank(sample) not in apart]
            if not rest:
                raise TrainError(
                    f"{len({rank(sample) for sample in samples})} of {len(samples)} texts differ, and all of "
                    "these are held out to measure the gain: add other texts, or learn without measuring "
                    "(--no-evaluate)"
                )
            others = self.groups(measured)
            before = self._scores(others, np.zeros(self.basis.size, np.float32))
            scores = before, self._scores(others, self._stepped(self.groups(rest), report)[0])
        groups = self.groups(samples)
        values, losses = self._stepped(groups, report)
        tokens = sum(len(group.completions[0]) for group in groups)
        return Learned(values, tuple(losses), tokens, time.monotonic() - began, scores)

    def coordinates_for(self, groups: Sequence[Group]) -> Whitening | ModuleWhitening:
        """Return the coordinates of steps: those of the file, or without one of the texts themselves."""
        if self._coordinates is not None:
            return self._coordinates
        self.learner.adapter.set(np.zeros(self.basis.size))
        return whitened(self.learner, lambda: groups[-OTHERS:])

    def _stepped(self, groups: Sequence[Group], report: Report) -> tuple[NDArray[np.float32], list[float]]:
        """Return v after all full steps, as its frame holds it, and the loss before each."""
        adapter, losses = self.learner.adapter, list[float]()
        lengths = self.lengths or LENGTHS[: steps_of(len(groups))]
        v = trend = np.zeros(self.basis.size)
        within, count = self.coordinates_for(groups), len(groups)
        along, share = (within.direction, 1.0) if isinstance(within, ModuleWhitening) else (np.sign, PLAIN)
        some = min(count, math.ceil(count * TOKENS * max(count, 100) / tokens_of(groups)))
        for number, length in enumerate(lengths, 1):
            adapter.set(v)
            chosen = picked(count, number - 1, some, (self.options.seed, 4))
            found = self.learner.gradient([groups[each] for each in chosen])
            if not np.isfinite(found.loss):
                raise TrainError("the loss of these texts is not finite: the model cannot learn from them")
            losses.append(found.loss)
            trend = MOMENTUM * trend + np.asarray(within.gradient(found.grad.numpy()), np.float64)
            step = np.asarray(within.values(along(trend)), np.float64)
            size = float(np.linalg.norm(self.basis.R(step.astype(np.float32))))
            v = self.basis.bounded(v - step * (share * length / max(size, 1e-30)), self.shared.r)
            report({"step": number, "method": "texts", "loss": found.loss, "share": number / len(lengths)})
        give_back()
        near = v.astype(np.float32)
        dtype = self.options.frame_dtype
        return rounded(within, near, dtype, self.basis) if dtype in BITS else near, losses

    def _scores(self, groups: Sequence[Group], v: NDArray[np.float32]) -> NDArray[np.float64]:
        self.learner.adapter.set(v)
        return np.array([float(each.double().mean()) for each in self.learner.measure(groups)])


def weights_of(bundle: Bundle, options: Options) -> str | Path:
    """Return the weights to learn on: those that options name, or the deployed GGUF. TrainError: there is
    neither."""
    if options.weights is None and bundle.base == bundle.onnx:
        raise TrainError(
            f"the bundle of {bundle.basis_path} has an ONNX graph, and no weights to learn on: name the GGUF "
            "that it was made from, or a directory of the original weights, with --weights"
        )
    return options.weights or bundle.base


def learn_task(bundle: Bundle, task: Task, output: Path, options: Options, report: Report) -> Outcome:
    """Learn a user's texts, and write their frame with its record: `train` in full steps.

    With `options.evaluate` the gain is measured, on the texts that the data hold out, or on a tenth where the
    data do not say. TrainError: there are too few texts, or the vector does not beat the shared one on those
    held out.
    """
    own = [*task.train, *task.drawn]
    measured = (tenth(own) if task.drawn else [*task.held_out]) if options.evaluate else []
    about: dict[str, Any] = {"train": len(own[-MOST:]), "held_out": len(measured)}
    about |= {"reward": "text", "methods": ["texts"], "notes": list(task.notes)}
    report({"event": "texts", **about, "steps": steps_of(len(own))})
    with closing(Texts(bundle, options)) as texts:
        found = texts.learn(own, measured, report)
        basis, options = texts.basis, texts.options
        prompts = [len(texts.llm.encode(sample)[0]) for sample in measured]
    vector = options.framed(MicroVector(found.values, basis=basis.digest, under=texts.shared), basis)
    if found.gain is not None and found.gain <= 0:
        raise TrainError(
            f"on {len(measured)} texts held out the vector is {-found.gain:.3f} nats a token worse than the "
            "shared one alone: add texts, or learn without measuring (--no-evaluate)"
        )
    count, seconds = len(found.losses), round(found.seconds, 1)
    phase = Phase(
        "texts", math.nan, math.nan, found.losses[0], found.losses[-1], count, count, seconds, "done"
    )
    outcome = Outcome(output, Result(vector, (phase,)))
    if found.measured is not None:
        outcome = replace(outcome, measured=record_of(found.measured, prompts, len(vector.to_bytes(basis))))
    curve = [{"step": n, "method": "texts", "loss": loss} for n, loss in enumerate(found.losses, 1)]
    write_result(vector, basis, task, options, outcome, curve, data=about)
    return outcome


def tenth(samples: Sequence[Sample]) -> list[Sample]:
    """Return a tenth of texts, 5 at least, chosen by their hashes: equal texts are all in it or all not."""
    ranks = sorted({rank(sample) for sample in samples})
    last = ranks[min(max(5, len(samples) // _HELD_OUT), len(ranks)) - 1]
    return [sample for sample in samples if rank(sample) <= last]


def record_of(
    measured: tuple[NDArray[np.float64], NDArray[np.float64]], prompts: Sequence[int], size: int
) -> dict[str, Any]:
    """Return the section of a run's record on what was measured."""
    arms, found = {}, [Evaluation(scores, [""] * len(scores)) for scores in measured]
    for name, each, sent in zip(("beneath", "vector"), found, (0, size), strict=True):
        facts = {"mean": each.mean, "standard_error": each.standard_error, "tokens": fmean(prompts)}
        arms[name] = {**facts, "bytes": sent}
    why = "texts are learned in seconds; eval measures it"
    unmeasured = dict.fromkeys(("prompt", "drift"), why)
    return {"unit": "nats a token", "arms": arms, "held_out": held_out(*found), "unmeasured": unmeasured}


# The file beside a shared vector, from which the whitening is computed: second moments of 256 texts of
# others, as safetensors in float16, each divided by its trace. Every size of R uses leading corners of them.


def whitening_path(under: Path) -> Path:
    """Return where the moments of a shared vector lie: beside it."""
    return under.with_name(f"{under.name}.whitening")


def make_whitening(bundle: BundleOrPath, options: Options, samples: Sequence[Sample]) -> bytes:
    """Return the file of the shared vector `options.under`, made of texts of others."""
    with closing(Texts(bundle, for_whitening(options, load_bundle(bundle).bases))) as texts:
        return texts.whitening(samples)


def for_whitening(options: Options, bases: Bases) -> Options:
    """Return options for `Texts.whitening`: moments of all baked directions, from which sizes are cut."""
    whole: dict[str, Any] = {"rank": bases.factors.shape, "numbers": None, "whitening": None, "start": None}
    return replace(options, frame_dtype=None, **whole)


def read_whitening(data: bytes, basis: Basis, shared: AdmittedVector) -> Moments:
    """Return the moments of a file for a basis. TrainError: it is damaged, or of another shared vector."""
    try:
        tensors = safetensors.numpy.load(data)
        length = int.from_bytes(data[:8], "little")
        about = parse_json(data[8 : 8 + length]).get("__metadata__", {})
        sizes = dict(zip(_SIDES, reversed(basis.shape), strict=True))
        found = [
            [tensors[f"{module}.{side}"][:n, :n].astype(np.float64) for side, n in sizes.items()]
            for module in basis.modules
        ]
    except Exception as error:  # whatever the library raises of damaged bytes
        raise TrainError(f"the whitening of the shared vector is damaged, {error!r:.80}: {_ANEW}") from None
    if (about.get("factors"), about.get("under")) != (basis.factors.digest, shared.digest.hex()):
        raise TrainError(f"the whitening beside the shared vector was made for another one: {_ANEW}")
    if not all(np.isfinite(moment).all() for pair in found for moment in pair):
        raise TrainError(f"the whitening of the shared vector has values that are not finite: {_ANEW}")
    return found


_SIDES = "inputs", "outputs"
_ANEW = "remove it, and it is made anew"
