"""The app in C: vectors of any size, through llama.cpp's own functions, answer as they do in Python."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import native_reader
import numpy as np
import pytest
import smollm2
import support

from tinylora_edge import Basis, Hmac, MicroVector, load_bundle, runtime
from tinylora_edge.wire import text
from tinylora_edge.wire.frame import day_date

KEY = bytes(range(32))
PROMPT = smollm2.PROMPTS[1]

Program = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def personalize(tmp_path_factory: pytest.TempPathFactory) -> Program:
    """Run the program, compiled as its README says, against the llama.cpp that llama-cpp-python brings."""
    native_reader.llama()
    folder = tmp_path_factory.mktemp("native") / "native"
    shutil.copytree(native_reader.NATIVE, folder)
    (block,) = re.findall(r"^```console\n(.+?)^```$", (folder / "README.md").read_text("utf-8"), re.M | re.S)
    commands = block.partition("./personalize ")[0].replace("cc ", "cc -Wall -Wextra -pedantic -Werror ", 1)
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    command, env = ["sh", "-ec", commands], os.environ | {"PATH": path}
    made = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)
    assert (made.returncode, made.stderr) == (0, "")

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [str(folder / "personalize"), *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    return run


def framed(basis: Basis, sequence: int = 7, signer: object = "crc32", **options: object) -> bytes:
    norm = 12 if basis.size < 100 else 6  # it is heard
    return support.of_norm(basis, norm, dtype="bf16", sequence=sequence).to_bytes(basis, signer, **options)


@pytest.mark.slow
@pytest.mark.parametrize("form", [[], ["--fold"]], ids=["rows", "folded"])
def test_it_swaps_vectors_and_answers_as_python_does(
    personalize: Program, smollm2_gguf: Path, form: list[str]
) -> None:
    """Of all sizes, one after the other; one that is refused between them changes nothing."""
    bundle = smollm2.f32_bundle(smollm2_gguf)  # where right implementations agree exactly
    bases = load_bundle(bundle)
    sizes = [{"numbers": 13}, {"rank": 8}, {"numbers": 50}, {"rank": 2}]
    frames = [framed(bases.basis(**size), 7 + i) for i, size in enumerate(sizes)]
    texts = [*map(text.encode, [*frames[:2], frames[0], *frames[2:]])]
    done = personalize(*form, bundle / "base.gguf", bundle / "basis.gguf", PROMPT, *texts)
    llm = runtime.load(bundle, n_ctx=512, n_threads=2)
    expected, answers = "", []
    for frame in (None, *frames):
        vector = None if frame is None else llm.swap(frame)
        answer = llm.create_completion(PROMPT, max_tokens=24, temperature=0)["choices"][0]["text"]
        expected += "base" if vector is None else f"sequence {vector.sequence}, {len(vector.values)} numbers"
        expected += f": {answer}\n"
        answers.append(answer)
    llm.close()
    assert done.stdout == expected
    assert len(set(answers)) == 5
    assert done.returncode == 1
    assert done.stderr == "personalize: the frame has sequence 7, but 8 was accepted\n"


@pytest.mark.slow
def test_what_it_refuses(personalize: Program, smollm2_bundle: Path, tmp_path: Path) -> None:
    base, side = smollm2_bundle / "base.gguf", smollm2_bundle / "basis.gguf"
    bases = load_bundle(smollm2_bundle).bases
    basis = bases.basis(numbers=13)
    frame, cut = framed(basis), tmp_path / "cut.gguf"
    cut.write_bytes(side.read_bytes()[:-64])
    signed = framed(basis, 7, Hmac(KEY), user="alice")
    old = framed(basis, 7, Hmac(KEY), until=day_date(1))
    key, none = ("--key", KEY.hex()), f"none of the {len(bases)} of factors {bases.factors.digest[:8]}"
    cases = [
        ((base, side, framed(support.random_basis(blocks=5))), none),
        ((base, side, frame[:-2]), "the frame has 35 bytes, but 13 values in bf16 with CRC-32 take 37"),
        ((base, side, MicroVector(np.full(13, 1e6)).to_bytes(basis)), "and at most 256 is accepted"),
        ((side, side, frame), f"{side}: it lacks blk.0.attn_q.weight, which has factors"),
        ((base, cut, frame), f"{cut}: tensor "),
        ((base, tmp_path / "none", frame), f"{tmp_path / 'none'}: No such file"),
        ((base, side, frame, *key), "needs one of 1 keys"),
        ((base, side, signed, *key, "--user", "bob"), "none of 1 keys for user 'bob'"),
        ((base, side, old, *key), "the last day is 1, and today is "),
    ]
    for (base_path, side_path, data, *options), why in cases:
        done = personalize(*options, base_path, side_path, PROMPT, text.encode(data))
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
        assert done.stderr.startswith("personalize: ")
        assert why in done.stderr
