"""How an engine's threads wait for each other: spinning, which is quick, or asleep, which leaves the core.

llama.cpp's threads meet after every operation, hundreds of times a token. GNU's OpenMP lets a thread spin
for milliseconds before it sleeps. Where other work wants the cores too, the thread that is waited for is
often not running, and the one that spins takes its time away: each of those meetings then lasts milliseconds.
A short spin finds the other thread where cores are free, and lets go where they are not.

libgomp reads its variables when it is loaded, so `set_waiting` comes before. What the user has set stays.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SPIN = 10_000
"""Rounds that libgomp spins before a thread sleeps, a tenth of a millisecond or so; its default is 300,000.

Of 300 to 30,000 it was about as fast as the default on quiet cores, and faster beside other work
(`benchmarks/busy.py`).
"""

SPIN_MICROSECONDS = 50
"""Time that a thread of ONNX Runtime spins before it sleeps; its own default is milliseconds."""

_BRIEFLY = 30_000  # rounds: half a millisecond
_ALLOW, _LIMIT = "session.intra_op.allow_spinning", "session.intra_op.spin_duration_us"

_VARIABLES = "GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "KMP_BLOCKTIME"
"""What decides how OpenMP's threads wait, the strongest first."""

_OURS, _LATE = "tinylora-edge", "the library, which was loaded before tinylora-edge"

_state = {"late": False}  # whether libgomp had read its variables before anybody could set them


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


def set_waiting() -> None:
    """Let OpenMP's threads spin briefly, in libraries that are loaded from now on.

    Nothing is done where the user has decided, or where it is too late.
    """
    if any(name in os.environ for name in _VARIABLES):
        return
    if _loaded() in ("libgomp", "libomp", "libiomp5"):
        _state["late"] = True
    else:
        os.environ["GOMP_SPINCOUNT"] = str(SPIN)


def llama_waiting() -> Waiting:
    """Return how llama.cpp's threads wait in this process."""
    library = _loaded()
    if library == "ggml":
        return Waiting(library, "spin", None, "the library")
    if _state["late"]:
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


def _loaded() -> str:
    """Return which OpenMP this process has loaded; `ggml` for none, or where the system does not tell."""
    try:
        with open("/proc/self/maps", encoding="utf-8", errors="replace") as maps:
            names = {Path(line.split(maxsplit=5)[-1].strip()).name for line in maps if ".so" in line}
    except OSError:
        return "ggml"
    for library in ("libgomp", "libomp", "libiomp5"):
        if any(name.startswith((f"{library}.", f"{library}-")) for name in names):
            return library
    return "ggml"
