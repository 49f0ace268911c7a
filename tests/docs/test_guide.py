"""The documents say what is true: links lead somewhere, and code runs as it is printed.

A block of `sh` or `python` is run, in order, one page in one folder. A block of `console` is not: it takes
minutes, a network or another program. Its commands of ours are parsed.
"""

from __future__ import annotations

import ast
import asyncio
import contextlib
import io
import itertools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import servers
import yaml
from typer.main import get_command
from typer.testing import CliRunner

from tinylora_edge import MicroVector, load_bundle, train
from tinylora_edge.cli.app import app
from tinylora_edge.tasks import load_task
from tinylora_edge.train import Options

ROOT = Path(__file__).parents[2]
DOCUMENTS = [path for pattern in ("*.md", "[!.]*/*.md", "[!.]*/*/*.md") for path in ROOT.glob(pattern)]
GUIDE = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))]
PAGES = [path for path in GUIDE if re.search(r"^```(?:sh|python)$", path.read_text("utf-8"), re.M)]


def blocks(path: Path) -> Iterator[tuple[str, str]]:
    yield from re.findall(r"^```(\w*)\n(.*?)^```$", path.read_text("utf-8"), re.M | re.S)


def commands(text: str) -> list[list[str]]:
    """Return the words of each command of ours in a block; what does not begin with its name is left out."""
    lines = text.replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("tinylora-edge ")]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(document: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", document.read_text("utf-8")):
        path, _, anchor = link.partition("#")
        if path.startswith("https:"):
            continue
        target = (document.parent / path).resolve() if path else document
        assert target.exists(), link
        if anchor:
            titles = re.findall(r"^#+ (.+)$", target.read_text("utf-8"), re.M)
            assert anchor in {re.sub(r"[^\w\- ]", "", t.lower()).replace(" ", "-") for t in titles}, link


@pytest.fixture(scope="module")
def folder(smollm2_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a reader has: a bundle of the real model, two vectors for it, and 60 lines of data."""
    folder = tmp_path_factory.mktemp("reader")
    shutil.copytree(smollm2_bundle, folder / "bundle", copy_function=os.link)
    os.link(smollm2_bundle / "base.gguf", folder / "model.gguf")
    basis = load_bundle(folder / "bundle").basis(numbers=13)
    for seed, name in enumerate(("v.bin", "other.bin")):
        (folder / name).write_bytes(MicroVector.random(basis, 0.2, seed=seed).to_bytes(basis))
    samples = load_task("snips-intents").train[:60]
    rows = [{"prompt": sample.text, "answer": json.loads(str(sample.answer))} for sample in samples]
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    (folder / "srv").mkdir()
    return folder


@pytest.mark.slow
@pytest.mark.usefixtures("training_gains", "tuning_gains")
@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_code_runs_as_it_is_printed(path, folder, tmp_path, monkeypatch):
    place = tmp_path / "reader"
    shutil.copytree(folder, place, copy_function=os.link)
    monkeypatch.chdir(place)
    short = {"prompts": 2, "keep": False, "validation": 2}  # what training brings is of no account here
    monkeypatch.setattr(train, "Options", lambda **options: Options(**(options | short)))
    names: dict[str, Any] = {}
    with servers.static(place / "srv") as (address, _), asyncio.Runner() as runner:
        for language, text in blocks(path):
            if language == "python":
                code = compile(text, path.name, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
                with contextlib.redirect_stdout(io.StringIO()):
                    if asyncio.iscoroutine(found := eval(code, names)):
                        runner.run(found)
            for words in commands(text) if language == "sh" else ():
                here = [w.replace("https://example.org", address).replace("/srv/", "srv/") for w in words]
                ran = CliRunner().invoke(app, here)
                if ran.exception is not None and not isinstance(ran.exception, SystemExit):
                    raise ran.exception
                assert ran.exit_code == 0, f"{shlex.join(here)}: {ran.stderr}"


def test_commands_that_are_not_run_are_parsed() -> None:
    root: Any = get_command(app)
    found = 0
    for path in DOCUMENTS:
        for language, text in blocks(path):
            for words in commands(text) if language == "console" else ():
                command = root.get_command(None, words[0])
                assert command is not None, f"{path.name}: {words[0]}"
                command.make_context(words[0], words[1:])
                found += 1
    assert found >= 10


def test_what_is_deployed_is_here() -> None:
    root: Any = get_command(app)
    services = yaml.safe_load((ROOT / "deploy" / "compose.yml").read_text("utf-8"))["services"]
    started = [each["command"] for each in services.values() if "command" in each]
    assert len(started) == 2
    for words in started:
        root.get_command(None, words[0]).make_context(words[0], words[1:])
    proxied = re.findall(
        r"^    server \w+ ([\w-]+):8000$", (ROOT / "deploy/haproxy.cfg").read_text("utf-8"), re.M
    )
    assert {*proxied} <= services.keys()
    copied = re.findall(r"^COPY (?!--)(.+) \S+$", (ROOT / "deploy/Dockerfile").read_text("utf-8"), re.M)
    found = {path.name for path in (ROOT / "tinylora_edge").iterdir() if path.is_symlink()}
    assert found <= {*" ".join(copied).split()}, "folders that the package links to are in the images"
    assert all((ROOT / name).exists() for name in " ".join(copied).split())


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_files_that_are_named_are_there(document: Path) -> None:
    folders = "tinylora_edge|exporters|runtime|cli|deploy|tests|benchmarks|examples"
    named = re.findall(rf"`((?:{folders})/[\w/.]+)`", document.read_text("utf-8"))
    if document.name != "CHANGELOG.md":
        assert [name for name in named if not (ROOT / name).exists()] == []


def test_every_extra_is_in_the_table() -> None:
    import tomllib

    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    rows = re.findall(r"^\| (`.+?) \|", (ROOT / "docs/INSTALL.md").read_text("utf-8"), re.M)
    assert sorted(re.findall(r"`([a-z-]+)`", " ".join(rows))) == sorted(extras)


def test_tables_and_figures_are_those_of_the_records() -> None:
    words = [sys.executable, "benchmarks/evidence.py", "--check"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("figure", sorted((ROOT / "docs/figures").glob("*.svg")), ids=lambda path: path.stem)
def test_a_figure_can_be_read_without_its_style_sheet(figure: Path) -> None:
    text = figure.read_text("utf-8")
    assert "var(--" not in text
    labels = []
    for one in ElementTree.fromstring(text.encode()).iter("{http://www.w3.org/2000/svg}text"):
        style = dict(re.findall(r"([a-z-]+): ([^;]+)", one.get("style", "")))
        wide = 0.4 * float(style.get("font-size", "13px")[:-2]) * len(one.text or "")
        left = float(one.get("x", 0)) - wide * {"middle": 0.5, "end": 1}.get(style.get("text-anchor", ""), 0)
        labels.append((left, left + wide, float(one.get("y", 0)), one.text))
    for (left, right, y, name), (other, end, below, beside) in itertools.combinations(labels, 2):
        assert abs(y - below) > 5 or right < other or end < left, f"{name!r} is drawn over {beside!r}"
