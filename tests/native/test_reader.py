"""native/tinylora.c, written from docs/FORMAT.md alone: it reads what the package reads, and nothing else.

Where the address and undefined behaviour sanitizers are, they watch it: a read behind the end of a damaged
file ends the test, and so does memory that an error leaves behind.
"""

from __future__ import annotations

import json
import random
import re
import resource
import shutil
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path

import compiled
import gguf
import numpy as np
import pytest
import support

from tinylora_edge import (
    Bases,
    BasisMismatchError,
    ChecksumError,
    CorruptBasisError,
    Ed25519Signer,
    Ed25519Verifier,
    ExpiredError,
    Factors,
    FrameError,
    Hmac,
    MicroVector,
    NonFiniteError,
    Policy,
    Projection,
    RollbackError,
    SignatureError,
    VectorError,
    load_bundle,
)
from tinylora_edge.formats.gguf import GGUFFile
from tinylora_edge.formats.side_tensors import fingerprint, load_bases, save_bases
from tinylora_edge.wire import expiry, frame
from tinylora_edge.wire import text as _text

SOURCE = Path(__file__).with_name("reader.c")
KEY = bytes(range(32))
CODES = re.findall(
    r"^    TINYLORA_(?:E_)?([A-Z]+)\b", (compiled.NATIVE / "tinylora.h").read_text("utf-8"), re.M
)
ERRORS = {
    "FRAME": FrameError,
    "UNKNOWN": BasisMismatchError,
    "CHECKSUM": ChecksumError,
    "SIGNATURE": SignatureError,
    "EXPIRED": ExpiredError,
    "VALUES": (NonFiniteError, VectorError),
    "ROLLBACK": RollbackError,
}
MODELS = {
    "one": {},
    "f16": {"rank": 8, "factor_dtype": np.float16, "blocks": 5},
    "experts": {"experts": 3, "rank": 3},
    "rank 1": {"rank": 1},
}

Reader = Callable[..., str]


@pytest.fixture(scope="session")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    program = tmp_path_factory.mktemp("reader") / "plain"
    compiled.build(program, SOURCE)
    return program


@pytest.fixture(scope="session")
def reader(plain: Path) -> Reader:
    """Run the reader: reader("project", 42, ...)."""
    watched = compiled.can_sanitize(plain.parent)
    program = plain.with_name("watched") if watched else plain
    if watched:
        compiled.build(program, SOURCE, flags=compiled.SANITIZERS)
    return partial(compiled.run, program)


def refusal(line: str) -> str:
    """The name of the status with which a line says that a vector is refused."""
    assert line.startswith("refused "), line
    return CODES[int(line.split()[1])]


def accepted(vector: MicroVector, kind: int, until: int | None = None, content: str = "") -> str:
    head = f"ok dtype {support.DTYPE_CODES[vector.dtype]} tag {kind} sequence {vector.sequence}"
    last = f"until {-1 if until is None else until} key {0 if kind else -1} content {content or '0' * 32}"
    return f"{head} {last} values {vector.values.astype('<f4').tobytes().hex()}"


@pytest.mark.parametrize("flags", [(), ("-DTINYLORA_NO_MMAP",), ("-O2",)], ids=str)
def test_every_compiler_takes_it_without_a_warning(tmp_path: Path, flags: tuple[str, ...]) -> None:
    save_bases(Bases(support.random_factors()), tmp_path / "basis.gguf")
    said = set()
    for compiler in compiled.compilers():
        compiled.build(tmp_path / "reader", SOURCE, flags=flags, compiler=compiler)
        said.add(compiled.run(tmp_path / "reader", "bases", tmp_path / "basis.gguf"))
        said.add(compiled.run(tmp_path / "reader", "bases", tmp_path / "basis.gguf"))
    assert len(said) == 1
    assert said.pop().startswith("modules 6 rank ")


def test_machines_on_which_R_would_be_another_are_refused(tmp_path: Path) -> None:
    for flag in ("-D__BYTE_ORDER__=__ORDER_BIG_ENDIAN__", "-ffast-math"):
        command = [*compiled.compilers()[0], f"-I{compiled.NATIVE}", "-w", flag, "-c", str(SOURCE)]
        made = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
        assert made.returncode == 1
        assert "tinylora: " in made.stderr


def test_golden_projections(reader: Reader) -> None:
    entries = json.loads((support.GOLDEN / "projection.json").read_text())["projection"]
    assert len(entries) > 3
    for entry in entries:
        arguments = entry["seed"], entry["name"], entry["u"], entry["r"]
        assert reader("project", *arguments) == entry["hex_le_f32"], entry


def test_golden_frames(reader: Reader) -> None:
    entries = json.loads((support.GOLDEN / "frames.json").read_text())["frames"]
    assert {entry["auth"] for entry in entries} == {"crc32", "hmac", "ed25519"}
    public = Ed25519Verifier(Ed25519Signer(KEY).public_key)
    for entry in entries:
        values = np.frombuffer(bytes.fromhex(entry["values_hex_le_f32"]), "<f4")
        vector = MicroVector(values, entry["dtype"], entry["sequence"])
        kind, until = support.TAG_CODES[entry["auth"]], entry["last_day"]
        key = f"hmac:{entry['key_hex']}" if kind == 1 else f"ed25519:{KEY.hex()}"
        content = frame.content("a" if kind else "", entry["digest_hex"], vector.values, vector.dtype)

        def said(stream: str, day: int, *keys: str, entry=entry) -> list[str]:
            arguments = entry["digest_hex"], entry["n"], stream, day, *keys
            return reader("vectors", *arguments, lines=[entry["frame_hex"]]).splitlines()

        keys = [key] if kind else []
        *signed, line = said(entry["stream"], until or 0, *keys)
        assert line == accepted(vector, kind, until, content), entry
        if kind == 2:
            _, given, message, tag = signed[0].split()
            assert given == KEY.hex()
            assert public.verify(bytes.fromhex(message), bytes.fromhex(tag))
        else:
            other = "SIGNATURE" if kind else "CHECKSUM"
            assert refusal(said("bob", 0, *keys)[0]) == other
            assert refusal(said(entry["stream"], 0, f"hmac:{'00' * 16}")[0]) == "SIGNATURE"
        assert kind == 0 or refusal(said(entry["stream"], 0)[0]) == "SIGNATURE"
        if until is not None:
            assert refusal(said(entry["stream"], until + 1, *keys)[-1]) == "EXPIRED"


@pytest.mark.parametrize("fields", MODELS.values(), ids=MODELS)
def test_bases(reader: Reader, tmp_path: Path, fields: dict[str, object]) -> None:
    """It finds the bases that are there, and of a frame of each the same R."""
    factors = support.random_factors(**fields)
    named = Projection.random(factors.modules, 5, 3, "structured", (1 << 64) - 1, rank=min(2, factors.rank))
    bases = Bases(factors, (support.learned(factors, 5), named, support.learned(factors, 4)))
    path = tmp_path / "basis.gguf"
    save_bases(bases, path)
    about, digest, *listed = reader("bases", path).splitlines()
    assert about == f"modules {len(factors.modules)} rank {factors.rank} bases {len(bases)}"
    assert digest == f"factors {factors.digest}"
    every = [bases[basis_id] for basis_id in bases]
    assert listed == [f"{basis.digest} {basis.size} {basis.projection.descriptor}" for basis in every]
    vectors = [MicroVector.random(basis, 0.5, seed=1, dtype="bf16") for basis in every]
    frames = [vector.to_bytes(basis) for vector, basis in zip(vectors, every, strict=True)]
    lines = reader("apply", path, "", 0, lines=[*map(_text.encode, frames)]).splitlines()
    for basis, vector, head, r in zip(every, vectors, lines[::2], lines[1::2], strict=True):
        assert head == accepted(vector, 0)
        assert r == f"{basis.R(vector).astype('<f4').tobytes().hex()} {basis.projection.descriptor}"


@pytest.mark.parametrize("number", [0, 1])
def test_golden_bases(reader: Reader, tmp_path: Path, number: int) -> None:
    """What tests/golden/bases.json was computed by: it still says the same."""
    bases, golden = support.golden_models()[number]
    save_bases(bases, tmp_path / "basis.gguf")
    listed = reader("bases", tmp_path / "basis.gguf").splitlines()
    assert f"factors {golden['factors']}" in listed
    frames = [support.golden_frame(entry).hex() for entry in golden["bases"]]
    lines = reader("apply", tmp_path / "basis.gguf", "", 0, lines=frames).splitlines()
    for entry, r in zip(golden["bases"], lines[1::2], strict=True):
        assert f"{entry['digest']} {entry['n']} {entry['descriptor']}" in listed
        values, _, descriptor = r.partition(" ")
        support.assert_golden(entry, "r", bytes.fromhex(values))
        assert descriptor == entry["descriptor"]


def test_a_real_bundle(reader: Reader, smollm2_bundle: Path, tmp_path: Path) -> None:
    bases = load_bundle(smollm2_bundle).bases
    base, side = smollm2_bundle / "base.gguf", smollm2_bundle / "basis.gguf"
    assert f"factors {bases.factors.digest}\n" in reader("bases", side, base)
    assert "lacks" not in reader("bases", side, base)
    assert "architecture" in reader("bases", side, tmp_path / "none") or True
    (tensor,) = (t for t in gguf.GGUFReader(base).tensors if t.name == "blk.7.ffn_up.weight")
    data = bytearray(base.read_bytes())
    data[tensor.data_offset + 4095] ^= 1  # the last byte that is hashed of the module's beginning
    changed = tmp_path / "changed.gguf"
    changed.write_bytes(data)
    print_ = fingerprint(GGUFFile(changed), bases.factors.modules)
    assert f"{changed}: its fingerprint {print_[:16]}... is none of the 1 " in reader("bases", side, changed)
    for basis in (bases.basis(numbers=13), bases.basis(rank=2), bases.basis(rank=8)):
        vector = MicroVector.random(basis, 0.5, seed=1)
        lines = reader("apply", side, "", 0, lines=[vector.to_bytes(basis).hex()]).splitlines()
        assert lines[0] == accepted(vector, 0)
        assert lines[1].split()[0] == basis.R(vector).astype("<f4").tobytes().hex()


@pytest.mark.skipif(bool(compiled.RUNNER), reason="the limit would be the emulator's")
def test_a_basis_larger_than_memory_is_mapped(plain: Path, tmp_path: Path) -> None:
    a = np.zeros((1, 16 << 20), np.float32)
    bases = Bases(
        Factors(architecture="llama", modules=("blk.0.attn_q.weight",), rank=1, a=(a,), b=(a[:, :2].T,))
    )
    save_bases(bases, tmp_path / "basis.gguf")
    frame = MicroVector(np.ones(1)).to_bytes(bases.basis(rank=1))
    command = [str(plain), "apply", str(tmp_path / "basis.gguf"), "", "0"]
    done = subprocess.run(
        command,
        input=frame.hex(),
        capture_output=True,
        text=True,
        check=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (16 << 20, 16 << 20)),
    )
    assert done.stdout.startswith("ok dtype 0 ")


@pytest.mark.parametrize("descriptors", support.FORGED.values(), ids=support.FORGED)
def test_forged_projections(reader: Reader, tmp_path: Path, descriptors: tuple[str, ...]) -> None:
    support.save_forged(descriptors, tmp_path / "basis.gguf")
    assert reader("bases", tmp_path / "basis.gguf").startswith(f"reader: {tmp_path}")
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
        said = reader("bases", damaged)
        refused += said.startswith("reader: ")
        try:
            bases = load_bases(damaged)
        except CorruptBasisError:
            continue
        assert [line[:8] for line in said.splitlines()[2:]] == list(bases), (
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


def agree(line: str, r: str, policy: Policy, data: bytes, bases: Bases, *, record: bool = False) -> bool:
    """Whether a vector is accepted; both say the same of it, and why not."""
    if not line.startswith("ok"):
        with pytest.raises(ERRORS[refusal(line)]):
            policy.check(data, bases)
        return False
    vector = policy.check(data, bases)
    if record:
        policy.record(vector, bases.factors)
    until = int.from_bytes(data[7:9], "little") if data[0] >> 4 == 3 else None
    content = frame.content(vector.verified_by, vector.basis, vector.values, vector.dtype)
    assert line == accepted(vector, data[0] >> 2 & 3, until, content), data.hex()
    assert r.split()[0] == bases.of_frame(data).R(vector).astype("<f4").tobytes().hex()
    return True


def judged(
    reader: Reader, bases: Bases, folder: Path, policy: Policy, vectors: list[bytes], *how: object
) -> int:
    """How many vectors both accept, one after the other."""
    save_bases(bases, folder / "basis.gguf")
    command, *rest = how
    said = iter(reader(command, folder / "basis.gguf", *rest, lines=[*map(bytes.hex, vectors)]).splitlines())
    count = 0
    for data in vectors:
        line = next(said)
        r = next(said) if line.startswith("ok") else ""
        count += agree(line, r, policy, data, bases, record=command == "accept")
    return count


@pytest.mark.parametrize("key", [[], [KEY]], ids=["checksum", "key"])
def test_its_verdict_on_damaged_vectors_is_ours(reader: Reader, tmp_path: Path, key: list[bytes]) -> None:
    """Frames, raw payloads and random bytes, whole and damaged: the same are accepted, as the same values."""
    bases = Bases(support.random_factors(13, kinds=("attn_q",), rank=1))
    basis = bases.basis(rank=1)  # R is v
    policy = Policy(None if key else "checksum", keys=[*map(Hmac, key)], today=expiry.day_date(32768))
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
    for value in (277, 278, 3e38):  # the norm of R is 1,000 at most
        whole.append(MicroVector(np.full(13, value)).to_bytes(basis))
    half = np.array([6e-8, -6e-8, 6.1e-5, 65504, -65504, 0, -0.0, 1, 2, 3, 4, 5, 6], "<f2").tobytes()
    whole.append(support.frame(basis.digest, half, dtype="fp16"))
    vectors = [mutated(rng.choice(whole), whole, rng) or b"?" for _ in range(4000)] + whole
    how = ("apply", "", 32768, *(f"hmac:{each.hex()}" for each in key))
    assert 100 < judged(reader, bases, tmp_path, policy, vectors, *how) < 2000


def test_an_older_vector_is_not_accepted_again(reader: Reader, tmp_path: Path) -> None:
    bases = Bases(support.random_factors())
    rng = random.Random(2)
    frames = []
    for number in range(60):
        basis = rng.choice([bases.basis(rank=1), bases.basis(numbers=3)])
        values = np.full(basis.size, rng.choice((0.25, 0.5)))
        vector = MicroVector(values, rng.choice(("bf16", "int8")), number // 6 + rng.choice((0, 1)))
        frames.append((vector.to_bytes(basis), vector.to_bytes(basis, Hmac(KEY))))
    plain, signed = zip(*frames, strict=True)
    assert 10 < judged(reader, bases, tmp_path, Policy("checksum"), [*plain], "accept", "", 0) < 55
    how = ("accept", "", 0, f"hmac:{KEY.hex()}")
    assert 10 < judged(reader, bases, tmp_path, Policy(keys=[Hmac(KEY)]), [*signed], *how) < 40


@pytest.mark.parametrize(
    ("key", "stream", "day", "counts"),
    [
        ("", "alice", 0, True),
        (",alice,eu-*", "alice", 0, True),
        (",alice,eu-*", "eu-7", 0, True),
        (",alice,eu-*", "alices", 0, False),
        (",default", "", 0, True),
        (",default", "alice", 0, False),
        (",10-20", "alice", 9, False),
        (",10-20", "alice", 20, True),
        (",10-20", "alice", 21, False),
    ],
)
def test_keys_count_for_their_streams_and_days(
    reader: Reader, tmp_path: Path, key: str, stream: str, day: int, counts: bool
) -> None:
    bases = Bases(support.random_factors())
    save_bases(bases, tmp_path / "basis.gguf")
    frame = MicroVector.zeros(basis := bases.basis(rank=1)).to_bytes(basis, Hmac(KEY), stream=stream)
    said = reader(
        "apply", tmp_path / "basis.gguf", stream, day, f"hmac:{KEY.hex()}{key}", lines=[frame.hex()]
    )
    assert said.startswith("ok") if counts else "under none of 0 keys" in said


@pytest.mark.skipif(not shutil.which("valgrind") or bool(compiled.RUNNER), reason="valgrind is not installed")
def test_nothing_leaks(plain: Path, tmp_path: Path) -> None:
    bases = Bases(factors := support.random_factors(1), (support.learned(factors, 2),))
    save_bases(bases, path := tmp_path / "basis.gguf")
    whole = path.read_bytes()
    (tmp_path / "cut").write_bytes(whole[:-100])
    (tmp_path / "changed").write_bytes(whole[:-1] + b"\1")
    behind = ("valgrind", "-q", "--leak-check=full", "--show-leak-kinds=all", "--error-exitcode=9")
    good = [MicroVector.zeros(basis).to_bytes(basis, Hmac(KEY)) for basis in (bases.basis(rank=2),)]
    vectors = [data.hex() for frame in good for data in (frame, frame[:-2], frame[:-1] + b"\0", b"\x21" * 9)]
    for name in ("basis.gguf", "cut", "changed", "none"):
        arguments = "accept", tmp_path / name, "", 0, f"hmac:{KEY.hex()}"
        assert compiled.run(plain, *arguments, lines=vectors, behind=behind)
