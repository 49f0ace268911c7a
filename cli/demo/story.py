"""The demo's steps, in order: export, measure, train, frame, load, measure again, show, prove."""

from __future__ import annotations

import textwrap
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import console
from ..export import module_progress
from ..report.records import HeldOut, Prompted, Trained, duration
from ..train import training_progress
from .answers import SHOWN, choose, show
from .dissection import dissect, lines
from .prompt import find_fixed, measure_prompt
from .proof import logits, plain_logits, prove
from .results import (
    DemoResult,
    Exported,
    ShownAnswers,
    Timings,
    versions,
)

if TYPE_CHECKING:
    from ... import Basis
    from ...runtime.evaluation import Evaluation
    from ...runtime.llama.model import TinyLoraLlama
    from ...tasks import Sample, Task
    from ...train import Options

TASK = "brevity"
VECTOR = "vector.bin"
_HELD_OUT = 128
_STEPS, _CHANGE = 16, 0.2  # fewer, longer steps than the default's: enough in learned directions
_QUICK_STEPS, _QUICK_VALIDATION, _QUICK_HELD_OUT = 10, 24, 64
_SWAPS = 20
_CONTEXT = 512
_COLUMNS = 100


@dataclass(frozen=True, kw_only=True)
class Size:
    """The size of a demo.

    Attributes:
        quick: the short story, with fewer steps and prompts.
        steps: of training; None for what `quick` says.
        held_out: prompts that base and vector are measured on; None for what `quick` says.
    """

    quick: bool = False
    steps: int | None = None
    held_out: int | None = None

    @property
    def prompts(self) -> int:
        """Held-out prompts."""
        return self.held_out or (_QUICK_HELD_OUT if self.quick else _HELD_OUT)

    def options(self, seed: int, threads: int) -> Options:
        """Return what to train with: the package's own settings, but for the size and the step."""
        from ...train import Options, TrainSettings

        settings = TrainSettings(seed=seed, steps=_STEPS, target_logprob_change=_CHANGE)
        if self.quick:
            settings = replace(settings, steps=_QUICK_STEPS, validation=_QUICK_VALIDATION)
        if self.steps is not None:
            settings = replace(settings, steps=self.steps)
        # The demo measures the base before training, and says so: `train` need not do it again.
        return Options(settings=settings, workers=threads, wire="bf16", evaluate=False)


class Story:
    """The story of the demo: it runs the steps and tells them.

    Args:
        model: the GGUF to start from.
        directory: of the bundle and everything else; `export` makes it.
        size: of the demo.
        seed: of the training prompts and the training.
        threads: of everything that computes.
        quiet: tell nothing.
    """

    def __init__(
        self, model: Path, directory: Path, size: Size, *, seed: int, threads: int, quiet: bool
    ) -> None:
        from ...tasks import load_task

        self._model, self._directory, self._size = model, directory, size
        self._seed, self._threads, self._quiet = seed, threads, quiet
        self._task: Task = load_task(TASK, seed=seed, held_out=size.prompts)
        # The same for the plain Llama: only then can the logits be the same, bit for bit.
        self._engine: dict[str, Any] = {
            "n_ctx": _CONTEXT,
            "n_threads": threads,
            "n_threads_batch": threads,
            "verbose": False,
        }

    def export(self) -> tuple[Basis, Exported]:
        """Step 1.

        Raises:
            ExportError: the bundle cannot be written.
        """
        from ...exporters import Export, ExportSettings

        start = time.perf_counter()
        planned = Export(self._model, self._directory, settings=ExportSettings(projection="auto"))
        self._say(f"1. Export {self._model.name}: its frozen factors, once a model.")
        with module_progress(len(planned.modules), planned.bytes) as (step, _):
            report = planned.run(step)
        basis = report.basis
        found = Exported(
            seconds=time.perf_counter() - start,
            modules=len(basis.modules),
            residual=report.quality.residual,
            digest=basis.digest,
            basis=basis.id,
            axes=[],
        )
        self._say(
            f"   {duration(found.seconds)} for {found.modules} modules, worst residual "
            f"{found.residual:.1e}, basis {found.basis}"
        )
        return basis, found

    def tell(self, basis: Basis, exported: Exported, start: float) -> DemoResult:
        """Steps 2 to 8.

        Args:
            basis: that was exported.
            exported: how.
            start: `time.perf_counter()` when the demo began.

        Raises:
            TrainError: training found no signal.
            KeyboardInterrupt: it was interrupted.
            DemoError: the vector changed nothing, or the base was not restored bit for bit.
        """
        base, tokens = self._measure_base()
        trained = self._train()
        frame = (self._directory / VECTOR).read_bytes()
        framed = dissect(frame, basis)
        self._say()
        self._say(f"4. The vector on the wire: {framed.bytes} bytes.")
        for line in lines(framed):
            self._say(f"   {line}")
        plain, plain_seconds = plain_logits(self._directory / "base.gguf", tokens, **self._engine)
        loading = time.perf_counter()
        with closing(self._load(frame)) as llm:
            load_seconds = time.perf_counter() - loading
            self._say()
            self._say(
                f"5. Load: {load_seconds * 1e3:.0f} ms with the vector; "
                f"a plain llama_cpp.Llama took {plain_seconds * 1e3:.0f} ms."
            )
            held_out, answers, personalized = self._measure_again(llm, base)
            prompted = self._measure_prompt(llm, personalized)
            answers = replace(answers, fixed=find_fixed(llm, self._task, base, personalized, frame))
            self._show(answers)
            changed = [logits(llm, prompt) for prompt in tokens]
            swap = self._exchange(llm, frame)
            llm.clear()
            restored = [logits(llm, prompt) for prompt in tokens]
        proof = prove(plain, changed, restored, zero=not any(framed.values))
        self._tell(proof.summary())
        return DemoResult(
            model=self._model.name,
            quick=self._size.quick,
            seed=self._seed,
            threads=self._threads,
            export=exported,
            training=trained,
            frame=framed,
            timing=Timings(load=load_seconds, plain_load=plain_seconds, swap=swap, swaps=_SWAPS),
            held_out=held_out,
            prompted=prompted,
            answers=answers,
            proof=proof,
            versions=versions(),
            seconds=time.perf_counter() - start,
        )

    def _measure_base(self) -> tuple[Evaluation, list[list[int]]]:
        """Return the base's answers, and the tokens of the prompts that are shown."""
        from ...runtime.llama.prompts import encode

        self._say()
        self._say(
            f"2. Measure the base on {TASK}: {self._size.prompts} prompts, of words that training never "
            "sees; greedy answers."
        )
        start = time.perf_counter()
        with closing(self._load(None)) as llm:
            base = self._measure(llm)
            tokens = [encode(llm, sample).tolist() for sample in self._shown()]
        self._say(
            f"   mean reward {base.mean:.3f} +- {base.standard_error:.3f} (its standard error), "
            f"in {duration(time.perf_counter() - start)}"
        )
        return base, tokens

    def _train(self) -> Trained:
        from ...train import train

        options = self._size.options(self._seed, self._threads)
        settings = options.settings
        self._say()
        self._say(
            f"3. Train with GRPO: {settings.steps} steps of {settings.prompts} prompts with "
            f"{options.samples} samples each. It takes minutes."
        )
        if self._size.quick:
            self._say("   This is a short run: expect a smaller gain than from the whole demo.")
        curve: list[dict[str, Any]] = []
        start = time.perf_counter()
        with training_progress(settings.steps) as show:

            def report(metrics: dict[str, Any]) -> None:
                curve.append(dict(metrics))
                show(metrics)

            outcome = train(
                self._directory, self._task, self._directory / VECTOR, options=options, report=report
            )
        result = outcome.result
        if result.stopped == "interrupted":
            console.note(f"interrupted after step {result.steps}: nothing is kept")
            raise KeyboardInterrupt
        found = Trained(
            seconds=time.perf_counter() - start,
            steps=result.steps,
            best_step=result.best_step,
            start_score=result.start_score,
            best_score=result.best_score,
            stopped=result.stopped,
            options=asdict(options),
            curve=curve,
        )
        self._say(f"   {found.steps} steps in {duration(found.seconds)}, loading included.")
        self._tell(found.summary())
        return found

    def _measure_again(
        self, llm: TinyLoraLlama, base: Evaluation
    ) -> tuple[HeldOut, ShownAnswers, Evaluation]:
        from ...runtime.evaluation import compare

        self._say()
        self._say(f"6. Measure again: the same {base.n} prompts, with the vector.")
        vector = self._measure(llm)
        held_out = HeldOut(
            task=TASK,
            n=base.n,
            base=base.mean,
            base_standard_error=base.standard_error,
            vector=vector.mean,
            vector_standard_error=vector.standard_error,
            **asdict(compare(base, vector)),
        )
        width = max(len(label) for label, _ in held_out.rows())
        for label, value in held_out.rows():
            self._say(f"   {label:<{width}}  {value}")
        self._tell(held_out.verdict())
        return held_out, choose(self._task, base, vector), vector

    def _measure_prompt(self, llm: TinyLoraLlama, vector: Evaluation) -> Prompted:
        with _waiting("measuring prompts"):
            prompted = measure_prompt(llm, self._task, vector, seed=self._seed, threads=self._threads)
        width = max(len(label) for label, _ in prompted.rows())
        for label, value in prompted.rows():
            self._say(f"   {label:<{width}}  {value}")
        self._tell(prompted.summary())
        return prompted

    def _show(self, answers: ShownAnswers) -> None:
        self._say()
        self._say("7. Answers side by side, chosen by rule:")
        for title, chosen in () if self._quiet else answers.groups():
            show(title, chosen)

    def _exchange(self, llm: TinyLoraLlama, frame: bytes) -> float:
        swaps = []
        for _ in range(_SWAPS):
            start = time.perf_counter()
            llm.swap(frame)
            swaps.append(time.perf_counter() - start)
        swap = float(np.median(swaps))
        self._say()
        self._say(
            f"8. Exchange it, and take it back: a swap took {swap * 1e3:.2f} ms (median of {_SWAPS}), "
            "without a file;"
        )
        return swap

    def _load(self, frame: bytes | None) -> TinyLoraLlama:
        from ... import runtime

        llm: TinyLoraLlama = runtime.load(self._directory, frame, engine="llama", **self._engine)
        return llm

    def _measure(self, llm: TinyLoraLlama) -> Evaluation:
        """Measure the vector that the model has now on the held-out prompts."""
        from ...runtime.evaluation import evaluate
        from ...runtime.llama.batch import batch_for

        task = self._task
        with _waiting("measuring"), batch_for(llm, task.held_out, task.max_tokens) as batch:
            return evaluate(batch, self._task, llm.vector)

    def _shown(self) -> list[Sample]:
        return list(self._task.held_out[:SHOWN])

    def _say(self, text: str = "") -> None:
        if not self._quiet:
            console.say(text)

    def _tell(self, sentences: str) -> None:
        for line in textwrap.wrap(sentences, _COLUMNS):
            self._say(f"   {line}")


@contextmanager
def _waiting(text: str) -> Iterator[None]:
    """Show on a terminal that something is going on; in a pipe, nothing."""
    screen = console.stderr()
    if not screen.is_terminal:
        yield
        return
    with screen.status(text):
        yield
