"""The site of the docs: it builds with strict links, and its commands are those that there are."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from tinylora_edge.cli.app import app

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("*/README.md")])


def run(*command: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built with every warning an error."""
    folder = tmp_path_factory.mktemp("site")
    done = run(sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder))
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    return folder


class Page(HTMLParser):
    """What a page loads from elsewhere as soon as it is opened."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.feed(page.read_text("utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        found = dict(attributes)
        if tag in ("script", "img", "iframe"):
            self.loaded.append(found.get("src") or "")
        if tag == "link" and found.get("rel") in ("stylesheet", "preload", "icon"):
            self.loaded.append(found.get("href") or "")


def test_every_document_is_a_page(site: Path) -> None:
    pages = {page.relative_to(site).as_posix() for page in site.rglob("*.html")}
    for document in ROOT.glob("docs/**/*.md"):
        assert document.relative_to(ROOT / "docs").with_suffix(".html").as_posix() in pages
    assert {
        "overview.html",
        "security-policy.html",
        "benchmarks.html",
        "recipes.html",
        "CHANGELOG.html",
    } <= pages


def test_a_page_loads_nothing_from_elsewhere(site: Path) -> None:
    loaded = {(page.name, what) for page in site.rglob("*.html") for what in Page(page).loaded}
    assert len(loaded) > 10
    assert [each for each in loaded if "//" in each[1]] == []


def test_the_reference_of_python_has_what_apps_import(site: Path) -> None:
    import tinylora_edge
    from tinylora_edge import runtime

    page = (site / "reference" / "api.html").read_text("utf-8")
    for module in (tinylora_edge, runtime):
        for name in module.__all__:
            # A function whose file has its name stands under both.
            found = (
                f'id="{module.__name__}.{name}"' in page or f'id="{module.__name__}.{name}.{name}"' in page
            )
            assert found or name.startswith("_"), name


def test_the_reference_of_commands_is_what_they_say() -> None:
    done = run(sys.executable, "docs/site/commands.py", "--check")
    assert done.returncode == 0, done.stderr


def command_lines() -> list[tuple[str, list[str]]]:
    """Return (document, words) of every command of ours that stands in a document on lines of its own."""
    found = []
    for document in DOCUMENTS:
        text = document.read_text("utf-8").replace("\\\n", " ")
        for line in re.findall(r"^(?:    )?(?:\$ )?(?:\.venv/bin/)?(tinylora-edge .*)$", text, re.M):
            found.append((document.relative_to(ROOT).as_posix(), shlex.split(line, comments=True)))
        for line in re.findall(r"`(tinylora-edge [^`\n]*)`", text):
            if "[" not in line and "|" not in line:
                found.append((document.relative_to(ROOT).as_posix(), shlex.split(line)))
    return found


def test_the_documents_name_commands_and_options_that_there_are() -> None:
    lines = command_lines()
    assert len(lines) > 60
    unknown = []
    for document, words in lines:
        command: Any = get_command(app)
        known = {"--help", "-h", *(name for each in command.params for name in each.opts)}
        rest = words[1:]
        while rest and hasattr(command, "commands"):
            name, *rest = rest
            if name in known:
                continue
            if name not in command.commands:
                unknown.append((document, " ".join(words)))
                break
            command = command.commands[name]
            known |= {name for each in command.params for name in (*each.opts, *each.secondary_opts)}
        unknown += [
            (document, " ".join(words))
            for word in rest
            if word.startswith("-") and word != "-" and word.partition("=")[0] not in known
        ]
    assert unknown == []
