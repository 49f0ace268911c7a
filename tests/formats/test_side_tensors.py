"""basis.gguf: its content as docs/FORMAT.md lists it, round trips, damage, and the atomicity of saving."""

from __future__ import annotations

import dataclasses
import os
import resource
from pathlib import Path

import gguf
import numpy as np
import pytest
import support

from tinylora_edge import Basis, CorruptBasisError, load_basis, save_basis
from tinylora_edge.formats.gguf import GGUFFile

FINGERPRINTS = ("ab" * 32, "cd" * 32)
VARIANTS = {
    "f32": {},
    "f16": {"factor_dtype": np.float16},
    "u13": {"u": 13, "groups": 1, "scheme": "full"},
    "structured": {"scheme": "structured", "groups": 3},
    "explicit": {"explicit": True, "u": 3},
    "experts": {"experts": 4, "groups": 8},
    "one-expert": {"experts": 1},
    "explicit-experts-f16": {"explicit": True, "experts": 2, "factor_dtype": np.float16, "u": 2},
    "rank1": {"rank": 1},
    "rank4": {"rank": 4, "blocks": 4, "architecture": "qwen2"},
    "largest-seed": {"seed": (1 << 64) - 1},
    "one-module": {"blocks": 1, "kinds": ("ffn_down",), "groups": 1},
    "prior": {
        "prior_mean": np.array([0.5, -1], np.float32),
        "prior_covariance": np.array([[2, 0.25], [0.25, 1]], np.float32),
    },
    "custom-map": {"scheme": "custom", "tying": np.array([1, 0, 2, 1, 1, 0], np.int32), "groups": 3},
}
MEMORY = 512 << 20  # what damaged files of a few kilobytes may make a process grow by


@pytest.fixture(params=VARIANTS.values(), ids=VARIANTS)
def basis(request, tiny_basis) -> Basis:
    return tiny_basis(base_fingerprints=FINGERPRINTS, **request.param)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "basis.gguf"


def assert_same(found: Basis, expected: Basis) -> None:
    for field in dataclasses.fields(Basis):
        one, two = getattr(found, field.name), getattr(expected, field.name)
        if field.name in ("a", "b", "p"):
            assert [(x.dtype, x.shape, x.tobytes()) for x in one] == [
                (x.dtype, x.shape, x.tobytes()) for x in two
            ]
        elif isinstance(two, np.ndarray):
            assert one.dtype == two.dtype
            np.testing.assert_array_equal(one, two)
        else:
            assert one == two, field.name
            assert type(one) is type(two), field.name
    assert found.digest == expected.digest


class TestRoundTrip:
    def test_every_field(self, basis, path):
        save_basis(basis, path)
        assert_same(load_basis(path), basis)
        assert_same(load_basis(str(path)), basis)

    def test_the_same_bytes_every_time(self, basis, path):
        save_basis(basis, path)
        first = path.read_bytes()
        save_basis(load_basis(path), path)
        assert path.read_bytes() == first

    def test_a_basis_survives_being_saved_over_its_own_file(self, basis, path):
        save_basis(basis, path)
        loaded = load_basis(path)  # memory-mapped
        save_basis(dataclasses.replace(loaded, base_fingerprints=("ef" * 32,)), path)
        assert_same(loaded, basis)
        assert load_basis(path).base_fingerprints == ("ef" * 32,)


def test_the_file_is_what_the_design_lists(tiny_basis, path):
    """Read by gguf's own reader."""
    basis = tiny_basis(u=3, groups=1, explicit=True, experts=2, base_fingerprints=FINGERPRINTS, seed=1 << 63)
    prior = {"prior_mean": np.arange(3, dtype=np.float32), "prior_covariance": np.eye(3, dtype=np.float32)}
    basis = dataclasses.replace(basis, **prior)
    save_basis(basis, path)
    reader = gguf.GGUFReader(path)
    fields = {k: (f.types[-1].name, f.contents()) for k, f in reader.fields.items() if k[:4] != "GGUF"}
    assert fields == {
        "general.architecture": ("STRING", "llama"),
        "general.type": ("STRING", "adapter"),
        "adapter.type": ("STRING", "tinylora"),
        "tinylora.version": ("UINT32", 1),
        "tinylora.rank": ("UINT32", 2),
        "tinylora.u": ("UINT32", 3),
        "tinylora.groups": ("UINT32", 1),
        "tinylora.seed": ("UINT64", 1 << 63),
        "tinylora.projection": ("STRING", "explicit"),
        "tinylora.factorization": ("STRING", "left"),
        "tinylora.tying.scheme": ("STRING", "tiled"),
        "tinylora.tying.groups": ("UINT32", basis.tying.tolist()),
        "tinylora.modules": ("STRING", list(basis.modules)),
        "tinylora.base.fingerprints": ("STRING", list(FINGERPRINTS)),
        "tinylora.prior.mean": ("FLOAT32", [0, 1, 2]),
        "tinylora.prior.covariance": ("FLOAT32", np.eye(3).reshape(-1).tolist()),
        "tinylora.digest": ("STRING", basis.digest),
    }
    expected = {}
    for position, module in enumerate(basis.modules):
        for letter in "abp":
            expected[f"{module}.tinylora_{letter}"] = getattr(basis, letter)[position]
    assert [tensor.name for tensor in reader.tensors] == list(expected)
    for tensor in reader.tensors:
        array = expected[tensor.name]
        assert tensor.tensor_type.name == "F32"
        assert [int(dim) for dim in tensor.shape[::-1]] == list(array.shape)
        np.testing.assert_array_equal(tensor.data.reshape(array.shape), array)


class TestDamage:
    @pytest.fixture
    def small(self, tiny_basis, path) -> tuple[Basis, bytes]:
        basis = tiny_basis(blocks=1, n_in=4, n_out=4, base_fingerprints=FINGERPRINTS[:1])
        save_basis(basis, path)
        return basis, path.read_bytes()

    def load(self, path: Path, data: bytes | None = None) -> Basis | None:
        """The basis, or None where it is refused; any other exception passes through."""
        if data is not None:
            path.touch()
            with open(path, "r+b") as file:  # in place: thousands of new files take minutes on some disks
                file.write(data)
                file.truncate()
        try:
            return load_basis(path)
        except CorruptBasisError:
            return None

    def test_truncation_at_every_byte(self, small, path):
        basis, data = small
        entries = GGUFFile(data).tensors.values()
        end = max(entry.offset + entry.nbytes for entry in entries)
        for length in reversed(range(len(data))):
            os.truncate(path, length)
            found = self.load(path)
            assert (found is None) if length < end else (found.digest == basis.digest)

    def test_every_bit_flip_is_refused_or_harmless(self, small, path):
        """What loads has the digest, so the same function; only names that it does not cover may differ."""
        basis, data = small
        covered = GGUFFile(data)
        refused = 0
        with support.memory_limit(MEMORY), open(path, "r+b", buffering=0) as file:
            for bit in range(8 * len(data)):
                at = bit // 8
                os.pwrite(file.fileno(), bytes([data[at] ^ 1 << bit % 8]), at)
                found = self.load(path)
                os.pwrite(file.fileno(), data[at : at + 1], at)
                if found is None:
                    refused += 1
                    continue
                assert_same(
                    dataclasses.replace(
                        found, scheme=basis.scheme, base_fingerprints=basis.base_fingerprints
                    ),
                    basis,
                )
        factors = sum(entry.nbytes for entry in covered.tensors.values())
        assert refused > 8 * factors, "every bit of the factors is covered, and many of the header"

    @pytest.mark.parametrize(
        "data", [b"", b"GGUF", b"\0" * 4096, b"{}" * 500], ids=["empty", "cut", "0", "json"]
    )
    def test_what_is_no_gguf(self, path, data):
        assert self.load(path, data) is None

    def test_a_model(self, smollm2_gguf):
        with pytest.raises(CorruptBasisError, match=r"\('model', ''\), not \('adapter', 'tinylora'\)"):
            load_basis(smollm2_gguf)


def with_keys(data: bytes, changes: dict[str, tuple[object, gguf.GGUFValueType] | None], path: Path) -> None:
    """Write a copy of side tensors with other keys, by gguf's own writer."""
    file = GGUFFile(data)
    writer = gguf.GGUFWriter(path, file.architecture)
    kinds = gguf.GGUFValueType
    for key in file:
        value = file.get(key)
        if key == "general.architecture" or key in changes:
            continue
        if isinstance(value, np.ndarray):
            writer.add_key_value(key, value.tolist(), kinds.ARRAY, sub_type=kinds.UINT32)
        elif isinstance(value, list):
            writer.add_key_value(key, value, kinds.ARRAY, sub_type=kinds.STRING)
        elif isinstance(value, str):
            writer.add_key_value(key, value, kinds.STRING)
        else:
            writer.add_key_value(key, value, kinds.UINT64 if key == "tinylora.seed" else kinds.UINT32)
    for key, change in changes.items():
        if change is not None:
            value, kind = change
            if isinstance(value, list):
                writer.add_key_value(key, value, kinds.ARRAY, sub_type=kind)
            else:
                writer.add_key_value(key, value, kind)
    for name, entry in file.tensors.items():
        writer.add_tensor(name, np.array(file.array(entry)))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


KINDS = gguf.GGUFValueType
REQUIRED = [
    *("version", "rank", "u", "groups", "seed", "digest", "modules"),
    *("projection", "factorization", "tying.scheme", "tying.groups"),
]
FORGED = {
    "another version": ({"version": (2, KINDS.UINT32)}, "version 2.*reads version 1"),
    "another digest": ({"digest": ("0" * 64, KINDS.STRING)}, "digest 0000000000000000.*gives"),
    "a rank that is a string": ({"rank": ("2", KINDS.STRING)}, "tinylora.rank is '2', expected a int"),
    "another u": ({"u": (2, KINDS.UINT32)}, "digest"),
    "u of 2^32-1": ({"u": ((1 << 32) - 1, KINDS.UINT32)}, "at most 250,000 values"),
    "another projection": ({"projection": ("gauss", KINDS.STRING)}, "unknown projection 'gauss'"),
    "explicit without P": ({"projection": ("explicit", KINDS.STRING)}, "lacks the tensor .*tinylora_p"),
    "one module": ({"modules": (["blk.0.attn_q.weight"], KINDS.STRING)}, r"1 modules need .*\(6, 1, 1, 0\)"),
    "a module without factors": (
        {"modules": ([f"blk.{i}.attn_q.weight" for i in range(6)], KINDS.STRING)},
        "lacks the tensor blk.2.attn_q.weight.tinylora_a",
    ),
    "a short mean": (
        {"prior.mean": ([1.0], KINDS.FLOAT32)},
        "tinylora.prior.mean has 1 numbers, expected 2",
    ),
    "a mean of integers": ({"prior.mean": ([1, 2], KINDS.UINT32)}, "tinylora.prior.mean are uint32"),
    "a mean alone": ({"prior.mean": ([1.0, 2.0], KINDS.FLOAT32)}, "one of them is missing"),
    "a mean that is a number": ({"prior.mean": (1.0, KINDS.FLOAT32)}, "tinylora.prior.mean is 1.0"),
    "tying that is a string": ({"tying.groups": ("tiled", KINDS.STRING)}, "tinylora.tying.groups"),
    "tying beyond the groups": ({"tying.groups": ([0, 0, 0, 1, 1, 7], KINDS.UINT32)}, "groups from 0 to 7"),
    "tying of NaN": ({"tying.groups": ([0.0, 0, 0, 1, 1, float("nan")], KINDS.FLOAT32)}, "tying.groups"),
    "fingerprints that are a number": ({"base.fingerprints": (7, KINDS.UINT32)}, "base.fingerprints"),
    **{f"no {key}": ({key: None}, f"tinylora.{key}|version|digest") for key in REQUIRED},
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("changes", "said"), FORGED.values(), ids=FORGED)
def test_forged_keys(tiny_basis, path, changes, said):
    """Well-formed GGUF with nonsense in it: one error, whatever the nonsense, and no memory for it."""
    save_basis(tiny_basis(base_fingerprints=FINGERPRINTS), path)
    data = path.read_bytes()
    with_keys(data, {}, path)
    load_basis(path)  # the copy itself is fine
    names = {key: key if key.endswith(".type") else f"tinylora.{key}" for key in changes}
    with_keys(data, {names[key]: change for key, change in changes.items()}, path)
    with support.memory_limit(MEMORY), pytest.raises(CorruptBasisError, match=said) as caught:
        load_basis(path)
    assert str(path) in str(caught.value)


class TestSaving:
    def test_a_full_disk_leaves_the_old_file(self, tiny_basis, path):
        """The limit on a file's size fails a write as a full disk does: in its middle."""
        small, large = tiny_basis(), tiny_basis(n_in=20_000)
        save_basis(small, path)
        before = path.read_bytes()
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
        try:
            with pytest.raises(OSError, match="File too large"):
                save_basis(large, path)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert path.read_bytes() == before
        assert list(path.parent.iterdir()) == [path], "no temporary file is left"
        assert load_basis(path).digest == small.digest
        save_basis(large, path)
        assert load_basis(path).digest == large.digest
