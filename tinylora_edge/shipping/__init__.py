"""Vectors on a web server: `publish` puts frames there, `fetch` brings the newest to a device.

`layout` says where they lie: a static tree that any web server, CDN or object store can serve. `fetch` needs
the standard library alone; `publish` imports fsspec for addresses that are no directory.
"""

from . import layout
from .fetch import Fetched, fetch
from .layout import DEFAULT_STREAM
from .publish import Published, publish

__all__ = ["DEFAULT_STREAM", "Fetched", "Published", "fetch", "layout", "publish"]
