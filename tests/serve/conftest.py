"""Fixtures of the server's tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import models
import openai
import pytest
import shared
from serving import Serving

from tinylora_edge import Bases, Basis, load_bundle


@pytest.fixture(scope="session")
def tiny() -> Path:
    def make(path: Path) -> Path:
        path.mkdir()
        gguf = models.write_gguf(models.tiny_model("llama"), path / "tiny.gguf")
        return shared.export(gguf, path / "tiny")

    return shared.once("served", make)


@pytest.fixture(scope="module")
def bases(tiny: Path) -> Bases:
    return load_bundle(tiny).bases


@pytest.fixture(scope="module")
def basis(bases: Bases) -> Basis:
    return bases.basis(numbers=13)


@pytest.fixture(scope="module")
def client(server: Serving) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=server.url, api_key="none", max_retries=0, timeout=120) as made:
        yield made
