"""The README and its companions: what they say is computed or looked up; `test_blocks.py` runs it."""

from __future__ import annotations

import re
import tomllib
from collections import Counter
from pathlib import Path

import pytest

from tinylora_edge.wire import frame, tags

ROOT = Path(__file__).parents[2]
DOCUMENTS = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("benchmarks/*.md")]
PACKAGES = ("tinylora_edge", "exporters", "runtime", "cli")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
TOUR = (ROOT / "docs" / "TOUR.md").read_text("utf-8")
TRAPS = (ROOT / "docs" / "TRAPS.md").read_text("utf-8")
CAPACITY = {"LoRaWAN EU868, DR0 to DR2": 51, "SMS (8-bit)": 140, "NFC tag NTAG213": 144}  # a few
TAGS = {"CRC-32": tags.CRC32, "HMAC": tags.HMAC, "Ed25519": tags.ED25519}
VALUES = 13


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
            assert anchor in {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}, (
                link
            )


@pytest.mark.parametrize("document", ["docs/ARCHITECTURE.md", "docs/TRAPS.md", "CONTRIBUTING.md"])
def test_files_that_are_named_exist(document: str) -> None:
    text = (ROOT / document).read_text("utf-8")
    names = re.findall(r"`((?:[\w.-]+/)*[\w.-]+\.(?:py|json|toml)|(?:[\w.-]+/)+)`", text)
    assert len(names) > 5
    places = [ROOT, ROOT / "tinylora_edge", ROOT / "tests" / "golden"]
    made_up = {"tinylora_edge/runtime/x.py", "runtime/x.py"}
    missing = [n for n in names if n not in made_up and not any((place / n).exists() for place in places)]
    assert missing == []


def test_names_in_files_are_there() -> None:
    for name, file in re.findall(r"`([\w.]+)` in `([\w/]+\.py)`", TRAPS):
        code = (ROOT / file).read_text("utf-8")
        assert [part for part in name.split(".") if not re.search(rf"\b{part}\b", code)] == [], file


def test_every_folder_is_in_the_architecture() -> None:
    tree = (ROOT / "docs" / "ARCHITECTURE.md").read_text("utf-8").partition("## Folders")[2]
    folders = Counter(name.rpartition(".")[2] for name in PROJECT["tool"]["setuptools"]["packages"])
    assert [name for name, n in folders.items() if len(re.findall(rf"(?<!\w){name}/", tree)) < n] == []


def test_every_extra_has_a_row_that_says_what_it_brings() -> None:
    extras = PROJECT["project"]["optional-dependencies"]
    table = (ROOT / "docs" / "INSTALL.md").read_text("utf-8").partition("| extra |")[2].partition("\n\n")[0]
    rows = re.findall(r"^\| (`.+?`) \| (.*?) \| (.*?) ?\|$", table, re.M)

    def brought(extra: str) -> set[str]:
        direct = re.findall(r"tinylora-edge\[([\w,-]+)\]", " ".join(extras[extra]))
        return {extra}.union(*(brought(name) for names in direct for name in names.split(",")))

    said: list[str] = []
    for names, brings, use in rows:
        named = set(re.findall(r"`([\w-]+)`", brings.partition(";")[0]))
        for extra in re.findall(r"`([\w-]+)`", names):
            left_out = set(said) - brought(extra)
            assert named == left_out if extra == "all" else named <= brought(extra), extra
            assert all(extra in brought(other) for other in re.findall(r"comes with `([\w-]+)`", use)), extra
            said.append(extra)
    assert sorted(said) == sorted(extras)


def test_messages_that_how_tos_quote_are_those_of_the_code() -> None:
    paths = (path for folder in PACKAGES for path in (ROOT / folder).rglob("*.py"))
    code = re.sub(r'"\s+f?"', "", "".join(path.read_text("utf-8") for path in paths))  # a message is one text
    quoted = [
        (path.name, quote)
        for path in ROOT.glob("docs/how_to/**/*.md")
        for quote in re.findall(r'^- "(.+?)"', path.read_text("utf-8"), re.M)
    ]
    assert len(quoted) > 5
    assert [each for each in quoted if not re.search(_as_code(each[1]), code)] == []


def _as_code(message: str) -> str:
    """An expression for a message in the code, which fills in numbers and names of inputs."""
    words = re.findall(r"\w+", message)
    return r"[^\w{]+".join(word if word.isalpha() else rf"(?:{word}|{{[^{{}}]*}})" for word in words)


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
