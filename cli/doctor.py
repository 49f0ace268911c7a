"""`doctor`: what is missing or broken in an installation, and the command that mends it."""

from __future__ import annotations

import importlib.metadata as metadata
import json
import os
import platform
import re
import shlex
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.text import Text

from .. import Bundle
from ..errors import BaseMismatchError, TinyLoraError
from ..formats.signatures import signature_path
from ..system import __version__
from . import console
from .options import JsonOption

OK, NOTE, FAULT = "ok", "note", "fault"
_STYLES = {OK: "green", NOTE: "yellow", FAULT: "bold red"}
_DISTRIBUTION = "tinylora-edge"
_OURS = ("all", "bench", "dev", "fuzz")  # extras that are others together, or for who changes this package
_REQUIREMENT = re.compile(r"([A-Za-z0-9._-]+)\s*(?:\[([^\]]*)\])?\s*([^;]*)(?:;\s*(.*))?\Z")
_ENGINES = {"llama": ("llama.cpp", "llama-cpp-python"), "onnx": ("ONNX Runtime", "onnxruntime")}
_SECONDS = 120  # after which an engine that says nothing is given up: a tiny model takes two
_KEY_BYTES = 1 << 12
_SECRET = re.compile(rb"-----BEGIN PRIVATE KEY-----|\A\s*[0-9a-fA-F]{64}\s*\Z")  # PEM, or a MAC key


@dataclass(frozen=True)
class Finding:
    """A thing that was looked at.

    Attributes:
        check: `python`, `extra`, `engine`, `keys` or `bundle`.
        level: `ok`; `note` where something is missing that may not be needed; `fault` where something fails,
            or lets others in.
        text: what was found, in one line.
        mend: the command that changes it; empty where there is none.
    """

    check: str
    level: str
    text: str
    mend: str = ""


def doctor(
    bundle: Annotated[
        Path | None, typer.Argument(metavar="[BUNDLE]", help="A bundle to look at, too.", show_default=False)
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Say what is missing or wrong in this installation, and the command that mends it.

    It looks at Python and the extras, lets each engine compute in a process of its own, and looks for secret
    keys of the present folder, and of the bundle's, that others can read. The exit code is 1 where there is a
    fault.

    \b
    Examples:
      tinylora-edge doctor
      tinylora-edge doctor out/demo --json
    """
    found = []
    for finding in _look(bundle):
        found.append(finding)
        if not as_json:
            line = Text(f"{finding.level:<6}", _STYLES[finding.level]).append(f"{finding.check:<8} ", "dim")
            said = " ".join(console.harmless(finding.text).splitlines())
            console.stdout().print(line.append(said, "not dim default"), soft_wrap=True)
            if finding.mend:
                console.stdout().print(Text(f"{'':<15}$ {finding.mend}", "bold"), soft_wrap=True)
    faults, notes = (sum(finding.level == level for finding in found) for level in (FAULT, NOTE))
    if as_json:
        console.print_json({"faults": faults, "notes": notes, "findings": [asdict(one) for one in found]})
    else:
        console.say(f"{console.counted(faults, 'fault')}, {console.counted(notes, 'note')}")
    if faults:
        raise typer.Exit(1)


def _look(bundle: Path | None) -> Iterator[Finding]:
    runs = f"Python {platform.python_version()} ({platform.machine()}); {_DISTRIBUTION} {__version__}"
    yield Finding("python", OK if sys.maxsize > 1 << 32 else FAULT, runs)
    yield from check_extras()
    engines = [check_engine(name) for name in _ENGINES]
    yield from engines
    if all(finding.level == NOTE for finding in engines):
        text = "no engine is installed: nothing can be run"
        yield Finding("engine", FAULT, text, _install(f"{_DISTRIBUTION}[llama]"))
    beside = [] if bundle is None else [bundle, bundle.absolute().parent]
    yield from check_keys(Path(), *beside)
    if bundle is not None:
        yield from check_bundle(bundle)


def check_extras() -> Iterator[Finding]:
    """Yield what each extra lacks, and what is older than this package can do with."""
    try:
        lines = metadata.requires(_DISTRIBUTION) or []
        extras = metadata.metadata(_DISTRIBUTION).get_all("Provides-Extra") or []
    except metadata.PackageNotFoundError:
        text = f"{_DISTRIBUTION} runs from {Path(__file__).parents[1]}, and is not installed"
        yield Finding("extra", FAULT, text, _install("-e", "."))
        return
    old: dict[str, Finding] = {}
    for extra in (name for name in extras if name not in _OURS):
        missing = []
        for name, least in sorted(needed(lines, extra).items()):
            try:
                found = metadata.version(name)
            except metadata.PackageNotFoundError:
                missing.append(name)
                continue
            if _numbers(found) < _numbers(least):
                text = f"{name} is {found}, and {least} or later is needed"
                old[name] = Finding("extra", FAULT, text, _install("--upgrade", f"{name}>={least}"))
        if missing:
            text, mend = f"{extra} lacks {', '.join(missing)}", _install(f"{_DISTRIBUTION}[{extra}]")
            yield Finding("extra", NOTE, text, mend)
        else:
            yield Finding("extra", OK, f"{extra} is complete")
    yield from old.values()


def needed(lines: list[str], extra: str) -> dict[str, str]:
    """Return the packages that an extra brings, its own extras resolved, and the least version of each.

    Args:
        lines: `Requires-Dist` of the distribution.
        extra: its name.
    """
    found: dict[str, str] = {}
    for line in lines:
        match = _REQUIREMENT.match(line)
        if match is None:
            continue
        name, extras, versions, marker = match.groups()
        of = re.findall(r"""extra\s*==\s*['"]([^'"]+)""", marker or "")
        if of and of[0] != extra:
            continue
        if name == _DISTRIBUTION:
            for other in (extras or "").split(","):
                found |= needed(lines, other.strip())
        else:
            least = re.search(r">=\s*([0-9.]+)", versions)
            found[name] = least[1] if least else "0"
    return found


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
        done = subprocess.run(command, capture_output=True, timeout=_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return Finding("engine", FAULT, f"{title} does not answer within {_SECONDS} s", mend)
    if done.returncode < 0:
        ended = signal.Signals(-done.returncode).name
        why = ": it was built for another processor" if ended == "SIGILL" else ""
        return Finding("engine", FAULT, f"{title} ends its process with {ended}{why}", mend)
    said = {}
    with suppress(ValueError, IndexError):
        said = json.loads(done.stdout.decode(errors="replace").splitlines()[-1])
    if said.get("ok"):
        return Finding("engine", OK, f"{title} computes")
    lines = done.stderr.decode(errors="replace").strip().splitlines() or [f"exit code {done.returncode}"]
    return Finding("engine", FAULT, f"{title} fails: {str(said.get('error', lines[-1]))[:200]}", mend)


def check_keys(*folders: Path) -> Iterator[Finding]:
    """Yield the secret keys in folders, and in them alone, that others on this machine can read."""
    found: dict[Path, int] = {}
    for folder in folders:
        with suppress(OSError), os.scandir(folder) as entries:
            for entry in entries:
                with suppress(OSError):
                    if entry.is_file() and entry.stat().st_size <= _KEY_BYTES:
                        path = Path(entry.path)
                        if _SECRET.search(path.read_bytes()):
                            found[path.resolve()] = entry.stat().st_mode
    open_ = [path for path, mode in found.items() if mode & (stat.S_IRGRP | stat.S_IROTH) and os.name != "nt"]
    for path in open_:
        text = f"{path} is a secret key, and others on this machine can read it"
        yield Finding("keys", FAULT, text, shlex.join(["chmod", "600", str(path)]))
    if not open_:
        yield Finding("keys", OK, f"no secret key that others can read ({len(found)} looked at)")


def check_bundle(path: Path) -> Iterator[Finding]:
    """Yield what is found of a bundle: its basis, what it runs on, its manifest and its signature."""
    again = console.command("export", "MODEL", "-o", "BUNDLE")
    try:
        bundle = Bundle.find(path)
        digest = bundle.basis.digest
        yield Finding("bundle", OK, f"{bundle.basis_path} gives its digest, {digest}")
        stated = bundle.manifest.get("basis")
        if isinstance(stated, dict) and stated.get("digest") != digest:
            said = f"{str(stated.get('digest'))[:16]}..., but the basis has {digest[:16]}..."
            yield Finding("bundle", FAULT, f"{bundle.manifest_path} states digest {said}", again)
        signed = (
            "signed: inspect --key KEY.pub checks it" if signature_path(bundle).exists() else "not signed"
        )
        yield Finding("bundle", OK, f"it is {signed}")
    except (TinyLoraError, OSError) as error:
        yield Finding("bundle", FAULT, str(error), again)
        return
    checks = [(bundle.base, bundle.check_base)] if bundle.base != bundle.onnx else []
    if bundle.onnx is not None:
        checks.append((bundle.onnx, bundle.check_onnx))
    for base, check in checks:
        try:
            yield Finding("bundle", OK, f"{base} has fingerprint {check()}, which the basis lists")
        except (BaseMismatchError, OSError) as error:
            mend = console.command("export", bundle.basis_path.parent, "--add-base", "FILE")
            yield Finding("bundle", FAULT, str(error), mend)


def _install(*words: str) -> str:
    return shlex.join([sys.executable, "-m", "pip", "install", *words])


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", text.partition("+")[0])[:3])


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
    """Let llama.cpp answer from a Llama of one block, with random weights and a vocabulary of bytes."""
    import gguf

    from ..runtime.libraries import import_llama_cpp

    import_llama_cpp()  # before the bindings, which may have no libraries of their own
    from llama_cpp import Llama

    width, inner, words = 32, 64, 258
    with tempfile.TemporaryDirectory(prefix="tinylora-doctor-") as folder:
        path = Path(folder, "tiny.gguf")
        writer: Any = gguf.GGUFWriter(path, "llama")
        for key, value in (("block_count", 1), ("context_length", 256), ("embedding_length", width),
                           ("feed_forward_length", inner), ("head_count", 2), ("head_count_kv", 2),
                           ("layer_norm_rms_eps", 1e-5), ("rope_dimension_count", width // 2),
                           ("tokenizer_model", "gpt2"), ("tokenizer_pre", "gpt-2"),
                           ("token_list", [f"<{number:02x}>" for number in range(words)]),
                           ("token_types", [gguf.TokenType.NORMAL] * words), ("token_merges", ["a b"]),
                           ("bos_token_id", 256), ("eos_token_id", 257)):  # fmt: skip
            getattr(writer, f"add_{key}")(value)
        shapes: dict[str, tuple[int, ...]] = {
            "token_embd": (words, width),
            "output": (words, width),
            "blk.0.ffn_down": (width, inner),
        }
        shapes |= {f"blk.0.attn_{kind}": (width, width) for kind in ("q", "k", "v", "output")}
        shapes |= {f"blk.0.ffn_{kind}": (inner, width) for kind in ("gate", "up")}
        shapes |= dict.fromkeys(("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"), (width,))
        for name, shape in shapes.items():
            weight = np.random.default_rng(0).standard_normal(shape) / np.sqrt(width)
            writer.add_tensor(f"{name}.weight", weight.astype(np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        llm = Llama(str(path), n_ctx=256, n_threads=1, n_threads_batch=1, verbose=False)
        answer: Any = llm.create_completion([256, 72, 101], max_tokens=4, temperature=0.0)
        assert answer["usage"]["prompt_tokens"] == 3
        llm.close()


if __name__ == "__main__":
    try:
        {"llama": probe_llama, "onnx": probe_onnx}[sys.argv[1]]()
        found: dict[str, Any] = {"ok": True}
    except Exception as error:  # whatever an engine raises is what the doctor is to say
        found = {"error": f"{type(error).__name__}: {error}"}
    print(json.dumps(found))
