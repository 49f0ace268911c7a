"""`vectors`: a store is filled, looked into and emptied into a file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from invocation import Cli

from tinylora_edge import Basis, MicroVector
from tinylora_edge.wire import text


def lines(basis: Basis, users: dict[str, int]) -> bytes:
    frames = {
        user: MicroVector(MicroVector.random(basis, 1.0).values, sequence=sequence).to_bytes(
            basis, stream=user
        )
        for user, sequence in users.items()
    }
    entries = [{"user": user, "frame": text.encode(frame)} for user, frame in frames.items()]
    return "\n".join(json.dumps(entry) for entry in entries).encode() + b"\n"


def test_a_store_goes_round(cli: Cli, small: Path, small_basis: Basis, tmp_path: Path) -> None:
    store, source, output = tmp_path / "users.db", tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_bytes(lines(small_basis, {"alice": 2, "bob": 1}))
    assert "imported 2 vectors (2 new, 0 replaced)" in cli("vectors", "import", source, store, small).done()
    again = lines(small_basis, {"alice": 1, "bob": 3, "carol": 1})
    done = cli("vectors", "import", "-", store, small, "--json", stdin=again).record()
    assert done == {"added": 1, "replaced": 1, "unchanged": 0, "refused": 1}
    assert cli("vectors", "list", store, small).done().splitlines() == [
        "alice  sequence 2, 63 bytes",
        "bob  sequence 3, 63 bytes",
        "carol  sequence 1, 63 bytes",
    ]
    assert cli("vectors", "list", store, small, "--limit", 1).done().endswith("and more: --after alice\n")
    listed = cli("vectors", "list", store, small, "--after", "bob", "--json").record()
    assert ([each["user"] for each in listed["users"]], listed["more"]) == (["carol"], False)
    assert "wrote 3 vectors" in cli("vectors", "export", store, small, "-o", output).done()
    assert output.read_bytes() == lines(small_basis, {"alice": 2, "bob": 3, "carol": 1})
    assert cli("vectors", "export", store, small, "-o", "-").stdout_bytes == output.read_bytes()
    cli("vectors", "export", store, small, "-o", output).refused("exists already")


def test_a_published_layout_is_imported(cli: Cli, small: Path, trained: Path, tmp_path: Path) -> None:
    (tmp_path / "published").mkdir()
    frame = tmp_path / "alice.bin"
    cli("vector", "pack", trained, small, "-o", frame, "--stream", "alice").done()
    published = cli("publish", frame, small, "--to", tmp_path / "published", "--stream", "alice")
    assert published.code == 0, published.stderr
    assert "alice  sequence 3" in cli("vectors", "list", tmp_path / "published", small).done()
    assert "1 new" in cli("vectors", "import", tmp_path / "published", tmp_path / "users.db", small).done()


@pytest.mark.parametrize(
    ("line", "parts"),
    [
        (b"{", ("line 1", "Expecting")),
        (b"[]", ("line 1", 'no object with "user" and "frame" alone')),
        (b'{"user": "a", "frame": "x", "more": 1}', ("line 1", "alone")),
        (b'{"user": 7, "frame": "x"}', ("line 1", "are texts")),
        (b'{"user": "../a", "frame": "x"}', ("line 1", "no name of a user")),
        (b'{"user": "a", "frame": "?"}', ("line 1",)),
        (b'{"user": "a", "frame": "' + b"A" * 200_000 + b'"}', ("line 1", "more than 131,072 bytes")),
    ],
)
def test_lines_that_are_none(
    cli: Cli, small: Path, tmp_path: Path, line: bytes, parts: tuple[str, ...]
) -> None:
    cli("vectors", "import", "-", tmp_path / "users.db", small, stdin=line).refused(*parts)
    assert cli("vectors", "list", tmp_path / "users.db", small).done() == "no users\n"


def test_a_store_that_is_not_there(cli: Cli, small: Path, tmp_path: Path) -> None:
    cli("vectors", "list", tmp_path / "users.db", small).refused("does not exist")
    cli("vectors", "export", tmp_path / "users.db", small, "-o", tmp_path / "out").refused("does not exist")
    assert not (tmp_path / "users.db").exists()
    cli("vectors", "import", tmp_path / "none", tmp_path / "users.db", small).refused("none")
