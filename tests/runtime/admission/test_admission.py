"""What an app passes as a vector: bytes, a path or a vector of its own; the rest is refused by name."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest

from tinylora_edge import Hmac, MicroVector, OptionError, Policy, RollbackError, VectorError, load_basis
from tinylora_edge.runtime.admission import admitted, vector_bytes


@pytest.fixture
def basis(tiny_bundle):
    return load_basis(tiny_bundle / "basis.gguf")


@pytest.fixture
def vector(basis):
    return MicroVector(MicroVector.random(basis, 0.5, seed=1).values, sequence=3)


OTHERS = [
    ("v.bin", r"not str: for a file pass pathlib\.Path\('v\.bin'\)"),
    ([0.1] * 13, "not list: for values of your own pass MicroVector"),
    (np.zeros((13, 1), np.float32), "not ndarray: for values of your own pass MicroVector"),
]


@pytest.mark.parametrize(("other", "message"), OTHERS, ids=["str", "list", "array"])
def test_load_and_swap_refuse_what_is_no_vector(tiny_bundle, load, vector, other, message):
    with pytest.raises(VectorError, match=message):
        load(tiny_bundle, other)
    with load(tiny_bundle, vector) as llm:
        with pytest.raises(VectorError, match=message):
            llm.swap(other)
        with pytest.raises(VectorError, match=message), llm.using(other):
            raise AssertionError("the block must not run")
        assert llm.vector == vector


def test_swap_to_none_is_said_to_be_clear(tiny_bundle, load, vector):
    with load(tiny_bundle, vector) as llm:
        with pytest.raises(VectorError, match=r"not NoneType: for the base alone call clear\(\)"):
            llm.swap(None)
        assert llm.vector == vector


def test_a_path_is_read_and_checked_as_its_bytes_are(tiny_bundle, load, basis, vector, tmp_path):
    file = tmp_path / "v.bin"
    file.write_bytes(vector.to_bytes(basis))
    with load(tiny_bundle, file) as llm:
        assert llm.vector == vector
        llm.clear()
        assert llm.swap(file) == vector
        file.write_bytes(MicroVector(vector.values, sequence=2).to_bytes(basis))
        with pytest.raises(RollbackError):
            llm.swap(file)
        with pytest.raises(FileNotFoundError):
            llm.swap(tmp_path / "none.bin")
        assert llm.vector == vector


def test_a_file_that_is_no_vector_is_not_read_whole(tmp_path):
    file = tmp_path / "large"
    with file.open("wb") as out:
        out.truncate(1 << 33)
    with pytest.raises(VectorError, match="more than 1,048,576 bytes"):
        vector_bytes(file)


def test_a_block_that_raises_records_nothing(basis, vector):
    policy = Policy()
    with pytest.raises(ZeroDivisionError), admitted(vector.to_bytes(basis), basis, policy):
        raise ZeroDivisionError
    with admitted(MicroVector(vector.values, sequence=2).to_bytes(basis), basis, policy) as lower:
        assert lower.sequence == 2


@pytest.mark.parametrize(
    "keys", [["00" * 32], [Hmac(bytes(32)), b"k"], "00" * 32], ids=["text", "bytes", "str"]
)
def test_a_policy_refuses_keys_that_are_none(keys):
    with pytest.raises(VectorError, match=r"takes verifiers, not (str|bytes): make them with Hmac"):
        Policy(keys=keys)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"polcy": Policy("checksum")}, r"no option 'polcy': this engine's are n_gpu_layers, "),
        ({"n_cxt": 64}, r"no option 'n_cxt': this engine's are n_gpu_layers, "),
    ],
)
def test_an_unknown_option_is_refused_with_the_nearest_one(tiny_bundle, load, options, message):
    with pytest.raises(OptionError, match=message) as caught:
        load(tiny_bundle, **options)
    assert isinstance(caught.value, TypeError)


def test_a_raw_file_warns_as_raw_bytes_do(tiny_bundle, load, basis, vector, tmp_path: Path):
    file = tmp_path / "v.raw"
    file.write_bytes(vector.to_bytes(basis, None))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with load(tiny_bundle, file) as llm:
            assert np.array_equal(llm.vector.values, vector.values)
    assert [item.category.__name__ for item in caught] == ["UnauthenticatedVectorWarning"]
