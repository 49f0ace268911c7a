"""How an engine's threads wait for each other: spinning, which is quick, or asleep, which leaves the core.

llama.cpp's threads meet after every operation, hundreds of times a token. GNU's OpenMP lets a thread spin
for milliseconds before it sleeps. Where other work wants the cores too, the thread that is waited for is
often not running, and the one that spins takes its time away: each of those meetings then lasts milliseconds.
A short spin finds the other thread where cores are free, and lets go where they are not.

libgomp reads its variables when it is loaded, so `system.set_waiting` comes before: the command line calls
it first of all, and the folder of llama.cpp when it is imported. What the user has set stays.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..system import SPIN, loaded_openmp, openmp_was_late

SPIN_MICROSECONDS = 50
"""Time that a thread of ONNX Runtime spins before it sleeps; its own default is milliseconds."""

_BRIEFLY = 30_000  # rounds: half a millisecond
_ALLOW, _LIMIT = "session.intra_op.allow_spinning", "session.intra_op.spin_duration_us"

_OURS, _LATE = "tinylora-edge", "the library, which was loaded before tinylora-edge"


@dataclass(frozen=True)
class Waiting:
    """How the threads of an engine wait for each other.

    Attributes:
        library: whose threads they are: `libgomp`, `libomp`, `libiomp5`, `onnxruntime`, or `ggml` where
            llama.cpp is not loaded, or was built without OpenMP.
        policy: `sleep`, `spin briefly`, or `spin`.
        spin: how long before they sleep: rounds of libgomp, microseconds of ONNX Runtime. None where the
            library's own default holds.
        set_by: `tinylora-edge`, the environment variable in force, `session_options`, or `the library` and
            why.
    """

    library: str
    policy: str
    spin: int | None
    set_by: str


def llama_waiting() -> Waiting:
    """Return how llama.cpp's threads wait in this process."""
    library = loaded_openmp() or "ggml"
    if library == "ggml":
        return Waiting(library, "spin", None, "the library")
    if openmp_was_late():
        return Waiting(library, "spin", None, _LATE)
    rounds = os.environ.get("GOMP_SPINCOUNT", "")
    if library == "libgomp" and rounds:
        set_by = _OURS if rounds == str(SPIN) else "GOMP_SPINCOUNT"
        count = int(rounds) if rounds.isdecimal() else None
        briefly = count is not None and count <= _BRIEFLY
        return Waiting(library, ("spin briefly" if count else "sleep") if briefly else "spin", count, set_by)
    asked = os.environ.get("OMP_WAIT_POLICY", "").strip().lower()
    if asked in ("passive", "active"):
        return Waiting(library, "sleep" if asked == "passive" else "spin", None, "OMP_WAIT_POLICY")
    return Waiting(library, "spin", None, "KMP_BLOCKTIME" if "KMP_BLOCKTIME" in os.environ else "the library")


def onnx_waiting(session_options: Mapping[str, Any] | None = None) -> Waiting:
    """Return how ONNX Runtime's threads wait in a model with these options of a session."""
    options = {**onnx_options(), **(session_options or {})}
    set_by = "session_options" if any(name in (session_options or {}) for name in (_ALLOW, _LIMIT)) else _OURS
    if str(options.get(_ALLOW)) == "0":
        return Waiting("onnxruntime", "sleep", 0, set_by)
    if (limit := str(options.get(_LIMIT, ""))).isdecimal():
        return Waiting("onnxruntime", "spin briefly", int(limit), set_by)
    return Waiting("onnxruntime", "spin", None, set_by)


def onnx_options() -> dict[str, str]:
    """Return the options of a session that let ONNX Runtime's threads spin briefly."""
    return {_LIMIT: str(SPIN_MICROSECONDS)}
