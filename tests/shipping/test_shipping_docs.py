"""docs/SHIPPING.md and docs/SECURITY.md: figures are computed, commands parsed, tests looked up."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from invocation import Cli

from tinylora_edge.cli.commands.vectors.convert import VectorForm
from tinylora_edge.wire import carriers as _links
from tinylora_edge.wire import tags

ROOT = Path(__file__).parents[2]
SHIPPING = (ROOT / "docs" / "SHIPPING.md").read_text("utf-8")
SECURITY = (ROOT / "docs" / "SECURITY.md").read_text("utf-8")


def test_what_fits_where() -> None:
    sizes = _links.frame_sizes(13)
    found = re.findall(r"^\| ([^|]+) \| (\d+) \| (\S+) \| (\S+) \| (\S+) \| ([A-Z]{2}) \|$", SHIPPING, re.M)
    assert len(found) > 20
    capacities = {(carrier.payload, carrier.source) for carrier in _links.CARRIERS}
    for name, payload, *answers, source in found:
        assert (int(payload), source) in capacities, name
        for dtype, answer in zip(("fp32", "bf16", "int8"), answers, strict=True):
            fitting = [kind for kind in tags.SIZES if sizes[dtype, kind] <= int(payload)]
            assert answer == (tags.NAMES[max(fitting)] if fitting else "none"), name


def test_every_source_is_named() -> None:
    used = {carrier.source for carrier in _links.CARRIERS}
    assert used == set(re.findall(r"^\| ([A-Z]{2}) \|", SHIPPING, re.M))


def test_times_on_air() -> None:
    carriers = {carrier.name: carrier for carrier in _links.CARRIERS}
    slow = _links.carrier_airtime(carriers["LoRaWAN EU868 down, DR0 (SF12, 125 kHz)"], 41)
    fast = _links.carrier_airtime(carriers["LoRaWAN EU868 down, DR5 (SF7, 125 kHz)"], 41)
    assert slow is not None
    assert fast is not None
    assert f"takes {slow / 1000:.1f} s at DR0 and {fast / 1000:.2f} s at DR5" in SHIPPING.replace("\n", " ")


def test_formats_of_convert() -> None:
    table = SHIPPING.partition("## Other programs")[2]
    named = set(re.findall(r"`([a-z][a-z-]*)`", " ".join(re.findall(r"^\| (`.+?) \|", table, re.M))))
    assert named == {form.value for form in VectorForm}


def test_commands_parse(cli: Cli) -> None:
    lines = re.findall(r"^    (tinylora-edge .+)$", SHIPPING, re.M)
    assert len(lines) >= 8
    for line in lines:
        _, *words = shlex.split(line, comments=True)
        assert cli(*words, "--help").code == 0, line
        assert cli(*words, "--no-such-option").code == 2, line


def section(title: str) -> str:
    """The text of docs/SECURITY.md under a heading, up to the next one."""
    return SECURITY.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


REQUIREMENTS = """
    SEQUENCE COMPATIBLE EXP AUTHENTIC AUTH.IMG_TYPE AUTH.IMG_LOC AUTH.REMOTE_LOC AUTH.EXEC AUTH.PRECURSOR
    AUTH.COMPATIBILITY RIGHTS IMG.CONFIDENTIALITY ACCESS_CONTROL MFST.CONFIDENTIALITY IMG.COMPLETE_DIGEST
    REPORTING KEY.PROTECTION KEY.ROTATION MFST.CHECK MFST.TRUSTED MFST.CONST
"""
THREATS = """
    IMG.EXPIRED IMG.EXPIRED.OFFLINE IMG.INCOMPATIBLE IMG.FORMAT IMG.LOCATION NET.REDIRECT NET.ONPATH
    IMG.REPLACE IMG.NON_AUTH UPD.WRONG_PRECURSOR UPD.UNAPPROVED IMG.DISCLOSURE MFST.OVERRIDE MFST.EXPOSURE
    IMG.EXTRA KEY.EXPOSURE MFST.MODIFICATION MFST.TOCTOU
"""
ATTACKS = """
    Arbitrary software installation, Endless data, Extraneous dependencies, Fast-forward, Indefinite freeze,
    Malicious mirrors, Mix-and-match, Rollback, Slow retrieval, Vulnerability to key compromises,
    Wrong software installation
"""


def test_each_requirement_of_rfc_9124_and_each_attack_of_tuf_has_a_row() -> None:
    """Met or in part means by tests; where none is named, it is not met."""
    suit = [[cell.strip() for cell in row.split("|")] for row in rows("RFC 9124", 5)]
    assert [row[0] for row in suit] == [f"REQ.SEC.{name}" for name in REQUIREMENTS.split()]
    named = {threat for row in suit for threat in row[1].split(", ")}
    assert named == {f"THREAT.{name}" for name in THREATS.split()}
    tuf = [[cell.strip() for cell in row.split("|")] for row in rows("The attacks of TUF", 4)]
    assert [row[0] for row in tuf] == [" ".join(name.split()) for name in ATTACKS.split(",")]
    for row in (*suit, *tuf):
        *_, met, how, tests = row
        assert met in ("yes", "in part", "no"), row[0]
        assert how, row[0]
        one = r"`test_\w+`"
        assert re.fullmatch("none" if met == "no" else rf"{one}(, {one})*", tests), row[0]


def rows(title: str, columns: int) -> list[str]:
    """The rows of a section's table, without its heading and the bars around them."""
    lines = [line.strip("| ") for line in section(title).splitlines() if line.startswith("| ")]
    body = [line for line in lines[1:] if not line.startswith("---")]
    assert all(line.count("|") == columns - 1 for line in body)
    return body


def test_tests_that_are_named_exist() -> None:
    threats = re.findall(r"^\| (?!threat|---)(.+?) \| .+? \| (.+?) \|$", section("Threats"), re.M)
    assert len(threats) > 40
    assert [
        threat for threat, tests in threats if not re.fullmatch(r"`test_[^`]+`(, `test_[^`]+`)*", tests)
    ] == []
    names = re.findall(r"`(test_\w+(?:\.py)?)`", SECURITY)
    assert len(names) > 45
    sources = {path: path.read_text("utf-8") for path in (ROOT / "tests").rglob("test_*.py")}
    for name in names:
        if name.endswith(".py"):
            assert name in {path.name for path in sources}
        else:
            assert any(f"def {name}(" in text for text in sources.values()), name
