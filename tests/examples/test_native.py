"""The example in C: vectors of any size, through llama.cpp's own functions, answer as they do in Python."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import smollm2
import support

from tinylora_edge import Basis, Hmac, MicroVector, load_bundle, runtime
from tinylora_edge.formats.gguf import GGUFFile
from tinylora_edge.formats.side_tensors import fingerprint
from tinylora_edge.wire import expiry, text

NATIVE = Path(__file__).parents[2] / "examples" / "native"
KEY = bytes(range(32))
PROMPT = smollm2.PROMPTS[1]

Program = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def personalize(tmp_path_factory: pytest.TempPathFactory) -> Program:
    """Run the program, compiled as its README says, against the llama.cpp that llama-cpp-python brings."""
    spec = importlib.util.find_spec("llama_cpp")
    assert spec is not None
    assert spec.origin is not None
    if shutil.which("cc") is None or not (Path(spec.origin).parents[1] / "include" / "llama.h").exists():
        pytest.skip("this takes a C compiler, and a llama-cpp-python that was built from its sources")
    folder = tmp_path_factory.mktemp("native") / "native"
    shutil.copytree(NATIVE, folder)
    (block,) = re.findall(r"^```console\n(.+?)^```$", (NATIVE / "README.md").read_text("utf-8"), re.M | re.S)
    commands = block.partition("./personalize ")[0]
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    command = ["sh", "-ec", commands]
    made = subprocess.run(
        command, cwd=folder, env=os.environ | {"PATH": path}, capture_output=True, text=True, check=False
    )
    assert (made.returncode, made.stderr) == (0, "")
    program = folder / "personalize"

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [str(program), *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    return run


@pytest.fixture(scope="module")
def bundle(smollm2_gguf: Path, smollm2_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model as F32, where right implementations agree exactly."""
    base = smollm2.requantized(smollm2_gguf, smollm2.ALL_F32)
    bases = load_bundle(smollm2_bundle).bases
    bases = bases.with_fingerprint(fingerprint(GGUFFile(base), bases.factors.modules))
    return support.bundle_with(bases, base, tmp_path_factory.mktemp("native") / "bundle")


def answers(bundle: Path, frame: bytes) -> list[str]:
    """What Python's runtime generates before and after."""
    llm = runtime.load(bundle, n_ctx=512, n_threads=2)
    found = []
    for vector in (None, frame):
        if vector is not None:
            llm.swap(vector)
        answer = llm.create_completion(PROMPT, max_tokens=24, temperature=0)
        found.append(answer["choices"][0]["text"])
    llm.close()
    return found


def framed(basis: Basis, signer: object = "crc32", **options: object) -> bytes:
    unit = MicroVector.random(basis, 1, seed=1)
    scale = np.float32((12 if basis.size < 100 else 6) / np.linalg.norm(basis.R(unit)))  # it is heard
    vector = MicroVector(unit.values * scale, "bf16", 7)
    return vector.to_bytes(basis, signer, **options)


@pytest.mark.parametrize("size", [{"numbers": 13}, {"numbers": 50}, {"rank": 2}, {"rank": 8}], ids=str)
def test_its_answers_are_those_of_python(personalize: Program, bundle: Path, size: dict[str, int]) -> None:
    basis = load_bundle(bundle).basis(**size)
    frame = framed(basis)
    done = personalize(bundle / "base.gguf", bundle / "basis.gguf", text.encode(frame), PROMPT)
    assert done.returncode == 0, done.stderr
    before, after = answers(bundle, frame)
    assert before != after
    assert done.stdout == (
        f"before: {before}\nafter:  {after}\nvector: sequence 7, {basis.size} values, {len(frame)} bytes\n"
    )
    assert done.stderr == ""


def test_what_it_refuses(personalize: Program, smollm2_bundle: Path) -> None:
    base, side = smollm2_bundle / "base.gguf", smollm2_bundle / "basis.gguf"
    basis = load_bundle(smollm2_bundle).basis(numbers=13)
    frame = framed(basis)
    huge = MicroVector(np.full(13, 1e6)).to_bytes(basis)
    flipped = frame[:-1] + bytes([frame[-1] ^ 1])
    foreign = framed(support.random_basis(blocks=5, groups=13))
    signed = framed(basis, Hmac(KEY), stream="alice")
    old = framed(basis, Hmac(KEY), until=expiry.day_date(1))
    key = KEY.hex()
    cases = [
        ((base, side, text.encode(flipped)), "checksum"),
        ((base, side, text.encode(foreign)), "basis"),
        ((base, side, text.encode(frame[7:])), "no frame"),
        ((base, side, text.encode(frame[:-2])), "length"),
        ((base, side, text.encode(huge)), "norm"),
        ((side, side, text.encode(frame)), "a tensor is missing"),
        ((base, side, text.encode(signed)), "no key"),
        ((base, side, text.encode(frame), key), "tag too weak"),
        ((base, side, text.encode(signed), key), "mac"),
        ((base, side, text.encode(signed), key, "bob"), "mac"),
        ((base, side, text.encode(old), key), "expired"),
    ]
    for (base_path, side_path, frame_text, *rest), why in cases:
        done = personalize(base_path, side_path, frame_text, PROMPT, *rest)
        assert (done.returncode, done.stdout, done.stderr) == (1, "", f"personalize: {why}\n")
