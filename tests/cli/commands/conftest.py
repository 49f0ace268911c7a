"""Fixtures that the tests of several commands share: a small basis, a vector for it, and a key."""

from __future__ import annotations

from pathlib import Path

import pytest
import support
from invocation import Cli

from tinylora_edge import Basis, save_basis


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A basis of 13 values in a file."""
    path = tmp_path_factory.mktemp("small") / "small.basis.gguf"
    save_basis(support.random_basis(blocks=5, groups=13), path)
    return path


@pytest.fixture(scope="module")
def small_basis() -> Basis:
    return support.random_basis(blocks=5, groups=13)


@pytest.fixture
def trained(cli: Cli, small: Path, tmp_path: Path) -> Path:
    """What `train` leaves: 13 fp32 values under a checksum."""
    path = tmp_path / "trained.bin"
    cli("vector", "new", small, "-o", path, "--random", 0.3, "--sequence", 3).done()
    return path


@pytest.fixture
def key(cli: Cli, tmp_path: Path) -> Path:
    cli("keygen", tmp_path / "fleet.key").done()
    return tmp_path / "fleet.key"
