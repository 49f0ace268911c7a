"""`learn` and `distill`: a bundle whose numbers were learned, and a prompt as one of its vectors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from invocation import Cli, contents

from tinylora_edge import MicroVector, load_basis

BEHAVIOURS = [
    {"name": "pirate", "system": "Talk like a pirate."},
    {"name": "french", "system": "Answer in French.", "family": "language"},
]
QUICK = ("--only", "--n", 2, "--questions", 2)


@pytest.fixture(scope="module")
def behaviours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("behaviours") / "own.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in BEHAVIOURS))
    return path


def test_a_bundle_is_learned_and_a_prompt_distilled_for_it(
    cli: Cli, smollm2_bundle: Path, behaviours: Path, tmp_path: Path
) -> None:
    out, frame = tmp_path / "learned", tmp_path / "pirate.bin"
    record = cli("learn", smollm2_bundle, "-o", out, "--behaviours", behaviours, *QUICK, "--json").record()
    basis = load_basis(out / "basis.gguf")
    assert record["digest"] == basis.digest
    assert (basis.projection, basis.size, record["values"]) == ("explicit", 2, 2)
    assert [each["name"] for each in record["behaviours"]] == ["pirate", "french"]
    assert contents(out).keys() == {"base.gguf", "basis.gguf", "manifest.json"}
    assert json.loads((out / "manifest.json").read_text())["basis"]["learned"]["behaviours"] == 2
    assert not list(tmp_path.glob("*.learn")), "what was kept for going on is gone"

    distill = ("distill", out, "--system", BEHAVIOURS[0]["system"], "-n", 4, "--steps", 2)
    told = cli(*distill, "-o", frame, "--dtype", "bf16", "--json").record()
    assert told["bytes"] == frame.stat().st_size == 7 + 2 * 2 + 4
    assert told["share"] == pytest.approx(1 - told["after"] / told["before"])
    assert len(told["answers"]) == 2
    cli("vector", "inspect", frame, out).done()


def test_a_named_axis_is_learned_and_set(
    cli: Cli, smollm2_bundle: Path, behaviours: Path, tmp_path: Path
) -> None:
    out, sides, frame = tmp_path / "named", tmp_path / "accent.jsonl", tmp_path / "v.bin"
    rows = [{"side": "+", "system": "Talk like a pirate, arr!"}, {"side": "-", "system": "Answer in German."}]
    sides.write_text("".join(json.dumps(row) + "\n" for row in rows))
    quick = ("--behaviours", behaviours, *QUICK, "--axis", f"accent={sides}")
    record = cli("learn", smollm2_bundle, "-o", out, *quick, "--json").record()
    assert [each["name"] for each in record["axes"]] == ["accent"]
    assert record["axes"][0]["length"] > 0
    basis = load_basis(out / "basis.gguf")
    assert basis.axes == ("accent", "learned-1")
    cli("vector", "new", out, "-o", frame, "--axis", "accent=0.5").done()
    assert MicroVector.from_bytes(frame.read_bytes(), basis).values.tolist() == [[0.5, 0]]


def test_axes_that_cannot_be_asked(cli: Cli, smollm2_bundle: Path, tmp_path: Path) -> None:
    sides = tmp_path / "sides.jsonl"
    sides.write_text('{"side": "+", "system": "Be long."}\n')
    learn = ("learn", smollm2_bundle, "-o", tmp_path / "out", "--axis")
    for item in ("", "=x.jsonl", "name="):
        cli(*learn, item).misused("--axis")
    cli(*learn, f"a={sides}").refused('no behaviour has the side "-"')
    cli(*learn, "nonesuch").refused("no axis 'nonesuch' is shipped")
    sides.write_text('{"side": "+", "system": "Be long."}\n{"side": "-", "system": "Be short."}\n')
    cli(*learn, f"a={sides}", "--axis", f"a={sides}").misused("given twice")
    cli(*learn, f"a={sides}", "--form", "tiled").refused("choose the form 'dense'")
    assert contents(tmp_path).keys() == {"sides.jsonl"}


def test_what_cannot_be_asked(cli: Cli, smollm2_bundle: Path, behaviours: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    cli("learn", smollm2_bundle, "-o", out, "--only").misused("--only")
    cli("learn", smollm2_bundle, "-o", smollm2_bundle).refused("exists already")
    few = ("learn", smollm2_bundle, "-o", out, "--behaviours", behaviours, "--only")
    cli(*few).refused("2 behaviours cannot teach 13 directions")
    cli("distill", smollm2_bundle, "-o", out).misused("--system")
    questions = tmp_path / "questions.txt"
    questions.write_text("What is a river?\n\nWhat is a river?\n")
    asked = ("distill", smollm2_bundle, "-o", out, "--system", "Be brief.", "--questions", questions)
    cli(*asked).refused("1 questions, and at least 3")
    assert contents(tmp_path).keys() == {"questions.txt"}
