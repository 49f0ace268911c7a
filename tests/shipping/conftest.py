"""What the tests of shipping share: the command line in this process, as tests/cli runs it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "cli"))

from invocation import Cli, in_process


@pytest.fixture
def cli() -> Cli:
    """Run a command in this process: cli("fetch", url, basis, stdin=b"")."""
    return in_process()
