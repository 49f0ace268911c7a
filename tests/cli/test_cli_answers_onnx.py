"""`run` and `chat` on a bundle with an ONNX graph."""

from __future__ import annotations

from pathlib import Path

import onnx_bundles
import pytest
from invocation import Cli

from tinylora_edge import MicroVector, runtime
from tinylora_edge.cli import console

SHORT = ("--max-tokens", 12, "--threads", 1, "--n-ctx", 200)


@pytest.fixture
def bundle() -> Path:
    return onnx_bundles.tiny()


@pytest.fixture
def vector(bundle: Path, tmp_path: Path) -> tuple[Path, MicroVector]:
    (made,) = onnx_bundles.vectors(bundle, 1)
    path = tmp_path / "v.bin"
    path.write_bytes(made.to_bytes(onnx_bundles.basis(bundle)))
    return path, made


def answer(bundle: Path, vector: MicroVector | None, *turns: str) -> str:
    llm = runtime.load(bundle, vector, engine="onnx", n_ctx=200, n_threads=1)
    messages, text = [], ""
    for turn in turns:
        messages.append({"role": "user", "content": turn})
        found = llm.create_chat_completion(messages, max_tokens=12, temperature=0.0, seed=0)
        text = found["choices"][0]["message"]["content"]
        messages.append({"role": "assistant", "content": text})
    return text


def test_run(cli: Cli, bundle: Path, vector: tuple[Path, MicroVector]) -> None:
    path, made = vector
    base = cli("run", bundle, "Hello", *SHORT).done()
    ours = cli("run", bundle, "Hello", "--vector", path, *SHORT).done()
    for printed, by in ((base, None), (ours, made)):
        assert printed.rstrip("\n") == console.harmless(answer(bundle, by, "Hello")).rstrip("\n")
    assert base != ours
    record = cli("run", bundle / "onnx", "Hello", "--vector", path, "--json", *SHORT).record()
    assert record["text"] == answer(bundle, made, "Hello")
    assert record["vector"]["norm"] == made.norm


def test_the_engine_may_be_chosen(cli: Cli, bundle: Path, smollm2_bundle: Path) -> None:
    assert cli("run", bundle, "Hello", "--engine", "onnx", *SHORT).done()
    cli("run", bundle, "Hello", "--engine", "llama").refused("lacks a GGUF base")
    cli("chat", smollm2_bundle, "--engine", "onnx", stdin=b"").refused("lacks an ONNX graph")
    cli("run", bundle, "Hello", "--engine", "vllm").misused("--engine")
