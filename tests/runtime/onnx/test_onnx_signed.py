"""A signed bundle on ONNX Runtime: the graph's whole folder is covered, on both ways in."""

from __future__ import annotations

import shutil
from pathlib import Path

import onnx_bundles
import pytest

from tinylora_edge import Ed25519Signer, Ed25519Verifier, TrustError, runtime
from tinylora_edge.formats.signatures import sign_bundle
from tinylora_edge.runtime import OnnxSession

SIGNER = Ed25519Signer(b"k" * 32)
KEYS = [Ed25519Verifier(SIGNER.public_key)]


@pytest.fixture(params=["load", "session"])
def start(request):
    """What starts the engine for a bundle: `load`, or an `OnnxSession`."""
    if request.param == "session":
        return lambda folder: OnnxSession(folder, bundle_keys=KEYS)
    return lambda folder: runtime.load(folder, bundle_keys=KEYS, n_ctx=32, n_threads=1).close()


@pytest.fixture
def bundle(tmp_path) -> Path:
    folder = shutil.copytree(onnx_bundles.tiny(), tmp_path / "bundle")
    sign_bundle(folder, SIGNER)
    return folder


def test_it_starts(start, bundle):
    start(bundle)
    start(bundle / "onnx")


@pytest.mark.parametrize("name", ["model.onnx", "chat_template.jinja", "genai_config.json"])
def test_a_file_that_was_changed(start, bundle, name):
    path = bundle / "onnx" / name
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(TrustError, match=f"{name} has SHA-256"):
        start(bundle)


def test_a_file_that_was_added(start, bundle):
    (bundle / "onnx" / "added_tokens.json").write_text("{}")
    with pytest.raises(TrustError, match=r"added_tokens\.json is not in the signature"):
        start(bundle)
