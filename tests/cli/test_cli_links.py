"""`links`: the table and the JSON."""

from __future__ import annotations

from pathlib import Path

import pytest
from invocation import Cli, Outcome


def test_links(cli: Cli, small: Path) -> None:
    record = cli("links", 13, "--json").record()
    assert record == cli("links", small, "--json").record()
    assert [frame["bytes"] for frame in record["frames"]] == [63, 67, 123, 37, 41, 97, 27, 31, 87]
    by_name = {carrier["carrier"]: carrier for carrier in record["carriers"]}
    slowest = by_name["LoRaWAN EU868 down, DR0 (SF12, 125 kHz)"]
    assert [cell["fits"] for cell in slowest["fits"]] == [
        False,
        False,
        False,
        True,
        True,
        False,
        True,
        True,
        False,
    ]
    assert slowest["fits"][3]["airtime_ms"] == pytest.approx(2301.952)
    assert slowest["fits"][0]["airtime_ms"] is None
    table: Outcome = cli("links", 13)
    row = next(line for line in table.done().splitlines() if line.startswith("LoRaWAN EU868 down, DR0"))
    assert row.split()[-9:] == ["-", "-", "-", "2,302", "2,466", "-", "1,974", "2,138", "-"]
    assert "…" not in table.stdout
    assert all(len(line) <= 120 for line in table.stdout.splitlines())
    cli("links", 0).misused("1 to 100,000")
    cli("links", "nothing-there").refused("does not exist")
