"""From names to files, and from there to a bundle: the catalog, repositories on a hub, and local paths."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import namedtuple
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hub_server
import huggingface_hub
import models
import pytest
from hub_server import HubServer

from tinylora_edge import ExportError, HubError, load_basis
from tinylora_edge.exporters import ExportSettings, Selection, export_gguf, find, resolve
from tinylora_edge.exporters.hub.cache import Hub
from tinylora_edge.exporters.hub.catalog import Catalog, read_catalog

SETTINGS = ExportSettings(groups=2)
CATALOG = """
["tiny"]
license = "mit"
gguf = "org/tiny-GGUF"
weights = "org/tiny"
files = "tiny-{quant}.gguf"
quants = { f32 = 600000, f16 = 300000 }
["lonely"]
gguf = "org/tiny-GGUF"
files = "tiny-{quant}.gguf"
"""


@pytest.fixture(scope="module")
def weights(tiny_models: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small Llama as a Hugging Face directory of shards."""
    path = models.write_hf(tiny_models["llama"], tmp_path_factory.mktemp("hf"), max_shard_size="100KB")
    (path / "tokenizer.json").write_text("{}")
    (path / "modeling_tiny.py").write_text("raise SystemExit")
    assert len(list(path.glob("*.safetensors"))) > 2
    return path


@pytest.fixture(scope="module")
def server(llama_gguf: Path, weights: Path) -> Iterator[HubServer]:
    with pytest.MonkeyPatch.context() as patch, hub_server.serve() as running:
        patch.delenv("HF_TOKEN", raising=False)
        patch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        whole = llama_gguf.read_bytes()
        running.add("org/tiny-GGUF", {"tiny-F32.gguf": whole, "tiny-other-Q8_0.gguf": b"no"}, tag="v1")
        parts = {f"tiny-F16-{n:05}-of-00002.gguf": bytes([n]) * 1000 for n in (1, 2)}
        running.add("org/tiny-GGUF", {"tiny-F32.gguf": whole, "mmproj-F16.gguf": b"eyes", **parts})
        running.add("org/tiny", {path.name: path for path in weights.iterdir()})
        running.add("org/pickle", {"pytorch_model.bin": b"pickle", "config.json": b"{}"})
        yield running


@pytest.fixture
def hub(server: HubServer, tmp_path: Path) -> Hub:
    server.requests.clear()
    return Hub(endpoint=server.url, cache=tmp_path / "cache")


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    path = tmp_path / "models.toml"
    path.write_text(CATALOG)
    return read_catalog(path)


@pytest.fixture
def look(hub: Hub, catalog: Catalog) -> Callable[..., Selection]:
    return lambda name, **options: find(name, hub=hub, catalog=catalog, **options)


# From a name to a bundle


def test_a_name_becomes_a_bundle(
    hub: Hub, catalog: Catalog, server: HubServer, llama_gguf: Path, tmp_path: Path
) -> None:
    found = resolve("tiny", hub=hub, catalog=catalog)
    bundle = export_gguf(
        found.model, tmp_path / "b", base=found.base, settings=SETTINGS, provenance=found.provenance
    )
    local = export_gguf(llama_gguf, tmp_path / "local", settings=SETTINGS)

    assert server.downloads == ["tiny-F32.gguf"]
    assert bundle.basis.digest == local.basis.digest
    assert load_basis(tmp_path / "b" / "basis.gguf").digest == local.basis.digest
    manifest = json.loads((tmp_path / "b" / "manifest.json").read_text())
    data = llama_gguf.read_bytes()
    assert manifest["source"] == {
        "name": "tiny",
        "license": "mit",
        "hub": server.url,
        "base": {
            "repository": "org/tiny-GGUF",
            "revision": server.repos["org/tiny-GGUF"].find("main"),
            "files": [
                {"name": "tiny-F32.gguf", "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
            ],
        },
    }
    assert manifest["factors"]["from"] == "gguf"
    assert "source" not in json.loads((tmp_path / "local" / "manifest.json").read_text())


def test_factors_from_the_original_weights(
    hub: Hub, catalog: Catalog, server: HubServer, weights: Path, llama_gguf: Path, tmp_path: Path
) -> None:
    found = resolve("tiny", factors_from="weights", hub=hub, catalog=catalog)
    bundle = export_gguf(
        found.model, tmp_path / "b", base=found.base, settings=SETTINGS, provenance=found.provenance
    )
    local = export_gguf(weights, tmp_path / "local", base=llama_gguf, settings=SETTINGS)

    assert bundle.basis.digest == local.basis.digest
    shards = sorted(path.name for path in weights.glob("*.safetensors"))
    assert set(server.downloads) == {
        "tiny-F32.gguf", "config.json", "model.safetensors.index.json", *shards
    }  # fmt: skip
    source = json.loads((tmp_path / "b" / "manifest.json").read_text())["source"]
    listed = {file["name"]: file["sha256"] for file in source["weights"]["files"]}
    assert listed.keys() == {"config.json", "model.safetensors.index.json", *shards}
    for name, digest in listed.items():
        assert digest == hashlib.sha256((weights / name).read_bytes()).hexdigest()


def test_there_has_to_be_room_for_both_repositories(
    look: Callable[..., Selection], server: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = look("tiny", factors_from="weights")
    server.requests.clear()
    usage = namedtuple("usage", ["total", "used", "free"])(0, 0, found.missing - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(HubError, match=f"org/tiny-GGUF and org/tiny need {found.missing:,} bytes"):
        found.fetch()
    assert server.downloads == []


# What a name stands for


def test_the_default_and_another_quantization(look: Callable[..., Selection], server: HubServer) -> None:
    assert [part.files for part in look("tiny").parts] == [("tiny-F32.gguf",)]
    parts = ("tiny-F16-00001-of-00002.gguf", "tiny-F16-00002-of-00002.gguf")
    found = look("Tiny", quant="f16")
    assert (found.name, found.bytes, found.missing) == ("tiny", 2000, 2000)
    assert [part.files for part in found.parts] == [parts]
    assert server.downloads == []
    resolved = found.fetch()
    assert resolved.model.name == parts[0]
    assert resolved.model.with_name(parts[1]).read_bytes() == b"\2" * 1000
    assert found.missing == 0


def test_a_repository_works_as_well(look: Callable[..., Selection]) -> None:
    found = look("org/tiny-GGUF", quant="f32")
    assert (found.name, found.model) == ("tiny-GGUF", None)
    assert [part.files for part in found.parts] == [("tiny-F32.gguf",)]
    assert found.fetch().provenance["base"]["repository"] == "org/tiny-GGUF"


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("tiny@v1", {}),
        ("tiny", {"revision": "v1"}),
        ("org/tiny-GGUF@v1", {"quant": "f32"}),
        ("org/tiny-GGUF", {"revision": "v1", "quant": "f32"}),
        ("org/tiny-GGUF@v1", {"revision": "v1", "quant": "f32"}),
    ],
)
def test_a_revision(
    look: Callable[..., Selection], server: HubServer, name: str, options: dict[str, str]
) -> None:
    (part,) = look(name, **options).parts
    assert part.repository.commit == server.repos["org/tiny-GGUF"].tags["v1"]
    assert part.revision == "v1"


def test_weights_of_the_catalog_bring_their_gguf(look: Callable[..., Selection]) -> None:
    found = look("org/tiny")
    assert [(part.role, part.repository.name) for part in found.parts] == [("base", "org/tiny-GGUF")]


def test_weights_and_a_base_of_another_repository(look: Callable[..., Selection]) -> None:
    found = look("org/tiny", base="org/tiny-GGUF@v1", quant="f32")
    assert [(part.role, part.repository.name, part.revision) for part in found.parts] == [
        ("base", "org/tiny-GGUF", "v1"),
        ("weights", "org/tiny", None),
    ]


def test_weights_and_a_base_that_is_here(look: Callable[..., Selection], llama_gguf: Path) -> None:
    found = look("org/tiny", base=llama_gguf)
    assert [part.role for part in found.parts] == ["weights"]
    assert found.fetch().base == llama_gguf


def test_a_base_that_is_named_is_used_for_another_engine_too(
    look: Callable[..., Selection], llama_gguf: Path
) -> None:
    assert look("org/tiny", base=llama_gguf, deployed=False).fetch().base == llama_gguf


def test_weights_that_are_here_and_a_base_of_the_hub(look: Callable[..., Selection], weights: Path) -> None:
    resolved = look(weights, base="org/tiny-GGUF", quant="f32").fetch()
    assert resolved.model == weights
    assert resolved.base is not None
    assert resolved.base.name == "tiny-F32.gguf"
    assert resolved.provenance is not None
    assert resolved.provenance.keys() == {"hub", "base"}


def test_a_graph_needs_weights_and_tokenizer_alone(look: Callable[..., Selection]) -> None:
    found = look("tiny", deployed=False, graph=True)
    (part,) = found.parts
    assert part.role == "weights"
    assert "tokenizer.json" in part.files
    assert "modeling_tiny.py" not in part.files  # code of others is never brought
    resolved = found.fetch()
    assert (resolved.model / "config.json").exists()
    assert resolved.base is None


# Local paths


def test_a_path_wins_where_it_exists(
    look: Callable[..., Selection], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: HubServer
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("tiny").mkdir()
    found = look("tiny")
    assert (found.name, found.parts) == (None, ())
    assert found.shadowed is not None
    assert found.fetch().model == Path("tiny")
    assert server.requests == []


def test_a_bundle_is_no_model(
    look: Callable[..., Selection], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`export tiny` leaves ./tiny behind; once more it means the same."""
    monkeypatch.chdir(tmp_path)
    Path("tiny").mkdir()
    Path("tiny", "basis.gguf").touch()
    assert look("tiny").name == "tiny"


def test_a_path_needs_no_catalog(llama_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TINYLORA_EDGE_CATALOG", str(tmp_path / "none.toml"))
    assert find(llama_gguf).fetch().model == llama_gguf
    with pytest.raises(ExportError, match=r"none\.toml does not exist"):
        find("tiny")


@pytest.mark.parametrize("name", ["/no/such", "./no/such", "no.gguf", "a/b/c", "~/model", "..\\model"])
def test_what_looks_like_a_path_is_none_of_the_hubs(
    look: Callable[..., Selection], server: HubServer, name: str
) -> None:
    assert look(name).fetch().model == Path(name)  # the export says that it does not exist
    assert server.requests == []


# What is refused


@pytest.mark.parametrize(
    ("name", "options", "error", "match"),
    [
        ("tinny", {}, ExportError, r"'tinny' is neither a local path nor .* near it: tiny\. List them with"),
        ("zzz", {}, ExportError, "nor a model of the catalog. List them with tinylora-edge models"),
        ("tiny:f16", {}, ExportError, "'tiny:f16' is neither"),
        ("tiny", {"quant": "q9_0"}, ExportError, "no quantization 'q9_0': choose one with --quant: f16, f32"),
        ("tiny", {"factors_from": "thin air"}, ExportError, "'thin air': choose one of gguf, weights"),
        ("tiny@v1", {"revision": "v2"}, ExportError, "names revision 'v1', but --revision 'v2'"),
        ("tiny", {"factors_from": "weights", "revision": "v1"}, ExportError, "a revision is of one: pass"),
        ("tiny", {"base": "x.gguf", "factors_from": "gguf"}, ExportError, "pass it as MODEL"),
        ("tiny", {"base": "here.gguf", "quant": "f16"}, ExportError, "--quant chooses a file on the hub"),
        ("tiny", {"base": "nowhere"}, ExportError, "nowhere does not exist: --base takes a GGUF file"),
        ("lonely", {"factors_from": "weights"}, ExportError, "names no original weights for lonely"),
        (
            "org/tiny-GGUF",
            {"factors_from": "weights"},
            HubError,
            "no safetensors: pass the repository of the",
        ),
        ("org/pickle", {}, HubError, "has no GGUF: name the one that is deployed with --base"),
        ("org/pickle", {"base": "x.gguf"}, HubError, "has no safetensors"),
        ("org/none", {}, HubError, "has no model org/none"),
    ],
)
def test_refusals(
    look: Callable[..., Selection],
    server: HubServer,
    name: str,
    options: dict[str, str],
    error: type[Exception],
    match: str,
) -> None:
    with pytest.raises(error, match=match) as caught:
        look(name, **options)
    assert "\n" not in str(caught.value)
    assert server.downloads == []


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"quant": "q8_0"}, "--quant q8_0 is of a model on the hub, but .* is a local path"),
        ({"revision": "v1"}, "--revision v1 is of a model on the hub"),
        ({"factors_from": "weights"}, "is a GGUF file: pass the directory of the original weights"),
    ],
)
def test_options_that_a_path_has_no_use_for(
    look: Callable[..., Selection], llama_gguf: Path, options: dict[str, str], match: str
) -> None:
    with pytest.raises(ExportError, match=match):
        look(llama_gguf, **options)


def test_a_directory_has_no_factors_of_a_gguf(look: Callable[..., Selection], weights: Path) -> None:
    with pytest.raises(ExportError, match="is a directory of weights: pass the GGUF file as MODEL"):
        look(weights, factors_from="gguf")


def test_a_shard_that_the_repository_lacks(hub: Hub, server: HubServer, weights: Path) -> None:
    files: dict[str, bytes | Path] = {path.name: path for path in weights.iterdir()}
    gone = sorted(name for name in files if name.endswith(".safetensors"))[1]
    del files[gone]
    server.add("org/holes", files)
    total = len(list(weights.glob("*.safetensors")))
    with pytest.raises(HubError, match=f"lacks 1 of the {total} shards that its index names: {gone}"):
        find("org/holes", base="x.gguf", hub=hub, catalog={})
    assert not any(name.endswith(".safetensors") for name in server.downloads)
