"""Frames as text, for carriers that take text alone: base64url (RFC 4648, section 5) or hexadecimal.

White space is ignored, so a text may be folded. An even number of hexadecimal digits alone is hexadecimal: a
frame in base64url is never that, as its version makes it begin with one of the letters I to W.
"""

from __future__ import annotations

import base64
import re
import string

from ..errors import FrameError
from ..limits import VECTOR_FILE_BYTES

TEXT_CHARACTERS = 2 * VECTOR_FILE_BYTES  # characters of a text at most: the longest file in hexadecimal
SCHEME = "tinylora:"  # may stand before a text, so that a link or a QR code says what it is
_SURELY_HEX = 16  # a longer text of hexadecimal digits alone is not taken for base64url
_WHITE = b" \t\r\n"
_DIGITS = string.digits.encode() + string.ascii_letters.encode() + b"-_"
_TEXT = re.compile(rb"(?i:tinylora:[A-Za-z0-9_-]+|[A-Za-z0-9_-]{16,})={0,2}\Z")


def encode(data: bytes, *, scheme: bool = False) -> str:
    """Return a frame as base64url in one line; with `scheme`, `tinylora:` stands before it."""
    return SCHEME * scheme + base64.urlsafe_b64encode(data).decode().rstrip("=")


def is_text(data: bytes) -> bool:
    """Tell whether bytes are the text of a frame, and not the frame itself.

    No frame with a sequence below 256 is taken for text, as it has a byte 0; of other frames with 13 values,
    at most one in 10^11 is. A text of fewer than 16 characters needs the scheme before it.
    """
    return len(data) <= TEXT_CHARACTERS and bool(_TEXT.match(data.translate(None, _WHITE)))


def decode(text: bytes | str) -> bytes:
    """Return the bytes of a text: base64url or hexadecimal.

    FrameError: it is too long, cut, or has characters that belong to neither form.
    """
    data = text.encode("utf-8", "replace") if isinstance(text, str) else bytes(text)
    if len(data) > TEXT_CHARACTERS:
        raise FrameError(f"the text has {len(data):,} characters, more than any vector's {TEXT_CHARACTERS:,}")
    packed = data.translate(None, _WHITE)
    if packed[: len(SCHEME)].lower() == SCHEME.encode():
        packed = packed[len(SCHEME) :]
    if re.fullmatch(rb"[0-9A-Fa-f]+", packed):
        if len(packed) % 2 == 0:
            return bytes.fromhex(packed.decode())
        if len(packed) > _SURELY_HEX:
            raise FrameError(
                f"the text has {len(packed)} hexadecimal digits, an odd number: it was cut on its way"
            )
    digits = packed.rstrip(b"=")
    wrong = digits.translate(None, _DIGITS)
    if wrong or not digits:
        found = f"has {wrong[:1]!r}" if wrong else "is empty"
        raise FrameError(f"the text {found}: base64url is A-Z a-z 0-9 - and _, hexadecimal 0-9 and a-f")
    last = len(digits) // 4 * 4  # where the groups of four characters, of three bytes each, end
    whole = len(digits) - last != 1  # one character of a group has less than a byte
    decoded = base64.urlsafe_b64decode(digits + b"=" * (-len(digits) % 4)) if whole else b""
    if base64.urlsafe_b64encode(decoded[last // 4 * 3 :]).rstrip(b"=") != digits[last:]:
        raise FrameError(
            f"the {len(digits)} characters are not a complete base64url text: it was cut on its way"
        )
    return decoded
