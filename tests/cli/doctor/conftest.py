"""What the tests of `doctor` share: an environment that sets nothing, and one check that finds a fault."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from invocation import Cli

from tinylora_edge.cli.doctor.finding import FAULT


@pytest.fixture(autouse=True)
def quiet_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What the tests run in sets some of what is looked at, and the hub is not to be asked."""
    for name in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"):
        monkeypatch.delenv(name, raising=False)
    for name in ("HF_ENDPOINT", "HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def fault(cli: Cli) -> Callable[..., tuple[str, str]]:
    """Run one check, in which there has to be one fault; return what it says and what mends it."""

    def run(check: str, *args: object) -> tuple[str, str]:
        done = cli("doctor", *args, "--check", check, "--json")
        assert done.code == 1, (done.stdout_bytes, done.stderr)
        record = json.loads(done.stdout_bytes)
        (found,) = [one for one in record["findings"] if one["level"] == FAULT]
        assert record["faults"] == 1
        assert found["check"] == check
        return found["text"], found["mend"]

    return run
