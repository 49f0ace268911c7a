"""A reader in C, written from docs/FORMAT.md alone: it reads what the package reads, and nothing else.

It is compiled with the compiler that builds llama-cpp-python, and where there are some, with the address and
undefined behaviour sanitizers: a read behind the end of a damaged file ends the test.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path

import gguf
import numpy as np
import pytest
import support

from tinylora_edge import (
    Bases,
    Basis,
    CorruptBasisError,
    Ed25519Signer,
    Hmac,
    MicroVector,
    Policy,
    Projection,
    VectorError,
    load_bundle,
)
from tinylora_edge.formats.side_tensors import load_bases, save_bases
from tinylora_edge.wire import expiry
from tinylora_edge.wire import text as _text

READER = Path(__file__).parents[2] / "examples" / "native" / "reader"
SOURCES = (Path(__file__).with_name("main.c"), *sorted(READER.glob("*.c")))
FLAGS = ("-std=c99", "-O1", "-Wall", "-Wextra", "-pedantic", "-Werror", f"-I{READER}")
SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")
KEY = bytes(range(32))
MODELS = {
    "one": {},
    "f16": {"rank": 8, "factor_dtype": np.float16, "blocks": 5},
    "experts": {"experts": 3, "rank": 3},
    "rank 1": {"rank": 1},
}

Reader = Callable[..., subprocess.CompletedProcess[str]]

pytestmark = pytest.mark.filterwarnings("ignore::tinylora_edge.UnauthenticatedVectorWarning")


@pytest.fixture(scope="session")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Reader:
    """Run the reader: reader("project", 42, ...). It exits with 0, or with 1 and says what was wrong."""
    compiler = next(filter(None, map(shutil.which, (os.environ.get("CC", "cc"), "gcc", "clang"))), None)
    if compiler is None:
        pytest.skip("there is no C compiler: install one, or name it in CC")
    program = tmp_path_factory.mktemp("c_reader") / "reader"
    for flags in ((*FLAGS, *SANITIZERS), FLAGS):
        command = [compiler, *flags, *map(str, SOURCES), "-o", str(program), "-lm"]
        made = subprocess.run(command, capture_output=True, text=True, check=False)
        if made.returncode == 0:
            break
    assert made.returncode == 0, made.stderr
    environment = os.environ | {"ASAN_OPTIONS": "exitcode=99:detect_leaks=0", "UBSAN_OPTIONS": "exitcode=99"}

    def run(*arguments: object, lines: Iterable[str] = ()) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [str(program), *map(str, arguments)],
            input="".join(f"{line}\n" for line in lines),
            capture_output=True,
            text=True,
            env=environment,
            check=False,
        )
        assert done.returncode in (0, 1), done.stderr
        assert done.returncode == 0 or done.stderr.startswith("reader: "), done.stderr
        return done

    return run


def verdicts(
    reader: Reader, basis: Basis, lines: list[str], key: bytes = KEY, *, stream: str = "", day: int = 0
) -> list[list[str]]:
    """What the reader says of each text: ["refused", why...] or ["ok", ...]."""
    done = reader("vectors", basis.digest, basis.size, key.hex() or "-", stream, day, lines=lines)
    assert done.returncode == 0, done.stderr
    found = [line.split() for line in done.stdout.splitlines()]
    assert len(found) == len(lines)
    return found


def accepted(
    vector: MicroVector, kind: int, raw: bool = False, version: int = 2, until: int | None = None
) -> list[str]:
    values = vector.values.astype("<f4").tobytes().hex()
    dtype, sequence = support.DTYPE_CODES[vector.dtype], -1 if raw else vector.sequence
    head = f"version {0 if raw else version} dtype {dtype} tag {kind} sequence {sequence}"
    return f"ok {head} until {-1 if until is None else until} values {values}".split()


def test_golden_projections(reader: Reader) -> None:
    entries = json.loads((support.GOLDEN / "projection.json").read_text())["projection"]
    assert len(entries) > 3
    for entry in entries:
        done = reader("project", entry["seed"], entry["name"], entry["u"], entry["r"])
        assert done.stdout.strip() == entry["hex_le_f32"], entry


def test_golden_frames(reader: Reader) -> None:
    entries = json.loads((support.GOLDEN / "frames.json").read_text())["frames"]
    assert {entry["auth"] for entry in entries} == {"crc32", "hmac", "ed25519"}
    for entry in entries:
        values = np.frombuffer(bytes.fromhex(entry["values_hex_le_f32"]), "<f4")
        digest, until = entry["digest_hex"], entry["last_day"]
        key = bytes.fromhex(entry["key_hex"] or "") if entry["auth"] == "hmac" else b""
        vector = MicroVector(values, entry["dtype"], entry["sequence"])
        kind, version = support.TAG_CODES[entry["auth"]], 2 if until is None else 3
        expected = ["refused", "no", "key"] if kind == 2 else accepted(vector, kind, False, version, until)

        def said(key: bytes, stream: str, day: int, entry=entry, digest=digest) -> list[str]:
            arguments = (digest, entry["n"], key.hex() or "-", stream, day)
            return reader("vectors", *arguments, lines=[entry["frame_hex"]]).stdout.split()

        bound = entry["stream"], until or 0
        assert said(key, *bound) == expected, entry
        if entry["dtype"] == "int8" and kind != 2:
            assert expected[-1] == entry["values_hex_le_f32"]
        if key:
            assert said(b"", *bound) == ["refused", "no", "key"]
            assert said(KEY, *bound) == ["refused", "mac"]
        if kind != 2:
            assert said(key, "bob", 0)[0] == "refused"
        if until is not None and kind != 2:
            assert said(key, bound[0], until + 1) == ["refused", "expired"]


def check_bases(reader: Reader, path: Path, bases: Bases) -> None:
    """The reader finds the same bases, and of a frame of each the same R."""
    _, about, factors, *listed = reader("bases", path).stdout.splitlines()
    assert about == f"modules {len(bases.factors.modules)} rank {bases.factors.rank}"
    assert factors == f"factors {bases.factors.digest}"
    every = [bases[basis_id] for basis_id in bases]
    assert listed == [f"{basis.digest} {basis.size} {basis.projection.descriptor}" for basis in every]
    vectors = [MicroVector.random(basis, 0.5, seed=1, dtype="bf16") for basis in every]
    frames = [vector.to_bytes(basis, Hmac(KEY)) for vector, basis in zip(vectors, every, strict=True)]
    lines = reader("apply", path, KEY.hex(), lines=map(_text.encode, frames)).stdout.splitlines()
    for basis, vector, head, r in zip(every, vectors, lines[::2], lines[1::2], strict=True):
        assert head.split() == accepted(vector, 1)
        assert r == f"{basis.R(vector).astype('<f4').tobytes().hex()} {basis.projection.descriptor}"


@pytest.mark.parametrize("fields", MODELS.values(), ids=MODELS)
def test_bases(reader: Reader, tmp_path: Path, fields: dict[str, object]) -> None:
    factors = support.random_factors(**fields)
    rank = min(2, factors.rank)
    named = Projection.random(factors.modules, 5, 3, "structured", (1 << 64) - 1, rank)
    bases = Bases(factors, (support.learned(factors, 5), named, support.learned(factors, 4)))
    save_bases(bases, tmp_path / "basis.gguf")
    check_bases(reader, tmp_path / "basis.gguf", bases)
    other = support.random_basis(rng=9)
    lines = [MicroVector.zeros(other).to_bytes(other).hex(), "00" * 24, "1100", "11"]
    said = reader("apply", tmp_path / "basis.gguf", "-", lines=lines).stdout.splitlines()
    assert said == ["refused basis", *["refused no frame"] * 3]


@pytest.mark.parametrize("number", [0, 1])
def test_golden_bases(reader: Reader, tmp_path: Path, number: int) -> None:
    """What tests/golden/bases.json was computed by: it still says the same."""
    bases, golden = support.golden_models()[number]
    save_bases(bases, tmp_path / "basis.gguf")
    listed = reader("bases", tmp_path / "basis.gguf").stdout.splitlines()
    assert f"factors {golden['factors']}" in listed
    frames = [support.golden_frame(entry).hex() for entry in golden["bases"]]
    lines = reader("apply", tmp_path / "basis.gguf", "-", lines=frames).stdout.splitlines()
    for entry, r in zip(golden["bases"], lines[1::2], strict=True):
        assert f"{entry['digest']} {entry['n']} {entry['descriptor']}" in listed
        values, _, descriptor = r.partition(" ")
        support.assert_golden(entry, "r", bytes.fromhex(values))
        assert descriptor == entry["descriptor"]


def test_R_is_within_its_bound(reader: Reader, tmp_path: Path) -> None:
    bases = Bases(support.random_factors())
    save_bases(bases, tmp_path / "basis.gguf")
    basis = bases.basis(rank=1)
    lines = [MicroVector(np.full(6, x)).to_bytes(basis).hex() for x in (408, 409, 3e38)]
    said = reader("apply", tmp_path / "basis.gguf", "-", lines=lines).stdout.splitlines()
    assert [line.split()[0] for line in said[::3]] == ["ok", "refused"]
    assert said[2:] == ["refused norm"] * 2


def test_a_real_bundle(reader: Reader, smollm2_bundle: Path, tmp_path: Path) -> None:
    bases = load_bundle(smollm2_bundle).bases
    base, side = smollm2_bundle / "base.gguf", smollm2_bundle / "basis.gguf"
    said = reader("bases", side, base).stdout
    assert f"factors {bases.factors.digest}\n" in said
    assert f"fingerprint {bases.fingerprints[0]} listed\n" in said
    assert "a tensor is missing" in reader("bases", side, side).stderr
    (tensor,) = (t for t in gguf.GGUFReader(base).tensors if t.name == "blk.7.ffn_up.weight")
    data = bytearray(base.read_bytes())
    data[tensor.data_offset + 4095] ^= 1  # the last byte that is hashed of the module's beginning
    (tmp_path / "changed.gguf").write_bytes(data)
    assert reader("bases", side, tmp_path / "changed.gguf").stdout.rstrip().endswith("unknown")
    for basis in (bases.basis(numbers=13), bases.basis(rank=2), bases.basis(rank=8)):
        vector = MicroVector.random(basis, 0.5, seed=1)
        lines = reader("apply", side, "-", lines=[vector.to_bytes(basis).hex()]).stdout.splitlines()
        assert lines[0].split() == accepted(vector, 0)
        assert lines[1].split()[0] == basis.R(vector).astype("<f4").tobytes().hex()


@pytest.mark.parametrize("descriptors", support.FORGED.values(), ids=support.FORGED)
def test_forged_projections(reader: Reader, tmp_path: Path, descriptors: tuple[str, ...]) -> None:
    support.save_forged(descriptors, tmp_path / "basis.gguf")
    assert reader("bases", tmp_path / "basis.gguf").returncode == 1
    with pytest.raises(CorruptBasisError):
        load_bases(tmp_path / "basis.gguf")


def test_damaged_files_are_refused(reader: Reader, tmp_path: Path) -> None:
    """Cut anywhere, or with any byte of the header changed: an error, and never a read behind the end."""
    factors = support.random_factors(1, kinds=("attn_q", "attn_v"), n_in=4, n_out=4)
    save_bases(
        Bases(factors, (support.learned(factors, 2), Projection.random(factors.modules, 2, 2))),
        tmp_path / "whole",
    )
    whole = (tmp_path / "whole").read_bytes()
    rng = random.Random(0)
    damaged = tmp_path / "damaged.gguf"
    refused = 0
    for number in range(240):
        data = bytearray(whole)
        if number % 3 == 0:
            del data[rng.randrange(len(data)) :]
        else:
            at = rng.randrange(len(data))
            data[at : at + 8] = rng.choice((b"\xff" * 8, b"\0" * 8, rng.randbytes(8)))[: len(data) - at]
        damaged.write_bytes(data)
        done = reader("bases", damaged)
        refused += done.returncode
        try:
            bases = load_bases(damaged)
        except CorruptBasisError:
            continue
        listed = done.stdout.splitlines()[3:]
        assert [line[:8] for line in listed] == list(bases), (
            "what the package reads, the reader reads as the same"
        )
    assert refused > 120


def mutated(data: bytes, others: list[bytes], rng: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((0, 1, 1, 2))):
        at = rng.randrange(len(changed) + 1)
        kind = rng.randrange(5)
        if kind == 0:
            changed[at : at + 1] = bytes([changed[at] ^ 1 << rng.randrange(8)]) if at < len(changed) else b""
        elif kind == 1:
            changed[at : at + rng.randrange(3)] = rng.randbytes(rng.randrange(3))
        elif kind == 2:
            changed = bytearray(rng.choice(others))
        elif kind == 3:
            del changed[at:]
        else:
            changed += rng.randbytes(rng.randrange(70))
    return bytes(changed)


def test_its_verdict_on_damaged_vectors_is_ours(reader: Reader) -> None:
    """Frames, raw payloads and random bytes, whole and damaged: the same are accepted, as the same values."""
    basis = Bases(support.random_factors(13, kinds=("attn_q",), rank=1)).basis(rank=1)  # R is v
    policy = Policy("none", keys=[Hmac(KEY)], today=expiry.day_date(32768), max_norm=np.inf)
    rng = random.Random(1)
    signers = ("crc32", Hmac(KEY), Hmac(bytes(32)), Ed25519Signer(KEY), None)
    whole = []
    for dtype in ("fp32", "bf16", "fp16", "int8"):
        for signer in signers:
            if signer is not None or dtype in ("fp32", "bf16"):
                drawn = MicroVector(
                    MicroVector.random(basis, 0.5, seed=len(whole)).values, dtype, rng.getrandbits(16)
                )
                whole.append(drawn.to_bytes(basis, signer))
                if signer is not None:
                    whole.append(drawn.to_bytes(basis, signer, until=expiry.day_date(rng.getrandbits(16))))
                    whole.append(drawn.to_bytes(basis, signer, stream="another"))
    for payload in (b"\0\0\xc0\x7f" * 13, b"\0\0\x80\xff" * 13, b"\1\0\0\0" * 13):  # NaN, infinity, subnormal
        whole += [payload, support.frame(basis.digest, payload)]
    half = np.array([6e-8, -6e-8, 6.1e-5, 65504, -65504, 0, -0.0, 1, 2, 3, 4, 5, 6], "<f2").tobytes()
    whole.append(support.frame(basis.digest, half, dtype="fp16"))
    vectors = [mutated(rng.choice(whole), whole, rng) or b"?" for _ in range(4000)] + whole
    found = verdicts(reader, basis, [data.hex() for data in vectors], day=32768)
    accepts = 0
    for data, verdict in zip(vectors, found, strict=True):
        try:
            vector = policy.check(data, basis)
        except VectorError:
            assert verdict[0] == "refused", data.hex()
            continue
        accepts += 1
        raw = len(data) % 2 == 0
        version = data[0] >> 4
        until = int.from_bytes(data[7:9], "little") if version == 3 and not raw else None
        assert verdict == accepted(vector, -1 if raw else data[0] >> 2 & 3, raw, version, until), data.hex()
    assert 500 < accepts < 3500
