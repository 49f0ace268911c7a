"""TrustFile: what a device believes moves forward only, whatever becomes of the file."""

from __future__ import annotations

import pickle
import threading
from datetime import date

import pytest
from owners import ALICE, DAY, FLEET, SPARE, STRANGER, begun, listing

from tinylora_edge import SignatureError, TrustError
from tinylora_edge.trust import TrustFile, editor

OLD = listing(begun())
NEW = listing(OLD, SPARE)


@pytest.fixture
def path(tmp_path):
    (tmp_path / "trust.json").write_bytes(OLD.to_bytes())
    return tmp_path / "trust.json"


def test_what_is_newer_replaces_it(path):
    file = TrustFile(path)
    assert file.accept(NEW.to_bytes()) is True
    assert path.read_bytes() == NEW.to_bytes()
    assert file.accept(NEW.to_bytes()) is False
    assert file.trust.keys == NEW.keys


@pytest.mark.parametrize(
    "data", [OLD.to_bytes(), listing(begun(STRANGER), by=(STRANGER,)).to_bytes(), b"{}", b""]
)
def test_a_refusal_leaves_the_file_as_it_was(path, data):
    path.write_bytes(NEW.to_bytes())
    file = TrustFile(path)
    with pytest.raises(TrustError):
        file.accept(data)
    assert path.read_bytes() == NEW.to_bytes()
    assert file.trust.keys == NEW.keys


def test_another_process_s_file_is_read_again_and_never_an_older_one(path):
    file = TrustFile(path)
    path.write_bytes(NEW.to_bytes())
    assert file.trust.keys == NEW.keys
    path.write_bytes(OLD.to_bytes())
    with pytest.raises(TrustError, match=r"trust\.json is refused: its list is 2 of root 1, but list 3"):
        file.trust  # noqa: B018
    path.unlink()
    assert file.trust.keys == NEW.keys


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="tinylora-edge trust init"):
        TrustFile(tmp_path / "none")


def test_threads_that_accept_at_once_leave_the_newest(path):
    versions = [OLD]
    for _ in range(8):
        versions.append(listing(versions[-1], SPARE))
    file, refused = TrustFile(path), []

    def accept(trust):
        try:
            file.accept(trust.to_bytes())
        except TrustError as error:
            refused.append(error)

    threads = [threading.Thread(target=accept, args=(trust,)) for trust in versions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_bytes() == versions[-1].to_bytes()


def test_an_expired_list_refuses_every_signature(path):
    path.write_bytes(listing(begun(), expires=DAY).to_bytes())
    with pytest.raises(SignatureError, match=r"no vector is accepted: .* fetch a newer one"):
        TrustFile(path, today=lambda: date(2026, 3, 2)).verifiers("")


def test_a_link_stays_one(path, tmp_path):
    link = tmp_path / "link"
    link.symlink_to(path)
    TrustFile(link).accept(NEW.to_bytes())
    assert link.is_symlink()
    assert path.read_bytes() == NEW.to_bytes()


def test_it_can_be_pickled(path):
    file = pickle.loads(pickle.dumps(TrustFile(path)))
    assert [key.id for key in file.verifiers("")] == [FLEET.id]
    assert editor.sign(file.trust, [ALICE]).keys == OLD.keys
