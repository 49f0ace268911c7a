"""The published layout as a store: what `publish` wrote is served."""

from __future__ import annotations

from pathlib import Path

import pytest
import support

from tinylora_edge import MicroVector, Policy, RequestError, RollbackError, StoreError
from tinylora_edge.serve.store import PublishedStore, SqliteStore
from tinylora_edge.shipping import publish


def test_what_was_published_is_served(tmp_path: Path) -> None:
    basis, policy = support.random_basis(), Policy()
    users = ("bob", "alice", "bob")
    frames = [
        MicroVector.random(basis, 1.0, seed=n).to_bytes(basis, stream=user) for n, user in enumerate(users)
    ]
    publish(frames[0], basis, str(tmp_path), stream="bob")
    store = PublishedStore(str(tmp_path), basis)
    assert store.get("alice") is None
    assert store.put("alice", frames[1], policy).sequence == 1
    found = store.get("alice")
    assert found is not None
    assert (found.frame, found.sequence) == (frames[1], 1)
    served = store.get("bob")
    assert served is not None
    assert served.frame == frames[0]
    with pytest.raises(StoreError, match="a sequence is used once"):
        store.put("bob", frames[2], policy)
    newer = MicroVector.random(basis, 1.0, seed=9)
    store.put("bob", MicroVector(newer.values, sequence=3).to_bytes(basis, stream="bob"), policy)
    with pytest.raises(RollbackError):
        store.put("bob", MicroVector(newer.values, sequence=2).to_bytes(basis, stream="bob"), policy)
    with pytest.raises(StoreError, match="nothing is deleted"):
        store.delete("bob")
    for name in ("../alice", ""):
        with pytest.raises(RequestError):
            store.get(name)
    store.close()


def test_the_stream_without_a_name_is_no_users(tmp_path: Path) -> None:
    """What a fleet shares, which the layout calls `default`, is nobody's vector, in either store."""
    basis, policy = support.random_basis(), Policy()
    shared = MicroVector.random(basis, 1.0).to_bytes(basis)
    of_default = MicroVector.random(basis, 1.0).to_bytes(basis, stream="default")
    publish(shared, basis, str(tmp_path / "layout"))
    assert (tmp_path / "layout" / basis.id / "default" / "latest").read_bytes() == shared
    stores = PublishedStore(str(tmp_path / "layout"), basis), SqliteStore(tmp_path / "users.db", basis)
    for store in stores:
        for call in (
            lambda store=store: store.get("default"),
            lambda store=store: store.put("default", shared, policy),
            lambda store=store: store.put("default", of_default, policy),
        ):
            with pytest.raises(RequestError, match="the stream without a name"):
                call()
        store.close()


def test_targets_that_are_none(tmp_path: Path) -> None:
    basis = support.random_basis()
    with pytest.raises(StoreError):
        PublishedStore("https://example.org/vectors", basis)
