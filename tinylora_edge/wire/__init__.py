"""A vector as bytes. Nothing here knows a model or a basis: it is for whoever moves, signs or stores vectors.

* `frame` is the format on the wire: header, values, tag (docs/FORMAT.md, "Frames").
* `tags` close a frame and let a device check it: CRC-32, HMAC-SHA-256, Ed25519. `pem` reads and writes keys.
* `text` carries a frame through a link, a form or a text message.
* `carriers` says which links carry a frame, and how long a radio sends it.
* `marks` is what a receiver remembers: the highest sequence of each stream, in memory or in a file.
* `days` are last days of frames, and the clock that judges them. `quantization` makes int8 values.
* `statements` are signed sentences about vectors: which one is the newest, which one runs. `freshness` is
  what a receiver knows of the newest one.
"""

from . import carriers, days, frame, freshness, marks, pem, quantization, statements, tags, text

__all__ = [
    "carriers",
    "days",
    "frame",
    "freshness",
    "marks",
    "pem",
    "quantization",
    "statements",
    "tags",
    "text",
]
