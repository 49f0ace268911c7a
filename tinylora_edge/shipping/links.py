"""Links: what a message of each holds, and how many a frame takes; and the picture that is one, a QR code.

A size is what is left for a frame after the link's own framing; LoRaWAN's is without MAC commands.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from ..errors import FrameError, MissingExtraError
from ..wire import frame, tags, text


class Link(NamedTuple):
    """One kind of message.

    Attributes:
        name: of the link, with the direction where it matters.
        size: the longest frame in bytes that one message takes.
        note: where the size is from.
    """

    name: str
    size: int
    note: str


class FrameSize(NamedTuple):
    """The length of a frame in bytes, by the dtype of its values and its tag."""

    dtype: str
    tag: str
    size: int


def _characters(count: int) -> int:
    """Return how many bytes so many characters of base64url are."""
    return count * 6 // 8


_LORAWAN = "RP002-1.0.4 LoRaWAN Regional Parameters, N with room for a repeater"
_QR = "ISO/IEC 18004, table 7, byte mode, error correction L"

LINKS = (
    Link("LoRaWAN EU868, DR0 to DR2", 51, _LORAWAN),
    Link("LoRaWAN EU868, DR3", 115, _LORAWAN),
    Link("LoRaWAN EU868, DR4 to DR7", 222, _LORAWAN),
    Link("LoRaWAN US915 up, DR0", 11, _LORAWAN),
    Link("LoRaWAN US915 up, DR1", 53, _LORAWAN),
    Link("LoRaWAN US915 up, DR2", 125, _LORAWAN),
    Link("LoRaWAN US915 up, DR3 and DR4", 222, _LORAWAN),
    Link("LoRaWAN US915 down, DR8", 33, f"{_LORAWAN}; 53 without"),
    Link("LoRaWAN US915 down, DR9", 109, f"{_LORAWAN}; 129 without"),
    Link("LoRaWAN US915 down, DR10 to DR13", 222, _LORAWAN),
    Link("BLE legacy advertisement", 31 - 4, "Core 5.4, Vol 6 Part B 2.3: 31 bytes; length, type, company 4"),
    Link("BLE extended advertisement", 255 - 14, "Core 5.4: 255 bytes in one PDU; its header and the same 4"),
    Link("SMS, 8-bit", 140, "3GPP TS 23.040, 9.2.3.24"),
    Link("SMS, text", _characters(160), "3GPP TS 23.040, 160 characters as base64url"),
    Link("NFC NTAG213", 144 - 6, "NXP's data sheet: user memory; NDEF takes 6"),
    Link("NFC NTAG215", 504 - 11, "NXP's data sheet: user memory; NDEF takes 11"),
    Link("NFC NTAG216", 888 - 11, "NXP's data sheet: user memory; NDEF takes 11"),
    Link("QR code 2-L, bytes", 32, _QR),
    Link("QR code 3-L, bytes", 53, _QR),
    Link("QR code 4-L, bytes", 78, _QR),
    Link("QR code 5-L, bytes", 106, _QR),
    Link("QR code 6-L, bytes", 134, _QR),
    Link("QR code 24-L, bytes", 1171, _QR),
    Link("QR code 4-L, text", _characters(78 - 9), f"{_QR}; tinylora: and base64url"),
    Link("QR code 8-L, text", _characters(192 - 9), f"{_QR}; tinylora: and base64url"),
    Link("QR code 40-L, text", _characters(2953 - 9), f"{_QR}; tinylora: and base64url"),
    Link("Sigfox up", 12, "Sigfox Connected Objects: Radio Specifications"),
    Link("Sigfox down", 8, "Sigfox Connected Objects: Radio Specifications"),
    Link("Iridium SBD to the device", 270, "Iridium 9602 SBD Transceiver Developer's Guide"),
    Link("Iridium SBD from the device", 340, "Iridium 9602 SBD Transceiver Developer's Guide"),
    Link("Meshtastic packet", 233, "mesh.proto, Constants.DATA_PAYLOAD_LEN"),
    Link("APRS message", _characters(67), "APRS Protocol Reference 1.0.1, chapter 14, as base64url"),
    Link("DNS TXT string", _characters(255), "RFC 1035, 3.3, as base64url"),
)


def frame_sizes(values: int) -> list[FrameSize]:
    """Return the lengths of frames of so many values (fp16 is as bf16). A last day takes 2 bytes more."""
    return [
        FrameSize(dtype, tags.NAMES[kind], frame.frame_bytes(values, dtype, kind))
        for dtype in ("fp32", "bf16", "int8")
        for kind in tags.SIZES
    ]


def fitting(link: Link, values: int) -> list[FrameSize]:
    """Return the frames of so many values that one message takes."""
    return [found for found in frame_sizes(values) if found.size <= link.size]


def messages(link: Link, size: int) -> int:
    """Return how many messages a frame of so many bytes takes, where an app cuts it into parts."""
    return -(-size // link.size)


def qr_code(data: bytes, otherwise: str) -> Any:
    """Return segno's QR code of a frame's text, `tinylora:` before it.

    Raises:
        FrameError: it is too long; `otherwise` says what to do.
        MissingExtraError: segno is not installed.
    """
    try:
        import segno
    except ImportError:
        raise MissingExtraError("a QR code", "segno", "ship") from None
    try:
        return segno.make_qr(text.encode(data, scheme=True), error="M", boost_error=False, mode="byte")
    except segno.DataOverflowError:
        raise FrameError(f"{len(data)} bytes fit no QR code: {otherwise}") from None
