"""`train_many` on a Ray cluster of two nodes of this machine, of which one is killed in the middle."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from tinylora_edge import MicroVector, load_bundle
from tinylora_edge.train import Options, train_many
from tinylora_edge.train.many import Folder

cluster_utils = pytest.importorskip("ray.cluster_utils", reason="Ray is not installed")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="two nodes on one machine are for Linux alone")
def test_every_user_once_though_a_node_dies(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    bases = load_bundle(tiny / "bundle").bases
    shared = MicroVector.random(bases.basis(rank=2), 0.5).to_bytes(bases.basis(rank=2))
    how: dict[str, Any] = {"weights": str(tiny / "weights"), "dtype": "fp32", "rank": (6, 4)}
    users = {f"u{number}": [f"u{number} is at {n}, k?" for n in range(24)] for number in range(12)}
    cluster = cluster_utils.Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        other = cluster.add_node(num_cpus=1)
        cluster.wait_for_nodes()
        options, found = Options(under=shared, **how), []
        for result in train_many(
            tiny / "bundle", users, tmp_path / "out", options=options, ray=cluster.address
        ):
            found.append(result)
            if len(found) == 3:
                cluster.remove_node(other, allow_graceful=False)
    finally:
        ray.shutdown()
        cluster.shutdown()
    assert sorted(result.user for result in found) == sorted(users)
    assert {result.status for result in found} == {"learned"}
    target = Folder(tmp_path / "out", bases)
    assert {target.last(user) for user in users} == {1}
