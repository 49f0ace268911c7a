"""basis.gguf with explicit projections, names of axes and a prior: round trips, and forged keys."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import gguf
import numpy as np
import pytest
import support

from tinylora_edge import Basis, CorruptBasisError, load_basis, save_basis
from tinylora_edge.formats.gguf import FLOAT32, STRING, UINT32, GGUFFile, write

NAMES = ("length", "formality", "tone = warm", "Ünïcode")
MEMORY = 256 << 20  # what a damaged file may make a process grow by


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "basis.gguf"


@pytest.fixture
def plain() -> Basis:
    """A learned basis of 4 values, without names and prior."""
    rng = np.random.default_rng(0)
    return support.random_basis().with_projections(rng.standard_normal((4, 6, 2, 2)))


@pytest.fixture
def learned(plain: Basis) -> Basis:
    rng = np.random.default_rng(1)
    mixing = rng.standard_normal((4, 4))
    covariance = (mixing @ mixing.T + np.eye(4)).astype(np.float32)
    mean = rng.standard_normal(4).astype(np.float32)
    return dataclasses.replace(plain, axes=NAMES, prior_mean=mean, prior_covariance=covariance)


def assert_same_axes(found: Basis, expected: Basis) -> None:
    assert found.axes == expected.axes
    assert found.has_prior == expected.has_prior
    for name in ("prior_mean", "prior_covariance") if expected.has_prior else ():
        one, two = getattr(found, name), getattr(expected, name)
        assert (one.dtype, one.shape, one.tobytes()) == (np.float32, two.shape, two.tobytes())


def test_names_and_prior_come_back_exactly_and_the_digest_stays(plain, learned, path):
    digests = set()
    for fields in (
        {},
        {"axes": NAMES},
        {"prior_mean": learned.prior_mean, "prior_covariance": learned.prior_covariance},
        {"axes": NAMES, "prior_mean": learned.prior_mean, "prior_covariance": learned.prior_covariance},
    ):
        basis = dataclasses.replace(plain, **fields)
        save_basis(basis, path)
        found = load_basis(path)
        assert_same_axes(found, basis)
        digests.add(found.digest)
        first = path.read_bytes()
        save_basis(found, path)
        assert path.read_bytes() == first
    assert digests == {support.digest(plain)}


def test_each_form_of_projections(plain, path):
    basis = support.random_basis(groups=3)
    forms = (plain, basis.with_projections(np.ones((6, 2, 2))), basis.with_all_entries())
    for form in forms:
        save_basis(form, path)
        found = load_basis(path)
        assert (found.u, found.groups, found.scheme) == (form.u, form.groups, form.scheme)
        np.testing.assert_array_equal(found.projections, form.projections)
        np.testing.assert_array_equal(found.tying, form.tying)


def test_what_stands_in_the_file(learned, path):
    """Read by gguf's own reader. The version is the old one: an old reader ignores keys it does not know."""
    save_basis(learned, path)
    fields = gguf.GGUFReader(path).fields
    assert fields["tinylora.version"].contents() == 1
    assert fields["tinylora.axes"].contents() == list(NAMES)
    for key, expected in (("mean", learned.prior_mean), ("covariance", learned.prior_covariance.reshape(-1))):
        field = fields[f"tinylora.prior.{key}"]
        assert [kind.name for kind in field.types] == ["ARRAY", "FLOAT32"]
        np.testing.assert_array_equal(np.float32(field.contents()), expected)
    assert list(fields)[-1] == "tinylora.digest"


def forged(path: Path, changes: dict[str, tuple[list[object], object] | None]) -> None:
    """Replace keys, or take them away, whatever they say."""
    file = GGUFFile(path.read_bytes())
    kinds = {"tinylora.seed": gguf.GGUFValueType.UINT64}
    metadata = []
    for key in file:
        value = file.get(key)
        if key in changes or key == "general.architecture":
            continue
        if isinstance(value, np.ndarray):
            metadata.append((key, value.tolist(), FLOAT32 if value.dtype.kind == "f" else UINT32))
        else:
            is_text = isinstance(value, str | list)
            metadata.append((key, value, STRING if is_text else kinds.get(key, UINT32)))
    metadata += [(key, *change) for key, change in changes.items() if change is not None]
    with open(path, "wb") as out:
        write(out, file.architecture, metadata, {n: file.array(t) for n, t in file.tensors.items()})


ONES, EYE = [1.0] * 4, np.eye(4).reshape(-1).tolist()
AXES, MEAN, COVARIANCE = "tinylora.axes", "tinylora.prior.mean", "tinylora.prior.covariance"
FORGED = {
    "names too few": ({AXES: (["a", "b"], STRING)}, "2 axes have names, but the vector has 4 values"),
    "a name twice": ({AXES: (["a", "b", "c", "a"], STRING)}, "axes 0 and 3 are both called 'a'"),
    "a name that is empty": ({AXES: (["a", "b", "", "c"], STRING)}, "axis 2 is called ''"),
    "a name that commands": ({AXES: (["a", "b", "\x1b[2J", "c"], STRING)}, "axis 2 .*printable"),
    "a name that is long": ({AXES: (["a", "b", "c", "d" * 10_000], STRING)}, "axis 3 .*64"),
    "names that are a string": ({AXES: ("abcd", STRING)}, "tinylora.axes is 'abcd', expected a list"),
    "names that are numbers": ({AXES: ([1, 2, 3, 4], UINT32)}, "tinylora.axes is .* expected a list"),
    "a short mean": ({MEAN: (ONES[:3], FLOAT32)}, "tinylora.prior.mean has 3 numbers, expected 4"),
    "a short covariance": ({COVARIANCE: (EYE[:4], FLOAT32)}, "covariance has 4 numbers, expected 16"),
    "no covariance": ({COVARIANCE: None}, "the prior has a mean, but no covariance"),
    "no mean": ({MEAN: None}, "the prior has a covariance, but no mean"),
    "a mean of integers": ({MEAN: ([1, 2, 3, 4], UINT32)}, "tinylora.prior.mean are uint32"),
    "a mean of strings": ({MEAN: (["1"] * 4, STRING)}, "tinylora.prior.mean is"),
    "a mean that is a number": ({MEAN: (1.0, FLOAT32)}, "tinylora.prior.mean is 1.0"),
    "a mean of NaN": ({MEAN: ([1.0, float("nan"), 1.0, 1.0], FLOAT32)}, r"entry \(1,\) of the mean .* nan"),
    "infinity": ({COVARIANCE: ([float("inf"), *EYE[1:]], FLOAT32)}, r"entry \(0, 0\) of the covariance"),
    "not symmetric": ({COVARIANCE: ([1.0, 0.5, *EYE[2:]], FLOAT32)}, r"not symmetric: entry \(0, 1\) is 0.5"),
    "not definite": ({COVARIANCE: ([1.0] * 16, FLOAT32)}, "not positive definite"),
    "a variance below 0": ({COVARIANCE: ([-1.0, *EYE[1:]], FLOAT32)}, "axis 0 has variance -1"),
    "another u": ({"tinylora.u": (5, UINT32)}, "prior.mean has 4 numbers, expected 5"),
    "u of 2^32-1": ({"tinylora.u": ((1 << 32) - 1, UINT32)}, "prior.mean has 4 numbers, expected 4294967295"),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("changes", "said"), FORGED.values(), ids=FORGED)
def test_forged_keys(learned, path, changes, said):
    save_basis(learned, path)
    forged(path, {})
    assert_same_axes(load_basis(path), learned)  # the copy itself is fine
    forged(path, changes)
    with support.memory_limit(MEMORY), pytest.raises(CorruptBasisError, match=said) as caught:
        load_basis(path)
    assert str(path) in str(caught.value)


def test_an_empty_list_of_names_is_no_list(learned, path):
    """gguf's writer knows no empty arrays: the count is set to 0, and the names are put elsewhere."""
    save_basis(dataclasses.replace(learned, axes=("a", "b", "c", "d")), path)
    data = path.read_bytes()
    count = (4).to_bytes(8, "little")
    names = b"".join((1).to_bytes(8, "little") + name for name in (b"a", b"b", b"c", b"d"))
    at = data.index(count + names)
    head = int.from_bytes(data[16:24], "little") + 1  # one key more, which holds what were the names
    more = (9).to_bytes(8, "little") + b"more.than" + (9).to_bytes(4, "little") + (8).to_bytes(4, "little")
    cut = data[:at] + bytes(8) + more + count + names + data[at + len(count + names) :]
    cut = cut[:16] + head.to_bytes(8, "little") + cut[24:]
    path.write_bytes(cut)
    with pytest.raises(CorruptBasisError, match="axes has no names"):
        load_basis(path)


@pytest.mark.parametrize("seed", range(3))
def test_random_damage(learned, path, seed):
    """What loads has the digest, names that can be shown, and a prior that can be decomposed."""
    save_basis(learned, path)
    data = path.read_bytes()
    rng = np.random.default_rng(seed)
    start = data.index(b"tinylora.axes")
    end = data.index(b"tinylora.digest")
    loaded = 0
    with support.memory_limit(MEMORY):
        for _ in range(300):
            damaged = bytearray(data)
            at = int(rng.integers(start, end))
            damaged[at : at + 4] = rng.bytes(4)
            path.write_bytes(damaged)
            try:
                found = load_basis(path)
            except CorruptBasisError:
                continue
            loaded += 1
            assert found.digest == learned.digest
            assert all(name.isprintable() for name in found.axes)
            if found.has_prior:
                np.linalg.cholesky(found.prior_covariance.astype(np.float64))
    assert 0 < loaded < 300
