"""The README and its companions: what they say is run, computed or looked up."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tinylora_edge.tasks import Completion, load_task
from tinylora_edge.wire import frame, tags

ROOT = Path(__file__).parents[2]
DOCUMENTS = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("benchmarks/*.md")]
README = (ROOT / "README.md").read_text("utf-8")
TOUR = (ROOT / "docs" / "TOUR.md").read_text("utf-8")
CAPACITY = {"LoRaWAN EU868, DR0 to DR2": 51, "SMS (8-bit)": 140, "NFC tag NTAG213": 144}  # a few
TAGS = {"CRC-32": tags.CRC32, "HMAC": tags.HMAC, "Ed25519": tags.ED25519}
VALUES = 13
SHORTER = {"demo": ["--threads", "2"]}


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README + TOUR, re.M | re.S)


def tour() -> list[list[str]]:
    (block,) = blocks("sh")
    return [shlex.split(line, comments=True) for line in block.splitlines()]


def run(command: list[str], cwd: Path) -> subprocess.CompletedProcess[str]:
    # No stdin: a chat ends at once.
    return subprocess.run(
        command,
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ,
    )


@pytest.fixture(scope="module")
def toured(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[subprocess.CompletedProcess[str]]]:
    """A folder in which every command of the README's tour was run, and what became of each."""
    folder = tmp_path_factory.mktemp("tour")
    command = [sys.executable, "-c", "from tinylora_edge.cli import main; main()"]
    return folder, [run([*command, *words[1:], *SHORTER.get(words[1], [])], folder) for words in tour()]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    text = document.read_text("utf-8")
    links = re.findall(r"\]\(([^)\s]+)\)", text)
    for link in links:
        path, _, anchor = link.partition("#")
        if path.startswith("https:"):
            continue
        target = (document.parent / path).resolve() if path else document
        assert target.exists(), link
        if anchor:
            titles = re.findall(r"^#+ (.+)$", target.read_text("utf-8"), re.M)
            assert anchor in {title.lower().replace(" ", "-") for title in titles}, link


@pytest.mark.parametrize("document", ["docs/ARCHITECTURE.md", "docs/TRAPS.md", "CONTRIBUTING.md"])
def test_files_that_are_named_exist(document: str) -> None:
    text = (ROOT / document).read_text("utf-8")
    names = re.findall(r"`((?:[\w.-]+/)*[\w.-]+\.(?:py|json|toml)|(?:[\w.-]+/)+)`", text)
    assert len(names) > 5
    places = [ROOT, ROOT / "tinylora_edge", ROOT / "tests" / "golden"]
    made_up = {"tinylora_edge/runtime/x.py", "runtime/x.py"}
    missing = [n for n in names if n not in made_up and not any((place / n).exists() for place in places)]
    assert missing == []


def test_sizes_on_the_wire() -> None:
    rows = dict(re.findall(r"^\| (fp32|bf16|int8) \| (\d+ \| \d+ \| \d+) \|$", TOUR, re.M))
    for dtype in ("fp32", "bf16", "int8"):
        sizes = [str(frame.frame_bytes(VALUES, dtype, kind)) for kind in TAGS.values()]
        assert rows[dtype] == " | ".join(sizes)


def test_what_fits_where() -> None:
    section = TOUR.partition("What fits where")[2].partition("\n## ")[0]
    head, _, *links = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if "|" in line
    ]
    sizes = [frame.frame_bytes(VALUES, *_form(column)) for column in head[2:]]
    assert len(sizes) == 2 * len(TAGS)
    assert len(links) >= 6
    for link, capacity, *answers in links:
        assert answers == ["yes" if size <= int(capacity) else "no" for size in sizes], link
    assert CAPACITY.items() <= {link: int(capacity) for link, capacity, *_ in links}.items()


def _form(column: str) -> tuple[str, int]:
    dtype, tag = column.split()
    return dtype, TAGS[tag]


def test_the_tour_shows_the_commands_that_there_are() -> None:
    shown = {words[1] for words in tour()}
    help_text = run(
        [sys.executable, "-c", "from tinylora_edge.cli import main; main()", "--help"], ROOT
    ).stdout
    listed = set(re.findall(r"^  (\w+)  +\w", help_text, re.M))
    assert {"demo", "export", "inspect", "vector", "run", "chat"} <= shown <= listed


def test_the_tour_runs(toured: tuple[Path, list[subprocess.CompletedProcess[str]]]) -> None:
    folder, results = toured
    for words, done in zip(tour(), results, strict=True):
        assert done.returncode == 0, f"{shlex.join(words)}: {done.stderr}"
    assert (folder / "other.bin").stat().st_size == frame.frame_bytes(VALUES, "bf16", tags.CRC32)


def test_the_python_runs(toured: tuple[Path, list[subprocess.CompletedProcess[str]]]) -> None:
    ten_lines, exchange = blocks("python")
    done = run([sys.executable, "-c", ten_lines + exchange], toured[0])
    assert done.returncode == 0, done.stderr
    assert len(ten_lines.splitlines()) <= 10
    personalized, base, *_, continued, same = done.stdout.splitlines()
    (prompt,) = re.findall(r'"content": "(.+?)"', ten_lines)
    task = load_task("brevity")
    (sample,) = [sample for sample in task.held_out if sample.text == prompt]
    assert task.score(Completion(personalized, True, 12), sample) == 1
    assert task.score(Completion(base, False, 24), sample) == 0
    assert f'"{personalized}"' in " ".join(README.split())
    assert continued
    assert same == "True"
