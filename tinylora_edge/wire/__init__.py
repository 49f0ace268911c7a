"""A vector as bytes. Nothing here knows a model or a basis: it is for whoever moves, signs or stores vectors.

* `frame` is the format on the wire: header, values, tag, with users' names and last days (docs/FORMAT.md).
* `values` are the numbers in it, by dtype.
* `tags` close a frame and let a device check it: CRC-32, HMAC-SHA-256, Ed25519; keys in PEM.
* `text` carries a frame through a link, a form or a text message.
* `sequences` is what a receiver remembers: the highest sequence of each user, in memory or in a file.
"""
