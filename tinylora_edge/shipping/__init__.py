"""Vectors on their way: `publish` puts frames on a web server, `fetch` brings the newest to a device.

`links` says which frame fits which radio, tag or text message. Both import fsspec for buckets, and need the
standard library alone for a folder and a web server.
"""

from .fetch import Fetched, fetch
from .publish import Published, publish

__all__ = ["Fetched", "Published", "fetch", "publish"]
