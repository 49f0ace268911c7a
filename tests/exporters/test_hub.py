"""From names to files, and from there to a bundle: the catalog, repositories on a hub, and local paths.

The real client talks to a hub on loopback (hub_server), as where HF_ENDPOINT says so.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import hub_server
import huggingface_hub
import models
import pytest
from hub_server import HubServer

from tinylora_edge import ExportError, HubError
from tinylora_edge.exporters import default_name, export_gguf, hub, resolve
from tinylora_edge.exporters.hub import CatalogModel, choose, load_catalog, models_in

REPO, FILE = "org/tiny-GGUF", "tiny-F32.gguf"
TINY = CatalogModel("tiny", REPO, {"f32": 600_000, "f16": 300_000}, "org/tiny", 150_000, "mit")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("hf")
    path = models.write_hf(models.tiny_model("llama"), root, max_shard_size="100KB")
    (path / "tokenizer.json").write_text("{}")
    (path / "modeling_tiny.py").write_text("raise SystemExit")
    assert len(list(path.glob("*.safetensors"))) > 2
    return path


@pytest.fixture
def server(tiny_gguf, weights, tmp_path, monkeypatch):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(hub, "load_catalog", lambda: {"tiny": TINY})
    with hub_server.serve() as running:
        settings = {"ENDPOINT": running.url, "HF_HUB_CACHE": str(tmp_path / "cache"), "HF_HUB_OFFLINE": False}
        settings["HUGGINGFACE_CO_URL_TEMPLATE"] = running.url + "/{repo_id}/resolve/{revision}/{filename}"
        for name, value in (settings | {"HF_TOKEN_PATH": str(tmp_path / "token")}).items():
            monkeypatch.setattr(huggingface_hub.constants, name, value)
        whole = tiny_gguf.read_bytes()
        running.add(REPO, {FILE: whole, "tiny-other-Q8_0.gguf": b"no"}, tag="v1")
        parts = {f"tiny-F16-{n:05}-of-00002.gguf": bytes([n]) * 1000 for n in (1, 2)}
        running.add(REPO, {FILE: whole, "mmproj-F16.gguf": b"eyes", **parts})
        running.add("org/tiny", {path.name: path for path in weights.iterdir()})
        running.add("org/pickle", {"pytorch_model.bin": b"pickle", "config.json": b"{}"})
        yield running


def test_factors_from_the_original_weights(server, weights, tiny_gguf, tmp_path):
    found = resolve("org/tiny", base=REPO, quant="f32")
    bundle = export_gguf(found.model, tmp_path / "b", base=found.base)
    local = export_gguf(weights, tmp_path / "local", base=tiny_gguf)
    assert bundle.bases.factors.digest == local.bases.factors.digest
    shards = {path.name for path in weights.glob("*.safetensors")}
    needed = {"config.json", "model.safetensors.index.json", *shards}
    assert set(server.downloads) == {FILE, *needed}
    assert found.provenance is not None
    listed = {file["name"]: file.get("sha256") for file in found.provenance["weights"]["files"]}
    assert listed.keys() == needed
    assert all(listed[name] == hashlib.sha256((weights / name).read_bytes()).hexdigest() for name in shards)


class TestWhatANameStandsFor:
    def test_the_default_and_another_quantization(self, server: HubServer) -> None:
        assert default_name("Tiny") == "tiny"
        assert resolve("Tiny").model.name == FILE
        said: list[tuple[Any, ...]] = []
        found = resolve("tiny", quant="fp16", say=lambda *each: said.append(each))
        ((what, where, size),) = said
        assert (what, str(where).partition("@")[0], size) == ("f16", REPO, 2000)
        assert found.model.with_name("tiny-F16-00002-of-00002.gguf").read_bytes() == b"\2" * 1000

    def test_a_revision(self, server: HubServer) -> None:
        with pytest.raises(HubError):  # it is asked for on the hub, and no local path
            resolve(f"{REPO}@refs/pr/1", quant="f32")
        found = resolve(f"{REPO}@v1", quant="f32")
        assert found.provenance["base"]["revision"] == server.repos[REPO].tags["v1"]
        assert found.model.parent.name == server.repos[REPO].tags["v1"]

    def test_one_of_both_is_here(self, server: HubServer, weights: Path, tiny_gguf: Path) -> None:
        for deployed in (True, False):
            found = resolve("org/tiny", base=tiny_gguf, deployed=deployed)
            assert (found.provenance.keys(), found.base) == ({"hub", "weights"}, tiny_gguf)
        resolved = resolve(weights, base=REPO, quant="f32")
        assert (resolved.model, resolved.base and resolved.base.name) == (weights, FILE)

    def test_a_graph_needs_weights_and_tokenizer_alone(self, server: HubServer) -> None:
        found = resolve("tiny", deployed=False, graph=True)
        assert (found.base, found.provenance.keys() & {"base", "weights"}) == (None, {"weights"})
        assert "tokenizer.json" in server.downloads
        assert "modeling_tiny.py" not in server.downloads, "code of others is never brought"

    def test_a_path_wins_where_it_exists_unless_it_is_a_bundle(self, server, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        Path("tiny").mkdir()
        assert (default_name("tiny"), resolve("tiny").model) == (None, Path("tiny"))
        assert server.requests == []
        Path("tiny", "basis.gguf").touch()  # as `export tiny` leaves it behind
        assert default_name("tiny") == "tiny"

    @pytest.mark.parametrize("name", ["/no/such", "no.gguf", "a/b/c", "..\\model"])
    def test_what_looks_like_a_path_is_none_of_the_hubs(self, server: HubServer, name: str) -> None:
        assert resolve(name).model == Path(name)  # the export says that it is not there
        assert server.requests == []

    @pytest.mark.parametrize(
        ("name", "options", "match"),
        [
            ("tinny", {}, r"'tinny' is neither a local path nor .* near it: tiny\. List them with"),
            ("tiny", {"quant": "q9_0"}, "no quantization 'q9_0': choose one with --quant: f16, f32"),
            ("tiny@v1", {}, "'tiny@v1' is neither"),
            ("tiny", {"base": "here.gguf", "quant": "f16"}, "--quant f16 chooses a file on the hub"),
            (
                "tiny",
                {"quant": "f16", "deployed": False, "graph": True},
                "and a graph is of the original weights",
            ),
            ("tiny", {"base": "nowhere"}, "nowhere does not exist: --base takes a GGUF file"),
            (REPO, {"base": "x.gguf"}, "has no safetensors, or lacks some"),
            ("org/pickle", {}, "has no GGUF: name the one that is deployed with --base"),
            ("org/none", {}, "Repository Not Found for url"),
            (f"{REPO}@v9", {}, "Revision Not Found for url"),
            ("org/x.git", {}, r"cannot end by '.git'"),
        ],
    )
    def test_refusals(self, server: HubServer, name: str, options: dict[str, Any], match: str) -> None:
        with pytest.raises(ExportError, match=match) as caught:
            resolve(name, **options)
        assert "\n" not in str(caught.value)
        assert server.downloads == []


class TestTheHub:
    def test_a_shard_that_is_lacking(self, server: HubServer, weights: Path) -> None:
        files: dict[str, bytes | Path] = {path.name: path for path in weights.iterdir()}
        gone = sorted(name for name in files if name.endswith(".safetensors"))[1]
        del files[gone]
        server.add("org/holes", files)
        with pytest.raises(HubError, match=rf"lacks some \({gone}\)"):
            resolve("org/holes", base="x.gguf")

    def test_a_gated_model(self, server: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
        server.repos[REPO].gated, server.repos[REPO].readers = True, {"hf_good"}
        monkeypatch.setenv("HF_TOKEN", "hf_bad")
        with pytest.raises(HubError, match=f"{server.url}: .*Access to model {REPO} is restricted") as caught:
            resolve(REPO, quant="f32")
        assert "hf_bad" not in str(caught.value)
        monkeypatch.setenv("HF_TOKEN", "hf_good")
        assert resolve(REPO, quant="f32").model.name == FILE

    def test_without_a_network(self, server: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
        before = resolve("tiny")
        server.broken = 503
        with pytest.raises(HubError, match=r"503.*With HF_HUB_OFFLINE=1 the cache is used"):
            resolve("tiny")
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        server.requests.clear()
        after = resolve("tiny")
        assert after.model == before.model
        assert after.provenance["base"] == before.provenance["base"]
        with pytest.raises(HubError, match=r"org/other is not in the cache .*HF_HUB_OFFLINE forbids"):
            resolve("org/other")
        with pytest.raises(ExportError, match="no quantization 'f16'"):
            resolve("tiny", quant="f16")
        assert server.requests == []


@pytest.mark.parametrize("model", load_catalog().values(), ids=lambda model: model.name)
def test_the_catalog_is_sound(model: CatalogModel) -> None:
    assert "/" in model.weights
    assert "/" in model.gguf
    assert model.license
    assert model.default in ("", *model.quants)
    for quant, size in model.quants.items():
        bits = size * 8 / model.parameters
        assert 3.5 < bits < 21, quant  # 4 bits and scales, up to 16 and a vocabulary
        (found,) = models_in([f"{model.name}-{quant}.gguf"])
        assert found.quant == quant


class TestNamesOfFiles:
    @pytest.mark.parametrize(
        ("name", "quant"),
        [
            ("qwen2.5-7b-instruct-q4_k_m.gguf", "q4_k_m"),
            ("qwen2.5-7b-instruct-fp16.gguf", "f16"),
            ("gpt-oss-20b-MXFP4.gguf", "mxfp4"),
            ("Qwen3-8B-UD-Q4_K_XL.gguf", "ud-q4_k_xl"),
            ("Q4_0.GGUF", "q4_0"),
            ("BF16/Model-BF16.gguf", "bf16"),
            ("Llama-3.2-1B.gguf", "llama-3.2-1b"),
        ],
    )
    def test_the_quantization(self, name: str, quant: str) -> None:
        beside = ["mmproj-f16.gguf", "Model.imatrix.gguf", "my-lora-f16.gguf", "README.md", "x.gguf.txt"]
        (model,) = models_in([*beside, name])
        assert (model.quant, model.files) == (quant, (name,))

    NAMES = ("m-Q8_0.gguf", "m-Q4_K_M.gguf", "m-F16.gguf", *(f"m-Q4_0-{n:05}-of-00002.gguf" for n in (2, 1)))

    def test_choosing(self) -> None:
        choices = [(None, None, "Q4_K_M"), (None, "q8_0", "Q8_0"), ("q4_0", "q8_0", "Q4_0")]
        for quant, default, kind in (*choices, ("m-q8_0.gguf", None, "Q8_0")):
            found = choose(models_in(self.NAMES), quant, "here", default)
            files = tuple(sorted(name for name in self.NAMES if name.startswith(f"m-{kind}")))
            assert (found.stem, found.files) == (f"m-{kind}", files)
        assert choose(models_in(["strange.gguf"]), None, "here").stem == "strange"
        assert choose(models_in(["a/m-Q8_0.gguf", "b/m-Q8_0.gguf"]), "b/m-Q8_0", "").stem == "b/m-Q8_0"

    @pytest.mark.parametrize(
        ("names", "quant", "match"),
        [
            (NAMES, "q5_k_m", r"no quantization 'q5_k_m': choose one with --quant: f16, q4_0, q4_k_m, q8_0"),
            (["a.gguf", "b.gguf"], None, r"no usual quantization: choose one with --quant: a, b"),
            (["a-q8_0.gguf", "b-q8_0.gguf"], None, r"several files for q8_0: choose one with --quant"),
            (["m-q4_0-00001-of-00003.gguf"], None, "has 1 of 3 parts of m-q4_0"),
            (["README.md"], None, "here has no GGUF"),
        ],
    )
    def test_what_cannot_be_chosen(self, names: list[str], quant: str | None, match: str) -> None:
        with pytest.raises(ExportError, match=match):
            choose(models_in(names), quant, "here")
