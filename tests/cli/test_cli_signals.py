"""Commands that are killed: nothing, or something whole, and the next one works. Streams that are closed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import support
from invocation import Cli, write_vector

Start = Callable[..., "subprocess.Popen[bytes]"]


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)]
)
def test_an_answer_that_is_interrupted(start: Start, smollm2_bundle: Path, number: int, code: int) -> None:
    words = ("Tell me a very long story.", "--threads", 1, "--max-tokens", 0)
    child = start("run", smollm2_bundle, *words)
    assert child.stdout is not None
    assert os.read(child.stdout.fileno(), 65536)
    child.send_signal(number)
    _, stderr = child.communicate(timeout=60)
    assert (child.returncode, support.without_progress(stderr.decode())) == (code, "")


@pytest.mark.parametrize(
    ("number", "work"),
    [  # a backward pass of a long answer, for which Python waits; a module written in C that is imported
        (signal.SIGTERM, "with ThreadPoolExecutor() as pool: pool.submit(time.sleep, 600).result()"),
        (signal.SIGINT, "try: time.sleep(600)\n    except KeyboardInterrupt: raise RuntimeError"),
    ],
)
def test_work_that_no_exception_ends_well(start: Start, number: int, work: str) -> None:
    code = (
        "import time\nfrom concurrent.futures import ThreadPoolExecutor\nfrom tinylora_edge.cli import app\n"
        f"def train():\n    print('working', flush=True)\n    {work}\n"
        "app.app = train\napp.run()\n"
    )
    child = start("-c", code, program=(sys.executable,))
    assert child.stdout is not None
    assert os.read(child.stdout.fileno(), 65536)
    child.send_signal(number)
    _, stderr = child.communicate(timeout=120)
    assert (child.returncode, stderr) == (128 + number, b"")


@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 1, 2)])
def test_a_closed_stream_is_refused(process: Cli, small: Path, tmp_path: Path, closed: tuple[int]) -> None:
    vector = write_vector(tmp_path / "v.bin", small)
    pack = ("pack", vector, small, "-o", tmp_path / "w.bin")
    found = process(*pack, preexec_fn=lambda: [os.close(number) for number in closed])
    assert found.code == 1
    assert not (tmp_path / "w.bin").exists()
    if 2 not in closed:
        found.refused("is closed")
