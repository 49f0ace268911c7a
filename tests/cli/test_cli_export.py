"""`export`: what it writes and what it says."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path

import models
import pytest
import smollm2
from invocation import Cli, contents

from tinylora_edge import Basis, load_basis


def test_the_report_of_the_real_model(cli: Cli, smollm2_gguf: Path, tmp_path: Path, basis: Basis) -> None:
    out = tmp_path / "out"
    text = cli("export", smollm2_gguf, "-o", out, "--projection", "random").done()

    assert sorted(contents(tmp_path)) == ["out/", "out/base.gguf", "out/basis.gguf", "out/manifest.json"]
    written = load_basis(out / "basis.gguf")
    assert written.digest == basis.digest  # one machine, one result
    assert written.digest in text
    assert re.search(r"^vector bytes.int8 +crc-32 27, hmac 31, ed25519 87$", text, re.M)
    same = os.path.samefile(smollm2_gguf, out / "base.gguf")
    assert bool(re.search(r"^base +hard link$", text, re.M)) is same
    suggested = [shlex.split(line)[2:4] for line in text.splitlines() if line.startswith("next: ")]
    assert suggested == [["train", str(out)]]  # 13 random numbers are too few for tune


def test_the_real_model_gets_the_projections_that_are_shipped_for_it(
    cli: Cli, smollm2_gguf: Path, tmp_path: Path, basis: Basis
) -> None:
    record = cli("export", smollm2_gguf, "-o", tmp_path / "out", "--json").record()
    written = load_basis(tmp_path / "out" / "basis.gguf")
    assert (record["projection"], record["values"], record["u"]) == ("learned", 13, 13)
    assert written.prior_mean is not None
    assert written.base_fingerprints == basis.base_fingerprints
    shaped = cli("export", smollm2_gguf, "-o", tmp_path / "b", "--u", 1, "--json").record()
    assert (shaped["projection"], shaped["values"], shaped["u"]) == ("random", 13, 1)


def test_json(cli: Cli, tiny_gguf: Path, tmp_path: Path) -> None:
    options = ["--rank", 3, "--u", 2, "--groups", 4, "--tying", "tiled"]
    options += ["--factor-dtype", "f16"]
    record = cli("export", tiny_gguf, "-o", tmp_path / "out", *options, "--json").record()

    basis = load_basis(tmp_path / "out" / "basis.gguf")
    assert (basis.rank, basis.u, basis.groups, basis.scheme) == (3, 2, 4, "tiled")
    assert basis.a[0].dtype == "float16"
    for name in ("digest", "rank", "u", "groups", "seed", "factorization"):
        assert record[name] == getattr(basis, name)
    assert record["values"] == 8
    assert record["vector_bytes"]["bf16"]["crc-32"] == 7 + 16 + 4
    assert record["base_fingerprints"] == list(basis.base_fingerprints)
    record = cli(
        "export", tiny_gguf, "-o", tmp_path / "full", "--tying", "full", "--u", 13, "--json"
    ).record()
    assert (record["groups"], record["u"], record["values"]) == (1, 13, 13)


def test_a_hugging_face_directory_with_the_deployed_gguf(cli: Cli, tmp_path: Path) -> None:
    model = models.tiny_model("llama")
    source = models.write_hf(model, tmp_path / "hf")
    deployed = models.write_gguf(model, tmp_path / "deployed.gguf")

    cli("export", source, "-o", tmp_path / "out").refused("--base FILE")
    text = cli("export", source, "-o", tmp_path / "out", "--base", deployed).done()

    assert "exported deployed.gguf" in text
    assert re.search(r"^agreement +\d", text, re.M)
    cli("inspect", tmp_path / "out").done()


def test_another_quantization_is_added(
    cli: Cli, smollm2_gguf: Path, smollm2_bundle: Path, basis: Basis, tmp_path: Path
) -> None:
    bundle, q8 = tmp_path / "bundle", tmp_path / "q8.gguf"
    bundle.mkdir()
    os.link(smollm2_bundle / "base.gguf", bundle / "base.gguf")
    (bundle / "basis.gguf").write_bytes((smollm2_bundle / "basis.gguf").read_bytes())
    q8.symlink_to(smollm2.requantized(smollm2_gguf, smollm2.MOSTLY_Q8_0))
    beside = tmp_path / "q8.basis.gguf"
    beside.write_bytes((bundle / "basis.gguf").read_bytes())
    cli("inspect", q8).refused(basis.base_fingerprints[0][:16], "--add-base")

    record = cli("export", bundle, "--add-base", q8, "--json").record()

    extended = load_basis(bundle / "basis.gguf")
    assert record["digest"] == extended.digest == basis.digest
    assert len(record["fingerprints"]) == 2
    assert record["fingerprints"] == list(extended.base_fingerprints)
    assert record["agreement"] < 0.1
    text = cli("export", bundle, "--add-base", q8).done()  # once more changes nothing
    assert str(beside) in text
    assert load_basis(bundle / "basis.gguf").base_fingerprints == extended.base_fingerprints
    beside.write_bytes((bundle / "basis.gguf").read_bytes())
    cli("inspect", q8).done()
    cli("run", q8, "Hello", "--max-tokens", 2, "--threads", 1).done()


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ([], "-o BUNDLE"),
        (["-o", "out", "--add-base", "x.gguf"], "--output"),
        (["--add-base", "x.gguf", "--rank", "2"], "--rank"),
        (["-o", "out", "--rank", "0"], "--rank"),
        (["-o", "out", "--format", "onnxruntime"], "onnxruntime"),
        (["-o", "out", "--onnx", "graph"], "--onnx goes with --format onnx or both"),
        (["-o", "out", "--onnx-input", "required"], "--onnx-input goes with"),
        (["-o", "out", "--onnx-precision", "int4"], "--onnx-precision goes with"),
        (["-o", "out", "--format", "onnx", "--onnx-precision", "int3"], "int3"),
        (["-o", "out", "--format", "onnx", "--onnx-input", "loose"], "loose"),
        (
            ["-o", "out", "--format", "onnx", "--onnx", "graph", "--onnx-precision", "int4"],
            "that of a graph that is built",
        ),
        (["--add-base", "x.gguf", "--format", "onnx"], "--format"),
        (["-o", "out", "--tying", "loose"], "loose"),
    ],
)
def test_wrong_usage(cli: Cli, smollm2_gguf: Path, options: list[str], part: str) -> None:
    cli("export", smollm2_gguf, *options).misused(part)
