"""`load` with bundle keys: nothing of a bundle is used that is not as it was signed."""

from __future__ import annotations

import shutil
from pathlib import Path

import llama_cpp
import onnx_bundles
import pytest

from tinylora_edge import Ed25519Signer, Ed25519Verifier, MicroVector, Policy, load_bundle, runtime, serve
from tinylora_edge.errors import TrustError
from tinylora_edge.formats import side_tensors
from tinylora_edge.formats.signatures import sign_bundle

SIGNER, STRANGER = Ed25519Signer(b"k" * 32), Ed25519Signer(b"s" * 32)
KEYS = [Ed25519Verifier(STRANGER.public_key), Ed25519Verifier(SIGNER.public_key)]
OPTIONS = {"n_ctx": 64, "n_threads": 1}


@pytest.fixture
def bundle(tiny_bundle, tmp_path) -> Path:
    folder = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, folder)
    sign_bundle(folder, SIGNER)
    return folder


@pytest.mark.parametrize("name", ["base.gguf", "basis.gguf"])
def test_a_file_that_was_changed_is_refused_before_the_engine_starts(bundle, engine_starts, name):
    data = bytearray((bundle / name).read_bytes())
    data[len(data) // 2] ^= 1
    (bundle / name).write_bytes(data)
    with pytest.raises(TrustError, match=f"{name} has SHA-256"):
        runtime.load(bundle, bundle_keys=KEYS, **OPTIONS)
    assert engine_starts == []


@pytest.mark.parametrize("name", ["base.gguf", "basis.gguf"])
def test_what_is_exchanged_between_check_and_use_is_not_used(bundle, tmp_path, monkeypatch, name):
    content = (bundle / name).read_bytes()
    vector = MicroVector.random(load_bundle(bundle).basis(numbers=13), 0.5)
    data = vector.to_bytes(load_bundle(bundle).basis(numbers=13))
    real = llama_cpp.llama_cpp.llama_model_load_from_file

    def exchanged(path, params):
        (bundle / name).rename(bundle / "aside")
        (bundle / name).write_bytes(content)
        return real(path, params)

    monkeypatch.setattr(llama_cpp.llama_cpp, "llama_model_load_from_file", exchanged)
    policy = Policy(state=tmp_path / "state")
    with pytest.raises(TrustError, match=f"{name} changed between the check of its signature and its use"):
        runtime.load(bundle, data, policy=policy, bundle_keys=KEYS, **OPTIONS)
    assert not (tmp_path / "state").exists(), "no vector counts as applied"


@pytest.mark.slow
@pytest.mark.parametrize("start", [runtime.load, runtime.OnnxSession], ids=["load", "session"])
def test_the_whole_folder_of_a_graph_is_covered(start, tmp_path):
    folder = shutil.copytree(onnx_bundles.tiny(), tmp_path / "onnx")
    sign_bundle(folder, SIGNER)
    start(folder, bundle_keys=KEYS)
    start(folder / "onnx", bundle_keys=KEYS)
    (folder / "onnx" / "added_tokens.json").write_text("{}")
    with pytest.raises(TrustError, match=r"added_tokens\.json is not in the signature"):
        start(folder, bundle_keys=KEYS)


@pytest.mark.parametrize("start", [runtime.load, runtime.Pool, serve.app], ids=["load", "pool", "app"])
def test_a_basis_is_read_once_and_only_once_its_signature_is_checked(bundle, monkeypatch, start):
    read, real = [], side_tensors.load_bases
    monkeypatch.setattr(
        "tinylora_edge.formats.bundle.load_bases", lambda path: read.append(path) or real(path)
    )
    with pytest.raises(TrustError, match="does not verify under"):
        start(bundle, bundle_keys=KEYS[:1], **OPTIONS)
    assert read == []
    made = start(bundle, bundle_keys=KEYS, **OPTIONS)
    assert len(read) == 1
    getattr(getattr(made, "state", None), "service", made).close()
