"""Bundles: where their parts are found, and which base belongs to a basis."""

from __future__ import annotations

import shutil
from pathlib import Path

import converter
import gguf
import numpy as np
import pytest
import support

from tinylora_edge import BaseMismatchError, Bases, BasisError, load_bundle
from tinylora_edge.formats.gguf import GGUFFile
from tinylora_edge.formats.side_tensors import fingerprint, save_bases

MODULES = ("blk.0.attn_q.weight", "blk.0.ffn_down.weight")


def write_base(path: Path, architecture: str = "llama", **changes: np.ndarray) -> Path:
    """A base of two float32 modules, the first of 16,000 bytes, and an embedding."""
    arrays = {
        "token_embd.weight": np.ones((8, 40), np.float32),
        MODULES[0]: np.arange(4000, dtype=np.float32).reshape(100, 40),
        MODULES[1]: np.arange(480, dtype=np.float32).reshape(12, 40),
    }
    writer = gguf.GGUFWriter(path, architecture)
    for name, array in arrays.items():
        writer.add_tensor(name, changes.get(name.split(".")[-2], array))
    return converter.finish(writer, path)


def mark(path: Path, modules=MODULES) -> str:
    return fingerprint(GGUFFile(path), modules)


@pytest.fixture
def bases() -> Bases:
    """For `write_base`'s modules."""
    rng = np.random.default_rng(0)
    shapes = [(100, 40), (12, 40)]
    factors = support.random_factors(
        modules=MODULES,
        a=tuple(rng.standard_normal((2, n)).astype(np.float32) for _, n in shapes),
        b=tuple(rng.standard_normal((n, 2)).astype(np.float32) for n, _ in shapes),
    )
    return Bases(factors, (support.learned(factors, 5),))


@pytest.fixture
def bundle(tmp_path, bases) -> Path:
    directory = tmp_path / "bundle"
    directory.mkdir()
    base = write_base(directory / "base.gguf")
    listed = bases.with_fingerprint("00" * 32).with_fingerprint(mark(base))
    save_bases(listed, directory / "basis.gguf")
    (directory / "manifest.json").write_text('{"format": 2}')
    return directory


class TestFind:
    def test_a_directory(self, bundle):
        found = load_bundle(bundle)
        assert (found.base, found.basis_path) == (bundle / "base.gguf", bundle / "basis.gguf")
        assert found == load_bundle(str(bundle)) == load_bundle(bundle / "base.gguf")
        assert found.manifest == {"format": 2}

    def test_a_gguf_with_its_basis_beside_it(self, bundle, tmp_path):
        base = Path(shutil.copy(bundle / "base.gguf", tmp_path / "model.Q8_0.gguf"))
        shutil.copy(bundle / "basis.gguf", tmp_path / "model.Q8_0.basis.gguf")
        found = load_bundle(base)
        assert (found.base, found.basis_path) == (base, tmp_path / "model.Q8_0.basis.gguf")
        assert found.manifest == {}
        assert found.check_base() == mark(base)

    def test_a_file_named_base_gguf_outside_a_bundle(self, bundle, tmp_path):
        base = Path(shutil.copy(bundle / "base.gguf", tmp_path / "base.gguf"))
        beside = Path(shutil.copy(bundle / "basis.gguf", tmp_path / "base.basis.gguf"))
        assert load_bundle(base).basis_path == beside


class TestContent:
    def test_the_bases(self, bundle, bases):
        found = load_bundle(bundle)
        assert list(found.bases) == list(bases)
        assert found.bases is found.bases, "read once"
        assert found.factors.digest == bases.factors.digest
        assert found.basis(numbers=5).digest == bases.basis(numbers=5).digest
        assert found.basis(rank=2).size == 8

    @pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"{'format': 1}"])
    def test_a_manifest_that_is_no_json(self, bundle, content):
        (bundle / "manifest.json").write_bytes(content)
        found = load_bundle(bundle)
        with pytest.raises(BasisError, match=r"manifest.json is not JSON"):
            _ = found.manifest


class TestFingerprint:
    def test_covers_the_ends_of_every_module(self, tmp_path):
        """The first and last 4,096 bytes, each of them; in between nothing; no other tensor."""
        path = write_base(tmp_path / "m.gguf")
        data = path.read_bytes()
        before = mark(path)
        tensors = GGUFFile(path).tensors

        def changes_it(position: int) -> bool:
            changed = bytearray(data)
            changed[position] ^= 1
            path.write_bytes(changed)
            return mark(path) != before

        first = tensors[MODULES[0]]
        assert first.nbytes == 16_000
        for position in (0, 1, 4094, 4095, 16_000 - 4096, 16_000 - 4095, 15_999):
            assert changes_it(first.offset + position), position
        for position in (4096, 8000, 16_000 - 4097):
            assert not changes_it(first.offset + position), position
        second = tensors[MODULES[1]]
        assert all(changes_it(second.offset + position) for position in range(0, second.nbytes, 97))
        assert not changes_it(tensors["token_embd.weight"].offset)

    def test_covers_architecture_names_shapes_types_and_order(self, tmp_path):
        marks = [mark(write_base(tmp_path / "a.gguf"))]
        marks.append(mark(write_base(tmp_path / "b.gguf", architecture="qwen2")))
        flat = np.arange(4000, dtype=np.float32)
        marks.append(mark(write_base(tmp_path / "c.gguf", attn_q=flat.reshape(40, 100))))
        halves = flat.view(np.float16).reshape(100, 80)
        marks.append(mark(write_base(tmp_path / "d.gguf", attn_q=halves)))
        marks.append(mark(tmp_path / "a.gguf", MODULES[::-1]))
        marks.append(mark(tmp_path / "a.gguf", MODULES[:1]))
        assert len(set(marks)) == len(marks)

    def test_a_base_without_the_module(self, tmp_path):
        path = write_base(tmp_path / "m.gguf")
        with pytest.raises(BaseMismatchError, match=r"no tensor blk.1.attn_q.weight"):
            mark(path, ("blk.1.attn_q.weight",))


class TestCheckBase:
    def test_other_weights(self, bundle):
        write_base(bundle / "base.gguf", attn_q=np.zeros((100, 40), np.float32))
        with pytest.raises(BaseMismatchError, match=r"has fingerprint .*lists 0000000000000000.*--add-base"):
            load_bundle(bundle).check_base()

    def test_another_architecture(self, bundle):
        write_base(bundle / "base.gguf", architecture="qwen2")
        with pytest.raises(BaseMismatchError, match=r"'qwen2'.*'llama'"):
            load_bundle(bundle).check_base()

    def test_a_graph_that_is_not_there(self, bundle):
        with pytest.raises(BaseMismatchError, match=r"has no onnx/model.onnx"):
            load_bundle(bundle).check_onnx()
