"""Fixtures of the tests of shipping."""

from __future__ import annotations

import sys

import pytest


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    import tinylora_edge.shipping  # whose face has a function of the module's name

    monkeypatch.setattr(sys.modules[f"{tinylora_edge.shipping.__name__}.fetch"], "_BACKOFF_S", 0.01)
