"""`export`: what it writes and what it says, of files and of names on a hub on loopback."""

from __future__ import annotations

import json
import os
import re
import shlex
from functools import partial
from pathlib import Path

import hub_server
import numpy as np
import onnx_bundles
import onnx_models
import pytest
import smollm2
from invocation import Cli, contents

from tinylora_edge import Basis, MicroVector, load_bundle


@pytest.mark.slow
def test_the_report_of_the_real_model(cli: Cli, smollm2_gguf: Path, tmp_path: Path, basis: Basis) -> None:
    out = tmp_path / "out"
    text = cli("export", smollm2_gguf, "-o", out, "--outputs", 8).done()

    assert sorted(contents(tmp_path)) == ["out/", "out/base.gguf", "out/basis.gguf", "out/manifest.json"]
    written = load_bundle(out).bases
    assert written.factors.digest == basis.factors.digest  # one machine, one result
    assert written.factors.digest in text
    assert basis.projection.descriptor in text
    assert re.search(r"^frame bytes.--numbers 13 +numbers 13, bf16 37, int8 27$", text, re.M)
    assert re.search(r"^frame bytes.--size full +numbers 13440, bf16 26891, int8 13455, q4 8412$", text, re.M)
    same = os.path.samefile(smollm2_gguf, out / "base.gguf")
    assert bool(re.search(r"^base +hard link$", text, re.M)) is same
    suggested = [shlex.split(line)[2:4] for line in text.splitlines() if line.startswith("next: ")]
    assert suggested == [["train", str(out)], ["tune", str(out)]]


def test_json(cli: Cli, tiny_gguf: Path, tmp_path: Path) -> None:
    settings = ("--rank", 3, "--outputs", 3, "--factor-dtype", "f32")
    done = cli("export", tiny_gguf, "-o", tmp_path / "out", *settings, "--json")
    assert done.code == 0
    record = json.loads(done.stdout)
    bases = load_bundle(tmp_path / "out").bases
    factors = bases.factors
    assert (record["factors"], record["rank"], record["factor_dtype"]) == (factors.digest, 3, "f32")
    assert (factors.rank, factors.dtype) == (3, "f32")
    assert record["fingerprints"] == list(bases.fingerprints)
    assert record["projections"] == []
    sizes = {"--numbers 13": 13, "--numbers 14": 14, "--size small": 56}
    sizes |= dict.fromkeys(("--size medium", "--size large", "--size full"), 126)
    assert {name: size["numbers"] for name, size in record["frame_bytes"].items()} == sizes
    for size in record["frame_bytes"].values():
        for dtype in ("bf16", "int8"):
            vector = MicroVector(np.ones(size["numbers"], np.float32), dtype)
            assert len(vector.to_bytes(bases.of(vector))) == size[dtype]


@pytest.mark.slow
def test_another_quantization_is_added(cli, smollm2_gguf, smollm2_bundle, tmp_path):
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


def test_a_folder_does_not_go_to_stdout(cli, tiny_gguf, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for command in (["export", tiny_gguf], ["demo"], ["demo", "--replay"]):
        cli(*command, "-o", "-").refused("stdout")
    assert contents(tmp_path) == {}


def test_both_from_a_gguf(cli: Cli, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = ["--format", "both", "--outputs", 12, "--onnx-input", "required", "--json"]
    record = cli("export", onnx_bundles.both() / "base.gguf", "-o", out, *options).record()
    found, onnx = load_bundle(out), record["onnx"]
    assert record["fingerprints"] == [found.check_base(), found.check_onnx()]
    assert (onnx["fingerprint"], onnx["precision"]) == (found.check_onnx(), "fp32")
    assert onnx["answers"] == found.manifest["onnx"]["answers"]
    assert onnx["answers"]["prompts"] == 16
    assert onnx["flavour"] == found.manifest["onnx"]["flavour"] == "required"
    assert found.manifest["base"]["file"] == "base.gguf"
    assert (record["outputs"], found.basis(rank=(12, 8)).shape) == (12, (12, 8))
    (taken,) = (each for each in onnx_models.session(out / "onnx").get_inputs() if each.name == "tinylora_r")
    assert taken.shape == ["tinylora_rows", found.factors.r_size]


def test_a_name_is_all_that_it_takes(process, environment, tiny_gguf, tmp_path):
    ours = {key: value for key, value in environment.items() if not key.startswith(("HF_", "TINYLORA_"))}
    with hub_server.serve() as server:
        server.add("org/tiny-GGUF", {"tiny-F32.gguf": tiny_gguf})
        home = ours | {"HF_HOME": str(tmp_path / "hf"), "HF_ENDPOINT": server.url}
        listed = {each["name"]: each for each in process("export", "--json", env=home).record()}
        assert listed["gpt-oss-20b"]["quants"] == {"mxfp4": 12_109_566_624}
        assert all(name in process("export", env=home).done() for name in ("qwen2.5-7b", "117 B"))
        process("export", "-o", "out", env=home).misused("-o", "needs a MODEL")
        process("export", "org/tiny-GGUF", "-o", "no/out", env=home, cwd=tmp_path).refused(
            "no/out", "directory"
        )
        assert server.requests == []

        export = partial(process, "export", "org/tiny-GGUF", cwd=tmp_path)
        record = export("--json", env=home).record()
        assert record["bundle"] == "tiny-GGUF"
        assert sorted(contents(tmp_path / "tiny-GGUF")) == ["base.gguf", "basis.gguf", "manifest.json"]
        commit = server.repos["org/tiny-GGUF"].find("main")
        assert record["source"]["base"]["revision"] == commit
        assert load_bundle(tmp_path / "tiny-GGUF").manifest["source"] == record["source"]
        assert server.downloads == ["tiny-F32.gguf"]
        assert commit in process("inspect", tmp_path / "tiny-GGUF").done()
        export(env=home).refused("tiny-GGUF exists already")  # and is not taken for a model

        server.requests.clear()  # the same again, without a hub
        assert commit in export("-o", "again", env=home | {"HF_HUB_OFFLINE": "1"}).done()
        assert load_bundle(tmp_path / "again").factors.digest == record["factors"]
        assert server.requests == []
