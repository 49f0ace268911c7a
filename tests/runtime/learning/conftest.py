"""Fixtures of the tests of tuning."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tinylora_edge.runtime import TinyLoraLlama


@pytest.fixture
def llm(load: Callable[..., TinyLoraLlama], tiny_bundle: Path) -> Iterator[TinyLoraLlama]:
    opened = load(tiny_bundle)
    yield opened
    opened.close()
