"""`links`: the table and the JSON."""

from __future__ import annotations

from invocation import Cli


def test_links(cli: Cli) -> None:
    record = cli("links", 13, "--json").record()
    assert [frame["size"] for frame in record["frames"]] == [63, 67, 123, 37, 41, 97, 27, 31, 87]
    (slowest, *_) = record["links"]
    assert [frame["size"] for frame in slowest["fits"]] == [37, 41, 27, 31]
    assert slowest["messages"] == {"fp32": 3, "bf16": 2, "int8": 2}
    table = cli("links", 13).done().splitlines()
    assert table[1].endswith("63 / 67 / 123 37 / 41 / 97 27 / 31 / 87")
    (row,) = [line for line in table if line.startswith("LoRaWAN EU868, DR0")]
    assert row.split()[-5:] == ["51", "in", "3", "HMAC", "HMAC"]
    large = cli("links", 13_440).done().splitlines()
    (row,) = [line for line in large if line.startswith("LoRaWAN EU868, DR0")]
    assert row.split()[-7:] == ["51", "in", "1,056", "in", "529", "in", "265"]
    assert max(map(len, table)) <= 100
    for none in (0, 250_001, "out/demo"):
        cli("links", none).misused("N")
