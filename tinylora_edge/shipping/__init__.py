"""Vectors on their way: `publish` puts frames on a web server, `fetch` brings the newest to a device.

`layout` says where they lie there: a static tree that any web server, CDN or object store can serve. `links`
says which frame fits which radio, tag or text message. `fetch` needs the standard library alone; `publish`
imports fsspec for addresses that are no directory.
"""

from . import layout, links
from .fetch import Fetched, fetch
from .publish import Published, publish

__all__ = ["Fetched", "Published", "fetch", "layout", "links", "publish"]
