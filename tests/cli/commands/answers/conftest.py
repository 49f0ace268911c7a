"""Fixtures of the commands that answer: the library to compare them with, and vectors."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tinylora_edge import MicroVector, runtime


@pytest.fixture(scope="module")
def llm(smollm2_bundle: Path) -> Iterator[runtime.TinyLoraLlama]:
    """What the command's answers are compared with; made with the command's defaults."""
    with_defaults = runtime.load(smollm2_bundle, n_ctx=2048, n_threads=1, n_threads_batch=1)
    yield with_defaults
    with_defaults.close()


@pytest.fixture
def answer(llm: runtime.TinyLoraLlama) -> Callable[..., str]:
    """Return the library's greedy answer to a conversation under a vector."""

    def ask(vector: MicroVector | None, *turns: str, system: str | None = None, **options: Any) -> str:
        llm.clear()
        if vector is not None:
            llm.swap(vector)
        messages = [{"role": "system", "content": system}] if system else []
        for number, text in enumerate(turns):
            messages.append({"role": ("user", "assistant")[number % 2], "content": text})
        options = {"max_tokens": 12, "temperature": 0.0, **options}
        response: Any = llm.create_chat_completion(messages, **options)
        text = response["choices"][0]["message"]["content"]
        assert isinstance(text, str)
        return text

    return ask


@pytest.fixture(scope="module")
def tiny_chat_bundle(tiny_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of a small model that renders chat messages, but none of a system: answers can be scored."""
    template = (
        "{% for message in messages %}{% if message.role == 'system' %}"
        "{{ raise_exception('System role not supported') }}{% endif %}{{ message.content }}~{% endfor %}"
    )
    folder = tmp_path_factory.mktemp("chat")
    command = [sys.executable, "-m", "gguf.scripts.gguf_new_metadata", "--chat-template", template]
    subprocess.run([*command, tiny_gguf, folder / "chat.gguf"], check=True, capture_output=True)
    from tinylora_edge.exporters.gguf import export_gguf

    return export_gguf(folder / "chat.gguf", folder / "bundle").output


@pytest.fixture(scope="module")
def vectors(
    smollm2_bundle: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[Path, MicroVector]]:
    """Vectors as files that `vector new` could have written."""
    from tinylora_edge import load_basis

    basis = load_basis(smollm2_bundle / "basis.gguf")
    directory = tmp_path_factory.mktemp("vectors")
    made = {}
    for name, seed in (("one", 0), ("two", 8)):
        vector = MicroVector.random(basis, 0.3, seed=seed, dtype="bf16")
        (directory / f"{name}.bin").write_bytes(vector.to_bytes(basis))
        made[name] = (directory / f"{name}.bin", vector)
    return made
