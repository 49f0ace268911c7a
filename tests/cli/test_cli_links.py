"""`links`: the table and the JSON."""

from __future__ import annotations

from invocation import Cli


def test_links(cli: Cli) -> None:
    record = cli("links", 13, "--json").record()
    assert [frame["size"] for frame in record["frames"]] == [63, 67, 123, 37, 41, 97, 27, 31, 87]
    (slowest, *_) = record["links"]
    assert [frame["size"] for frame in slowest["fits"]] == [37, 41, 27, 31]
    table = cli("links", 13).done().splitlines()
    assert table[1].endswith("63 / 67 / 123 37 / 41 / 97 27 / 31 / 87")
    (row,) = [line for line in table if line.startswith("LoRaWAN EU868, DR0")]
    assert row.split()[-3:] == ["3", "HMAC", "HMAC"]
    assert max(map(len, table)) <= 100
    assert [frame["size"] for frame in cli("links", 13_440, "--json").record()["frames"]][-3:] == [
        13_455,
        13_459,
        13_515,
    ]
    cli("links", 0).misused("N")
    cli("links", "nothing-there").misused("N")
