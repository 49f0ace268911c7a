"""`learn`: directions that a bundle learns."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from invocation import Cli, contents

from tinylora_edge import MicroVector, load_bundle

BEHAVIOURS = [{"name": "pirate", "system": "Be a pirate."}, {"name": "french", "system": "Answer in French."}]
QUICK = ("--only", "--numbers", 2)


def test_a_bundle_is_learned(cli: Cli, tiny: Path, tmp_path: Path) -> None:
    out, others, behaviours = (tmp_path / name for name in ("bundle", "bundle.learn", "own.jsonl"))
    behaviours.write_text("".join(json.dumps(row) + "\n" for row in BEHAVIOURS))
    shutil.copytree(tiny / "bundle", out, copy_function=os.link)
    before, key = load_bundle(out).bases, tmp_path / "fleet.key"
    cli("keygen", key).done()
    cli("sign", out, "--key", key).done()
    others.mkdir()
    (others / ".DS_Store").write_bytes(b"x")  # as a file browser leaves it
    weights = "--weights", tiny / "weights"
    learn = ("learn", out, "--behaviours", behaviours, *QUICK, *weights, "--json")
    cli(*learn).refused("the bundle is signed by ed25519:", "--key")
    cli("learn", out, "--only").misused("--only")
    record = cli(*learn, "--key", key).record()
    bases = load_bundle(out).bases
    basis = bases.basis(numbers=2)
    assert (record["basis"], record["numbers"]) == (basis.digest, 2)
    assert (basis.projection.kind, basis.rank) == ("learned", 2)
    assert set(bases) == {*before, basis.id}, "every vector stays good"
    assert len(load_bundle(tiny / "bundle").bases.projections) == len(bases.projections) - 1
    assert [each["name"] for each in record["behaviours"]] == ["pirate", "french"]
    described = json.loads((out / "manifest.json").read_text())["basis"]
    assert described["projections"] == [each.descriptor for each in bases.projections]
    assert described["learned"]["behaviours"] == 2
    assert contents(others) == {".DS_Store": b"x"}, "what was kept for going on is gone"
    cli("inspect", out, "--key", f"{key}.pub").done()


def test_a_bundle_learns_from_users_vectors(cli: Cli, tiny: Path, tmp_path: Path) -> None:
    out, users = tmp_path / "bundle", tmp_path / "users"
    shutil.copytree(tiny / "bundle", out, copy_function=os.link)
    users.mkdir()
    for user in range(4):
        basis = load_bundle(out).basis(rank=2)
        frame = MicroVector.random(basis, 1.0, seed=user, dtype="int8").to_bytes(basis)
        (users / f"{user}.bin").write_bytes(frame)
    learn = ("learn", out, "--from", users)
    cli(*learn, "--weights", tiny / "weights").misused("--from")
    cli(*learn).refused("4 users' vectors cannot teach 13 directions")
    record = cli(*learn, "--numbers", 3, "--json").record()
    found = load_bundle(out).basis(numbers=3)
    assert (record["basis"], record["learned"]) == (found.digest, {"vectors": 4})
    assert found.projection.prior is not None
    assert found.shape == (2, 2)
    (users / "other.bin").write_bytes(MicroVector.zeros(found).to_bytes(found))
    cli(*learn).refused("has 5 vectors (*.bin) of 2 different bases, expected one basis")
    (users / "damaged.bin").write_bytes(frame[:-1] + bytes([frame[-1] ^ 1]))
    cli(*learn).refused("damaged.bin: the frame's checksum")
    cli("learn", out, "--from", tmp_path / "none").refused("none has 0 vectors")
