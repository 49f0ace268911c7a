"""Documents that others wrote: JSON and TOML, read within limits.

* `reading` has the parsers and their limits, `records` makes a program's own state again from what it wrote.
  What is wrong with a document is a ValueError.
"""

from .reading import parse_json, parse_toml, read_json, read_toml
from .records import restored

__all__ = ["parse_json", "parse_toml", "read_json", "read_toml", "restored"]
