"""What the processor can do: its instruction sets, by the names that Linux has for them.

Libraries that were built for instructions that a processor lacks end the process that uses them (SIGILL), so
that it has to be asked before they are loaded.
"""

from __future__ import annotations

import re
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")

_MACOS = {
    "hw.optional.neon": "asimd",
    "hw.optional.arm.FEAT_FP16": "asimdhp",
    "hw.optional.arm.FEAT_DotProd": "asimddp",
    "hw.optional.arm.FEAT_I8MM": "i8mm",
    "hw.optional.arm.FEAT_SME": "sme",
    "hw.optional.avx2_0": "avx2",
    "hw.optional.avx512f": "avx512f",
}
_MACOS_INTEL = {
    "SSE3": "pni",
    "SSSE3": "ssse3",
    "AVX1.0": "avx",
    "AVX2": "avx2",
    "FMA": "fma",
    "F16C": "f16c",
    "BMI2": "bmi2",
    "AVX512F": "avx512f",
}


def flags(cpuinfo: Path = CPUINFO) -> set[str]:
    """Return what the processor can do, by Linux's names; nothing where the system does not say.

    Windows is not asked: it says AVX2, and nothing of FMA, F16C and BMI2.

    Args:
        cpuinfo: what Linux says of it.
    """
    if sys.platform == "darwin":
        return _sysctl()
    with suppress(OSError):
        text = cpuinfo.read_text("utf-8", errors="replace")
        found = re.search(r"^(?:flags|Features)\s*:\s*(.*)$", text, re.MULTILINE)
        return set(found[1].split()) if found else set()
    return set()


def _sysctl() -> set[str]:
    with suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(["sysctl", "-a"], capture_output=True, text=True, timeout=10, check=True)
        pairs = (line.partition(": ") for line in done.stdout.splitlines())
        values = {name: value for name, _, value in pairs}
        found = {flag for name, flag in _MACOS.items() if values.get(name) == "1"}
        features = values.get("machdep.cpu.features", "") + " " + values.get("machdep.cpu.leaf7_features", "")
        return found | {_MACOS_INTEL[word] for word in features.split() if word in _MACOS_INTEL}
    return set()
