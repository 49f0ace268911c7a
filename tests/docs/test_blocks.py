"""Every block of code in the documents is run as it is printed, or `departures.py` says why it is not."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import time
from pathlib import Path
from typing import Any

import models
import onnx_bundles
import pytest
from blocks import DOCUMENTS, ROOT, Unit, language_of, units
from departures import ADDED, BEFORE, NOT_RUN, REPLACED
from reader import Reader
from typer.main import get_command

from tinylora_edge.cli.app import app
from tinylora_edge.cli.demo.replay.shipment import Shipment
from tinylora_edge.exporters import ExportSettings, export_gguf
from tinylora_edge.tasks import Completion, load_task

TEMPLATE = "{% for m in messages %}{{ m.role[0] }}:{{ m.content }}\n{% endfor %}a:"
MODELS = {
    "README.md": "real",
    "docs/TOUR.md": "empty",
    "docs/ONNX.md": "graph",
    "docs/how_to/engines/llama_server.md": "real",
    "docs/how_to/engines/onnx_runtime.md": "graph",
    "docs/how_to/engines/phone.md": "real",
}
"""Document -> what its folder has: the real model where a page says what it answers, or what an
export makes of it, else a small random one."""

PATHS = [path for path in DOCUMENTS if any(units(path))]


def reason(unit: Unit) -> tuple[str, str] | None:
    """The entry of `NOT_RUN` for a unit."""
    for document, start in NOT_RUN:
        if document in ("", unit.document) and re.match(start, unit.text):
            return document, start
    return None


def said_by_the_readme(printed: list[str], folder: Path) -> None:
    """The vector answers as the README says, and the base does not."""
    text = (ROOT / "README.md").read_text("utf-8")
    (prompt,) = re.findall(r'"content": "(.+?)"', text)
    task = load_task("brevity")
    (sample,) = [sample for sample in task.held_out if sample.text == prompt]
    personalized, base, *_ = printed[0].splitlines()
    assert task.score(Completion(personalized, True, 12), sample) == 1
    assert task.score(Completion(base, False, 24), sample) == 0
    assert f'"{personalized}"' in " ".join(text.split())


def said_by_the_tour(printed: list[str], folder: Path) -> None:
    """A frame is as long as the table says, and a block under another vector ends with the one before."""
    assert (folder / "other.bin").stat().st_size == 37
    continued, same = printed[-2].splitlines()
    assert continued
    assert same == "True"


SAID = {"README.md": said_by_the_readme, "docs/TOUR.md": said_by_the_tour}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what documents assume, of a small random model: a bundle, its weights, vectors."""
    folder = tmp_path_factory.mktemp("small")
    model = models.tiny_model("llama")
    gguf = models.write_gguf(model, folder / "my-model.gguf", metadata={"tokenizer.chat_template": TEMPLATE})
    models.write_hf(model, folder / "weights")
    (folder / "out").mkdir()
    export_gguf(gguf, folder / "out" / "demo", settings=ExportSettings(u=13, tying="full"))  # as learned ones
    export_gguf(gguf, folder / "bundle", settings=ExportSettings(groups=13))
    return folder


@pytest.fixture(scope="module")
def real(smollm2_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what `make try` leaves."""
    folder = tmp_path_factory.mktemp("real")
    (folder / "out").mkdir()
    Shipment(smollm2_gguf).unpack(folder / "out" / "demo")
    return folder


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of somebody who starts here."""
    return tmp_path_factory.mktemp("empty")


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a bundle for ONNX Runtime, of a small random model."""
    folder = tmp_path_factory.mktemp("graph")
    for name in ("out/demo", "bundle"):
        shutil.copytree(onnx_bundles.tiny(), folder / name)
    return folder


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_the_code_of_a_document_runs(
    path: Path, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    document = path.relative_to(ROOT).as_posix()
    wanted = [unit for unit in units(path) if reason(unit) is None]
    if not wanted:
        return
    folder = tmp_path / "reader"
    shutil.copytree(request.getfixturevalue(MODELS.get(document, "small")), folder, copy_function=os.link)
    monkeypatch.chdir(folder)
    assumed = [Unit(document, 0, language_of(each), each) for each in BEFORE.get(document, [])]
    failed = []
    with Reader(folder) as reader:
        for unit in [*assumed, *wanted]:
            begun = time.monotonic()
            try:
                reader.follow(unit)
            except Exception as error:  # all blocks that fail are named, not the first alone
                failed.append(f"{unit}\n    {error!r}")
            print(f"{time.monotonic() - begun:5.2f} s {unit}")
    assert failed == [], "\n".join(failed)
    if document in SAID:
        SAID[document](reader.printed[len(assumed) :], folder)


def test_what_is_not_run_is_parsed() -> None:
    for unit in (unit for path in PATHS for unit in units(path) if reason(unit) is not None):
        if unit.text.startswith("tinylora-edge "):
            _, *words = shlex.split(re.sub(r"\$\w+", "1", unit.text), comments=True)
            command: Any = get_command(app)
            while hasattr(command, "commands"):
                command = command.commands[words.pop(0)]
            command.make_context(command.name, words)


def test_no_departure_is_left_over() -> None:
    found = [unit for path in PATHS for unit in units(path)]
    assert {entry for unit in found if (entry := reason(unit))} == NOT_RUN.keys()
    texts = " \n".join(unit.text for unit in found if reason(unit) is None)
    assert [start for start in ADDED if start not in texts] == []
    assert [name for name in REPLACED if name not in texts] == []
    assert BEFORE.keys() <= {unit.document for unit in found}


def test_reasons_name_tests_that_there_are() -> None:
    named = re.findall(r"tests/[\w/]+\.py", " ".join(NOT_RUN.values()))
    assert len(named) > 10
    assert [name for name in named if not (ROOT / name).exists()] == []
