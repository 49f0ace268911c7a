"""Threads: how many the environment asks for, and how they wait for each other."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping

from ...runtime.threads import llama_waiting
from ...system import SPIN, cores
from .finding import FAULT, NOTE, OK, Finding

CHECK = "threads"

_WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
_POLICIES = ("ACTIVE", "PASSIVE")


def check(environment: Mapping[str, str] = os.environ) -> Iterator[Finding]:
    """Yield what is set for OpenMP, whose threads llama.cpp and PyTorch compute with.

    The number is for PyTorch alone: llama.cpp says how many threads it wants each time.
    """
    number = environment.get("OMP_NUM_THREADS", "")
    first = number.partition(",")[0].strip()
    if number and not (first.isdecimal() and int(first)):
        text = f"OMP_NUM_THREADS is {number!r}, which is no number of threads"
        yield Finding(CHECK, FAULT, text, "unset OMP_NUM_THREADS")
    elif number and int(first) > cores():
        text = f"OMP_NUM_THREADS is {number}, on {cores()} cores: PyTorch's threads may wait for each other. "
        text += "Engines do not read it: their number is --threads N, in Python n_threads=N"
        yield Finding(CHECK, NOTE, text, f"export OMP_NUM_THREADS={cores()}")
    policy = environment.get("OMP_WAIT_POLICY", "")
    if policy and policy.strip().upper() not in _POLICIES:
        text = f"OMP_WAIT_POLICY is {policy!r}, and OpenMP knows {' and '.join(_POLICIES)}: it is ignored"
        yield Finding(CHECK, FAULT, text, "export OMP_WAIT_POLICY=PASSIVE")
        return
    waiting = llama_waiting()
    said = ", ".join(f"{name}={environment[name]}" for name in _WAITING if environment.get(name))
    if policy.strip().upper() == "ACTIVE":
        text = f"OpenMP's threads spin while they wait ({said}), which is slow beside other work"
        yield Finding(CHECK, NOTE, text, "unset OMP_WAIT_POLICY")
    elif said:
        yield Finding(CHECK, OK, f"how OpenMP's threads wait was set: {said}")
    else:
        spin = f"{waiting.spin or SPIN:,}"
        yield Finding(CHECK, OK, f"OpenMP's threads spin {spin} rounds while they wait, then sleep")
