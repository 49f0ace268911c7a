"""`inspect` on bundles, bases, and models with a basis beside them."""

from __future__ import annotations

import re
from pathlib import Path

import models
import numpy as np
import pytest
import support
from invocation import Cli

from tinylora_edge import Basis, MicroVector, load_bundle
from tinylora_edge.formats.side_tensors import save_bases


def test_a_bundle_as_json(cli: Cli, smollm2_bundle: Path, basis: Basis) -> None:
    record, bundle = cli("inspect", smollm2_bundle, "--json").record(), load_bundle(smollm2_bundle)
    assert record["manifest"] == bundle.manifest
    base = {"path": str(bundle.base), "bytes": bundle.base.stat().st_size}
    assert record["base"] == base | {"fingerprint": bundle.bases.fingerprints[0]}
    sizes = {"--numbers 13": 13, "--numbers 210": 210}
    sizes |= {"--size small": 840, "--size medium": 13440, "--size large": 13440, "--size full": 13440}
    assert {name: size["numbers"] for name, size in record["frame_bytes"].items()} == sizes
    assert record["frame_bytes"]["--size small"] == {"numbers": 840, "bf16": 1691, "int8": 855, "q4": 852}
    expected = {"kind": "bundle", "factors": basis.factors.digest, "architecture": "llama", "modules": 210}
    expected |= {"rank": 8, "outputs": 8, "factor_dtype": "f16"}
    expected |= {"projections": [basis.projection.descriptor]}
    assert {key: record[key] for key in expected} == expected
    text = cli("inspect", smollm2_bundle).done()
    assert re.search(rf"^factors +{basis.factors.digest}$", text, re.M)
    assert re.search(r"^projections +learned rank=2 [0-9a-f]{64}$", text, re.M)


def test_a_basis_alone(cli: Cli, smollm2_bundle: Path, basis: Basis, tmp_path: Path) -> None:
    renamed = tmp_path / "anything"
    renamed.write_bytes((smollm2_bundle / "basis.gguf").read_bytes())
    for path in (smollm2_bundle / "basis.gguf", renamed):
        record = cli("inspect", path, "--json").record()
        assert (record["kind"], record["factors"]) == ("basis", basis.factors.digest)
        assert "base" not in record
        assert basis.factors.digest in cli("inspect", path).done()


def test_control_characters_in_a_file_are_escaped(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "b.basis.gguf"
    save_bases(support.bases_with(support.random_basis(architecture="llama\x1b[2J\x07")), path)
    text = cli("inspect", path).done()
    assert "llama\\x1b[2J\\x07" in text
    assert text.replace("\n", "").isprintable()


def test_a_header(cli: Cli, basis: Basis) -> None:
    for dtype, payload in (("fp32", bytes(52)), ("bf16", bytes(26))):
        for tag, key in (("crc32", None), ("hmac", b"k" * 16)):
            data = support.frame(basis.digest, payload, dtype=dtype, tag=tag, key=key, sequence=258)
            record = cli("inspect", "-", "--json", stdin=data).record()
            assert record.pop("messages")["LoRaWAN EU868, DR0 to DR2"] == -(-len(data) // 51)
            form = {"kind": "vector", "verified": False, "bytes": len(data), "version": 2, "dtype": dtype}
            name = {"crc32": "CRC-32", "hmac": "HMAC"}[tag]
            whose = {"tag": name, "basis_id": basis.digest[:8], "sequence": 258}
            assert record == form | whose
    cli("inspect", "-", stdin=data[:15]).refused("15 bytes, and its header and HMAC tag alone take 15")
    text = cli("inspect", "-", stdin=data).done()
    assert re.search(r"^verified +False$", text, re.M)
    assert "next: tinylora-edge inspect - BUNDLE" in text
    assert re.search(r"^messages +one on .*LoRaWAN EU868, DR3; ", text, re.M)


def test_a_vector_as_a_device_sees_it(cli, small, small_basis, trained, key, tmp_path):
    cli("pack", trained, small, "-o", tmp_path / "v", "--key", key, "--user", "al").done()
    public = ("--key", f"{key}.pub")
    text = cli("inspect", tmp_path / "v", small, *public, "--user", "al").done()
    assert re.search(r"^key +ed25519:", text, re.M)
    record = cli("inspect", trained, small, "--json").record()
    assert record["values"] == MicroVector.from_bytes(trained.read_bytes(), small_basis).values.tolist()
    assert record["verified"] is True
    r = small_basis.R(MicroVector.from_bytes(trained.read_bytes(), small_basis))
    assert record["norm_of_r"] == pytest.approx(float(np.linalg.norm(r.astype(np.float64))), rel=1e-12)
    assert (record["projection"], record["rank"]) == (small_basis.projection.descriptor, 2)
    cli("inspect", tmp_path / "v", small, *public).refused("does not verify")
    cli("inspect", tmp_path / "v", small, "--user", "al").refused("no Ed25519 key")
    cli("inspect", trained, small, *public).refused("requires a tag")
    late = ("pack", trained, small, "-o", tmp_path / "late", "--until", "2026-01-02")
    cli(*late).done()
    cli("inspect", tmp_path / "late", small).refused("2026-01-02")


def test_what_names_no_basis_of_the_bundle(cli, smollm2_bundle, basis, trained):
    sizes = "1 to 8 (210 to 13,440 numbers), learned ones of 13 numbers, tiled ones of 1 to 210"
    cli("inspect", trained, smollm2_bundle).refused(
        trained.read_bytes()[1:5].hex(), basis.factors.digest[:8], sizes
    )
    cli("inspect", "-", smollm2_bundle, stdin=bytes(26)).refused("26 bytes are not a frame")
    cli("inspect", smollm2_bundle, smollm2_bundle).misused("only a vector")
    cli("inspect", trained, "--user", "al").misused("BUNDLE")


def test_a_split_base_is_measured_whole(cli: Cli, tiny_gguf: Path, tmp_path: Path) -> None:
    parts = models.split_gguf(tiny_gguf, tmp_path, 6)
    cli("export", parts[0], "-o", tmp_path / "b").done()
    found = cli("inspect", tmp_path / "b", "--json").record()["base"]
    assert found["bytes"] == sum(part.stat().st_size for part in parts)
