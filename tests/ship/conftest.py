"""What the tests of shipping share: the command line in this process, as tests/cli runs it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

sys.path.insert(0, str(Path(__file__).parent.parent / "cli"))

from commands import Cli, Outcome


@pytest.fixture
def cli() -> Cli:
    """Run a command in this process: cli("fetch", url, basis, stdin=b"")."""
    from tinylora_edge.cli._app import app

    def run(*args: object, stdin: bytes = b"") -> Outcome:
        result = CliRunner().invoke(app, [str(arg) for arg in args], input=stdin)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return Outcome(result.exit_code, result.stdout_bytes, result.stderr)

    return run
