"""`links`: the table and the JSON."""

from __future__ import annotations

from pathlib import Path

from invocation import Cli


def test_links(cli: Cli, small: Path) -> None:
    record = cli("links", 13, "--json").record()
    assert record == cli("links", small, "--json").record()
    assert [frame["size"] for frame in record["frames"]] == [63, 67, 123, 37, 41, 97, 27, 31, 87]
    (slowest, *_) = record["links"]
    assert [frame["size"] for frame in slowest["fits"]] == [37, 41, 27, 31]
    table = cli("links", 13).done().splitlines()
    assert table[1].endswith("63 / 67 / 123 37 / 41 / 97 27 / 31 / 87")
    (row,) = [line for line in table if line.startswith("LoRaWAN EU868, DR0")]
    assert row.split()[-4:] == ["51", "-", "HMAC", "HMAC"]
    assert max(map(len, table)) <= 100
    cli("links", 0).misused("1 to 100,000")
    cli("links", "nothing-there").refused("does not exist")
