"""`export`: what it writes and what it says."""

from __future__ import annotations

import json
import os
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import smollm2
from invocation import Cli, contents

from tinylora_edge import Basis, MicroVector, load_bundle


@pytest.mark.slow
def test_the_report_of_the_real_model(cli: Cli, smollm2_gguf: Path, tmp_path: Path, basis: Basis) -> None:
    out = tmp_path / "out"
    text = cli("export", smollm2_gguf, "-o", out).done()

    assert sorted(contents(tmp_path)) == ["out/", "out/base.gguf", "out/basis.gguf", "out/manifest.json"]
    written = load_bundle(out).bases
    assert written.factors.digest == basis.factors.digest  # one machine, one result
    assert written.factors.digest in text
    assert basis.projection.descriptor in text
    assert re.search(r"^frame bytes.--numbers 13 +numbers 13, bf16 37, int8 27$", text, re.M)
    assert re.search(r"^frame bytes.--rank 8 +numbers 13440, bf16 26891, int8 13455$", text, re.M)
    same = os.path.samefile(smollm2_gguf, out / "base.gguf")
    assert bool(re.search(r"^base +hard link$", text, re.M)) is same
    suggested = [shlex.split(line)[2:4] for line in text.splitlines() if line.startswith("next: ")]
    assert suggested == [["train", str(out)], ["tune", str(out)]]


def test_json(cli: Cli, tiny_gguf: Path, tmp_path: Path) -> None:
    done = cli("export", tiny_gguf, "-o", tmp_path / "out", "--rank", 3, "--factor-dtype", "f32", "--json")
    assert done.code == 0
    assert "not the defaults: vectors of other exports do not fit these" in done.stderr
    record = json.loads(done.stdout)
    bases = load_bundle(tmp_path / "out").bases
    factors = bases.factors
    assert (record["factors"], record["rank"], record["factor_dtype"]) == (factors.digest, 3, "f32")
    assert (factors.rank, factors.dtype) == (3, "f32")
    assert record["fingerprints"] == list(bases.fingerprints)
    assert record["projections"] == []
    assert {name: size["numbers"] for name, size in record["frame_bytes"].items()} == {
        "--numbers 13": 13,
        "--numbers 14": 14,
        "--rank 1": 14,
        "--rank 2": 56,
        "--rank 3": 126,
    }
    for size in record["frame_bytes"].values():
        for dtype in ("bf16", "int8"):
            vector = MicroVector(np.ones(size["numbers"], np.float32), dtype)
            assert len(vector.to_bytes(bases.of(vector))) == size[dtype]


@pytest.mark.slow
def test_another_quantization_is_added(
    cli: Cli, smollm2_gguf: Path, smollm2_bundle: Path, tmp_path: Path
) -> None:
    bundle, q8 = tmp_path / "bundle", tmp_path / "q8.gguf"
    bundle.mkdir()
    os.link(smollm2_bundle / "base.gguf", bundle / "base.gguf")
    (bundle / "basis.gguf").write_bytes((smollm2_bundle / "basis.gguf").read_bytes())
    q8.symlink_to(smollm2.requantized(smollm2_gguf, smollm2.MOSTLY_Q8_0))
    beside = tmp_path / "q8.basis.gguf"
    beside.write_bytes((bundle / "basis.gguf").read_bytes())
    before = load_bundle(bundle).bases
    cli("inspect", q8).refused(before.fingerprints[0][:16], "--add-base")

    record = cli("export", bundle, "--add-base", q8, "--json").record()

    extended = load_bundle(bundle).bases
    assert record["factors"] == extended.factors.digest == before.factors.digest
    assert len(record["fingerprints"]) == 2
    assert record["fingerprints"] == list(extended.fingerprints)
    assert record["agreement"] < 0.1
    text = cli("export", bundle, "--add-base", q8).done()  # once more changes nothing
    assert str(beside) in text
    assert load_bundle(bundle).bases.fingerprints == extended.fingerprints
    beside.write_bytes((bundle / "basis.gguf").read_bytes())
    cli("inspect", q8).done()
    cli("run", q8, "Hello", "--max-tokens", 2, "--threads", 1).done()


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ([], "-o BUNDLE"),
        (["-o", "out", "--add-base", "x.gguf"], "--output"),
        (["--add-base", "x.gguf", "--rank", "2"], "--rank"),
        (["-o", "out", "--onnx-input", "required"], "--onnx-input goes with"),
        (["-o", "out", "--onnx-precision", "int4"], "--onnx-precision goes with"),
        (["-o", "out", "--key", "k"], "--key"),
    ],
)
def test_wrong_usage(cli: Cli, smollm2_gguf: Path, options: list[str], part: str) -> None:
    cli("export", smollm2_gguf, *options).misused(part)
