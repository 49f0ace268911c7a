"""Documents that others wrote: JSON and TOML, read within limits.

* `reading` has the parsers and their limits. What is wrong with a document is a ValueError.
"""

from .reading import parse_json, parse_toml, read_json, read_toml

__all__ = ["parse_json", "parse_toml", "read_json", "read_toml"]
