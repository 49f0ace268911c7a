"""How threads wait: what is set before an engine loads, what the user has set, and what is said of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from tinylora_edge import system
from tinylora_edge.runtime import threads

LOADED = """
import dataclasses, json
from tinylora_edge.runtime import threads
{before}
from tinylora_edge.runtime.libraries import import_llama_cpp
import_llama_cpp()
import tinylora_edge.runtime.llama.model
print(json.dumps(dataclasses.asdict(threads.llama_waiting())))
"""

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="asks Linux which libraries are loaded")


def waiting(before: str = "", script: str = LOADED, **variables: str) -> dict[str, Any]:
    """What a new process says of its threads, once llama.cpp is loaded."""
    kept = {name: value for name, value in os.environ.items() if name not in system.OPENMP_VARIABLES}
    done = subprocess.run(
        [sys.executable, "-c", script.format(before=before)],
        env=kept | variables,
        capture_output=True,
        text=True,
        check=True,
    )
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    if result["library"] != "libgomp":
        pytest.skip(f"llama.cpp was built with {result['library']}")
    return result


def test_threads_spin_briefly_by_default() -> None:
    expected = {"policy": "spin briefly", "spin": system.SPIN, "set_by": "tinylora-edge"}
    assert waiting() == {"library": "libgomp", **expected}


def test_what_the_user_has_set_stays() -> None:
    said = waiting(OMP_WAIT_POLICY="passive")
    assert (said["policy"], said["spin"], said["set_by"]) == ("sleep", None, "OMP_WAIT_POLICY")
    said = waiting(OMP_WAIT_POLICY="ACTIVE")
    assert (said["policy"], said["set_by"]) == ("spin", "OMP_WAIT_POLICY")
    said = waiting(GOMP_SPINCOUNT="300000", OMP_WAIT_POLICY="PASSIVE")
    assert (said["policy"], said["spin"], said["set_by"]) == ("spin", 300000, "GOMP_SPINCOUNT")
    said = waiting(GOMP_SPINCOUNT="0")
    assert (said["policy"], said["spin"]) == ("sleep", 0)


def test_a_library_that_was_loaded_before_is_said_to_spin() -> None:
    said = waiting("import ctypes, ctypes.util; ctypes.CDLL('libgomp.so.1')")
    assert (said["policy"], said["spin"]) == ("spin", None)
    assert "loaded before" in said["set_by"]


FIRST = """
import sys
from tinylora_edge.cli import main
sys.argv = ["tinylora-edge", "--help"]
try:
    main()
except SystemExit:
    pass
print("tinylora_edge.runtime" in sys.modules)
{before}
import dataclasses, json
from tinylora_edge.runtime import threads
print(json.dumps(dataclasses.asdict(threads.llama_waiting())))
"""


def test_the_command_line_comes_before_any_openmp() -> None:
    """What `train` and `learn` load first is PyTorch's libgomp, before the runtime could say anything."""
    said = waiting("import torch", script=FIRST)
    assert (said["policy"], said["set_by"]) == ("spin briefly", "tinylora-edge")
    said = waiting("import llama_cpp", script=FIRST, GOMP_SPINCOUNT="300000")
    assert (said["policy"], said["spin"], said["set_by"]) == ("spin", 300000, "GOMP_SPINCOUNT")


def test_help_does_not_wait_for_the_runtime() -> None:
    done = subprocess.run(
        [sys.executable, "-c", FIRST.format(before="raise SystemExit")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines()[-1] == "False"


def test_onnx_runtime_spins_briefly_unless_told_otherwise() -> None:
    said = threads.onnx_waiting()
    assert (said.policy, said.spin, said.set_by) == (
        "spin briefly",
        threads.SPIN_MICROSECONDS,
        "tinylora-edge",
    )
    said = threads.onnx_waiting({"session.intra_op.allow_spinning": "0"})
    assert (said.policy, said.set_by) == ("sleep", "session_options")
    said = threads.onnx_waiting({"intra_op_num_threads": 1})
    assert said.set_by == "tinylora-edge"
