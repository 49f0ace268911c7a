"""The report of `train`: made of the manifest, whatever the run left out."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from report_figures import HELD_OUT, TRAINED

from tinylora_edge.cli.report.training import TrainingReport


@pytest.fixture
def manifest() -> dict[str, Any]:
    """What `train` writes beside a vector, as far as the report reads it."""
    held_out = {key: value for key, value in asdict(HELD_OUT).items() if key != "task"}
    result = {
        key: getattr(TRAINED, key) for key in ("start_score", "best_score", "best_step", "steps", "stopped")
    }
    return {
        "tool": "tinylora-edge 0",
        "task": "list-lookup",
        "basis": "ab" * 32,
        "values": [0.5, -0.25],
        "options": TRAINED.options | {"method": "grpo"},
        "result": result,
        "seconds": TRAINED.seconds,
        "curve": TRAINED.curve,
        "held_out": held_out,
        "drift": {"prompts": 32, "kl": 0.021, "standard_error": 0.002},
    }


def report(folder: Path, manifest: dict[str, Any], axes: tuple[str, ...] = ()) -> TrainingReport:
    (folder / "v.bin").write_bytes(b"\x11\xab")
    (folder / "v.bin.json").write_text(json.dumps(manifest), "utf-8")
    return TrainingReport(folder / "v.bin", axes, None)


def texts(found: TrainingReport) -> str:
    found.write()
    page = found.path.read_text("utf-8")
    assert "url(" not in page
    return "".join(ElementTree.fromstring(page).itertext())


def test_the_page_has_the_figures(tmp_path: Path, manifest: dict[str, Any]) -> None:
    text = texts(report(tmp_path, manifest, ("short", "formal")))
    for part in (
        "2 bytes for list-lookup",
        "0.30 \u2192 0.50",
        "+0.200 +- 0.060",
        "+30 gained",
        "0.021 +- 0.002 nats a token",
        "short",
        "-0.25",
        "11ab",
        "settings.validation",
        "3 steps of 8 prompts with 8 samples each",
        "sampled, at the task's temperature",
    ):
        assert part in text
    assert "have no names" not in text


def test_a_run_that_was_not_measured_says_so(tmp_path: Path, manifest: dict[str, Any]) -> None:
    del manifest["held_out"], manifest["drift"]
    manifest["options"]["method"] = "sft"
    text = texts(report(tmp_path, manifest))
    assert "not measured on held-out prompts: eval does that" in text
    assert "samples each" not in text
    assert "general prompts" not in text
    assert "have no names: learn --axis" in text


@pytest.mark.parametrize("measured", [True, False])
def test_the_figures_as_a_picture(tmp_path: Path, manifest: dict[str, Any], measured: bool) -> None:
    from PIL import Image

    if not measured:
        del manifest["held_out"]
    with Image.open(report(tmp_path, manifest).draw()) as picture:
        assert picture.format == "PNG"
        assert picture.size == (1200, 1350)
        assert len(picture.convert("RGB").getcolors(1 << 24)) > 100  # something is drawn
