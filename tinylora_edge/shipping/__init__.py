"""Vectors on their way: `publish` puts frames on a web server, `fetch` brings the newest to a device.

`links` says which frame fits which radio, tag or text message. `fetch` needs the standard library alone;
`publish` imports fsspec for addresses that are no directory.
"""

from .fetch import Fetched, fetch
from .publish import Published, publish

__all__ = ["Fetched", "Published", "fetch", "publish"]
