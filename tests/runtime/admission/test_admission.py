"""What an app passes as a vector: bytes, a path or a vector of its own; the rest is refused by name."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tinylora_edge import Hmac, MicroVector, OptionError, Policy, RollbackError, VectorError, load_bundle
from tinylora_edge.runtime.model import admitted, vector_bytes


@pytest.fixture
def vector(vector):
    return replace(vector, sequence=3)


OTHERS = [
    ("v.bin", r"pathlib\.Path of a file .* not the str 'v\.bin'"),
    ([0.1] * 13, r"vector 1 of a stack: .* a MicroVector\(values\), .* not the float 0\.1"),
    (np.zeros((13, 1), np.float32), "not the ndarray"),
    (None, r"not the NoneType None; for the base alone call clear\(\)"),
]


def test_load_and_swap_refuse_what_is_no_vector(tiny_bundle, load, vector):
    with load(tiny_bundle, vector) as llm:
        for other, message in OTHERS:
            with pytest.raises(VectorError, match=message):
                llm.swap(other)
            with pytest.raises(VectorError, match=message), llm.using(other):
                raise AssertionError("the block must not run")
        assert llm.vector == vector
    with pytest.raises(VectorError, match="not the str"):
        load(tiny_bundle, "v.bin")


def test_a_path_is_read_and_checked_as_its_bytes_are(tiny_bundle, load, basis, vector, tmp_path):
    file = tmp_path / "v.bin"
    file.write_bytes(vector.to_bytes(basis))
    with load(tiny_bundle, file) as llm:
        assert llm.vector == vector
        llm.clear()
        assert llm.swap(file) == vector
        file.write_bytes(replace(vector, sequence=2).to_bytes(basis))
        with pytest.raises(RollbackError):
            llm.swap(file)
        with pytest.raises(FileNotFoundError):
            llm.swap(tmp_path / "none.bin")
        assert llm.vector == vector


def test_a_file_that_is_no_vector_is_not_read_whole(tmp_path):
    file = tmp_path / "large"
    with file.open("wb") as out:
        out.truncate(1 << 33)
    with pytest.raises(VectorError, match="more than 2,097,152 bytes"):
        vector_bytes(file)


def test_a_block_that_raises_records_nothing(basis, vector):
    policy = Policy()
    with pytest.raises(ZeroDivisionError), admitted(vector.to_bytes(basis), basis, policy):
        raise ZeroDivisionError
    with admitted(replace(vector, sequence=2).to_bytes(basis), basis, policy) as lower:
        assert lower.sequence == 2


def test_a_vector_that_was_replaced_is_refused_after_a_restart(tiny_bundle, load, vector, tmp_path):
    """Also where the user has grown, and the frames are signed."""
    key, bases, state = Hmac(b"k" * 32), load_bundle(tiny_bundle).bases, tmp_path / "state"
    grown = replace(MicroVector.random(bases.basis(rank=4), 0.3, dtype="bf16"), sequence=5)
    sent = vector, grown, replace(vector, sequence=4)
    first, second, older = (each.to_bytes(bases.of(each), key) for each in sent)
    with load(tiny_bundle, first, policy=Policy(keys=[key], state=state)) as llm:
        llm.swap(second)
    with pytest.raises(RollbackError):
        load(tiny_bundle, older, policy=Policy(keys=[key], state=state))
    with load(tiny_bundle, second, policy=Policy(keys=[key], state=state)) as again:
        written = state.read_bytes()
        with pytest.raises(RollbackError):
            again.swap(older)
        assert (again.vector, state.read_bytes()) == (grown, written)


def test_a_state_that_cannot_be_written_leaves_the_model_alone(tiny_bundle, load, basis, vector, tmp_path):
    (folder := tmp_path / "state").mkdir()
    with load(tiny_bundle, vector.to_bytes(basis), policy=Policy(state=folder / "seen")) as llm:
        folder.rename(tmp_path / "away")
        newer = replace(vector, sequence=4).to_bytes(basis)
        with pytest.raises(OSError, match="seen"):
            llm.swap(newer)
        assert llm.vector == vector
        folder.mkdir()
        assert llm.swap(newer).sequence == 4


def test_an_unknown_option_is_refused(tiny_bundle, load):
    with pytest.raises(OptionError, match=r"no option 'n_cxt': this engine's are n_gpu_layers, ") as caught:
        load(tiny_bundle, n_cxt=64)
    assert isinstance(caught.value, TypeError)
