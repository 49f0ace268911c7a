"""Addresses of servers: how a name becomes one before the deadline, and from how far each is reached."""

from __future__ import annotations

import ipaddress
import queue
import socket
import threading
from enum import IntEnum
from typing import Any

_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


class Reach(IntEnum):
    """The places that an address is reached from: this device, its link, its network, everywhere."""

    LOOPBACK = 0
    LINK = 1
    PRIVATE = 2
    PUBLIC = 3


Place = tuple[int, Any]
"""A family of addresses, and an address of it as `socket.connect` takes it."""


def reach(address: str) -> Reach:
    """Return from where an IP address is reached; one inside another counts, such as `::ffff:127.0.0.1`.

    Raises:
        ValueError: it is no IP address.
    """
    found = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(found, ipaddress.IPv6Address):
        inner = found.ipv4_mapped or found.sixtofour
        if found in _NAT64:
            inner = ipaddress.IPv4Address(int(found) & 0xFFFFFFFF)
        if inner is not None:
            return reach(str(inner))
        if found.is_site_local:
            return Reach.PRIVATE
    if found.is_loopback or found.is_unspecified:  # 0.0.0.0 connects to this device, too
        return Reach.LOOPBACK
    if found.is_link_local:
        return Reach.LINK
    # Multicast and reserved ones are no web server's; nobody may be led there from outside.
    return (
        Reach.PUBLIC if found.is_global and not (found.is_multicast or found.is_reserved) else Reach.PRIVATE
    )


def reach_of_literal(host: str) -> Reach:
    """Return from where a host that a proxy resolves is reached: a name counts as public."""
    try:
        return reach(host)
    except ValueError:
        return Reach.LOOPBACK if host.rstrip(".").lower().endswith("localhost") else Reach.PUBLIC


def resolve(host: str, port: int, seconds: float) -> list[Place]:
    """Return the addresses of a host.

    The system resolves a name for as long as it likes, so a thread of its own waits for it. One that takes
    too long is left behind, and ends when the system lets it.

    Raises:
        OSError: there is no such name, or it took too long (TimeoutError).
    """
    answers: queue.SimpleQueue[list[Any] | Exception] = queue.SimpleQueue()

    def ask() -> None:
        try:
            answers.put(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        except Exception as error:  # raised where it is waited for
            answers.put(error)

    threading.Thread(target=ask, name=f"resolve {host[:40]}", daemon=True).start()
    try:
        found = answers.get(timeout=seconds)
    except queue.Empty:
        raise TimeoutError(f"{host[:80]} was not resolved in time") from None
    if isinstance(found, UnicodeError):  # a label that is empty, or too long
        raise OSError(f"{host[:80]!r} is no host name")
    if isinstance(found, Exception):
        raise found
    return [(family, place) for family, _, _, _, place in found]
