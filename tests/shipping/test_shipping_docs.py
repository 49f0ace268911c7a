"""docs/SHIPPING.md and docs/SECURITY.md: figures are computed, commands parsed, tests looked up."""

from __future__ import annotations

import re
import shlex
import textwrap
from pathlib import Path

import models
import pytest
from invocation import Cli

from tinylora_edge import Ed25519Signer, MicroVector, load_basis
from tinylora_edge.cli.commands.vectors.convert import VectorForm
from tinylora_edge.exporters import ExportSettings, export_gguf
from tinylora_edge.wire import carriers as _links
from tinylora_edge.wire import pem, tags

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


def test_the_python_of_a_device_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = re.findall(r"^    from pathlib import Path\n(?:    .*\n|\n)+", SHIPPING, re.M)
    base = models.write_gguf(models.tiny_model("llama"), tmp_path / "tiny.gguf")
    bundle = export_gguf(base, tmp_path / "bundle", settings=ExportSettings(groups=5)).output
    basis, signer = load_basis(bundle / "basis.gguf"), Ed25519Signer(bytes(32))
    frame = MicroVector(MicroVector.random(basis, 0.3).values, sequence=1).to_bytes(basis, signer)
    monkeypatch.chdir(tmp_path)
    Path("fleet.key.pub").write_text(pem.encode_public(signer.public_key))
    names = {"bundle": bundle, "received": frame}
    exec(textwrap.dedent(code), names)
    llm = names["llm"]
    assert llm.vector.verified_by == signer.id
    assert Path("v.state").exists()
    llm.close()


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


def test_tests_that_are_named_exist() -> None:
    threats = re.findall(r"^\| (?!threat|---)(.+?) \| .+? \| (.+?) \|$", SECURITY, re.M)
    assert len(threats) > 25
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
