"""`convert` between vectors, GGUF LoRAs, scales and PEFT directories."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import models
import numpy as np
import pytest
import support
import torch
from invocation import Cli, contents
from peft import PeftModel, TinyLoraConfig, get_peft_model

from tinylora_edge import MicroVector, load_basis, runtime
from tinylora_edge.exporters import ExportSettings, export_gguf

pytestmark = pytest.mark.filterwarnings("ignore")
TOKENS = [1, 5, 9, 33, 7, 21]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one tiny model as `hf` and `base.gguf`, its bundles `b` (7 groups) and `b5`."""
    root = tmp_path_factory.mktemp("interop")
    models.write_hf(models.tiny_model("llama"), root / "hf")
    models.write_gguf(models.tiny_model("llama"), root / "base.gguf")
    export_gguf(root / "base.gguf", root / "b", settings=ExportSettings(groups=7))
    export_gguf(root / "base.gguf", root / "b5", settings=ExportSettings(groups=5))
    return root


@pytest.fixture
def vector(cli: Cli, world: Path, tmp_path: Path) -> Path:
    cli("vector", "new", world / "b", "-o", tmp_path / "v.bin", "--random", 0.4, "--sequence", 6).done()
    return tmp_path / "v.bin"


def test_scales_and_back(cli: Cli, world: Path, vector: Path, tmp_path: Path) -> None:
    ask = ("--bundle", world / "b", "--to")
    cli("convert", vector, *ask, "scales", "-o", tmp_path / "v.json").done()
    entries = json.loads((tmp_path / "v.json").read_text())
    basis = load_basis(world / "b" / "basis.gguf")
    values = MicroVector.from_bytes(vector.read_bytes(), basis).values
    assert [entry["scale"] for entry in entries] == values[:, 0].tolist()
    record = cli("convert", tmp_path / "v.json", *ask, "frame", "-o", tmp_path / "w.bin", "--json").record()
    assert (record["from"], record["exact"]) == ("scales", True)
    assert MicroVector.from_bytes((tmp_path / "w.bin").read_bytes(), basis).values.tolist() == values.tolist()


def test_a_raw_payload_that_begins_like_another_format(cli: Cli, world: Path) -> None:
    for begin in (b"[", b" [", b"\xff\xd8\xff", b"GGU"):
        raw = begin + bytes(28 - len(begin) - 1) + b"\x3d"
        ask = ("convert", "-", "--bundle", world / "b", "--to", "raw", "-o", "-")
        assert cli(*ask, stdin=raw).stdout_bytes == raw


def test_loras_for_a_server(cli: Cli, world: Path, vector: Path, tmp_path: Path) -> None:
    ask = ("convert", vector, "--bundle", world / "b", "--to", "gguf-loras", "-o", tmp_path / "adapters")
    said = cli(*ask).done()
    assert "--lora-init-without-apply --lora-scaled" in said
    names = [f"group-{group:02d}.gguf" for group in range(7)]
    assert set(contents(tmp_path / "adapters")) == {*names, "scales.json"}
    cli(*ask).refused("exists already")
    record = cli(*ask, "--force", "--json").record()
    assert [Path(name).name for name in record["files"]] == [*names, "scales.json"]


def test_a_folded_lora_and_back(cli: Cli, world: Path, vector: Path, tmp_path: Path) -> None:
    ask = ("--bundle", world / "b", "--to")
    assert "ADAPTER" in cli("convert", vector, *ask, "gguf-lora", "-o", tmp_path / "v.gguf").done()
    cli("convert", tmp_path / "v.gguf", *ask, "frame", "-o", tmp_path / "w.bin").done()
    basis = load_basis(world / "b" / "basis.gguf")
    first, again = (
        MicroVector.from_bytes(p.read_bytes(), basis).values for p in (vector, tmp_path / "w.bin")
    )
    np.testing.assert_allclose(again, first, atol=1e-6)
    cli("convert", vector, *ask, "gguf-lora", "-o", "-").refused("no stream of bytes")
    cli("convert", vector, *ask, "gguf-lora", "-o", tmp_path / "v.gguf").refused("exists already", "--force")
    cli("convert", world / "base.gguf", *ask, "frame", "-o", tmp_path / "x").refused("no GGUF LoRA")


def test_peft_and_lora(cli: Cli, world: Path, vector: Path, tmp_path: Path) -> None:
    ask = ("--bundle", world / "b", "--model", world / "hf", "--to")
    said = []
    for name in ("peft", "lora"):
        cli("convert", vector, *ask, name, "-o", tmp_path / name).done()
        model = PeftModel.from_pretrained(models.tiny_model("llama"), tmp_path / name).eval()
        said.append(models.torch_logits(model, TOKENS))
    np.testing.assert_allclose(*said, atol=1e-4)
    frame = cli("convert", tmp_path / "peft", *ask[2:], "frame", "-o", tmp_path / "w.bin", "--json").record()
    assert frame["from"] == "peft"
    cli("convert", tmp_path / "peft", *ask, "frame", "-o", tmp_path / "x").refused("made from it")


def test_what_peft_has_no_place_for_is_said(cli: Cli, world: Path, tmp_path: Path) -> None:
    plain = load_basis(world / "b" / "basis.gguf")
    learned = support.bundle_with(support.learned_forms(plain)["dense"], world / "base.gguf", tmp_path / "l")
    data = cli("vector", "new", learned, "-o", "-", "--random", 1).stdout_bytes
    ask = ("convert", "-", "--bundle", learned, "--model", world / "hf", "--to")
    said = cli(*ask, "peft", "-o", tmp_path / "p", stdin=data).done()
    assert f"no place for the names and the prior of the axes: keep {learned} for them" in said
    assert "no place" not in cli(*ask, "lora", "-o", tmp_path / "q", stdin=data).done()


def test_tying_that_peft_lacks(cli: Cli, world: Path, tmp_path: Path) -> None:
    data = cli("vector", "new", world / "b5", "-o", "-", "--random", 1).stdout_bytes
    ask = (
        "convert",
        "-",
        "--bundle",
        world / "b5",
        "--model",
        world / "hf",
        "--to",
        "peft",
        "-o",
        tmp_path / "p",
    )
    cli(*ask, stdin=data).refused("PEFT cannot express the tying", "5 groups")
    cli(*ask, "--untie", stdin=data).done()


def test_a_checkpoint_becomes_a_bundle_that_runs(cli: Cli, world: Path, tmp_path: Path) -> None:
    config = TinyLoraConfig(r=2, u=2, weight_tying=0.6, target_modules="all-linear", task_type="CAUSAL_LM")
    trained = get_peft_model(copy.deepcopy(models.tiny_model("llama")), config).eval()
    with torch.no_grad():
        for number, row in enumerate(trained.base_model.tinylora_v["default"].values()):
            row.copy_(torch.tensor([0.1, -0.05]) * (number + 1))
    trained.save_pretrained(tmp_path / "peft")
    ask = ("convert", tmp_path / "peft", "--to", "bundle", "--model", world / "hf")
    cli(*ask, "--base", world / "base.gguf", "-o", tmp_path / "bundle").done()
    assert cli("inspect", tmp_path / "bundle", "--json").record()["tying"] == "peft"
    options = {
        "n_ctx": 64,
        "n_threads": 1,
        "n_threads_batch": 1,
        "type_k": 0,
        "type_v": 0,
        "logits_all": True,
    }
    data = (tmp_path / "bundle" / "vector.bin").read_bytes()
    llm = runtime.load(tmp_path / "bundle", data, **options)
    np.testing.assert_allclose(
        models.llama_logits(llm, TOKENS), models.torch_logits(trained, TOKENS), atol=2e-4
    )
    llm.close()
    cli(*ask, "--base", world / "base.gguf", "-o", tmp_path / "bundle").refused("exists already")


def test_wrong_usage(cli: Cli, world: Path, vector: Path, tmp_path: Path) -> None:
    out = ("-o", tmp_path / "out")
    cli("convert", vector, "--to", "frame", *out).misused("--bundle")
    cli("convert", vector, "--bundle", world / "b", "--to", "peft", *out).misused("--model")
    cli("convert", vector, "--bundle", world / "b", "--to", "scales", "--untie", *out).misused("--untie")
    cli("convert", vector, "--bundle", world / "b", "--to", "bundle", *out).misused("--base")
    cli("convert", world / "hf", "--to", "frame", *out).misused("--model")
    cli("convert", world / "hf", "--to", "frame", "--model", world / "hf", *out).refused(
        "adapter_config.json"
    )
    cli("convert", vector, "--bundle", world / "b", "--to", "gguf-lora", "--dtype", "bf16", *out).misused(
        "fp32"
    )
    cli(
        "convert", vector, "--bundle", world / "b", "--to", "bundle", "--base", world / "base.gguf", *out
    ).misused("only a PEFT checkpoint")
    assert not (tmp_path / "out").exists()
