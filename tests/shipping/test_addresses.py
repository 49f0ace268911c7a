"""Addresses: from where each is reached, also one that is written inside another."""

from __future__ import annotations

import pytest

from tinylora_edge.shipping._addresses import Reach, reach, reach_of_literal

INSIDE = {
    "127.0.0.1": Reach.LOOPBACK,
    "127.9.9.9": Reach.LOOPBACK,
    "0.0.0.0": Reach.LOOPBACK,
    "::1": Reach.LOOPBACK,
    "::": Reach.LOOPBACK,
    "::ffff:127.0.0.1": Reach.LOOPBACK,
    "64:ff9b::127.0.0.1": Reach.LOOPBACK,
    "169.254.169.254": Reach.LINK,
    "fe80::1%eth0": Reach.LINK,
    "2002:a9fe:a9fe::1": Reach.LINK,
    "10.0.0.1": Reach.PRIVATE,
    "172.16.5.4": Reach.PRIVATE,
    "192.168.1.1": Reach.PRIVATE,
    "100.64.0.1": Reach.PRIVATE,
    "fd00:ec2::254": Reach.PRIVATE,
    "fec0::1": Reach.PRIVATE,
    "::ffff:10.0.0.1": Reach.PRIVATE,
    "::127.0.0.1": Reach.PRIVATE,
    "224.0.0.1": Reach.PRIVATE,
    "240.0.0.1": Reach.PRIVATE,
    "255.255.255.255": Reach.PRIVATE,
    "ff02::1": Reach.PRIVATE,
    "8.8.8.8": Reach.PUBLIC,
    "::ffff:8.8.8.8": Reach.PUBLIC,
    "64:ff9b::8.8.8.8": Reach.PUBLIC,
    "2606:4700::1111": Reach.PUBLIC,
}


@pytest.mark.parametrize("address", INSIDE)
def test_where_an_address_is_reached_from(address):
    assert reach(address) is INSIDE[address]


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("10.0.0.1", Reach.PRIVATE),
        ("example.org", Reach.PUBLIC),
        ("LOCALHOST.", Reach.LOOPBACK),
        ("x.localhost", Reach.LOOPBACK),
        ("::1", Reach.LOOPBACK),
    ],
)
def test_a_host_that_a_proxy_resolves(host, expected):
    assert reach_of_literal(host) is expected
