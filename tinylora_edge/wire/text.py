"""Vector bytes as text, for carriers that take no others: base64url (RFC 4648, section 5) and hexadecimal.

White space is ignored, so a text may be folded. An even number of hexadecimal digits alone is hexadecimal; a
base64url text of 13 values is that by chance once in 10^23 vectors.
"""

from __future__ import annotations

import base64
import re
import string

from ..errors import FrameError
from ..limits import VECTOR_FILE_BYTES

TEXT_CHARACTERS = 2 * VECTOR_FILE_BYTES  # at most, as many as hexadecimal digits take
SCHEME = "tinylora:"  # may stand before the digits, so that a link or a QR code says what it is
_SURELY_HEX = 16  # so many hexadecimal digits in a row are no base64url
_WHITE = b" \t\r\n"
_DIGITS = string.digits.encode() + string.ascii_letters.encode() + b"-_"
_TEXT = re.compile(rb"(?i:tinylora:[A-Za-z0-9_-]+|[A-Za-z0-9_-]{16,})={0,2}\Z")


def encode(data: bytes, *, scheme: bool = False) -> str:
    """Return a frame as base64url in one line, with `tinylora:` before it where `scheme`."""
    return SCHEME * scheme + base64.urlsafe_b64encode(data).decode().rstrip("=")


def is_text(data: bytes) -> bool:
    """Tell whether bytes are the text of a vector, and not the vector itself.

    No frame with a sequence below 256 is taken for one; of others of 13 values one in 10^11 at the most. A
    short text needs the scheme before it.
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
    last = len(digits) // 4 * 4  # of whole groups
    whole = len(digits) - last != 1
    decoded = base64.urlsafe_b64decode(digits + b"=" * (-len(digits) % 4)) if whole else b""
    if base64.urlsafe_b64encode(decoded[last // 4 * 3 :]).rstrip(b"=") != digits[last:]:
        raise FrameError(
            f"the {len(digits)} characters are not a complete base64url text: it was cut on its way"
        )
    return decoded
