"""JavaScript packages for tests: those of `examples/browser`, at the versions and hashes of its lock file."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "examples" / "browser"
_FILES = ("package.json", "package-lock.json")
_SECONDS = 300


def node_modules() -> Path:
    """Return a folder with the packages, brought into this environment once; skip where npm cannot.

    Several processes may ask at once: each brings its own, and the first that is done names it.
    """
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("node and npm are not installed")
    wanted = hashlib.sha256(b"".join((FOLDER / name).read_bytes() for name in _FILES)).hexdigest()
    home = Path(sys.prefix) / f"node-{wanted[:16]}"
    if not home.exists():
        with tempfile.TemporaryDirectory(prefix="node-", dir=sys.prefix, ignore_cleanup_errors=True) as work:
            made = Path(work) / "made"
            made.mkdir()
            for name in _FILES:
                shutil.copy(FOLDER / name, made)
            _install(made)
            try:
                made.rename(home)
            except OSError:
                if not home.exists():  # another process was first, or the disk is at fault
                    raise
    return home / "node_modules"


def _install(folder: Path) -> None:
    # Nothing that a package would run is run: what is needed are files.
    command = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            env=os.environ | {"npm_config_update_notifier": "false"},
            capture_output=True,
            text=True,
            check=False,
            timeout=_SECONDS,
        )
    except subprocess.TimeoutExpired:
        pytest.skip(f"npm did not bring the packages within {_SECONDS} s")
    if done.returncode:
        said = " ".join(done.stderr.split())[-300:]
        # A package of another content than the lock file's is a fault, and no missing network.
        assert "EINTEGRITY" not in said, said
        pytest.skip(f"npm cannot bring the packages: {said}")
