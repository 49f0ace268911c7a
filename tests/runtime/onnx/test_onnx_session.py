"""`OnnxSession`: rows of vectors for a loop of one's own, and what ONNX Runtime would do silently."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_bundles
import onnx_models
import onnxruntime
import pytest

from tinylora_edge import BasisMismatchError, ChecksumError, MicroVector, RollbackError, VectorError
from tinylora_edge.runtime import OnnxSession

TOKENS = [72, 101, 108, 108, 111]


@pytest.fixture(params=["default", "required"])
def bundle(request: pytest.FixtureRequest) -> Path:
    return onnx_bundles.tiny(request.param)


@pytest.fixture
def session(bundle: Path) -> OnnxSession:
    return OnnxSession(bundle, sess_options=onnx_models.options())


def feeds(session: OnnxSession, batch: int = 1) -> dict[str, Any]:
    return onnx_models.feeds(session.session, [TOKENS] * batch)


def run(session: OnnxSession, rows: Any = None, batch: int = 1) -> np.ndarray:
    return session.run(["logits"], feeds(session, batch), rows)[0][:, -1]


def test_no_vector_is_the_base_and_zeros_are_too(session: OnnxSession, bundle: Path) -> None:
    base = run(session)
    assert np.array_equal(base[0], onnx_bundles.logits(bundle, TOKENS, None))
    assert np.array_equal(run(session, session.rows(None)), base)
    assert np.array_equal(run(session, session.rows(MicroVector.zeros(session.bases.basis(rank=3)))), base)


def test_a_vector_in_every_form(session: OnnxSession, bundle: Path) -> None:
    (vector,) = onnx_bundles.vectors(bundle, 1)
    expected = onnx_bundles.logits(bundle, TOKENS, vector)
    data = vector.to_bytes(session.bases.of(vector))
    for form in (vector, data, bytearray(data), memoryview(data), [vector], (data,)):
        assert np.array_equal(run(session, session.rows(form))[0], expected)
    assert not np.array_equal(run(session)[0], expected)


@pytest.mark.parametrize(("outputs", "ranks"), [(None, (1, 2, 8)), (24, ((1, 3), 8, (24, 8)))])
def test_every_row_of_a_batch_is_its_own_user_of_any_size(outputs: int | None, ranks: Any) -> None:
    session = OnnxSession(onnx_bundles.tiny(outputs=outputs), sess_options=onnx_models.options())
    bases = session.bases
    of = [bases.basis(numbers=5), bases.basis(numbers=14), *(bases.basis(rank=rank) for rank in ranks)]
    vectors = [MicroVector.random(basis, 1, seed=basis.size) for basis in of]
    frames = [vector.to_bytes(basis) for vector, basis in zip(vectors, of, strict=True)]
    rows = session.rows([*frames[:3], None, *frames[3:]])
    together = run(session, rows, batch=6)
    for found, vector in zip(together, [*vectors[:3], None, *vectors[3:]], strict=True):
        assert np.abs(found - run(session, session.rows(vector))[0]).max() <= 1e-5
    assert min(np.abs(together[i] - together[j]).max() for i in range(6) for j in range(i)) > 0.01


def test_rows_that_do_not_match_the_batch(session: OnnxSession, bundle: Path) -> None:
    rows = session.rows(onnx_bundles.vectors(bundle, 3))
    for batch in (1, 2, 4):
        with pytest.raises(VectorError, match=f"3 rows.*{batch} sequences"):
            run(session, rows, batch)
    with pytest.raises(VectorError, match="is empty"):
        session.rows([])
    (vector,) = onnx_bundles.vectors(bundle, 1)
    together = run(session, session.rows(vector), batch=3)  # one for all
    assert np.abs(together - run(session, session.rows(vector))).max() <= 1e-5


def test_a_refused_row_is_named_and_nothing_is_recorded(session: OnnxSession, bundle: Path) -> None:
    basis = onnx_bundles.basis(bundle)
    values = onnx_bundles.vectors(bundle, 1)[0].values
    alice, older = (MicroVector(values, sequence=s).to_bytes(basis, user="alice") for s in (8, 3))
    bob = MicroVector(values, sequence=3).to_bytes(basis, user="bob")
    with pytest.raises(ChecksumError, match="row 1"):
        session.rows([alice, bob[:-1] + bytes([bob[-1] ^ 1])], users=["alice", "bob"])
    with pytest.raises(VectorError, match="2 vectors, but 3 users"):
        session.rows([alice, alice], users=["a", "b", "c"])
    with pytest.raises(VectorError, match="row 1 is of user 'alice' with sequence 8, another row with 3: p"):
        session.rows([older, alice], users="alice")
    shared = MicroVector(values)  # the app's own are not recorded, in a stack neither
    session.rows([[shared, MicroVector(values, sequence=s)] for s in (1, 2)], users="alice")
    session.rows(older, users="alice")  # 8 was not recorded
    session.rows([alice, bob], users=["alice", "bob"])
    with pytest.raises(RollbackError):
        session.rows(older, users="alice")


def test_a_vector_of_a_wrong_width_or_of_other_factors(session: OnnxSession) -> None:
    other = OnnxSession(onnx_bundles.tiny(rank=3), sess_options=onnx_models.options())
    basis = other.bases.basis(rank=3)
    zeros = MicroVector.zeros(basis)
    with pytest.raises(VectorError, match="no projection has 81 numbers"):
        session.rows(MicroVector(np.zeros(81, np.float32)))
    for source in (zeros, zeros.to_bytes(basis)):
        with pytest.raises(BasisMismatchError, match=basis.id):
            session.rows(source)
    with pytest.raises(BasisMismatchError):  # a rank beyond the graph's
        other.rows(MicroVector.zeros(session.bases.basis(rank=4)))


def test_the_vector_among_the_feeds(session: OnnxSession) -> None:
    with pytest.raises(VectorError, match="rows"):
        session.run(["logits"], {**feeds(session), "tinylora_r": session.rows(None)})


def test_the_zeros_adapter_of_the_bundle_is_the_base() -> None:
    session = OnnxSession(onnx_bundles.tiny(), sess_options=onnx_models.options())
    plain, chosen = onnxruntime.LoraAdapter(), onnxruntime.RunOptions()
    plain.Load(str(onnx_bundles.tiny() / "onnx" / "zeros.onnx_adapter"))
    chosen.add_active_adapter(plain)
    found = session.session.run(["logits"], feeds(session), chosen)[0][:, -1]
    assert np.array_equal(found, run(session))
