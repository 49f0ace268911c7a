"""`doctor`: what is missing or broken in an installation, and the command that mends it."""

from __future__ import annotations

import importlib.metadata as metadata
import platform
import re
import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import typer
from rich.text import Text

from ..version import __version__
from . import console
from . import options as opts

OK, NOTE, FAULT = "ok", "note", "fault"
_STYLES = {OK: "green", NOTE: "yellow", FAULT: "bold red"}
_DISTRIBUTION = "tinylora-edge"
_OURS = {"all", "dev"}  # extras that are others together, or for who changes this package
_REQUIREMENT = re.compile(r"(?P<package>[A-Za-z0-9._-]+).*;.*extra\s*==\s*['\"](?P<extra>[^'\"]+)")
_ENGINES = {"llama": ("llama.cpp", "llama-cpp-python"), "onnx": ("ONNX Runtime", "onnxruntime")}
_SECONDS = 120  # after which an engine that says nothing is given up: a tiny model takes two


@dataclass(frozen=True)
class Finding:
    """A thing that was looked at, what was found, and the command that mends it. A `note` may not matter."""

    check: str
    level: str
    text: str
    mend: str = ""


def doctor(as_json: opts.JsonOption = False) -> None:
    """Say what is missing or wrong in this installation, and the command that mends it.

    It looks at Python and the extras, and lets each engine compute in a process of its own. A fault makes the
    exit code 1. A bundle is checked by inspect.

    \b
    Example:
      tinylora-edge doctor
    """
    found = []
    for finding in look():
        found.append(finding)
        if not as_json:
            line = Text(f"{finding.level:<6}", _STYLES[finding.level]).append(f"{finding.check:<8} ", "dim")
            text = " ".join(console.harmless(finding.text).splitlines())
            console.stdout().print(line.append(text, "not dim default"), soft_wrap=True)
            if finding.mend:
                console.say(f"{'':<15}$ {finding.mend}")
    faults, notes = (sum(finding.level == level for finding in found) for level in (FAULT, NOTE))
    record = {"faults": faults, "notes": notes, "findings": [asdict(one) for one in found]}
    console.report(record, as_json, f"{console.counted(faults, 'fault')}, {console.counted(notes, 'note')}")
    if faults:
        raise typer.Exit(1)


def look() -> Iterator[Finding]:
    """Yield what is found."""
    runs = f"Python {platform.python_version()} ({platform.machine()}); {_DISTRIBUTION} {__version__}"
    yield Finding("python", OK if sys.maxsize > 1 << 32 else FAULT, runs)
    yield from check_extras()
    engines = [check_engine(name) for name in _ENGINES]
    yield from engines
    if all(finding.level == NOTE for finding in engines):
        text = "no engine is installed: nothing can be run"
        yield Finding("engine", FAULT, text, _install(f"{_DISTRIBUTION}[llama]"))


def check_extras() -> Iterator[Finding]:
    """Yield what each extra lacks; the extras that it names are looked at by themselves."""
    try:
        lines = metadata.requires(_DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        text = f"{_DISTRIBUTION} runs from {Path(__file__).parents[1]}, and is not installed"
        yield Finding("extra", FAULT, text, _install("-e", "."))
        return
    packages: dict[str, list[str]] = {}
    for line in lines:
        if match := _REQUIREMENT.match(line):
            packages.setdefault(match["extra"], []).append(match["package"])
    for extra in sorted(packages.keys() - _OURS):
        found = ((name, metadata.Distribution.discover(name=name)) for name in sorted(packages[extra]))
        if missing := [name for name, installed in found if not [*installed]]:
            text, mend = f"{extra} lacks {', '.join(missing)}", _install(f"{_DISTRIBUTION}[{extra}]")
            yield Finding("extra", NOTE, text, mend)
        else:
            yield Finding("extra", OK, f"{extra} is complete")


def check_engine(name: str) -> Finding:
    """Return what is found of an engine, `llama` or `onnx`: a process of its own lets it compute."""
    title, package = _ENGINES[name]
    try:
        title = f"{title} ({package} {metadata.version(package)})"
    except metadata.PackageNotFoundError:
        text, mend = f"{title} is not installed", _install(f"{_DISTRIBUTION}[{name}]")
        return Finding("engine", NOTE, text, mend)
    mend = _install("--force-reinstall", "--no-cache-dir", package)
    # An engine that was built for another processor ends the process that it computes in.
    # -P: nothing that lies in the present folder is run.
    command = [sys.executable, "-P", "-m", __name__, name]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return Finding("engine", FAULT, f"{title} does not answer within {_SECONDS} s", mend)
    if done.returncode == 0:
        return Finding("engine", OK, f"{title} computes")
    if done.returncode < 0:
        ended = signal.Signals(-done.returncode).name
        why = ": it was built for another processor" if ended == "SIGILL" else ""
        return Finding("engine", FAULT, f"{title} ends its process with {ended}{why}", mend)
    last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    return Finding("engine", FAULT, f"{title} fails: {last[:200]}", mend)


def _install(*words: str) -> str:
    return shlex.join([sys.executable, "-m", "pip", "install", *words])


# The probe: what runs in a process of its own.

_PRODUCT = bytes.fromhex(  # ONNX: y = x w, float32, x [1, 2], w [[1, 2], [3, 4]]
    "08083a5d0a110a01780a017712017922064d61744d756c1201672a1b0802080210014201774a100000803f000000400000404000"
    "0080405a130a0178120e0a0c080112080a0208010a02080262130a0179120e0a0c080112080a0208010a02080242040a001011"
)


def probe_onnx() -> None:
    """Multiply two matrices with ONNX Runtime."""
    import onnxruntime

    session = onnxruntime.InferenceSession(_PRODUCT, providers=["CPUExecutionProvider"])
    (y,) = session.run(None, {"x": np.ones((1, 2), np.float32)})
    assert y.tolist() == [[4, 6]], f"it says {y.tolist()}, where [[4, 6]] is right"


def probe_llama() -> None:
    """Let llama.cpp evaluate three tokens in a Llama of one block, with random weights and no tokenizer."""
    from gguf import GGUFValueType

    from ..formats.gguf import write
    from ..runtime.llama import import_llama_cpp

    import_llama_cpp()  # before the bindings, which may have no libraries of their own
    from llama_cpp import Llama

    width, words = 32, 64
    numbers = {
        "block_count": 1,
        "context_length": 256,
        "embedding_length": width,
        "feed_forward_length": width,
    }
    numbers |= {"attention.head_count": 2, "rope.dimension_count": width // 2, "vocab_size": words}
    metadata: list[Any] = [(f"llama.{key}", value, GGUFValueType.UINT32) for key, value in numbers.items()]
    metadata.append(("llama.attention.layer_norm_rms_epsilon", 1e-5, GGUFValueType.FLOAT32))
    metadata.append(("tokenizer.ggml.model", "none", GGUFValueType.STRING))
    layers = ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"]
    shapes: dict[str, tuple[int, ...]] = dict.fromkeys(("token_embd", "output"), (words, width))
    shapes |= dict.fromkeys((f"blk.0.{name}" for name in layers), (width, width))
    shapes |= dict.fromkeys(("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"), (width,))
    random = np.random.default_rng(0)
    tensors = {f"{name}.weight": random.standard_normal(shape, np.float32) for name, shape in shapes.items()}
    with tempfile.TemporaryDirectory(prefix="tinylora-doctor-") as folder:
        with open(path := Path(folder, "tiny.gguf"), "wb") as file:
            write(file, "llama", metadata, tensors)
        llm = Llama(str(path), n_ctx=256, n_threads=1, n_threads_batch=1, verbose=False)
        llm.eval([1, 2, 3])
        llm.close()


if __name__ == "__main__":
    {"llama": probe_llama, "onnx": probe_onnx}[sys.argv[1]]()
