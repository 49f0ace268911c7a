"""A model as a state machine: whatever is done in whatever order, what comes out is what a plain model says.

The model of the model is small. It has a vector or none, unfinished streams with what they have said, and is
open or closed. Answers are known from models that were loaded with one vector and never exchanged it. The
long form is `make machine`, a profile of hypothesis with more and longer runs (docs/RELIABILITY.md).
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import models
import numpy as np
import onnx_bundles
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from turns import PATIENCE, start

from tinylora_edge import BusyError, MicroVector, Policy, RollbackError, TinyLoraError, VectorError, runtime
from tinylora_edge.exporters import ExportSettings, export_gguf
from tinylora_edge.runtime.llama.batch import Batch
from tinylora_edge.runtime.llama.token_batch import Generation

OPTIONS: dict[str, Any] = {"n_ctx": 64, "n_threads": 1}
LLAMA: dict[str, Any] = {"n_threads_batch": 1, "verbose": False, "logits_all": True}
PROMPTS = ("abc def", "xyz")
LENGTH = 6
VECTORS = 3


@cache
def bundle(engine: str) -> Path:
    """The small random model of an engine. It stays as long as this process."""
    if engine == "onnx":
        return onnx_bundles.tiny()
    where = tempfile.TemporaryDirectory(prefix="tinylora-machine-")
    _kept.append(where)
    base = models.write_gguf(models.tiny_model("llama"), Path(where.name) / "tiny.gguf")
    return export_gguf(base, Path(where.name) / "bundle", settings=ExportSettings(groups=5)).output


_kept: list[tempfile.TemporaryDirectory[str]] = []


def load(engine: str, vector: bytes | None = None) -> Any:
    options = OPTIONS | (LLAMA if engine == "llama" else {})
    return runtime.load(bundle(engine), vector, policy=Policy("checksum"), **options)


def say(llm: Any, prompt: str, **options: Any) -> Any:
    return llm(prompt, max_tokens=LENGTH, temperature=0.0, **options)


def text(chunks: Any) -> str:
    return "".join(chunk["choices"][0]["text"] for chunk in chunks)


@cache
def frames(engine: str) -> tuple[bytes, ...]:
    with load(engine) as llm:
        basis = llm.basis
    return tuple(
        MicroVector(MicroVector.random(basis, 0.8, seed=n).values, sequence=n + 1).to_bytes(basis)
        for n in range(VECTORS)
    )


@cache
def answers(engine: str) -> dict[tuple[int | None, str], str]:
    """What models say that were loaded with one vector, or None, and are never exchanged."""
    found = {}
    for number in (None, *range(VECTORS)):
        with load(engine, None if number is None else frames(engine)[number]) as llm:
            for prompt in PROMPTS:
                found[number, prompt] = str(say(llm, prompt)["choices"][0]["text"])
    return found


def batch_says(batch: Batch, prompt: str) -> Generation:
    return batch.generate([batch.llm.tokenize(prompt.encode())], max_tokens=LENGTH)[0]


@cache
def batch_answers() -> dict[tuple[int, str], list[int]]:
    """What batches say that have had one vector alone."""
    found = {}
    with load("llama") as llm:
        for number, frame in enumerate(frames("llama")):
            for prompt in PROMPTS:
                with Batch(llm, n_ctx_seq=32, sequences=2, n_threads=1) as batch:
                    batch.swap(MicroVector.from_bytes(frame, llm.basis))
                    found[number, prompt] = batch_says(batch, prompt).tokens.tolist()
    return found


def elsewhere(function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """Call in a thread of its own, which must end."""
    return start(function, *arguments, **options).result(PATIENCE)


class Machine(RuleBasedStateMachine):
    """One model, driven by one thread and now and then by another."""

    engine = "llama"

    @initialize()
    def begin(self) -> None:
        self.expected, self.frames = answers(self.engine), frames(self.engine)
        self.llm, self.active, self.highest = load(self.engine), None, 0
        self.stream: Any = None  # the one that has begun, with its prompt and what it has said
        self.prompt, self.said = "", ""

    def teardown(self) -> None:
        if hasattr(self, "llm"):
            self.stream = None
            self.llm.close()

    @rule(number=st.integers(0, VECTORS - 1), other=st.booleans())
    def swap(self, number: int, other: bool) -> None:
        frame = self.frames[number]
        if self.stream is not None:
            with pytest.raises(BusyError):
                elsewhere(self.llm.swap, frame, wait=False)
            return
        swap = self.llm.swap
        if number + 1 < self.highest:
            with pytest.raises(RollbackError):
                swap(frame)
            return
        assert (elsewhere(swap, frame) if other else swap(frame)).sequence == number + 1
        self.active = self.highest = number + 1

    @rule(damage=st.integers(0, 400), other=st.booleans())
    def swap_damaged(self, damage: int, other: bool) -> None:
        if self.stream is not None:
            return
        data = bytearray(self.frames[0])
        data[damage % len(data)] ^= 1 << damage % 8
        with pytest.raises(VectorError):
            elsewhere(self.llm.swap, bytes(data)) if other else self.llm.swap(bytes(data))

    @rule()
    def swap_exploding(self) -> None:
        if self.stream is not None:
            return
        before = self.llm.vector
        with self.llm.using(self._huge()), suppress(TinyLoraError):  # which ONNX Runtime's side raises
            say(self.llm, PROMPTS[0])
        assert self.llm.vector == before

    @rule()
    def clear(self) -> None:
        if self.stream is None:
            self.llm.clear()
            self.active = None

    @rule(prompt=st.sampled_from(PROMPTS), other=st.booleans())
    def generate(self, prompt: str, other: bool) -> None:
        found = elsewhere(say, self.llm, prompt) if other else say(self.llm, prompt)
        assert found["choices"][0]["text"] == self.expected[self._number, prompt]
        self._ahead()

    @rule(number=st.integers(0, VECTORS - 1), prompt=st.sampled_from(PROMPTS), other=st.booleans())
    def using(self, number: int, prompt: str, other: bool) -> None:
        if self.stream is not None:
            return
        basis = self.llm.basis
        vector = MicroVector.from_bytes(self.frames[number], basis)

        def block() -> str:
            with self.llm.using(MicroVector(vector.values)):
                half = say(self.llm, PROMPTS[1], stream=True)
                next(half)  # which the block's end ends
                return str(say(self.llm, prompt)["choices"][0]["text"])

        assert (elsewhere(block) if other else block()) == self.expected[number, prompt]

    @precondition(lambda self: self.stream is None)
    @rule(prompt=st.sampled_from(PROMPTS), other=st.booleans())
    def begin_stream(self, prompt: str, other: bool) -> None:
        self.stream, self.prompt, self.said = say(self.llm, prompt, stream=True), prompt, ""
        self._step(other)

    @precondition(lambda self: self.stream is not None)
    @rule(other=st.booleans(), steps=st.integers(1, LENGTH + 2))
    def step(self, other: bool, steps: int) -> None:
        for _ in range(steps):
            if self.stream is not None:
                self._step(other)

    @precondition(lambda self: self.stream is not None)
    @rule(drop=st.booleans(), other=st.booleans())
    def abandon(self, drop: bool, other: bool) -> None:
        stream, self.stream = self.stream, None
        assert self.expected[self._number, self.prompt].startswith(self.said)
        if not drop:
            elsewhere(stream.close) if other else stream.close()

    @precondition(lambda self: self.engine == "llama")
    @rule(number=st.integers(0, VECTORS - 1), prompt=st.sampled_from(PROMPTS), explode=st.booleans())
    def batch(self, number: int, prompt: str, explode: bool) -> None:
        """A batch has contexts and a vector of its own, whatever streams of the model are unfinished."""
        with Batch(self.llm, n_ctx_seq=32, sequences=2, n_threads=1) as batch:
            if explode:
                batch.swap(self._huge())
                assert batch_says(batch, prompt).exploded
            batch.swap(MicroVector.from_bytes(self.frames[number], self.llm.basis))
            assert batch_says(batch, prompt).tokens.tolist() == batch_answers()[number, prompt]
        with pytest.raises(TinyLoraError):
            batch_says(batch, prompt)

    @rule()
    def close_and_load_again(self) -> None:
        stream, self.stream = self.stream, None
        self.llm.close()
        with pytest.raises(TinyLoraError):
            say(self.llm, PROMPTS[0])
        if stream is not None:
            with pytest.raises(TinyLoraError):
                next(stream)
        self.llm, self.active, self.highest = load(self.engine), None, 0

    def _huge(self) -> MicroVector:
        return MicroVector(np.full((self.llm.basis.groups, self.llm.basis.u), 3e38, np.float32))

    @property
    def _number(self) -> int | None:
        return None if self.active is None else self.active - 1

    def _step(self, other: bool) -> None:
        chunk = elsewhere(next, self.stream, None) if other else next(self.stream, None)
        if chunk is None:
            assert self.said == self.expected[self._number, self.prompt]
            self.stream = None
        else:
            self.said += chunk["choices"][0]["text"]

    def _ahead(self) -> None:
        """After another generation, a stream that had begun is generated to its end, and kept."""
        if self.stream is not None:
            rest = text(self.stream)
            assert self.said + rest == self.expected[self._number, self.prompt]
            self.stream = None


class OnnxMachine(Machine):
    engine = "onnx"


def run_as_test(machine: type[Machine]) -> Any:
    case = machine.TestCase
    if settings.get_current_profile_name() == "suite":
        case.settings = settings(
            max_examples=12,
            stateful_step_count=25,
            deadline=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        )
    return case


TestLlama = run_as_test(Machine)
TestOnnx = run_as_test(OnnxMachine)
