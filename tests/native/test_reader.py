"""native/tinylora.c, written from docs/FORMAT.md alone: it reads what the package reads, and nothing else.

Where there are sanitizers, a read behind an end fails the test, and so does memory that is left behind.
"""

from __future__ import annotations

import json
import os
import random
import resource
import subprocess
from functools import partial
from itertools import islice
from pathlib import Path

import gguf
import native_reader
import numpy as np
import pytest
import support
from native_reader import RUNNER, Conversation, accepted, agree, refused, run

from tinylora_edge import Bases, Factors, MicroVector, Policy, Projection, load_bundle
from tinylora_edge.errors import ChecksumError, CorruptBasisError, ExpiredError, SignatureError
from tinylora_edge.formats.gguf import GGUFFile
from tinylora_edge.formats.side_tensors import fingerprint, load_bases, save_bases
from tinylora_edge.wire import text
from tinylora_edge.wire.tags import Ed25519Signer, Ed25519Verifier, Hmac

KEY = bytes(range(32))
SHAPE = ("n", "modules", "rank")

pytestmark = pytest.mark.skipif(not native_reader.compilers(), reason="there is no C compiler: name it in CC")


@pytest.fixture
def reader() -> Path:
    return native_reader.watched()


@pytest.mark.parametrize(("which", "flags"), [(-1, ["-O2"]), (0, ["-DTINYLORA_NO_MMAP"])], ids=str)
def test_every_compiler_takes_it_without_a_warning(tmp_path: Path, which: int, flags: list[str]) -> None:
    save_bases(Bases(support.random_factors()), tmp_path / "basis.gguf")
    program = native_reader.build(tmp_path, *flags, compiler=native_reader.compilers()[which])
    assert run(program, "bases", tmp_path / "basis.gguf").startswith("modules 6 rank 2 outputs 2 bases 10\n")


def test_machines_on_which_R_would_be_another_are_refused(tmp_path: Path) -> None:
    for flag in ("-D__BYTE_ORDER__=__ORDER_BIG_ENDIAN__", "-ffast-math"):
        with pytest.raises(AssertionError, match=r"error.*tinylora: "):
            native_reader.build(tmp_path, "-Wno-builtin-macro-redefined", flag)


def test_golden_projections(reader: Path) -> None:
    entries = json.loads((support.GOLDEN / "projection.json").read_text())["projection"]
    assert len(entries) > 3
    for entry in entries:
        arguments = entry["seed"], entry["name"], entry["u"], entry["r"]
        assert run(reader, "project", *arguments) == entry["hex_le_f32"], entry


def test_golden_frames(reader: Path) -> None:
    entries = support.golden_frames()
    assert {entry["auth"] for entry in entries} == {"crc32", "hmac", "ed25519"}
    public = Ed25519Verifier(Ed25519Signer(KEY).public_key)
    for entry in entries:
        values = np.frombuffer(bytes.fromhex(entry["values_hex_le_f32"]), "<f4")
        vector = MicroVector(values, entry["dtype"], entry["sequence"], entries=support.entries(entry))
        kind, until = support.TAG_CODES[entry["auth"]], entry["last_day"]
        keys = [[], [f"hmac:{entry['key_hex']}"], [f"ed25519:{KEY.hex()}"]][kind]

        def read(stream: str, day: int, *keys: str, entry=entry) -> list[str]:
            arguments = (entry["digest_hex"], "/".join(str(entry[k]) for k in SHAPE), stream, day, *keys)
            return run(reader, "vectors", *arguments, lines=[entry["frame_hex"]]).splitlines()

        *signed, line = read(entry["stream"], until or 1, *keys)
        assert line == accepted(vector, entry["digest_hex"], kind, until), entry
        if kind == 2:
            _, public_key, message, tag = signed[0].split()
            assert public_key == KEY.hex()
            assert public.verify(bytes.fromhex(message), bytes.fromhex(tag))
        else:
            other = SignatureError if kind else ChecksumError
            assert refused(read("bob", 1, *keys)[0]) == other
            assert refused(read(entry["stream"], 1, f"hmac:{'00' * 16}")[0]) == SignatureError
        if until is not None:
            assert refused(read(entry["stream"], until + 1, *keys)[-1]) == ExpiredError


@pytest.mark.parametrize("fields", support.FACTORS.values(), ids=support.FACTORS)
def test_bases(reader: Path, tmp_path: Path, fields: dict[str, object]) -> None:
    """It finds the bases that are there, and of a frame of each the same R."""
    factors = support.random_factors(**fields)
    named = Projection.random(factors.modules, min(5, len(factors.modules)), 1)
    bases = Bases(factors, (support.learned(factors, 5), named, support.learned(factors, 4)))
    save_bases(bases, tmp_path / "basis.gguf")
    about, digest, *listed = run(reader, "bases", tmp_path / "basis.gguf").splitlines()
    outputs, rank = factors.shape
    assert about == f"modules {len(factors.modules)} rank {rank} outputs {outputs} bases {len(bases)}"
    assert digest == f"factors {factors.digest}"
    assert listed == [f"{each.digest} {each.size} {each.projection.descriptor}" for each in bases.values()]
    with Conversation(reader, "apply", tmp_path / "basis.gguf", "", 1) as waiting:
        for basis in bases.values():
            frame = MicroVector.random(basis, 0.5, seed=1, dtype="bf16").to_bytes(basis)
            assert agree(waiting, Policy(), frame, bases) is None


@pytest.mark.parametrize(
    ("there", "instead"),
    [
        (b"\x07" + bytes(7) + b"adapter", b"\x07" + bytes(7) + b"adapted"),  # general.type
        *((b"prior.0.mean", b"prior.0." + cut) for cut in (b"me\xffn", b"\xc0\xafan", b"\xed\xa0\x80n")),
        *((b"prior.0.mean", b"prior.0." + cut) for cut in (b"\xf4\x90\x80\x80", b"mea\xc3")),
        (b"ab" * 32, b"\xff" + b"b" * 63),  # a fingerprint
    ],
)
def test_side_tensors_that_both_refuse(reader: Path, tmp_path: Path, there: bytes, instead: bytes) -> None:
    factors = support.random_factors()
    path = tmp_path / "basis.gguf"
    save_bases(Bases(factors, (support.learned(factors, 5),), ("ab" * 32,)), path)
    data = path.read_bytes()
    assert data.count(there) == 1
    assert len(there) == len(instead)
    path.write_bytes(data.replace(there, instead))
    with pytest.raises(CorruptBasisError):
        load_bases(path)
    assert run(reader, "bases", path).startswith("reader: ")


def test_a_base_may_have_tokens_that_are_no_UTF_8(reader: Path, smollm2_bundle: Path, tmp_path: Path) -> None:
    data = (smollm2_bundle / "base.gguf").read_bytes()
    begin = data.index(b"tokenizer.ggml.tokens")
    word = data.index(b"<|im_start|>", begin)
    (base := tmp_path / "base.gguf").write_bytes(data[:word] + b"\xff" + data[word + 1 :])
    assert run(reader, "bases", smollm2_bundle / "basis.gguf", base).startswith("modules 210")


@pytest.mark.parametrize("number", [0, 1, 2, 3])
def test_golden_bases(reader: Path, tmp_path: Path, number: int) -> None:
    """What tests/golden/bases.json was computed by: it still says the same."""
    bases, golden = support.golden_models()[number]
    save_bases(bases, tmp_path / "basis.gguf")
    listed = run(reader, "bases", tmp_path / "basis.gguf").splitlines()
    assert f"factors {golden['factors']}" in listed
    frames = [text.encode(support.golden_frame(entry)) for entry in golden["bases"]]
    lines = run(reader, "apply", tmp_path / "basis.gguf", "", 1, lines=frames).splitlines()
    for entry, r in zip(golden["bases"], lines[1::2], strict=True):
        assert f"{entry['digest']} {entry['n']} {entry['descriptor']}" in listed
        values, _, descriptor = r.partition(" ")
        support.assert_golden(entry, "r", bytes.fromhex(values))
        assert descriptor == entry["descriptor"]


@pytest.mark.parametrize("dtype", ["q2", "q4", "fp16"])
def test_small_weights_have_fewer_rows(reader: Path, tmp_path: Path, dtype: str) -> None:
    bases, _ = support.golden_models()[3]
    save_bases(bases, tmp_path / "basis.gguf")
    with Conversation(reader, "apply", tmp_path / "basis.gguf", "", 1) as waiting:
        for shape in ((2, 2), (3, 1), (4, 2), (5, 2)):
            basis = bases.basis(rank=shape)
            frame = MicroVector.random(basis, 0.5, dtype=dtype).to_bytes(basis)
            assert agree(waiting, Policy(), frame, bases) is None
            assert agree(waiting, Policy(), frame[:-1], bases) is not None


@pytest.mark.parametrize("golden", support.golden_overlaps(), ids=lambda golden: golden["name"])
def test_tensors_over_each_other(reader: Path, tmp_path: Path, golden: dict[str, object]) -> None:
    (path := tmp_path / "basis.gguf").write_bytes(bytes.fromhex(str(golden["file_hex"])))
    said = f"factors {golden['factors']}\n" if golden["accepted"] else "lie over the same bytes"
    assert said in run(reader, "bases", path)


@pytest.mark.parametrize("flags", [[], ["-DTINYLORA_NO_MMAP"]], ids=str)
def test_what_is_no_regular_file_is_not_waited_for(tmp_path: Path, flags: list[str]) -> None:
    os.mkfifo(tmp_path / "pipe")  # and nobody ever writes into it
    (tmp_path / "empty").touch()
    program = native_reader.build(tmp_path, *flags)
    for name, why in {
        "pipe": "no regular file",
        "": "no regular file",
        "empty": "empty",
        "no": "No such",
    }.items():
        assert why in run(program, "bases", tmp_path / name)


@pytest.mark.slow
def test_a_real_bundle(reader: Path, smollm2_bundle: Path, tmp_path: Path) -> None:
    bases = load_bundle(smollm2_bundle).bases
    base, side = smollm2_bundle / "base.gguf", smollm2_bundle / "basis.gguf"
    assert f"factors {bases.factors.digest}\n" in run(reader, "bases", side, base)
    (tensor,) = (t for t in gguf.GGUFReader(base).tensors if t.name == "blk.7.ffn_up.weight")
    data = bytearray(base.read_bytes())
    data[tensor.data_offset + 4095] ^= 1  # the last byte that is hashed of the module's beginning
    changed = tmp_path / "changed.gguf"
    changed.write_bytes(data)
    found = fingerprint(GGUFFile(changed), bases.factors.modules)[:16]
    assert f"{changed}: its fingerprint {found}... is none of the 1 " in run(reader, "bases", side, changed)
    with Conversation(reader, "apply", side, "", 1) as waiting:
        for basis in (bases.basis(numbers=13), bases.basis(rank=2), bases.basis(rank=8)):
            frame = MicroVector.random(basis, 0.5).to_bytes(basis)
            assert agree(waiting, Policy(), frame, bases) is None


@pytest.mark.skipif(bool(RUNNER), reason="the limit would be the emulator's")
def test_a_basis_larger_than_memory_is_mapped(tmp_path: Path) -> None:
    plain = native_reader.build(tmp_path)
    a, limit = np.zeros((1, 16 << 20), np.float32), (16 << 20, 16 << 20)  # 64 MB, and 16
    module = "blk.0.attn_q.weight"
    bases = Bases(Factors(architecture="llama", modules=(module,), rank=1, a=(a,), b=(a[:, :2].T,)))
    save_bases(bases, tmp_path / "basis.gguf")
    done = subprocess.run(
        [str(plain), "apply", str(tmp_path / "basis.gguf"), "", "0"],
        input=MicroVector(np.ones(1)).to_bytes(bases.basis(rank=1)).hex(),
        capture_output=True,
        text=True,
        check=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, limit),
    )
    assert done.stdout.startswith("ok dtype 0 ")


@pytest.mark.parametrize("name", ["native_basis", "native_frame", "native_text"])
def test_what_is_damaged_is_refused_as_the_package_does(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """A beginning of what `make fuzz` throws at it, which follows from a number."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "fuzzing"))
    from native_readers import HARNESSES

    (harness,) = (each for each in HARNESSES if each.name == name)
    counts = [0, 0]
    for case in islice(harness.cases(1), 600):
        counts[harness.accepts(case)] += 1
    assert min(counts) > 20


def test_an_older_vector_is_not_accepted_again(reader: Path, tmp_path: Path) -> None:
    bases = Bases(support.random_factors())
    save_bases(bases, tmp_path / "basis.gguf")
    opened = partial(Conversation, reader, "accept", tmp_path / "basis.gguf", "", 0)
    hmac, rng, refusals = Hmac(KEY), random.Random(2), [0, 0]
    with opened() as plain, opened(f"hmac:{KEY.hex()}") as keyed:
        rules = (plain, Policy(), "crc32"), (keyed, Policy(keys=[hmac]), hmac)
        for number in range(60):
            basis = rng.choice([bases.basis(rank=1), bases.basis(numbers=3)])
            values = np.full(basis.size, rng.choice((0.25, 0.5)))
            vector = MicroVector(values, rng.choice(("bf16", "int8")), number // 6 + rng.choice((0, 1)))
            for i, (waiting, policy, signer) in enumerate(rules):
                error = agree(waiting, policy, vector.to_bytes(basis, signer), bases, record=True)
                refusals[i] += error is not None
    assert 10 < refusals[0] < refusals[1] < 55
