"""Signatures of bundles: what is signed, what is refused, and what is hashed how often."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import time
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tinylora_edge import Bundle, Ed25519Signer, Ed25519Verifier, Policy, TrustError, limits
from tinylora_edge.formats import hashes
from tinylora_edge.formats.hashes import Hashes, hash_file
from tinylora_edge.formats.signatures import check_bundle, read_signature, sign_bundle, signature_path, signed
from tinylora_edge.formats.statement import TYPE, Statement, opened
from tinylora_edge.trust import KeyList, Root, Trust
from tinylora_edge.trust.envelope import Envelope, canonical

SIGNER, STRANGER = Ed25519Signer(b"k" * 32), Ed25519Signer(b"s" * 32)
KEYS = [Ed25519Verifier(SIGNER.public_key)]
RULES = Policy(bundle_keys=KEYS).bundles
WORDS = """
    payload payloadType signatures keyid sig _type subject name digest sha256 predicateType predicate
    resources algorithm trust roots keys key version threshold root issued expires streams from to revoked
    bundles tinylora sequence
"""
NAMES = st.sampled_from(WORDS.split())
FILES = {
    "basis.gguf": b"basis",
    "base-00001-of-00002.gguf": b"first",
    "base-00002-of-00002.gguf": b"second",
    "manifest.json": b"{}",
    "onnx/model.onnx": b"graph",
    "onnx/model.onnx.data": b"weights",
    "onnx/tokenizer/vocabulary.txt": b"words",
}


@pytest.fixture
def folder(tmp_path):
    """A bundle of both engines, signed; what its files hold does not matter here."""
    for name, content in FILES.items():
        path = tmp_path / "bundle" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        os.utime(path, (1.7e9, 1.7e9))
    sign_bundle(tmp_path / "bundle", SIGNER)
    return tmp_path / "bundle"


@pytest.fixture
def settled(monkeypatch):
    """Files that were just written count as old enough to be remembered."""
    monkeypatch.setattr(hashes, "_SETTLED_NS", -1)


@pytest.fixture
def hashed(monkeypatch):
    """Names of the files that were read to be hashed."""
    names = []

    def spy(path):
        names.append(path.name)
        return hash_file(path)

    monkeypatch.setattr(hashes, "hash_file", spy)
    return names


def check(folder: Path, **options):
    return check_bundle(Bundle.find(folder), KEYS, **options)


def statement_of(folder: Path) -> Statement:
    envelope = read_signature(Bundle.find(folder))
    assert envelope is not None
    return Statement.from_bytes(envelope.payload)


class TestStatement:
    def test_every_file_is_listed(self, folder):
        found = {name: hashlib.sha256(content).hexdigest() for name, content in FILES.items()}
        assert statement_of(folder).files == found

    def test_it_is_what_model_signing_writes(self, folder):
        """in-toto's statement, with that library's predicate, in a DSSE envelope."""
        envelope = json.loads((folder / "signature.json").read_bytes())
        assert envelope["payloadType"] == "application/vnd.in-toto+json"
        payload = base64.b64decode(envelope["payload"])
        value = json.loads(payload)
        resources = [
            {"name": name, "algorithm": "sha256", "digest": hashlib.sha256(FILES[name]).hexdigest()}
            for name in sorted(FILES)
        ]
        joined = b"".join(bytes.fromhex(one["digest"]) for one in resources)
        assert value == {
            "_type": "https://in-toto.io/Statement/v1",
            "subject": [{"name": "bundle", "digest": {"sha256": hashlib.sha256(joined).hexdigest()}}],
            "predicateType": "https://model_signing/signature/v1.0",
            "predicate": {
                "serialization": {
                    "method": "files",
                    "hash_type": "sha256",
                    "allow_symlinks": True,
                    "ignore_paths": ["signature.json"],
                },
                "resources": resources,
            },
        }
        (signature,) = envelope["signatures"]
        encoded = b"DSSEv1 28 application/vnd.in-toto+json %d %b" % (len(payload), payload)
        assert signature == {"keyid": SIGNER.id, "sig": base64.b64encode(SIGNER.sign(encoded)).decode()}

    @pytest.mark.parametrize(
        ("change", "why"),
        [
            (lambda value: value.pop("subject"), "another structure"),
            (lambda value: value.update(subject=[]), "another structure"),
            (lambda value: value.update(predicateType="https://model_signing/Digests/v0.1"), "of type"),
            (lambda value: value["predicate"]["resources"].pop(), "hashes give"),
            (
                lambda value: value["predicate"]["resources"].append(value["predicate"]["resources"][0]),
                "twice",
            ),
            (lambda value: value["predicate"]["resources"][0].update(algorithm="md5"), "no SHA-256"),
            (lambda value: value["predicate"]["resources"][0].update(digest="é" * 64), "no SHA-256"),
            (lambda value: value["predicate"]["resources"][0].update(name=7), "of type"),
            (lambda value: value["predicate"].update(resources=None), "another structure"),
            (lambda value: value["predicate"].update(tinylora={"sequence": 65536}), "sequence 65536, which"),
            (
                lambda value: value["predicate"].update(tinylora={"sequence": -1}),
                "sequence -1, which is none",
            ),
            (lambda value: value["predicate"].update(tinylora={"sequence": True}), "sequence True, which"),
            (lambda value: value["predicate"].update(tinylora={}), "another structure"),
        ],
    )
    def test_statements_that_are_none(self, folder, change, why):
        value = json.loads(statement_of(folder).to_bytes())
        change(value)
        with pytest.raises(TrustError, match=why):
            Statement.from_bytes(canonical(value))

    def test_a_sequence_and_a_name_are_signed_too(self, folder):
        assert (statement_of(folder).name, statement_of(folder).sequence) == ("bundle", 0)
        sign_bundle(folder, SIGNER, sequence=65535, name="phone")
        assert (statement_of(folder).name, statement_of(folder).sequence) == ("phone", 65535)
        value = json.loads(statement_of(folder).to_bytes())
        assert value["predicate"]["tinylora"] == {"sequence": 65535}
        before = (folder / "signature.json").read_bytes()
        with pytest.raises(TrustError, match="sequence 65536, which is none"):
            sign_bundle(folder, SIGNER, sequence=65536)
        assert (folder / "signature.json").read_bytes() == before

    def test_a_name_that_no_device_keeps(self, folder):
        before = (folder / "signature.json").read_bytes()
        with pytest.raises(TrustError, match=r"has 129 characters, and devices keep at most 128: .*--name"):
            sign_bundle(folder, SIGNER, name="n" * 129)
        assert (folder / "signature.json").read_bytes() == before

    def test_too_many_files(self):
        many = Statement("x", {f"{n}": "0" * 64 for n in range(limits.BUNDLE_FILES + 1)})
        with pytest.raises(TrustError, match="lists 4097 files, and at most 4096"):
            Statement.from_bytes(many.to_bytes())

    @pytest.mark.parametrize("data", [b"", b"{", b"[]", b"[" * 9999, b'{"payload":1}', b"\xff"])
    def test_signatures_that_are_none(self, folder, data):
        (folder / "signature.json").write_bytes(data)
        with pytest.raises(TrustError, match=r"signature\.json is damaged"):
            check(folder)

    def test_what_was_signed_as_something_else_is_no_statement(self, folder):
        other = Envelope("application/vnd.tinylora.keys+json", statement_of(folder).to_bytes()).signed(
            [SIGNER]
        )
        with pytest.raises(TrustError, match="signs something of type"):
            opened(canonical(other.to_json()))
        (folder / "signature.json").write_bytes(
            canonical(Envelope(TYPE, other.payload, other.signatures).to_json())
        )
        with pytest.raises(TrustError, match="does not verify under"):
            check(folder)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=12,
)


@given(JSON)
@example({"payload": "e30=", "payloadType": TYPE, "signatures": [{"keyid": SIGNER.id, "sig": "AA=="}]})
@example({"_type": 1, "subject": [[]], "predicateType": 1, "predicate": {"resources": [{}]}})
def test_any_json_is_refused_as_what_it_is(value):
    data = json.dumps(value).encode()
    for read in (opened, Statement.from_bytes, Trust.read, Root.from_bytes, KeyList.from_bytes):
        with pytest.raises(TrustError):
            read(data)


class TestCheck:
    def test_a_bundle_as_it_was_signed(self, folder):
        found = check(folder)
        assert found.said.key == SIGNER.id
        assert {path.relative_to(folder).as_posix() for path in found.files} == set(FILES)

    def test_one_that_is_not_signed(self, folder):
        (folder / "signature.json").unlink()
        with pytest.raises(
            TrustError, match=rf"not signed: there is no .*, and it has to be signed by {SIGNER.id}"
        ):
            check(folder)

    def test_one_that_a_stranger_signed(self, folder):
        sign_bundle(folder, STRANGER)
        with pytest.raises(TrustError, match=f"is by {STRANGER.id}, and does not verify under {SIGNER.id}"):
            check(folder)

    @pytest.mark.parametrize("name", [name for name in FILES if name != "manifest.json"])
    def test_a_file_that_was_changed(self, folder, name):
        content = FILES[name]
        (folder / name).write_bytes(content[:-1] + b"?")
        engine = "onnx" if "onnx" in name else "llama"
        with pytest.raises(TrustError, match=rf"{Path(name).name} has SHA-256 .* is what was signed"):
            check(folder, engine=engine)

    @pytest.mark.parametrize("name", ["onnx/chat_template.jinja", "onnx/signature.json", "base.gguf"])
    def test_a_file_that_was_added_where_an_engine_finds_it(self, folder, name):
        (folder / name).write_bytes(b"{{ evil }}")
        with pytest.raises(TrustError, match=r"is not in the signature .*: it came from elsewhere"):
            check(folder, engine="onnx" if "onnx" in name else "llama")

    def test_a_file_of_another_signed_bundle(self, folder, tmp_path):
        """Each was signed; together they were not."""
        other = tmp_path / "other"
        other.mkdir()
        (other / "basis.gguf").write_bytes(b"a basis of another export")
        (other / "base.gguf").write_bytes(b"first")
        sign_bundle(other, SIGNER)
        (folder / "basis.gguf").write_bytes((other / "basis.gguf").read_bytes())
        with pytest.raises(TrustError, match=r"basis\.gguf has SHA-256"):
            check(folder)

    def test_the_other_engine_s_files_are_not_read(self, folder, hashed):
        (folder / "onnx" / "model.onnx").write_bytes(b"changed")
        check(folder, engine="llama")
        assert hashed == ["basis.gguf", "base-00001-of-00002.gguf", "base-00002-of-00002.gguf"]
        for name in ("base-00001-of-00002.gguf", "base-00002-of-00002.gguf"):
            (folder / name).unlink()
        (folder / "onnx" / "model.onnx").write_bytes(FILES["onnx/model.onnx"])
        assert check(folder, engine="onnx").said.key == SIGNER.id

    def test_a_model_with_its_basis_beside_it(self, folder, tmp_path):
        (tmp_path / "m.gguf").write_bytes(b"base")
        (tmp_path / "m.basis.gguf").write_bytes(b"basis")
        assert sign_bundle(tmp_path / "m.gguf", SIGNER) == tmp_path / "m.signature.json"
        assert check(tmp_path / "m.gguf").said.key == SIGNER.id
        (tmp_path / "m.gguf").write_bytes(b"else")
        with pytest.raises(TrustError, match=r"m\.gguf has SHA-256"):
            check(tmp_path / "m.gguf")

    def test_links_to_files_are_followed_and_links_to_folders_refused(self, folder, tmp_path):
        (tmp_path / "elsewhere").write_bytes(b"graph")
        (folder / "onnx" / "model.onnx").unlink()
        (folder / "onnx" / "model.onnx").symlink_to(tmp_path / "elsewhere")
        assert check(folder).said.key == SIGNER.id
        (folder / "onnx" / "more").symlink_to(tmp_path)
        with pytest.raises(TrustError, match="is a link to a folder"):
            check(folder)

    def test_a_pipe_is_not_waited_for(self, folder):
        (folder / "onnx" / "model.onnx.data").unlink()
        os.mkfifo(folder / "onnx" / "model.onnx.data")
        with pytest.raises(TrustError, match="not a regular file"):
            check(folder)

    def test_it_is_found_from_a_relative_path(self, folder, monkeypatch):
        monkeypatch.chdir(folder.parent)
        assert check(Path("bundle")).said.key == SIGNER.id
        monkeypatch.chdir(folder)
        assert check(Path(".")).said.key == SIGNER.id
        assert check(Path("onnx")).said.key == SIGNER.id
        assert signature_path(Bundle.find("onnx")).resolve() == folder / "signature.json"


class TestUnchanged:
    @pytest.mark.parametrize(
        "change",
        [
            lambda path: path.write_bytes(b"basiS"),
            lambda path: path.rename(path.with_name("aside")) and path.write_bytes(b"basis"),
            lambda path: path.rename(path.with_name("aside")).rename(path),
            lambda path: path.unlink(),
        ],
    )
    def test_what_changes_between_check_and_use_is_noticed(self, folder, change):
        """Also where the signed file is put back in time: its inode was touched."""
        time.sleep(0.02)  # the times of a file have the clock's tick, 4 ms or 10
        with pytest.raises((TrustError, FileNotFoundError)), signed(Bundle.find(folder), RULES):
            change(folder / "basis.gguf")

    def test_without_keys_nothing_is_checked(self, folder, hashed):
        (folder / "signature.json").unlink()
        with signed(Bundle.find(folder), Policy().bundles):
            (folder / "basis.gguf").write_bytes(b"other")
        assert hashed == []


class TestHashes:
    def test_what_is_remembered_is_not_read_again(self, folder, tmp_path, hashed, settled):
        check(folder, state=tmp_path / "state")
        assert len(hashed) == len(FILES)
        del hashed[:]
        check(folder, state=tmp_path / "state")
        assert hashed == []
        check(folder)
        assert len(hashed) == len(FILES)

    def test_a_change_is_noticed_also_where_size_and_time_are_put_back(self, folder, tmp_path, settled):
        check(folder, state=tmp_path / "state")
        base = folder / "base-00002-of-00002.gguf"
        times = base.stat()
        time.sleep(0.02)
        base.write_bytes(b"SECOND")
        os.utime(base, ns=(times.st_atime_ns, times.st_mtime_ns))
        with pytest.raises(TrustError, match=r"base-00002-of-00002\.gguf has SHA-256"):
            check(folder, state=tmp_path / "state")

    def test_what_changed_a_moment_ago_is_hashed_again(self, folder, tmp_path, hashed):
        """Within a tick of the clock a file may change and have the same times."""
        check(folder, state=tmp_path / "state")
        assert not (tmp_path / "state.bundles").exists()
        check(folder, state=tmp_path / "state")
        assert len(hashed) == 2 * len(FILES)

    @pytest.mark.parametrize(
        "data", [b"", b"{", b"[]", b"null", b'{"a": 1}', b'{"a": [1, 2, 3, 4, 5, 6]}', b"\xff"]
    )
    def test_what_is_damaged_is_forgotten(self, folder, tmp_path, settled, data):
        (tmp_path / "state.bundles").write_bytes(data)
        assert check(folder, state=tmp_path / "state").said.key == SIGNER.id
        assert (tmp_path / "state.bundles").read_bytes() != data

    def test_where_it_cannot_be_kept_it_is_computed(self, folder, tmp_path, settled):
        assert check(folder, state=tmp_path / "no folder" / "state").said.key == SIGNER.id

    def test_files_that_are_gone_are_dropped(self, tmp_path, settled):
        for name in ("a", "b"):
            (tmp_path / name).write_bytes(b"x")
            kept = Hashes(tmp_path / "kept")
            kept.of(tmp_path / name)
            kept.keep()
            if name == "a":
                (tmp_path / "a").unlink()
        assert list(json.loads((tmp_path / "kept").read_bytes())) == [str(tmp_path / "b")]

    def test_a_file_that_is_linked_while_it_is_read(self, tmp_path, monkeypatch):
        """As an export does that takes a base without copying it: the content is the same."""
        path, real = tmp_path / "linked", hashlib.file_digest
        path.write_bytes(b"x")

        def linking(file, name):
            done = real(file, name)
            if not (tmp_path / "link").exists():
                os.utime(path, (1, 1))
                os.link(path, tmp_path / "link")
            return done

        monkeypatch.setattr(hashlib, "file_digest", linking)
        assert hash_file(path) == (hashlib.sha256(b"x").hexdigest(), hashes.stamp(path))

    def test_a_file_that_grows_while_it_is_read(self, tmp_path, monkeypatch):
        path = tmp_path / "growing"
        path.write_bytes(b"x")
        real = hashlib.file_digest

        def slow(file, name):
            done = real(file, name)
            with path.open("ab") as more:
                more.write(b"y")
            return done

        monkeypatch.setattr(hashlib, "file_digest", slow)
        with pytest.raises(TrustError, match="changed while its signature was checked"):
            hash_file(path)
