"""The steps of a replay: unpack and check, look at the vector, ask, give the base back, hand it on."""

from __future__ import annotations

import textwrap
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ....errors import TrustError
from ....formats.bundle import Bundle
from ....wire import text
from ... import console, qr
from ...report.records import duration
from ..answers import compare, show
from ..dissection import dissect, lines
from ..proof import logits, plain_logits, prove
from ..results import AnswerPair, Framed, Proof
from ..story import VECTOR
from .recipe import Recipe
from .shipment import RECIPE, Shipment

if TYPE_CHECKING:
    from ....runtime.llama.model import TinyLoraLlama
    from ....tasks import Sample, Task

_CONTEXT = 512
_COLUMNS = 78


@dataclass(frozen=True, kw_only=True)
class Replayed:
    """The results of a replay, by step.

    Attributes:
        model: name of the file.
        placed: how the model came into the bundle: `hard link`, `reflink` or `copy`.
        key: id of the key that signed the files.
        files: that it signed.
        digest: of the basis.
        fingerprint: of the model.
        frame: the vector on the wire.
        recipe: what was measured when the vector was made.
        answers: of base and vector, on this machine.
        proof: that the base is back.
        text: the vector as text.
        seconds: of all.
    """

    model: str
    placed: str
    key: str
    files: tuple[str, ...]
    digest: str
    fingerprint: str
    frame: Framed
    recipe: Recipe
    answers: list[AnswerPair]
    proof: Proof
    text: str
    seconds: float

    @property
    def fixed(self) -> list[AnswerPair]:
        """The answers that the vector raises."""
        return [pair for pair in self.answers if pair.personalized_reward > pair.base_reward]

    def took(self) -> str:
        """Return how long it took."""
        return f"All of it took {duration(self.seconds)}, and trained nothing."


class Replay:
    """The story of a replay: it runs the steps and tells them.

    Args:
        shipment: what is replayed.
        directory: of the bundle, which `run` makes.
        threads: of everything that computes.
        quiet: tell nothing.
    """

    def __init__(self, shipment: Shipment, directory: Path, *, threads: int, quiet: bool) -> None:
        self._shipment, self._directory, self._quiet = shipment, directory, quiet
        # The same for the plain Llama: only then can the logits be the same, bit for bit.
        self._engine: dict[str, Any] = {
            "n_ctx": _CONTEXT,
            "n_threads": threads,
            "n_threads_batch": threads,
            "verbose": False,
        }

    def run(self, start: float) -> Replayed:
        """Run all steps.

        Args:
            start: `time.perf_counter()` when the command began.

        Raises:
            TrustError: a file is not as the project signed it.
            ExportError: the bundle cannot be written.
            BaseMismatchError: the model is not the one that the basis belongs to.
            DemoError: the vector changed nothing, or the base was not restored bit for bit.
        """
        checked = self._shipment.check()
        recipe = Recipe.read(self._shipment.folder / RECIPE)
        placed = self._shipment.unpack(self._directory)
        bundle = Bundle.find(self._directory)
        fingerprint = bundle.check_base()
        frame = (self._directory / VECTOR).read_bytes()
        framed = dissect(frame, bundle.basis)
        self._say(
            f"1. Unpack: {self._directory} has {self._shipment.model.name} ({placed}), a basis and a vector "
            "that was trained beforehand."
        )
        self._tell(
            f"signed by {checked.key}: {len(checked.files)} files are as they were signed; basis "
            f"{bundle.basis.id} gives its digest, and lists the model's fingerprint, {fingerprint[:16]}..."
        )
        self._say()
        self._say(f"2. The vector: {framed.bytes} bytes, {len(framed.values)} numbers.")
        for line in lines(framed):
            self._say(f"   {line}")
        self._tell(recipe.summary())
        self._tell(recipe.contrast())
        answers, proof = self._ask(recipe, frame)
        self._tell(proof.summary())
        found = Replayed(
            model=self._shipment.model.name,
            placed=placed,
            key=checked.key,
            files=checked.files,
            digest=bundle.basis.digest,
            fingerprint=fingerprint,
            frame=framed,
            recipe=recipe,
            answers=answers,
            proof=proof,
            text=text.encode(frame, scheme=True),
            seconds=time.perf_counter() - start,
        )
        self._hand_on(frame, found)
        return found

    def _ask(self, recipe: Recipe, frame: bytes) -> tuple[list[AnswerPair], Proof]:
        from .... import runtime
        from ....runtime.llama.prompts import encode
        from ....tasks import load_task

        task = load_task(recipe.task, held_out=recipe.held_out.n)
        samples = _samples(task, recipe)
        llm: TinyLoraLlama = runtime.load(self._directory, frame, engine="llama", **self._engine)
        with closing(llm):
            tokens = [encode(llm, sample).tolist() for sample in samples]
            changed = [logits(llm, prompt) for prompt in tokens]
            answers = compare(llm, task, samples, frame)
            self._say()
            self._say("3. Base and vector, greedy answers, now:")
            if not self._quiet:
                show(
                    f"{len(samples)} held-out prompts that the vector fixes; the task is {task.name}", answers
                )
            llm.clear()
            restored = [logits(llm, prompt) for prompt in tokens]
        if (n := sum(pair.personalized_reward > pair.base_reward for pair in answers)) < len(answers):
            self._tell(f"On this machine {n} of them are fixed: another build rounds otherwise.")
        self._say()
        self._say("4. Take it back:")
        plain, _ = plain_logits(self._directory / "base.gguf", tokens, **self._engine)
        return answers, prove(plain, changed, restored)

    def _hand_on(self, frame: bytes, found: Replayed) -> None:
        self._say()
        self._say(f"5. Hand it on: {found.text}")
        if self._quiet:
            return
        try:
            code = qr.make(frame)
        except ImportError as error:
            self._tell(f"As a QR code where segno is: {error}")
            return
        console.stdout().print(qr.drawn(code), soft_wrap=True)

    def _say(self, line: str = "") -> None:
        if not self._quiet:
            console.say(line)

    def _tell(self, sentences: str) -> None:
        for line in textwrap.wrap(sentences, _COLUMNS - 3, break_on_hyphens=False):
            self._say(f"   {line}")


def _samples(task: Task, recipe: Recipe) -> list[Sample]:
    by_text = {sample.text: sample for sample in task.held_out}
    missing = [prompt for prompt in recipe.prompts if prompt not in by_text]
    if missing or not recipe.prompts:
        raise TrustError(
            f"the recipe lists {missing[:1]}, which {task.name} has not: install tinylora-edge again"
        )
    return [by_text[prompt] for prompt in recipe.prompts]
