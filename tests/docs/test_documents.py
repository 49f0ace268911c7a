"""The README and its companions: what they say is computed or looked up; `test_blocks.py` runs it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tinylora_edge.wire import frame, tags

ROOT = Path(__file__).parents[2]
DOCUMENTS = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("benchmarks/*.md")]
TOUR = (ROOT / "docs" / "TOUR.md").read_text("utf-8")
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
