"""How threads wait: what is set before an engine loads, what the user has set, and what is said of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

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


def waiting(before: str = "", **variables: str) -> dict[str, Any]:
    """What a new process says of its threads, once llama.cpp is loaded."""
    kept = {name: value for name, value in os.environ.items() if name not in threads._VARIABLES}
    script = LOADED.format(before=before)
    done = subprocess.run(
        [sys.executable, "-c", script], env=kept | variables, capture_output=True, text=True, check=True
    )
    result: dict[str, Any] = json.loads(done.stdout)
    if result["library"] != "libgomp":
        pytest.skip(f"llama.cpp was built with {result['library']}")
    return result


def test_threads_spin_briefly_by_default() -> None:
    expected = {"policy": "spin briefly", "spin": threads.SPIN, "set_by": "tinylora-edge"}
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
