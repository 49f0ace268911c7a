"""`inspect` on bundles, bases, and models with a basis beside them."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import support
from invocation import Cli

from tinylora_edge import Basis, MicroVector, save_basis


def test_a_bundle_as_json(cli: Cli, smollm2_bundle: Path, basis: Basis) -> None:
    record = cli("inspect", smollm2_bundle, "--json").record()

    manifest = json.loads((smollm2_bundle / "manifest.json").read_text())
    assert record["manifest"] == manifest
    assert record["base"] == {
        "path": str(smollm2_bundle / "base.gguf"),
        "bytes": (smollm2_bundle / "base.gguf").stat().st_size,
        "fingerprint": basis.base_fingerprints[0],
    }
    assert record["vector_bytes"] == {
        "fp32": {"raw": 52, "crc-32": 63, "hmac": 67, "ed25519": 123},
        "bf16": {"raw": 26, "crc-32": 37, "hmac": 41, "ed25519": 97},
        "int8": {"crc-32": 27, "hmac": 31, "ed25519": 87},
    }
    expected = {
        "kind": "bundle",
        "digest": basis.digest,
        "architecture": "llama",
        "modules": 210,
        "rank": 2,
        "u": 1,
        "groups": 13,
        "values": 13,
        "tying": "tiled",
        "seed": 42,
        "factorization": "left",
        "factor_dtype": "f32",
    }
    assert {key: record[key] for key in expected} == expected
    text = cli("inspect", smollm2_bundle).done()
    assert re.search(rf"^digest +{basis.digest}$", text, re.M)
    assert re.search(r"^vector bytes.bf16 +raw 26, crc-32 37, hmac 41, ed25519 97$", text, re.M)


def test_a_basis_alone(cli: Cli, smollm2_bundle: Path, basis: Basis, tmp_path: Path) -> None:
    renamed = tmp_path / "anything"
    renamed.write_bytes((smollm2_bundle / "basis.gguf").read_bytes())
    for path in (smollm2_bundle / "basis.gguf", renamed):
        record = cli("inspect", path, "--json").record()
        assert (record["kind"], record["digest"]) == ("basis", basis.digest)
        assert "base" not in record
        assert basis.digest in cli("inspect", path).done()


def test_parts_of_different_exports(cli: Cli, smollm2_bundle: Path, basis: Basis, tmp_path: Path) -> None:
    for name in ("base.gguf", "basis.gguf"):
        os.link(smollm2_bundle / name, tmp_path / name)
    other = "ab" * 32
    (tmp_path / "manifest.json").write_text(json.dumps({"basis": {"digest": other}}))
    cli("inspect", tmp_path).refused("manifest.json", other[:16], basis.digest[:16])
    (tmp_path / "manifest.json").write_text("{")
    cli("inspect", tmp_path).refused("manifest.json", "not JSON")


def test_only_vectors_are_checked_against_a_bundle(cli: Cli, smollm2_bundle: Path, trained: Path) -> None:
    cli("inspect", smollm2_bundle, smollm2_bundle).misused("only a vector")
    cli("inspect", trained, "--stream", "al").misused("BUNDLE")


def test_control_characters_in_a_file_are_escaped(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "b.basis.gguf"
    save_basis(support.random_basis(architecture="llama\x1b[2J\x07", scheme="tiled"), path)
    said = cli("inspect", path).done()
    assert "llama\\x1b[2J\\x07" in said
    assert said.replace("\n", "").isprintable()


# ---- Vectors


def test_a_header(cli: Cli, basis: Basis) -> None:
    for dtype, payload in (("fp32", bytes(52)), ("bf16", bytes(26))):
        for tag, key in (("crc32", None), ("hmac", b"k" * 16)):
            data = support.frame(basis.digest, payload, dtype=dtype, tag=tag, key=key, sequence=258)
            assert cli("inspect", "-", "--json", stdin=data).record() == {
                "kind": "vector",
                "verified": False,
                "form": "frame",
                "bytes": len(data),
                "version": 2,
                "dtype": dtype,
                "tag": {"crc32": "CRC-32", "hmac": "HMAC"}[tag],
                "basis_id": basis.digest[:8],
                "sequence": 258,
                "count": 13,
            }
    shown = cli("inspect", "-", stdin=data).done()
    assert re.search(r"^verified +False$", shown, re.M)
    assert "next: tinylora-edge inspect - BUNDLE" in shown


def test_a_vector_as_a_device_sees_it(
    cli: Cli, small: Path, small_basis: Basis, trained: Path, key: Path, tmp_path: Path
) -> None:
    cli("pack", trained, small, "-o", tmp_path / "v", "--key", key, "--stream", "al").done()
    public = ("--key", f"{key}.pub")
    shown = cli("inspect", tmp_path / "v", small, *public, "--stream", "al").done()
    assert re.search(r"^key +ed25519:", shown, re.M)
    record = cli("inspect", trained, small, "--json").record()
    assert record["values"] == MicroVector.from_bytes(trained.read_bytes(), small_basis).values.tolist()
    assert record["verified"] is True
    cli("inspect", tmp_path / "v", small, *public).refused("does not verify")
    cli("inspect", tmp_path / "v", small, "--stream", "al").refused("no Ed25519 key")
    cli("inspect", trained, small, *public).refused("requires a signature")
    late = ("pack", trained, small, "-o", tmp_path / "late", "--until", "2026-01-02")
    cli(*late).done()
    cli("inspect", tmp_path / "late", small).refused("2026-01-02")
