"""Link budgets: LoRa airtime against published values, capacities against the encoders themselves."""

from __future__ import annotations

import base64
import re

import pytest
import segno

from tinylora_edge.wire import frame, tags
from tinylora_edge.wire.carriers import CARRIERS, TEXT, airtime, carrier_airtime, frame_sizes

PAYLOADS = {  # by their sources: RP002-1.0.4, Bluetooth 5.4, TS 23.040, NXP's and the others' data sheets
    "LoRaWAN EU868 down, DR0 (SF12, 125 kHz)": 51,
    "LoRaWAN EU868 down, DR1 (SF11, 125 kHz)": 51,
    "LoRaWAN EU868 down, DR2 (SF10, 125 kHz)": 51,
    "LoRaWAN EU868 down, DR3 (SF9, 125 kHz)": 115,
    "LoRaWAN EU868 down, DR4 (SF8, 125 kHz)": 222,
    "LoRaWAN EU868 down, DR5 (SF7, 125 kHz)": 222,
    "LoRaWAN EU868 down, DR6 (SF7, 250 kHz)": 222,
    "LoRaWAN US915 up, DR0 (SF10, 125 kHz)": 11,
    "LoRaWAN US915 up, DR1 (SF9, 125 kHz)": 53,
    "LoRaWAN US915 up, DR2 (SF8, 125 kHz)": 125,
    "LoRaWAN US915 up, DR3 (SF7, 125 kHz)": 222,
    "LoRaWAN US915 up, DR4 (SF8, 500 kHz)": 222,
    "LoRaWAN US915 down, DR8 (SF12, 500 kHz)": 33,
    "LoRaWAN US915 down, DR9 (SF11, 500 kHz)": 109,
    "LoRaWAN US915 down, DR10 (SF10, 500 kHz)": 222,
    "LoRaWAN US915 down, DR11 (SF9, 500 kHz)": 222,
    "LoRaWAN US915 down, DR12 (SF8, 500 kHz)": 222,
    "LoRaWAN US915 down, DR13 (SF7, 500 kHz)": 222,
    "LoRaWAN US915 down, no repeater, DR8 (SF12)": 53,
    "LoRaWAN US915 down, no repeater, DR9 (SF11)": 129,
    "BLE legacy advertisement": 27,
    "BLE extended advertisement": 241,
    "SMS, 8-bit": 140,
    "SMS, text": 120,
    "NFC NTAG213": 138,
    "NFC NTAG215": 493,
    "NFC NTAG216": 877,
    "QR code 2-L, 25 x 25, bytes": 32,
    "QR code 3-L, 29 x 29, bytes": 53,
    "QR code 4-L, 33 x 33, bytes": 78,
    "QR code 5-L, 37 x 37, bytes": 106,
    "QR code 6-L, 41 x 41, bytes": 134,
    "QR code 4-L, 33 x 33, text": 51,
    "QR code 5-L, 37 x 37, text": 72,
    "QR code 7-L, 45 x 45, text": 108,
    "QR code 8-L, 49 x 49, text": 137,
    "Sigfox up": 12,
    "Sigfox down": 8,
    "Iridium SBD to the device": 270,
    "Iridium SBD from the device": 340,
    "Meshtastic packet": 233,
    "APRS message": 50,
    "DNS TXT string": 191,
}
BY_NAME = {carrier.name: carrier for carrier in CARRIERS}


@pytest.mark.parametrize(
    ("payload", "spreading", "bandwidth", "options", "milliseconds"),
    [
        # The public spreadsheet "Formulas taken from AN1200.13": 13 bytes at SF9.
        (13, 9, 125, {}, 164.864),
        # Its successor for LoRaWAN: 24 bytes and 13 of header, a column for each spreading factor.
        (37, 7, 125, {}, 82.176),
        (37, 8, 125, {}, 143.872),
        (37, 9, 125, {}, 267.264),
        (37, 10, 125, {}, 493.568),
        (37, 11, 125, {}, 1069.056),
        (37, 12, 125, {}, 1974.272),
        # rfwireless-world.com, LoRaWAN airtime calculator, examples 1 and 2.
        (10, 7, 125, {}, 41.216),
        (10, 11, 125, {}, 577.536),
        # github.com/tanupoo/lorawan_toa, test.py, computed with Semtech's calculator.
        (64, 12, 125, {"low_data_rate": False}, 2465.792),
        (64, 12, 125, {"low_data_rate": True}, 2793.472),
        (64, 12, 125, {}, 2793.472),
        (255, 7, 500, {}, 99.904),
        (255, 7, 500, {"low_data_rate": True}, 137.024),
    ],
)
def test_airtime_as_published(payload, spreading, bandwidth, options, milliseconds):
    assert airtime(payload, spreading, bandwidth, **options) == pytest.approx(milliseconds, abs=5e-4)


@pytest.mark.parametrize(("rate", "payload", "spreading"), [(0, 11, 10), (1, 53, 9), (2, 125, 8)])
def test_us915_limits_are_the_longest_under_its_dwell_time(rate, payload, spreading):
    """They were chosen so: 400 ms on a channel of 125 kHz (RP002, US902-928)."""
    carrier = BY_NAME[f"LoRaWAN US915 up, DR{rate} (SF{spreading}, 125 kHz)"]
    assert carrier.payload == payload
    assert carrier_airtime(carrier, payload) <= 400
    symbol = 2**spreading / 125
    assert carrier_airtime(carrier, payload + 5) > 400 - 5 * symbol


def test_airtime_rises_with_everything_that_costs_time():
    base = airtime(50, 9, 125)
    assert airtime(60, 9, 125) > base
    assert airtime(50, 10, 125) > base
    assert airtime(50, 9, 250) == base / 2
    assert airtime(50, 9, 125, coding_rate=4) > base
    assert airtime(50, 9, 125, preamble=10) == pytest.approx(base + 2 * 4.096)
    assert airtime(50, 12, 125, crc=False) <= airtime(50, 12, 125)


def test_downlinks_have_no_payload_crc():
    up, down = (
        BY_NAME["LoRaWAN US915 up, DR4 (SF8, 500 kHz)"],
        BY_NAME["LoRaWAN US915 down, DR12 (SF8, 500 kHz)"],
    )
    times = [(carrier_airtime(down, size), carrier_airtime(up, size)) for size in range(30, 60)]
    assert all(low <= high for low, high in times)
    assert any(low < high for low, high in times)


def test_frame_sizes_are_those_of_frames():
    assert frame_sizes(13) == {
        ("fp32", 0): 63, ("fp32", 1): 67, ("fp32", 2): 123, ("bf16", 0): 37, ("bf16", 1): 41, ("bf16", 2): 97,
        ("int8", 0): 27, ("int8", 1): 31, ("int8", 2): 87,
    }  # fmt: skip
    assert {frame.frame_bytes(13, "fp16", kind) for kind in tags.SIZES} == {37, 41, 97}


def test_what_text_carriers_take_is_what_base64url_leaves():
    for carrier in CARRIERS:
        if carrier.encoding == TEXT:
            for size, fits in ((carrier.payload, True), (carrier.payload + 1, False)):
                length = len(base64.urlsafe_b64encode(bytes(size)).rstrip(b"="))
                assert (length <= carrier.capacity) is fits, carrier.name


@pytest.mark.parametrize("name", [name for name in BY_NAME if name.startswith("QR")])
def test_qr_capacities_are_those_of_the_encoder(name):
    carrier = BY_NAME[name]
    version = int(name.split()[2].partition("-")[0])
    prefix = 9 if carrier.encoding == TEXT else 0
    full = segno.make_qr(b"\xff" * (carrier.capacity + prefix), mode="byte", error="L", boost_error=False)
    over = segno.make_qr(b"\xff" * (carrier.capacity + prefix + 1), mode="byte", error="L", boost_error=False)
    assert (full.version, over.version) == (version, version + 1)
    assert f"{full.symbol_size(border=0)[0]} x" in name


def test_capacities_that_the_documents_name():
    for start, payload in (
        ("LoRaWAN EU868 down, DR0", 51),
        ("LoRaWAN EU868 down, DR2", 51),
        ("LoRaWAN EU868 down, DR3", 115),
        ("SMS, 8-bit", 140),
        ("NFC NTAG213", 138),
        ("Meshtastic", 233),
        ("QR code 4-L, 33 x 33, bytes", 78),
        ("Sigfox down", 8),
        ("Iridium SBD to", 270),
        ("APRS", 50),
        ("BLE legacy", 27),
    ):
        (carrier,) = [each for each in CARRIERS if each.name.startswith(start)]
        assert carrier.payload == payload, start


def test_names_are_distinct():
    assert len(BY_NAME) == len(CARRIERS)


def test_every_carrier_takes_what_its_source_says():
    assert {carrier.name: carrier.payload for carrier in CARRIERS} == PAYLOADS
    assert len(CARRIERS) == len(PAYLOADS)


def test_airtime_is_of_the_modulation_that_the_name_says():
    for carrier in CARRIERS:
        found = re.search(r"SF(\d+)(?:, (\d+) kHz)?", carrier.name)
        assert (found is not None) == (carrier.lora is not None)
        if found is not None and carrier.lora is not None:
            bandwidth = int(found[2] or 500)  # US915 has no other downlink
            modulation = carrier.lora.spreading, carrier.lora.bandwidth, carrier.lora.uplink
            assert modulation == (int(found[1]), bandwidth, " up, " in carrier.name)
