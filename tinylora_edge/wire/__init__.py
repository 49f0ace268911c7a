"""A vector as bytes. Nothing here knows a model or a basis: it is for whoever moves, signs or stores vectors.

* `frame` is the format on the wire: header, values, tag (docs/FORMAT.md, "Frames").
* `tags` close a frame and let a device check it: CRC-32, HMAC-SHA-256, Ed25519. `pem` reads and writes keys.
* `text` carries a frame through a link, a form or a text message.
* `carriers` says which links carry a frame, and how long a radio sends it.
* `marks` is what a receiver remembers: the highest sequence of each stream, in memory or in a file.
"""

from . import carriers, frame, marks, pem, tags, text

__all__ = ["carriers", "frame", "marks", "pem", "tags", "text"]
