"""Fixtures of the runtime's tests: bundles of a small random model and of the real one in F32."""

from __future__ import annotations

import asyncio
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import llama_cpp
import onnx_bundles
import onnxruntime
import pytest
import support

from tinylora_edge import Basis, MicroVector, load_bundle, runtime
from tinylora_edge.formats.side_tensors import save_bases
from tinylora_edge.runtime import Pool, TinyLoraLlama, TinyLoraOnnx
from tinylora_edge.runtime.loop import Generating
from tinylora_edge.runtime.model import PersonalizedModel

# One thread: llama.cpp's threads spin while they wait, which on a busy machine costs more than it saves.
OPTIONS = {"n_ctx": 256, "n_threads": 1, "n_threads_batch": 1, "logits_all": True, "verbose": False}


@pytest.fixture(scope="session")
def tiny_bundle(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny one, and 12 learned directions, which are random. Never write to it."""
    folder = Path(shutil.copytree(tiny_bundle, tmp_path_factory.mktemp("tiny-bundle") / "bundle"))
    bases = load_bundle(folder).bases
    save_bases(bases.with_projection(support.learned(bases.factors, 12, prior=False)), folder / "basis.gguf")
    return folder


@pytest.fixture
def basis(tiny_bundle: Path) -> Basis:
    return load_bundle(tiny_bundle).basis(numbers=13)


@pytest.fixture
def vector(basis: Basis) -> MicroVector:
    return MicroVector.random(basis, 0.5, seed=1)


@pytest.fixture
def load() -> Callable[..., TinyLoraLlama]:
    return lambda base, vector=None, **options: runtime.load(base, vector, **{**OPTIONS, **options})


@pytest.fixture
def load_plain() -> Callable[..., llama_cpp.Llama]:
    return lambda bundle, **options: llama_cpp.Llama(str(bundle / "base.gguf"), **{**OPTIONS, **options})


@pytest.fixture
def llama(load: Callable[..., TinyLoraLlama], tiny_bundle: Path) -> Iterator[TinyLoraLlama]:
    with load(tiny_bundle) as opened:
        yield opened


@pytest.fixture
def onnx() -> Iterator[TinyLoraOnnx]:
    with runtime.load(onnx_bundles.tiny(), engine="onnx", n_ctx=256, n_threads=1) as opened:
        yield opened


@pytest.fixture
def engine_starts(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The files that either engine has begun to load."""
    started: list[Any] = []

    def watch(owner: Any, name: str) -> None:
        real = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda path, *a, **k: started.append(path) or real(path, *a, **k))

    watch(llama_cpp.llama_cpp, "llama_model_load_from_file")
    watch(onnxruntime, "InferenceSession")
    return started


@pytest.fixture(params=["llama", "onnx"])
def llm(request: pytest.FixtureRequest) -> PersonalizedModel:
    """A tiny model on each engine: `llama` and `onnx`, which a module may have its own of."""
    found: PersonalizedModel = request.getfixturevalue(request.param)
    return found


@pytest.fixture(params=["llama_pool", "onnx_pool"])
def pool(request: pytest.FixtureRequest) -> Pool:
    """A pool on each engine: fixtures of the module."""
    found: Pool = request.getfixturevalue(request.param)
    return found


class Held:
    def __init__(self) -> None:
        self.here, self.free = threading.Event(), threading.Event()

    async def reached(self) -> None:
        assert await asyncio.to_thread(self.here.wait, 60)


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    @contextmanager
    def hold(user: str, after: int = 0) -> Iterator[Held]:
        at, real = Held(), Generating.take

        def take(self: Generating, logits: Any) -> None:
            if self.who.tenant == user and len(self.answer) >= after:
                at.here.set()
                assert at.free.wait(60)
            real(self, logits)

        with monkeypatch.context() as patched:
            patched.setattr(Generating, "take", take)
            try:
                yield at
            finally:
                at.free.set()

    return hold
