"""`train_many`: users, what becomes of each, sequences, reports, and workers that die."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tinylora_edge import MicroVector, Policy, TrainError, load_bundle
from tinylora_edge.shipping.fetch import frame_path
from tinylora_edge.shipping.publish import publish
from tinylora_edge.train import Options, UserResult, many, train_many
from tinylora_edge.train.crews import Processes
from tinylora_edge.train.many import Folder, names_users, read_users
from tinylora_edge.wire.tags import Ed25519Signer, Ed25519Verifier

SIGNER = Ed25519Signer(bytes(32))


def words(user: str, count: int = 24) -> list[str]:
    return [f"{user} is at {number}, k?" for number in range(count)]


@pytest.fixture(scope="module")
def options(tiny: Path) -> Options:
    bases = load_bundle(tiny / "bundle").bases
    shared = MicroVector.random(bases.basis(rank=2), 0.5).to_bytes(bases.basis(rank=2))
    how = {"weights": str(tiny / "weights"), "dtype": "fp32", "rank": (6, 4)}
    return Options(under=shared, **how)


def by_user(results: Iterator[UserResult]) -> dict[str, UserResult]:
    found = [*results]
    assert len({each.user for each in found}) == len(found)
    return {each.user: each for each in found}


def test_users_of_a_folder_and_of_lines(tmp_path: Path) -> None:
    folder = tmp_path / "people"
    folder.mkdir()
    (folder / "alice.txt").write_text("one\ntwo\n")
    (folder / "bob.jsonl").write_text('{"text": "x", "split": "train"}\n{"text": "y", "split": "held_out"}\n')
    (folder / "carl.jsonl").write_text("{\n")
    (folder / "dora.txt").write_text("a\n")
    (folder / "dora.jsonl").write_text('{"text": "a"}\n')
    (folder / "eve.jsonl").write_text('{"prompt": "a", "answer": "b"}\n{"prompt": "c", "answer": "b"}\n')
    (folder / "notes.md").write_text("no texts\n")
    found = read_users(folder)
    assert {user for user, texts in found.items() if isinstance(texts, TrainError)} == {"carl", "dora", "eve"}
    assert found["alice"] == ["one", "two"]
    assert found["bob"] == ["x"], "what its user holds out is not learned"
    lines = tmp_path / "all.jsonl"
    lines.write_text('{"user": "a", "text": "x"}\n{"user": "b", "text": " "}\n{"user": "a", "text": "y"}\n')
    found = read_users(lines)
    assert found["a"] == ["x", "y"]
    assert isinstance(found["b"], TrainError)
    assert names_users(folder)
    assert names_users(lines)
    assert not names_users(folder / "bob.jsonl")
    assert not names_users(folder / "carl.jsonl")
    lines.write_text('{"user": "a", "text": "x"}\n{"text": "y"}\n')
    with pytest.raises(TrainError, match=r'all\.jsonl:2: there is no "user"'):
        read_users(lines)


def test_a_folder_takes_the_next_sequence_alone(tiny: Path, tmp_path: Path) -> None:
    bases = load_bundle(tiny / "bundle").bases
    basis = bases.basis(rank=2)
    target = Folder(tmp_path, bases)
    frames = [MicroVector.random(basis, 0.1, seed=n) for n in range(3)]

    def frame(number: int, sequence: int) -> bytes:
        vector = MicroVector(frames[number].values, sequence=sequence)
        return vector.to_bytes(basis, SIGNER, user="al")

    assert target.last("al") is None
    assert target.put_newer("al", frame(0, 1))
    assert target.put_newer("al", frame(0, 1)), "it ran before, say"
    publish(frame(1, 2), bases, str(tmp_path), user="al")  # a click, while the user is at work
    assert not target.put_newer("al", frame(2, 2))
    publish(frame(1, 7), bases, str(tmp_path), user="al")
    assert not target.put_newer("al", frame(2, 3))
    assert target.last("al") == 7


def test_what_is_refused_before_any_work(tiny: Path, options: Options, tmp_path: Path) -> None:
    to = tmp_path / "out"
    for how, message in (
        ({"options": replace(options, under=None)}, "lie on a shared one"),
        ({"workers": 0}, "workers is 0"),
        ({"users": {}}, "there are no users"),
    ):
        given = {"users": {"al": words("al")}, "options": options, **how}
        with pytest.raises(TrainError, match=message):
            train_many(tiny / "bundle", given.pop("users"), to, **given)
    assert not to.exists()


def test_all_workers_have_one_dtype(
    tiny: Path, options: Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Recording(Processes):
        def __init__(self, bundle: str, options: Options, count: int) -> None:
            raise TrainError(f"workers have {options.dtype}")

    monkeypatch.setattr(many, "Processes", Recording)
    monkeypatch.setattr(many, "default_dtype", lambda: "bf16")
    run, given = (tiny / "bundle", {"al": words("al")}, tmp_path / "out"), replace(options, dtype=None)
    with pytest.raises(TrainError, match="workers have bf16"):
        next(train_many(*run, options=given))


@pytest.mark.slow
def test_every_user_once_and_what_fails_is_theirs_alone(tiny: Path, options: Options, tmp_path: Path) -> None:
    """A first run, whose worker is killed at work; then the same again; then with a changed user."""
    to, bases = tmp_path / "out", load_bundle(tiny / "bundle").bases
    users = {user: words(user) for user in ("al", "bo", "cy", "di")}
    users |= {"few": words("few", 3), "not/a name": words("x"), "long": [*words("long"), "long " * 5000]}
    publish(
        MicroVector.random(bases.basis(rank=2), 0.1).to_bytes(bases.basis(rank=2), SIGNER, user="bo"),
        bases,
        str(to),
        user="bo",
    )
    how: dict[str, Any] = {"options": options, "signer": SIGNER, "workers": 2}
    events, killed = list[dict[str, Any]](), False
    found: dict[str, UserResult] = {}
    for result in train_many(tiny / "bundle", users, to, report=events.append, **how):
        found[result.user] = result
        if result.status == "learned" and not killed:
            os.kill(multiprocessing.active_children()[0].pid or 0, signal.SIGKILL)
            killed = True
    assert killed
    assert {user: each.status for user, each in found.items()} == {
        **dict.fromkeys(("al", "bo", "cy", "di"), "learned"),
        **dict.fromkeys(("few", "not/a name", "long"), "failed"),
    }
    assert "at least 20 are needed" in found["few"].why
    assert "not a valid user" in found["not/a name"].why
    assert "the model's context" in found["long"].why
    assert {user: found[user].sequence for user in ("al", "bo", "cy", "di")} == {
        "al": 1,
        "bo": 2,
        "cy": 1,
        "di": 1,
    }
    (made,) = [event["data"] for event in events if event["event"] == "whitening"]
    policy = Policy(keys=[Ed25519Verifier(SIGNER.public_key)])
    for user in ("al", "bo"):
        frame = (to / frame_path(bases.id, user)).read_bytes()
        vector = policy.check(frame, bases, user=user)
        assert (vector.sequence, vector.dtype, len(frame)) == (found[user].sequence, "q4", found[user].bytes)
        assert vector.norm > 0
    record = tmp_path / "out.report.jsonl"
    assert record.stat().st_mode & 0o777 == 0o600
    rows = [json.loads(line) for line in record.read_text().splitlines()]
    assert {row["user"]: row["status"] for row in rows} == {user: each.status for user, each in found.items()}

    how["options"] = replace(options, whitening=made)
    again = by_user(train_many(tiny / "bundle", users, to, **how))
    assert {again[user].status for user in ("al", "bo", "cy", "di")} == {"unchanged"}
    before = (to / frame_path(bases.id, "al")).read_bytes()
    users = {user: texts for user, texts in users.items() if len(user) == 2}
    users["cy"] = [*users["cy"], "and one more, k?"]
    third = by_user(train_many(tiny / "bundle", users, to, **how))
    assert {user: each.status for user, each in third.items()} == {
        **dict.fromkeys(("al", "bo", "di"), "unchanged"),
        "cy": "learned",
    }
    assert third["cy"].sequence == 2
    assert (to / frame_path(bases.id, "al")).read_bytes() == before


@pytest.mark.slow
def test_a_killed_run_goes_on_and_loses_nothing(tiny: Path, options: Options, tmp_path: Path) -> None:
    """Whatever the moment: behind a line of the report and before its frame, or in the middle of a line."""
    to, bases = tmp_path / "out", load_bundle(tiny / "bundle").bases
    users = {user: words(user) for user in ("al", "bo", "cy")}
    how: dict[str, Any] = {"options": options, "record": tmp_path / "report.jsonl"}
    running = train_many(tiny / "bundle", users, to, **how)
    first = next(running)
    running.close()  # what a kill ends, too
    assert first.status == "learned"
    assert not multiprocessing.active_children()
    line = json.loads((tmp_path / "report.jsonl").read_text())
    with (tmp_path / "report.jsonl").open("a") as file:  # of the next user, whose frame never came; and half
        file.write(json.dumps(line | {"user": "bo"}) + "\n" + json.dumps(line | {"user": "cy"})[:40])
    rest = by_user(train_many(tiny / "bundle", users, to, resume=True, **how))
    assert {user: each.status for user, each in rest.items()} == {"bo": "learned", "cy": "learned"}
    assert {user: Folder(to, bases).last(user) for user in users} == dict.fromkeys(users, 1)
    assert [*train_many(tiny / "bundle", users, to, resume=True, **how)] == []
    (tmp_path / "report.jsonl").write_text('{"user": 3}\n')
    with pytest.raises(TrainError, match=r"report\.jsonl:1: it is no report"):
        next(train_many(tiny / "bundle", users, to, **how))


@pytest.mark.slow
def test_a_vector_that_does_not_gain_is_not_published(tiny: Path, options: Options, tmp_path: Path) -> None:
    """What the held-out tenth says decides, on random weights either way; the frames are where it says."""
    bases, rng = load_bundle(tiny / "bundle").bases, np.random.default_rng(0)
    noise = ["".join(chr(97 + letter) for letter in rng.integers(0, 26, 30)) for _ in range(30)]
    users = {"noise": noise, "al": words("al", 40)}
    found = by_user(train_many(tiny / "bundle", users, tmp_path / "out", options=options, evaluate=True))
    for user, result in found.items():
        assert result.gain is not None
        assert result.status == ("learned" if result.gain > 0 else "kept")
        assert (Folder(tmp_path / "out", bases).last(user) == 1) == (result.gain > 0)
    assert found["al"].gain is not None
    assert found["noise"].gain is not None
    assert found["al"].gain > found["noise"].gain


@pytest.mark.slow
def test_a_free_worker_ends_by_itself(tiny: Path, options: Options) -> None:
    """Killed, it leaves its libraries' semaphores, of which Python warns when the run ends."""
    workers = Processes(str(tiny / "bundle"), options, 1)
    (process,) = multiprocessing.active_children()
    assert workers.take() is None
    workers.close()
    assert process.exitcode == 0


@pytest.mark.slow
def test_no_worker_can_load(tiny: Path, options: Options, tmp_path: Path) -> None:
    wrong = replace(options, weights=str(tmp_path / "none"), whitening=b"")
    with pytest.raises(TrainError, match=r"damaged|does not exist"):
        next(train_many(tiny / "bundle", {"al": words("al")}, tmp_path / "out", options=wrong))
    assert not multiprocessing.active_children()


@pytest.mark.slow
def test_a_stop_while_the_store_is_away_ends_the_run(tiny: Path, options: Options, tmp_path: Path) -> None:
    """No worker is at work then, and none gets a job: nothing is waited for."""

    class Away:
        def last(self, user: str) -> int | None:
            signal.raise_signal(signal.SIGINT)
            raise OSError("the store is away")

        def put_newer(self, user: str, frame: bytes) -> bool:
            raise AssertionError("nothing is learned")

    users = {user: words(user) for user in "ab"}
    record, events = tmp_path / "report.jsonl", list[dict[str, Any]]()
    run = train_many(tiny / "bundle", users, Away(), options=options, record=record, report=events.append)
    assert [(each.user, each.status, each.why) for each in run] == [("a", "failed", "the store is away")]
    assert events[-1] == {"event": "stopping"}
