"""A frozen mirror: statements that are published, fetched within their budget, and believed or not."""

from __future__ import annotations

from datetime import date, timedelta
from pathlib import Path

import pytest
import servers
import support

from tinylora_edge import (
    Ed25519Signer,
    Ed25519Verifier,
    Hmac,
    MicroVector,
    Policy,
    SignatureError,
    TransferError,
)
from tinylora_edge.shipping import fetch_statement, publish
from tinylora_edge.wire.freshness import believed
from tinylora_edge.wire.statements import LATEST_BYTES, Latest, decode_latest

BASIS = support.random_basis(groups=3)
SIGNER = Ed25519Signer(b"k" * 32)
KEYS = [Ed25519Verifier(SIGNER.public_key)]
TODAY = date(2026, 11, 27)
HOME = f"{BASIS.id}/alice"


def frame(sequence: int, signer=SIGNER, stream: str = "alice") -> bytes:
    drawn = MicroVector.random(BASIS, 0.3, seed=sequence)
    return MicroVector(drawn.values, "int8", sequence).to_bytes(BASIS, signer, stream=stream)


def put(sequence: int, root: Path, **options):
    return publish(
        frame(sequence), BASIS, str(root), **{"stream": "alice", "today": TODAY, "signer": SIGNER} | options
    )


class TestPublished:
    def test_the_statement_lies_beside_the_newest(self, tmp_path):
        done = put(7, tmp_path)
        assert done.fresh_until == TODAY + timedelta(29)
        data = (tmp_path / HOME / "latest.stmt").read_bytes()
        assert decode_latest(data, BASIS.digest, "alice", KEYS) == (Latest(7, 330, 359), SIGNER.id)
        assert (tmp_path / HOME / "latest").read_bytes() == frame(7)

    def test_doing_it_again_renews_it(self, tmp_path):
        put(7, tmp_path)
        again = put(7, tmp_path, today=TODAY + timedelta(20), fresh_days=1)
        assert (again.changed, again.fresh_until) == (False, TODAY + timedelta(20))
        data = (tmp_path / HOME / "latest.stmt").read_bytes()
        assert decode_latest(data, BASIS.digest, "alice", KEYS)[0] == Latest(7, 350, 350)

    def test_the_default_stream_has_no_name_in_it(self, tmp_path):
        publish(frame(7, stream=""), BASIS, str(tmp_path), signer=SIGNER, today=TODAY)
        data = (tmp_path / BASIS.id / "default" / "latest.stmt").read_bytes()
        assert decode_latest(data, BASIS.digest, "", KEYS)[0].sequence == 7

    def test_without_a_key_there_is_none(self, tmp_path):
        assert put(7, tmp_path, signer=None).fresh_until is None
        assert {p.name for p in (tmp_path / HOME).iterdir()} == {"00007.bin", "latest"}

    @pytest.mark.parametrize(
        "other", [{"stream": "bob"}, {"signer": Ed25519Signer(bytes(32))}, {"signer": Hmac(b"m" * 32)}]
    )
    def test_a_frame_that_the_key_does_not_verify_is_refused(self, tmp_path, other):
        """Else devices would refuse what is said to be the newest."""
        with pytest.raises(SignatureError):
            put(7, tmp_path, **other)
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("fresh_days", [0, -1, 1 << 16])
    def test_days_that_cannot_be(self, tmp_path, fresh_days):
        with pytest.raises(TransferError, match="pass 1 or more"):
            put(7, tmp_path, fresh_days=fresh_days)
        assert list(tmp_path.iterdir()) == []


class TestFetched:
    def test_from_one_machine_to_another(self, tmp_path):
        put(7, tmp_path)
        policy = Policy(keys=KEYS, today=TODAY)
        with servers.static(tmp_path) as (url, _):
            data = fetch_statement(url, BASIS, "alice")
        fresh = policy.freshness(BASIS, stream="alice")
        assert believed(fresh, data) == ""
        assert fresh.problem(7) == ""

    def test_a_server_without_one(self):
        with servers.answering(b"HTTP/1.1 404 No\r\n\r\n") as (url, requests):
            assert fetch_statement(url, BASIS, "alice") is None
        assert len(requests) == 1, "a second try would not help"

    @pytest.mark.parametrize("size", [LATEST_BYTES + 1, 1 << 20])
    def test_no_more_is_read_than_a_statement_has(self, size):
        body = b"HTTP/1.1 200 OK\r\n\r\n" + bytes(size)
        with (
            servers.answering(body) as (url, _),
            pytest.raises(TransferError, match=f"more than {LATEST_BYTES} bytes"),
        ):
            fetch_statement(url, BASIS, "alice")

    def test_it_ends_by_its_deadline(self):
        with (
            servers.answering(b"HTTP/1.1 503 No\r\n\r\n") as (url, _),
            pytest.raises(TransferError, match=r"within 0\.5 s"),
        ):
            fetch_statement(url, BASIS, "alice", deadline=0.5)
