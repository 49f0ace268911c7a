"""Signed bundles: what is signed, and what is refused."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import time
from pathlib import Path

import pytest

from tinylora_edge import Ed25519Signer, Ed25519Verifier, TrustError, load_bundle
from tinylora_edge.formats import signatures
from tinylora_edge.formats.gguf import split_name
from tinylora_edge.formats.signatures import Signature, check_bundle, sign_bundle, signature_path, signed

SIGNER, STRANGER = Ed25519Signer(b"k" * 32), Ed25519Signer(b"s" * 32)
KEYS = [Ed25519Verifier(SIGNER.public_key)]
FILES = {
    "basis.gguf": b"basis",
    "base-00001-of-00002.gguf": b"first",
    "base-00002-of-00002.gguf": b"second",
    "manifest.json": b"{}",
    "onnx/model.onnx": b"graph",
    "onnx/model.onnx.data": b"weights",
    "onnx/tokenizer/vocabulary.txt": b"words",
}


def written(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


@pytest.fixture
def folder(tmp_path):
    """A bundle of both engines, signed; what its files hold does not matter here."""
    sign_bundle(written(tmp_path / "bundle", FILES), SIGNER)
    return tmp_path / "bundle"


def check(folder: Path, engine: str | None = None) -> set[str]:
    found = check_bundle(load_bundle(folder), KEYS, engine=engine)
    return {path.name for path in found}


def test_what_is_signed(folder):
    """The list as `sha256sum` prints it, under a line of its own."""
    document = json.loads((folder / "signature.json").read_bytes())
    lines = [f"{hashlib.sha256(FILES[name]).hexdigest()}  {name}\n" for name in sorted(FILES)]
    tag = SIGNER.sign("".join(["tinylora bundle 1\n", *lines]).encode())
    assert document == {
        "files": {name: hashlib.sha256(FILES[name]).hexdigest() for name in FILES},
        "key": SIGNER.id,
        "signature": base64.b64encode(tag).decode(),
    }


def test_a_bundle_as_it_was_signed(folder, monkeypatch):
    assert check(folder) == {Path(name).name for name in FILES}
    monkeypatch.chdir(folder)
    assert check(Path("onnx"))
    assert signature_path(load_bundle("onnx")).resolve() == folder / "signature.json"
    sign_bundle("onnx", SIGNER)
    assert check(folder) == {Path(name).name for name in FILES}, "a part stands for the whole"


def test_one_that_is_not_signed_or_by_a_stranger(folder):
    sign_bundle(folder, STRANGER)
    with pytest.raises(TrustError, match=f"is by {STRANGER.id}, and does not verify under {SIGNER.id}"):
        check(folder)
    (folder / "signature.json").unlink()
    with pytest.raises(TrustError, match=r"not signed: there is no .*signature\.json"):
        check(folder)


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_was_changed_or_is_missing(folder, name):
    engine = "onnx" if "onnx" in name else "llama"
    (folder / name).write_bytes(FILES[name][:-1] + b"?")
    with pytest.raises(TrustError, match=rf"{Path(name).name} has SHA-256 .* is what was signed"):
        check(folder, engine)
    if name not in ("basis.gguf", "onnx/model.onnx", "base-00001-of-00002.gguf"):  # else it is no bundle
        (folder / name).unlink()
        with pytest.raises(TrustError, match=rf"{Path(name).name} is not there, but was signed"):
            check(folder, engine)


@pytest.mark.parametrize("name", ["onnx/chat_template.jinja", "onnx/signature.json", "base.gguf"])
def test_a_file_that_was_added_where_an_engine_finds_it(folder, name):
    (folder / name).write_bytes(b"{{ evil }}")
    with pytest.raises(TrustError, match=r"is not in the signature .*: it came from elsewhere"):
        check(folder, "onnx" if "onnx" in name else "llama")


@pytest.mark.parametrize("name", ["base-00001-of-00000.gguf", "base-00001-of-x.gguf", "base-00001-of-1.gguf"])
def test_a_base_that_was_exchanged_under_another_name(tmp_path, name):
    folder = written(tmp_path / "bundle", {"basis.gguf": b"basis", "base.gguf": b"base"})
    sign_bundle(folder, SIGNER)
    (folder / "base.gguf").rename(folder / name)
    with pytest.raises(TrustError, match="is not in the signature"):
        check(folder, "llama")


def test_a_part_that_is_missing_may_not_come_later(tmp_path):
    """Else the first file alone would be hashed, and the engine would open whatever lies there then."""
    parts = [split_name("base", number, 3) for number in (1, 2, 3)]
    folder = written(tmp_path / "bundle", {"basis.gguf": b"basis"} | dict.fromkeys(parts, b"part"))
    sign_bundle(folder, SIGNER)
    (folder / parts[1]).unlink()
    with pytest.raises(TrustError, match=r"base-00002-of-00003\.gguf is not there"):
        check(folder, "llama")


def test_a_device_may_do_without_the_other_engine_s_base(folder):
    (folder / "onnx" / "model.onnx").write_bytes(b"changed")
    assert "model.onnx" not in check(folder, "llama")
    (folder / "onnx" / "model.onnx").write_bytes(FILES["onnx/model.onnx"])
    for name in ("base-00001-of-00002.gguf", "base-00002-of-00002.gguf"):
        (folder / name).unlink()
    assert "model.onnx" in check(folder, "onnx")


def test_a_model_with_its_basis_beside_it(tmp_path):
    written(tmp_path, {"m.gguf": b"base", "m.basis.gguf": b"basis"})
    assert sign_bundle(tmp_path / "m.gguf", SIGNER) == tmp_path / "m.signature.json"
    assert check(tmp_path / "m.gguf") == {"m.gguf", "m.basis.gguf"}
    (tmp_path / "m.gguf").write_bytes(b"else")
    with pytest.raises(TrustError, match=r"m\.gguf has SHA-256"):
        check(tmp_path / "m.gguf")


def test_links_to_files_are_followed_and_links_to_folders_refused(folder, tmp_path):
    (tmp_path / "elsewhere").write_bytes(b"graph")
    (folder / "onnx" / "model.onnx").unlink()
    (folder / "onnx" / "model.onnx").symlink_to(tmp_path / "elsewhere")
    check(folder)
    (folder / "onnx" / "more").symlink_to(tmp_path)
    with pytest.raises(TrustError, match="is a link to a folder"):
        check(folder)


@pytest.mark.parametrize("name", ["onnx/model.onnx.data", "signature.json"])
def test_a_pipe_is_not_waited_for(folder, name):
    (folder / name).unlink()
    os.mkfifo(folder / name)
    with pytest.raises(OSError, match="not a regular file"):
        check(folder)


def test_a_change_is_signed_again_and_its_lock_is_no_part(tmp_path):
    folder = written(tmp_path / "onnx", {"basis.gguf": b"basis", "model.onnx": b"graph"})
    sign_bundle(folder, SIGNER)
    with signatures.changing(folder, SIGNER) as bundle:
        bundle.basis_path.write_bytes(b"other")
    assert check(folder) == {"basis.gguf", "model.onnx"}


def test_a_name_that_no_list_holds(folder):
    (folder / "onnx" / "two\nlines").write_bytes(b"")
    with pytest.raises(TrustError, match=r"two\\nlines' is not allowed as the name"):
        sign_bundle(folder, SIGNER)


@pytest.mark.parametrize(
    "change",
    [
        lambda path: path.write_bytes(b"basiS"),
        lambda path: path.rename(path.with_name("aside")) and path.write_bytes(b"basis"),
        lambda path: path.rename(path.with_name("aside")).rename(path),
        lambda path: path.unlink(),
    ],
)
def test_what_changes_between_check_and_use_is_noticed(folder, change):
    """Also where the signed file is put back in time: its inode was touched."""
    time.sleep(0.02)  # the times of a file have the clock's tick, 4 ms or 10
    with pytest.raises((TrustError, FileNotFoundError)), signed(load_bundle(folder), KEYS):
        change(folder / "basis.gguf")


@pytest.mark.parametrize(
    "data",
    [
        *(b"", b"\xff", b"7", b"[" * 9999, b'{"files": {"a": 1}, "key": "", "signature": "AA=="}'),
        b'{"files": {"a": "' + b"0" * 64 + b'"}, "key": 1, "signature": "AA=="}',
        b'{"files": {"a\\n": "' + b"0" * 64 + b'"}, "key": "", "signature": "AA=="}',
    ],
)
def test_anything_else_is_damaged_or_does_not_verify(tmp_path, data):
    (tmp_path / "signature.json").write_bytes(data)
    with pytest.raises(TrustError, match=r"is damaged|does not verify"):
        Signature.read(tmp_path / "signature.json").verify(KEYS)
