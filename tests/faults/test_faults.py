"""Writers that are killed, and disks that fill up, at every third call that changes a file.

The long form is `make faults`, which disturbs every call, several times (docs/RELIABILITY.md).
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

INJECTION = Path(__file__).with_name("injection.py")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="faults are injected with LD_PRELOAD")
@pytest.mark.skipif(not any(map(shutil.which, ("cc", "gcc", "clang"))), reason="no C compiler")
def test_nothing_that_was_said_to_be_safe_is_lost() -> None:
    command = [sys.executable, str(INJECTION), "--stride", "3"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout, done.stderr
    found = json.loads(done.stdout)
    assert found["losses"] == []
    assert found["kills"] >= 40
    assert found["full disks"] == found["kills"]
    assert found["short reads and writes"] == found["jumping clocks"] >= 11
