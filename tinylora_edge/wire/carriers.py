"""Carriers: what one message of each holds, and how long LoRa is on the air for it.

Every capacity is what is left for a frame after the carrier's own framing. Sources, by the letters in
`CARRIERS`; docs/SHIPPING.md quotes the figures:

    LW  LoRa Alliance, RP002-1.0.4 LoRaWAN Regional Parameters, "Maximum Payload Size" of EU863-870 and
        US902-928 (the same as in Regional Parameters 1.0.3 rev A): N, the application payload without MAC
        commands, with room left for a repeater; without a repeater only where that decides what fits
    BT  Bluetooth Core Specification 5.4, Vol 6 Part B 2.3: 31 bytes of advertising data in a legacy PDU,
        255 of payload in an extended one, of which length and mode, flags, an address and ADI take 10;
        chained PDUs, up to 1,650 bytes, are not counted; Vol 3 Part C 11:
        an AD structure spends 2 bytes on length and type, manufacturer-specific data 2 on the company
    TS  3GPP TS 23.040, 9.2.2.2 and 9.2.3.24: 140 bytes, or 160 characters of 7 bits, for user data
    NX  NXP, NTAG213/215/216 data sheet, 8.5: user memory. NDEF spends 2 bytes on its TLV (4 beyond 254),
        1 on the terminator, 3 on a record of unknown type (6 beyond 255)
    QR  ISO/IEC 18004, table 7: bytes in byte mode, error correction L
    SF  Sigfox, Connected Objects: Radio Specifications: 12 bytes up, 8 down
    IR  Iridium 9602 SBD Transceiver Developer's Guide: mobile originated 340 bytes, terminated 270
    ME  Meshtastic protobufs, mesh.proto, Constants.DATA_PAYLOAD_LEN = 233
    AP  APRS Protocol Reference 1.0.1, chapter 14: message text of up to 67 characters
    DN  RFC 1035, 3.3: a character-string has up to 255 octets
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from . import frame, tags

BINARY, TEXT = "binary", "base64url"


@dataclass(frozen=True)
class LoRa:
    """The modulation of a LoRa data rate.

    Attributes:
        spreading: SF7 .. SF12.
        bandwidth: in kHz.
        uplink: uplinks carry a CRC of the payload, downlinks none.
    """

    spreading: int
    bandwidth: int
    uplink: bool = True


@dataclass(frozen=True)
class Carrier:
    """One kind of message.

    Attributes:
        name: of the carrier, with the direction where it matters.
        capacity: bytes (`binary`) or characters (`base64url`) that are left for the frame.
        encoding: how the frame travels.
        source: letters of the source above.
        lora: the modulation, of LoRaWAN alone.
    """

    name: str
    capacity: int
    encoding: str
    source: str
    lora: LoRa | None = None

    @property
    def payload(self) -> int:
        """The longest frame in bytes that one message takes."""
        return self.capacity if self.encoding == BINARY else self.capacity * 6 // 8


_LORAWAN_OVERHEAD = 13  # MHDR 1, DevAddr 4, FCtrl 1, FCnt 2, FPort 1, MIC 4 (LoRaWAN 1.0.4, chapter 4)
_PREAMBLE_SYMBOLS = 8
_CODING_RATE = 1  # 4/5

_EU = (
    (51, 12, 125),
    (51, 11, 125),
    (51, 10, 125),
    (115, 9, 125),
    (222, 8, 125),
    (222, 7, 125),
    (222, 7, 250),
)
_US_UP = ((11, 10, 125), (53, 9, 125), (125, 8, 125), (222, 7, 125), (222, 8, 500))
_US_DOWN = ((33, 12, 500), (109, 11, 500), (222, 10, 500), (222, 9, 500), (222, 8, 500), (222, 7, 500))
_US_DOWN_ALONE = ((53, 12, 500), (129, 11, 500))

CARRIERS: tuple[Carrier, ...] = (
    *(
        Carrier(f"LoRaWAN EU868 down, DR{rate} (SF{sf}, {khz} kHz)", size, BINARY, "LW", LoRa(sf, khz, False))
        for rate, (size, sf, khz) in enumerate(_EU)
    ),
    *(
        Carrier(f"LoRaWAN US915 up, DR{rate} (SF{sf}, {khz} kHz)", size, BINARY, "LW", LoRa(sf, khz))
        for rate, (size, sf, khz) in enumerate(_US_UP)
    ),
    *(
        Carrier(f"LoRaWAN US915 down, DR{rate} (SF{sf}, {khz} kHz)", size, BINARY, "LW", LoRa(sf, khz, False))
        for rate, (size, sf, khz) in enumerate(_US_DOWN, start=8)
    ),
    *(
        Carrier(
            f"LoRaWAN US915 down, no repeater, DR{rate} (SF{sf})", size, BINARY, "LW", LoRa(sf, khz, False)
        )
        for rate, (size, sf, khz) in enumerate(_US_DOWN_ALONE, start=8)
    ),
    Carrier("BLE legacy advertisement", 31 - 4, BINARY, "BT"),
    Carrier("BLE extended advertisement", 255 - 10 - 4, BINARY, "BT"),
    Carrier("SMS, 8-bit", 140, BINARY, "TS"),
    Carrier("SMS, text", 160, TEXT, "TS"),
    Carrier("NFC NTAG213", 144 - 6, BINARY, "NX"),
    Carrier("NFC NTAG215", 504 - 11, BINARY, "NX"),
    Carrier("NFC NTAG216", 888 - 11, BINARY, "NX"),
    *(
        Carrier(f"QR code {version}-L, {side} x {side}, bytes", size, BINARY, "QR")
        for version, side, size in ((2, 25, 32), (3, 29, 53), (4, 33, 78), (5, 37, 106), (6, 41, 134))
    ),
    *(
        Carrier(f"QR code {version}-L, {side} x {side}, text", size - len("tinylora:"), TEXT, "QR")
        for version, side, size in ((4, 33, 78), (5, 37, 106), (7, 45, 154), (8, 49, 192))
    ),
    Carrier("Sigfox up", 12, BINARY, "SF"),
    Carrier("Sigfox down", 8, BINARY, "SF"),
    Carrier("Iridium SBD to the device", 270, BINARY, "IR"),
    Carrier("Iridium SBD from the device", 340, BINARY, "IR"),
    Carrier("Meshtastic packet", 233, BINARY, "ME"),
    Carrier("APRS message", 67, TEXT, "AP"),
    Carrier("DNS TXT string", 255, TEXT, "DN"),
)


def airtime(
    payload: int,
    spreading: int,
    bandwidth: int,
    *,
    crc: bool = True,
    preamble: int = _PREAMBLE_SYMBOLS,
    coding_rate: int = _CODING_RATE,
    low_data_rate: bool | None = None,
) -> float:
    """Return the time on air of a LoRa packet in milliseconds (Semtech AN1200.13, section 4.1).

    Args:
        payload: bytes of the physical payload; of LoRaWAN 13 more than the application's.
        spreading: spreading factor, 7 to 12.
        bandwidth: in kHz.
        crc: whether the payload has a CRC.
        preamble: programmed symbols of the preamble.
        coding_rate: 1 for 4/5 to 4 for 4/8.
        low_data_rate: the low data rate optimization; by default where a symbol lasts over 16 ms.
    """
    symbol = float(1 << spreading) / bandwidth
    optimized = symbol > 16 if low_data_rate is None else low_data_rate
    bits = 8 * payload - 4 * spreading + 28 + 16 * crc
    symbols = 8 + max(math.ceil(bits / (4 * (spreading - 2 * optimized))) * (coding_rate + 4), 0)
    return (preamble + 4.25 + symbols) * symbol


def carrier_airtime(carrier: Carrier, size: int) -> float | None:
    """Return the time on air in milliseconds of a frame of `size` bytes; None for what is no LoRa."""
    lora = carrier.lora
    if lora is None:
        return None
    return airtime(size + _LORAWAN_OVERHEAD, lora.spreading, lora.bandwidth, crc=lora.uplink)


def frame_sizes(values: int) -> dict[tuple[str, int], int]:
    """Return the sizes of frames of a number of values: (dtype, tag kind) -> bytes, fp16 being as bf16.

    They are without a last day, which takes 2 bytes more.
    """
    return {
        (dtype, kind): frame.frame_bytes(values, dtype, kind)
        for dtype in ("fp32", "bf16", "int8")
        for kind in tags.SIZES
    }
