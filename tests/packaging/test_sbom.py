"""`make sbom`: what of an environment's bill of materials goes into that of an extra."""

from __future__ import annotations

import json
import tomllib
from importlib.metadata import distributions
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import support
from packaging.requirements import Requirement

from tinylora_edge import __version__

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]


@pytest.fixture(scope="module")
def sbom() -> ModuleType:
    return support.script(ROOT / ".ci" / "sbom.py")


@pytest.fixture(scope="module")
def bill() -> dict[str, Any]:
    """The bill of the environment that runs this, in the form in which cyclonedx-py writes it."""
    found = {one.metadata["Name"]: one for one in distributions()}
    refs = {name: f"{name}=={one.version}" for name, one in found.items()}
    edges = []
    for name, one in found.items():
        asked = {Requirement(text).name for text in one.requires or []}
        edges.append({"ref": refs[name], "dependsOn": sorted(refs[other] for other in asked & refs.keys())})
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "metadata": {
            "component": {"bom-ref": "root-component", "name": "tinylora-edge", "type": "application"}
        },
        "components": [
            {"bom-ref": refs[name], "name": name, "version": one.version, "type": "library"}
            for name, one in found.items()
        ],
        "dependencies": [*edges, {"ref": "root-component", "dependsOn": sorted(refs.values())}],
    }


def test_every_extra_has_its_packages(
    sbom: ModuleType, bill: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "environment.json").write_text(json.dumps(bill))
    sbom.main(tmp_path / "environment.json", tmp_path / "out")
    found = {
        path.name.removesuffix(".cdx.json").rpartition(f"{__version__}-")[2]: json.loads(path.read_text())
        for path in (tmp_path / "out").glob("*.cdx.json")
    }
    assert set(found) == {"none", *PROJECT["optional-dependencies"]}
    names = {extra: {one["name"].lower() for one in part["components"]} for extra, part in found.items()}
    assert {"numpy", "gguf"} <= names["none"] < names["sign"]
    assert {"cryptography", "cffi"} <= names["sign"]
    assert not names["sign"] & {"torch", "typer", "tinylora-edge"}
    assert {"torch", "transformers", "tokenizers"} <= names["train"] < names["dev"]
    assert names["bench"] == names["dev"]
    assert capsys.readouterr().out.count("packages") == len(found)


def test_edges_stay_inside(sbom: ModuleType, bill: dict[str, Any]) -> None:
    part = sbom.cut(bill, "sign", sbom.closure(sbom.extras(PROJECT)["sign"], PROJECT))
    refs = {one["bom-ref"] for one in part["components"]} | {"root-component"}
    assert {edge["ref"] for edge in part["dependencies"]} == refs
    assert {ref for edge in part["dependencies"] for ref in edge.get("dependsOn", [])} <= refs
    assert part["metadata"]["component"]["name"] == "tinylora-edge[sign]"


def test_pins_are_requirements(sbom: ModuleType, bill: dict[str, Any]) -> None:
    rows = sbom.pins(bill).splitlines()
    assert all(str(next(iter(Requirement(row).specifier))).startswith("==") for row in rows)
    assert not any("+" in row for row in rows)
