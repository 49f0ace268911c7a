"""`train` of many users on a tiny model: what it prints, writes and refuses."""

from __future__ import annotations

import json
import shutil
from contextlib import closing

import pytest

from tinylora_edge import MicroVector, Policy, load_bundle
from tinylora_edge.serve.store import Store
from tinylora_edge.shipping.fetch import frame_path
from tinylora_edge.wire.tags import Ed25519Signer, Ed25519Verifier


@pytest.fixture
def people(tmp_path):
    folder = tmp_path / "people"
    folder.mkdir()
    for user in ("al", "bo"):
        (folder / f"{user}.txt").write_text("".join(f"{user} is at {number}, k?\n" for number in range(24)))
    (folder / "few.txt").write_text("one\n")
    return folder


@pytest.fixture
def under(tiny, tmp_path):
    basis = load_bundle(tiny / "bundle").basis(rank=2)
    path = tmp_path / "shared.bin"
    path.write_bytes(MicroVector.random(basis, 0.5).to_bytes(basis))
    return path


@pytest.mark.slow
def test_many_users_are_trained_signed_and_left_alone_afterwards(cli, tiny, people, under, key, tmp_path):
    out = tmp_path / "vectors"
    run = ("train", tiny / "bundle", people, "-o", out, "--under", under, "--key", key, "--rank", "6x4")
    run = (*run, "--weights", tiny / "weights")
    first = cli(*run).ran()
    assert "3 users of 3" in first.stdout
    assert "1 texts, and at least 20 are needed" in first.stdout
    assert (tmp_path / "shared.bin.whitening").exists()
    bases = load_bundle(tiny / "bundle").bases
    keys = [Ed25519Verifier.from_pem(key.with_name(f"{key.name}.pub").read_bytes())]
    vector = Policy(keys=keys).check((out / frame_path(bases.id, "al")).read_bytes(), bases, user="al")
    assert vector.sequence == 1
    record = json.loads(cli(*run, "--json").ran().stdout)
    assert (record["users"], record["unchanged"], record["failed"]) == (3, 2, 1)
    assert cli(*run, "--resume", "--json").code == 0
    shutil.rmtree(people)
    people.mkdir()
    cli(*run).refused("there are no users")


def test_a_folder_with_the_name_of_a_task_does_not_take_its_place(cli, tiny, tmp_path, monkeypatch):
    (tmp_path / "snips").mkdir()
    monkeypatch.chdir(tmp_path)
    run = ("train", tiny / "bundle")
    cli(*run, "./snips", "-o", "v", "--method", "sft").misused("DATA has many users")
    cli(*run, "snips", "-o", "v", "--workers", 2).misused("snips does not have the texts of many users")


@pytest.mark.slow
def test_vectors_go_straight_into_the_store_of_servers(cli, tiny, people, under, key, tmp_path):
    bases = load_bundle(tiny / "bundle").bases
    basis, store = bases.basis(rank=(6, 4)), tmp_path / "users.db"
    run = ("train", tiny / "bundle", people, "-o", tmp_path / "night", "--under", under, "--key", key)
    run = (*run, "--rank", "6x4", "--weights", tiny / "weights", "--store", store)
    assert f"in {store}" in cli(*run).ran().stdout
    signer = Ed25519Signer.from_pem(key.read_bytes())
    with closing(Store(store, bases)) as opened:
        rules = Policy(keys=[Ed25519Verifier(signer.public_key)], state=opened.sequences)
        assert {user: opened.admitted(user, rules).sequence for user in ("al", "bo")} == {"al": 1, "bo": 1}
        put = MicroVector.random(basis, 0.1)
        opened.put("al", put.to_bytes(basis, signer, user="al", sequence=6), rules)
        opened.delete("bo")
    (people / "al.txt").write_text("".join(f"al is away {number}\n" for number in range(24)))
    record = json.loads(cli(*run, "--json").ran().stdout)
    assert (record["vectors"], record["learned"], record["unchanged"]) == (str(store), 1, 1)
    with closing(Store(store, bases)) as opened:
        assert [(each.user, each.sequence) for each in opened.listed()] == [("al", 7)]
    assert not (tmp_path / "night").exists()


def test_what_many_users_do_not_take(cli, tiny, people, under, tmp_path):
    run = ("train", tiny / "bundle", people, "-o", tmp_path / "vectors")
    cli(*run).misused("--under")
    for option in (("--minutes", 3), ("--steps", 3), ("--system", "Be brief."), ("--method", "sft")):
        cli(*run, "--under", under, *option).misused(option[0])
    cli("train", tiny / "bundle", people / "al.txt", "-o", tmp_path / "v", "--workers", 2).misused("DATA")
    cli("train", tiny / "bundle", people / "al.txt", "-o", tmp_path / "v", "--store", "x").misused("DATA")
    assert not (tmp_path / "vectors").exists()


@pytest.mark.slow
def test_one_users_texts_in_full_steps(cli, tiny, people, under, tmp_path):
    out = tmp_path / "v.bin"
    run = ("train", tiny / "bundle", people / "al.txt", "--under", under, "--weights", tiny / "weights")
    run = (*run, "--rank", "6x4", "-o", out)
    done = cli(*run, "--no-evaluate").ran()
    assert "24 texts, learned in 3 full steps, none held out" in done.stderr
    assert "3 full steps" in done.stdout
    record = json.loads((tmp_path / "v.bin.json").read_text())
    assert [row["step"] for row in record["curve"]] == [1, 2, 3]
    assert record["options"]["whitening"] is None
    measured = cli(*run[:-1], tmp_path / "w.bin")
    if measured.code == 0:  # on random weights a gain is luck
        assert "what lies beneath" in measured.stdout
        assert out.read_bytes() == (tmp_path / "w.bin").read_bytes()
    else:
        assert "nats a token worse than the shared one alone" in measured.stderr
