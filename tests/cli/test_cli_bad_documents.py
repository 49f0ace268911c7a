"""Text that others wrote, in every place where a command reads it: one error line with the file's name."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

import pytest
import support
from invocation import Cli, contents, write_vector
from support import BAD_DOCUMENTS

from tinylora_edge import Bundle, MicroVector, Policy, TinyLoraError, TrainError, load_basis, save_basis
from tinylora_edge.exporters.hub import catalog
from tinylora_edge.runtime.admission import vector_bytes
from tinylora_edge.runtime.feedback import state as feedback_state
from tinylora_edge.runtime.tuning.state import load_state
from tinylora_edge.shipping import publish
from tinylora_edge.tasks import load_task
from tinylora_edge.tasks.behaviours import load_examples
from tinylora_edge.wire import tags


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A basis without a model."""
    save_basis(support.random_basis(blocks=5, groups=13), tmp_path / "b.basis.gguf")
    return tmp_path / "b.basis.gguf"


@pytest.fixture
def vector(small: Path, tmp_path: Path) -> Path:
    return write_vector(tmp_path / "v.bin", small)


@pytest.mark.parametrize("damage", ["\N{CYRILLIC SMALL LETTER A}".encode(), b"\xff", b"\xc3", b"\0", b"="])
@pytest.mark.parametrize("where", [28, 60, 0])
def test_a_key_that_is_not_ascii(
    cli: Cli, small: Path, vector: Path, tmp_path: Path, damage: bytes, where: int
) -> None:
    text = tags.public_pem(bytes(range(32))).encode()
    (tmp_path / "k.pub").write_bytes(text[:where] + damage + text[where + 1 :])
    cli("inspect", vector, small, "--key", tmp_path / "k.pub").refused("k.pub: ")
    text = tags.private_pem(bytes(range(32))).encode()
    (tmp_path / "k").write_bytes(text[:where] + damage + text[where + 1 :])
    pack = ("pack", vector, small, "-o", tmp_path / "w.bin")
    cli(*pack, "--key", tmp_path / "k").refused(f"{tmp_path / 'k'}: ")
    (tmp_path / "m").write_bytes(b"ab" * 16 + damage)
    if damage != b"\0":
        cli(*pack, "--key", tmp_path / "m").refused(f"{tmp_path / 'm'}: ")
    assert not (tmp_path / "w.bin").exists()


@pytest.mark.parametrize(
    "name", [name for name in BAD_DOCUMENTS if name not in ("a list", "a number", "null")]
)
def test_a_manifest(cli: Cli, tiny_bundle: Path, tmp_path: Path, name: str) -> None:
    shutil.copytree(tiny_bundle, tmp_path / "b", copy_function=os.link)
    (manifest,) = (tmp_path / "b").glob("*.json")
    manifest.unlink()
    manifest.write_bytes(BAD_DOCUMENTS[name])
    cli("inspect", tmp_path / "b").refused(manifest.name, "not JSON")


@pytest.mark.parametrize(
    "value", ['"5"', '"5:xyz"', '"70000:"', "-1", "70000", "true", "null", "[5]", "1.5", '"\\u0665:"']
)
def test_a_state_of_wrong_types(cli: Cli, small: Path, vector: Path, tmp_path: Path, value: str) -> None:
    """Its hash is right: it was written so."""
    state = tmp_path / "state"
    for body in (
        f'{{"d": {{"k": {{"s": {value}}}}}}}',
        f'{{"d": {{"k": {value}}}}}',
        f'{{"d": {value}}}',
        value,
    ):
        data = body.encode()
        state.write_bytes(b"tinylora state 2 " + hashlib.sha256(data).hexdigest().encode() + b"\n" + data)
        cli("fetch", "http://127.0.0.1:1", small, "-o", tmp_path / "w.bin", "--state", state).refused(
            str(state), "is damaged"
        )


@pytest.mark.parametrize("name", BAD_DOCUMENTS)
def test_a_state_of_tuning(tmp_path: Path, name: str) -> None:
    (tmp_path / "state").write_bytes(BAD_DOCUMENTS[name])
    with pytest.raises(TrainError, match="state"):
        load_state(tmp_path / "state", {})


@pytest.mark.parametrize("content", ["[]", '{"format": 1}', '{"identity": 7, "state": {}}', '{"state": []}'])
def test_a_state_of_tuning_of_wrong_types(tmp_path: Path, content: str) -> None:
    from tinylora_edge.runtime.tuning.state import _FORMAT

    (tmp_path / "state").write_text(content.replace("{", f'{{"format": {_FORMAT}, ', 1))
    with pytest.raises(TrainError, match="state"):
        load_state(tmp_path / "state", {})


@pytest.mark.parametrize("name", BAD_DOCUMENTS)
def test_a_task(tmp_path: Path, name: str) -> None:
    (tmp_path / "t.jsonl").write_bytes(BAD_DOCUMENTS[name] + b"\n")
    with pytest.raises(TrainError, match=r"t\.jsonl"):
        load_task(str(tmp_path / "t.jsonl"), reward="max_words(12)")


@pytest.mark.parametrize(
    "content", [b"a = " + b"[" * 9999, b"a = " + b"1" * 5000, b"a = '\xff'", b".".join([b"a"] * 99) + b" = 1"]
)
def test_a_catalog(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    (tmp_path / "models.toml").write_bytes(content)
    monkeypatch.setenv(catalog.VARIABLE, str(tmp_path / "models.toml"))
    cli("models").refused("models.toml")


class TestNullBytes:
    """A name that no file can have comes from another document, or from what is typed into `chat`."""

    NAME = "a\0b"

    def test_in_the_library(self, tmp_path: Path) -> None:
        basis = support.random_basis(groups=3)
        frame = MicroVector.zeros(basis).to_bytes(basis)
        for use in (
            lambda: load_basis(self.NAME),
            lambda: Policy(state=self.NAME),
            lambda: vector_bytes(Path(self.NAME)),
            lambda: publish(frame, basis, self.NAME),
            lambda: load_task(self.NAME),
            lambda: load_examples(self.NAME),
            lambda: load_state(self.NAME, {}),
            lambda: feedback_state.read(self.NAME, basis.digest, 3),
            lambda: catalog.read_catalog(Path(self.NAME)),
        ):
            with pytest.raises(TinyLoraError, match=r"null byte|no task"):
                use()
        for write in (lambda: save_basis(basis, self.NAME), lambda: Bundle.find(self.NAME)):
            with pytest.raises(FileNotFoundError):
                write()

    def test_on_the_command_line(self, cli: Cli, small: Path, vector: Path, tmp_path: Path) -> None:
        for words in (
            ("pack", self.NAME),
            ("pack", vector, small, "-o", self.NAME),
            ("publish", vector, small, "--to", self.NAME),
        ):
            cli(*words).refused("null byte")


def test_a_user_without_a_home(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As systemd starts a service whose user has no entry: `Path.home` finds none."""
    import pwd

    def nobody(_: int) -> None:
        raise KeyError("no such user")

    for name in ("HOME", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    assert "your own: none" in cli("models").done()
    cli("export", "no-such-model", "-o", tmp_path / "out").refused("no-such-model")


class TestClosedStreams:
    def test_stdin(self, process: Cli, small: Path) -> None:
        process("inspect", "-", small, preexec_fn=lambda: os.close(0)).refused("stdin is closed")

    def test_stdout(self, process: Cli, small: Path, vector: Path, tmp_path: Path) -> None:
        before = contents(tmp_path)
        new = ("pack", vector, small, "-o")
        process(*new, "-", preexec_fn=lambda: os.close(1)).refused("stdout is closed")
        assert contents(tmp_path) == before
        process(*new, tmp_path / "w.bin", preexec_fn=lambda: os.close(1)).refused("stdout is closed")
        assert (tmp_path / "w.bin").read_bytes() == vector.read_bytes()  # the report has nowhere to go

    def test_all(self, process: Cli, small: Path, vector: Path, tmp_path: Path) -> None:
        def close() -> None:
            for number in range(3):
                os.close(number)

        result = process("pack", vector, small, "-o", tmp_path / "w.bin", preexec_fn=close)
        assert result.code == 1
        assert len((tmp_path / "w.bin").read_bytes()) == 63
