"""Fixtures of the server's tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
import support
from serving import Serving

from tinylora_edge import Bases, Basis, load_bundle


@pytest.fixture(scope="session")
def tiny(tiny_bundle: Path) -> Path:
    """Whose name is the model's."""
    return tiny_bundle


@pytest.fixture
def memory() -> Iterator[Path]:
    """A folder in memory, for a store, which would not wait for a sync of a busy disk."""
    with support.folder_in_memory() as folder:
        yield Path(folder)


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
