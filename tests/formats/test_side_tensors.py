"""basis.gguf: round trips and damage. Its content as the page lists it: tests/docs/test_format_doc.py."""

from __future__ import annotations

import os
from pathlib import Path

import converter
import gguf
import numpy as np
import pytest
import support

from tinylora_edge import Bases, CorruptBasisError, Factors, Projection
from tinylora_edge.formats.gguf import GGUFFile
from tinylora_edge.formats.side_tensors import load_bases, save_bases

FINGERPRINTS = ("ab" * 32, "cd" * 32)
MEMORY = 512 << 20  # what damaged files of a few kilobytes may make a process grow by


def bases_of(factors: Factors) -> Bases:
    """With projections that are stored, named, and both with and without a prior."""
    named = Projection.random(factors.modules, 1, 1)
    stored = (support.learned(factors, 5), support.learned(factors, 4, prior=False))
    return Bases(factors, (stored[0], named, stored[1]), FINGERPRINTS)


@pytest.fixture(params=[*support.FACTORS, "golden 0", "golden 1", "nothing but factors"])
def bases(request) -> Bases:
    if request.param.startswith("golden"):
        return support.golden_models()[int(request.param[-1])][0]
    if request.param not in support.FACTORS:
        return Bases(support.random_factors())
    return bases_of(support.random_factors(**support.FACTORS[request.param]))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "basis.gguf"


def assert_same(found: Bases, expected: Bases) -> None:
    one, two = found.factors, expected.factors
    for name in ("architecture", "modules", "shape", "factorization", "digest"):
        assert getattr(one, name) == getattr(two, name)
    for a, b in zip((*one.a, *one.b), (*two.a, *two.b), strict=True):
        assert (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())
    assert list(found) == list(expected)
    assert [p.descriptor for p in found.projections] == [p.descriptor for p in expected.projections]
    for p, q in zip(found.projections, expected.projections, strict=True):
        np.testing.assert_array_equal(p.stored, q.stored)
        assert (p.prior and p.prior.digest) == (q.prior and q.prior.digest)


class TestRoundTrip:
    def test_every_part(self, bases, path):
        save_bases(bases, path)
        for name in (path, str(path)):
            found = load_bases(name)
            assert_same(found, bases)
            assert found.fingerprints == bases.fingerprints

    def test_they_survive_being_saved_over_their_own_file(self, bases, path):
        save_bases(bases, path)
        loaded = load_bases(path)  # memory-mapped
        save_bases(loaded.with_fingerprint("ef" * 32), path)
        assert_same(loaded, bases)
        assert load_bases(path).fingerprints == (*bases.fingerprints, "ef" * 32)


class TestDamage:
    @pytest.fixture
    def small(self, path) -> tuple[Bases, bytes]:
        factors = support.random_factors(1, kinds=("attn_q", "attn_v"), n_in=4, n_out=4)
        bases = Bases(factors, (support.learned(factors, 2),), FINGERPRINTS[:1])
        save_bases(bases, path)
        return bases, path.read_bytes()

    def load(self, path: Path) -> Bases | None:
        """The bases, or None where it is refused; any other exception passes through."""
        try:
            return load_bases(path)
        except CorruptBasisError:
            return None

    def test_truncation_at_every_byte(self, small, path):
        bases, data = small
        entries = GGUFFile(data).tensors.values()
        end = max(entry.offset + entry.nbytes for entry in entries)
        for length in reversed(range(len(data))):
            os.truncate(path, length)
            found = self.load(path)
            assert (found is None) if length < end else (list(found) == list(bases))

    @pytest.mark.slow
    def test_every_bit_flip_is_refused_or_harmless(self, small, path):
        """What loads has the digests, so the same functions; only prior and fingerprints may differ."""
        bases, data = small
        refused = 0
        with support.memory_limit(MEMORY), open(path, "r+b", buffering=0) as file:
            for bit in range(8 * len(data)):
                at = bit // 8
                os.pwrite(file.fileno(), bytes([data[at] ^ 1 << bit % 8]), at)
                found = self.load(path)
                os.pwrite(file.fileno(), data[at : at + 1], at)
                if found is None:
                    refused += 1
                elif found.projections:  # else its key has another name now, which nobody reads
                    assert list(found) == list(bases)
                    np.testing.assert_array_equal(found.projections[0].stored, bases.projections[0].stored)
                else:
                    assert found.factors.digest == bases.factors.digest
        tensors = GGUFFile(data).tensors.items()
        covered = sum(entry.nbytes for name, entry in tensors if "prior" not in name)
        assert refused > 8 * covered, "every bit of factors and projections, and many of the header"


Tensors = dict[str, np.ndarray | None]


def forged(path: Path, keys: dict[str, object], tensors: Tensors) -> None:
    """Write a copy of side tensors with other keys and tensors (None: without it), by gguf's own writer."""
    file = GGUFFile(path.read_bytes())
    writer = gguf.GGUFWriter(path, file.architecture)
    kinds = gguf.GGUFValueType
    for key in [key for key in file if key != "general.architecture"]:
        value = keys.get(key.removeprefix("tinylora."), file.get(key))
        if isinstance(value, list) and value:
            writer.add_key_value(key, value, kinds.ARRAY, sub_type=kinds.STRING)
        elif isinstance(value, str):
            writer.add_key_value(key, value, kinds.STRING)
        elif isinstance(value, int):
            writer.add_key_value(key, value, kinds.UINT32)
    for name, entry in file.tensors.items():
        array = tensors.get(name, np.array(file.array(entry)))
        if array is not None:
            writer.add_tensor(name, array)
    converter.finish(writer, path)


BASES = bases_of(support.random_factors())
LEARNED, NAMED, OTHER = (projection.descriptor for projection in BASES.projections)
P, COVARIANCE = BASES.projections[0].stored, np.float32(BASES.projections[0].prior.covariance)
A = "blk.0.attn_v.weight.tinylora_a"


def listed(*descriptors: str) -> tuple[dict[str, object], Tensors]:
    return {"projections": list(descriptors)}, {}


def with_p(p: np.ndarray) -> tuple[dict[str, object], Tensors]:
    return {}, {"tinylora_p.0": p}


FORGED = {
    "version 1": (({"version": 1}, {}), "version 1, but .*reads version 2: export the model again"),
    "another digest": (({"factors": "0" * 64}, {}), "states factors 0000000000000000.*content gives"),
    "a rank that is a text": (({"rank": "2"}, {}), "tinylora.rank is '2', expected int"),
    "another rank": (({"rank": 3}, {}), r"\(2, 12\) and \(10, 2\), not those of rank 3"),
    "a rank of 2^32-1": (({"rank": (1 << 32) - 1}, {}), "not those of rank 4294967295"),
    "a module without factors": (({"modules": ["blk.2.attn_q.weight"]}, {}), "blk.2.attn_q.weight.tinylora"),
    "a tensor less": (({}, {A: None}), f"lacks the tensor {A}"),
    "a factor of another kind": (({}, {A: np.ones((2, 16), np.int32)}), "I32, expected F32 or F16"),
    "a factor of other values": (({}, {A: np.ones((2, 16), np.float32)}), "its content gives"),
    "fingerprints that are a number": (({"base.fingerprints": 7}, {}), "base.fingerprints is 7"),
    "projections that are a text": (({"projections": LEARNED}, {}), "tinylora.projections is 'learned"),
    "a descriptor with something behind it": (listed(LEARNED + " "), "names the projection 'learned rank=2"),
    "a rank in it of another P": (listed(LEARNED.replace("rank=2", "rank=1")), "tinylora_p.0 gives"),
    "a named rank beyond the baked one": (listed(NAMED.replace("rank=1", "rank=3")), "rank 3 is not among"),
    "too many": (listed(*[NAMED] * 100_000), "65 projections beside the factors, and at most 64"),
    "P of another place": (listed(OTHER, NAMED, LEARNED), "tinylora_p.0 gives"),
    "P that is missing": (({}, {"tinylora_p.0": None}), "lacks the tensor tinylora_p.0"),
    "P of other values": (with_p(P + 1), "tinylora_p.0 gives"),
    "P of halves": (with_p(P.astype(np.float16)), "tinylora_p.0 is float16, expected float32"),
    "P that is flat": (with_p(P.reshape(-1)), r"\(120,\) do not fit"),
    "P with NaN": (with_p(np.where(P[1, 2, 1, 0] == P, np.nan, P)), r"entry \(1, 2, 1, 0\) .* is nan"),
    "a mean of others": (({}, {"tinylora_prior.0.mean": np.ones(4, np.float32)}), r"mean.*\(4,\).*\(5,\)"),
    "a mean alone": (({}, {"tinylora_prior.0.covariance": None}), "lacks the tensor tinylora_prior.0.cov"),
    "a covariance alone": (({}, {"tinylora_prior.0.mean": None}), "lacks the tensor tinylora_prior.0.mean"),
    "a covariance that is none": (({}, {"tinylora_prior.0.covariance": -COVARIANCE}), "that is not above 0"),
    **{
        f"no {key}": (({key: None}, {}), rf"tinylora\.{key} is None")
        for key in ("version", "rank", "factors", "modules")
    },
}


@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.parametrize(("changes", "message"), FORGED.values(), ids=FORGED)
def test_forged_content(path, changes, message):
    """Well-formed GGUF with nonsense in it: one error, whatever the nonsense, and no memory for it."""
    save_bases(BASES, path)
    forged(path, {}, {})
    load_bases(path)  # the copy itself is fine
    forged(path, *changes)
    with support.memory_limit(MEMORY), pytest.raises(CorruptBasisError, match=message) as caught:
        load_bases(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("golden", support.golden_overlaps(), ids=lambda golden: golden["name"])
def test_tensors_over_each_other(path, golden):
    path.write_bytes(bytes.fromhex(golden["file_hex"]))
    if golden["accepted"]:
        assert load_bases(path).factors.digest == golden["factors"]
    else:
        with pytest.raises(CorruptBasisError, match="lie over the same bytes"):
            load_bases(path)


@pytest.mark.parametrize("outputs", [None, "5", 0, 1, 2, 4, 6, (1 << 32) - 1])
def test_forged_outputs(path, outputs):
    save_bases(Bases(support.random_factors(outputs=5)), path)
    forged(path, {"outputs": outputs}, {})
    with pytest.raises(CorruptBasisError, match="states 2 outputs.*have 5" if outputs is None else "outputs"):
        load_bases(path)
