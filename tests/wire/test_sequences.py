"""The sequences that a policy remembers: durable, shared and never lower. Restarts: runtime/admission."""

from __future__ import annotations

import hashlib
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import support

from tinylora_edge import AdmittedVector, Ed25519Signer, Ed25519Verifier, Hmac, MicroVector, Policy
from tinylora_edge.errors import RollbackError, VectorError
from tinylora_edge.wire import sequences
from tinylora_edge.wire.sequences import decode

BASIS = support.random_basis(groups=3)
OTHER = support.random_basis(groups=3, rng=1)
OLD, NEW = Ed25519Signer(b"o" * 32), Ed25519Signer(b"n" * 32)
MAC = Hmac(b"m" * 32)
TRUSTED = [Ed25519Verifier(OLD.public_key), Ed25519Verifier(NEW.public_key), MAC]


def frame(sequence: int, signer=OLD, basis=BASIS, user: str = "") -> bytes:
    values = np.array([0.5, -0.25, 0.125], np.float32)
    return MicroVector(values, "fp32", sequence).to_bytes(basis, signer, user=user)


def apply(policy: Policy, data: bytes, basis=BASIS, **stream: str) -> AdmittedVector:
    vector = policy.check(data, basis, **stream)
    policy.record(vector)
    return vector


def policy(path: Path, keys=TRUSTED) -> Policy:
    return Policy(keys=keys, state=path)


class TestMarks:
    def test_factors_keys_and_streams_have_marks_of_their_own(self, tmp_path):
        path = tmp_path / "state"
        apply(policy(path), frame(9))
        for data, basis, stream in (
            (frame(1, OLD, OTHER), OTHER, {}),
            (frame(1, NEW), BASIS, {}),
            (frame(1, MAC), BASIS, {}),
            (frame(1, user="bob"), BASIS, {"user": "bob"}),
        ):
            assert apply(policy(path), data, basis, **stream).sequence == 1
        assert apply(policy(path, ()), frame(1, "crc32")).sequence == 1
        with pytest.raises(RollbackError):
            policy(path).check(frame(8), BASIS)

    def test_a_state_is_parsed_once_for_all_that_ask_while_nobody_changes_it(self, tmp_path, monkeypatch):
        path, parsed = tmp_path / "state", list[int]()
        one, other = policy(path), policy(path)
        monkeypatch.setattr(sequences, "decode", lambda data: parsed.append(len(data)) or decode(data))
        apply(one, frame(3))
        assert parsed == [], "what it wrote itself"
        apply(other, frame(4))
        assert len(parsed) == 1
        with pytest.raises(RollbackError):
            one.check(frame(3), BASIS)
        apply(one, frame(5))
        assert len(parsed) == 2
        path.write_bytes(b"")
        with pytest.raises(VectorError, match="damaged"):
            one.check(frame(6), BASIS)

    def test_what_changes_nothing_writes_nothing(self, tmp_path):
        path = tmp_path / "state"
        guarded = policy(path)
        guarded.check(frame(5), BASIS)
        assert list(tmp_path.iterdir()) == []
        apply(guarded, frame(5))
        before = path.stat().st_mtime_ns
        apply(guarded, frame(5))
        assert path.stat().st_mtime_ns == before


class TestFile:
    def test_its_owner_alone_may_read_it_and_nothing_is_left_beside_it(self, tmp_path):
        apply(policy(tmp_path / "state"), frame(5))
        assert sorted(p.name for p in tmp_path.iterdir()) == ["state", "state.lock"]
        for made in tmp_path.iterdir():
            assert stat.S_IMODE(made.stat().st_mode) == 0o600

    def test_what_is_no_place_for_a_state(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"no.*does not exist"):
            policy(tmp_path / "no" / "state")
        with pytest.raises(IsADirectoryError):
            policy(tmp_path)

    def test_damage_is_refused(self, tmp_path):
        path = tmp_path / "state"
        apply(policy(path), frame(5))
        whole = path.read_bytes()
        flipped = (whole[:i] + bytes([whole[i] ^ 1]) + whole[i + 1 :] for i in range(len(whole)))
        for data in (*flipped, *(whole[:length] for length in range(0, len(whole), 9))):
            path.write_bytes(data)
            with pytest.raises(VectorError, match=r"state is damaged: .*\. Restore it"):
                policy(path)

    def test_damage_while_it_runs_is_refused_and_not_overwritten(self, tmp_path):
        path = tmp_path / "state"
        guarded = policy(path)
        apply(guarded, frame(5))
        higher = guarded.check(frame(9), BASIS)
        path.write_bytes(b"{}")
        with pytest.raises(VectorError, match="damaged"):
            guarded.check(frame(6), BASIS)
        with pytest.raises(VectorError, match="damaged"):
            guarded.record(higher)
        assert path.read_bytes() == b"{}"

    def test_a_later_vector_of_another_process_refuses_what_was_checked_before(self, tmp_path):
        ours, theirs = policy(tmp_path / "state"), policy(tmp_path / "state")
        checked = ours.check(frame(5), BASIS)
        apply(theirs, frame(9))
        before = (tmp_path / "state").read_bytes()
        with pytest.raises(RollbackError):
            ours.record(checked)
        assert (tmp_path / "state").read_bytes() == before

    @pytest.mark.parametrize("value", ['"-1:"', '"1:ab"', '"x"', "5", "null"])
    def test_what_is_no_sequence_is_damage(self, value):
        body = f'{{"digest":{{"key":{{"stream":{value}}}}}}}'
        digest = hashlib.sha256(body.encode()).hexdigest()
        with pytest.raises(ValueError, match="another structure"):
            decode(f'{{"format": 4, "sha256": "{digest}", "accepted": {body}}}'.encode())


RAISE = """
import sys
from contextlib import suppress
from tinylora_edge.errors import RollbackError
from tinylora_edge.wire.sequences import Accepted, SequenceFile
state, name = SequenceFile(sys.argv[1]), sys.argv[2]
for sequence in range(1, 61):
    state.record(("d", "k", name), Accepted(sequence))
    shared = state.find(("d", "k", "all")).sequence
    with suppress(RollbackError):  # another process was faster
        state.record(("d", "k", "all"), Accepted(shared + 1))
    assert state.find(("d", "k", "all")).sequence > shared
"""


def test_processes_that_share_it_never_lower_each_other_s_marks(tmp_path):
    path = tmp_path / "state"
    children = [subprocess.Popen([sys.executable, "-c", RAISE, path, name]) for name in ("a", "b", "c")]
    assert [child.wait() for child in children] == [0, 0, 0]
    marks = {mark: accepted.sequence for mark, accepted in decode(path.read_bytes()).items()}
    assert [marks["d", "k", name] for name in ("a", "b", "c")] == [60] * 3
    assert 60 <= marks["d", "k", "all"] <= 180
