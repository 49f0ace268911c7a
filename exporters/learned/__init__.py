"""Learned projections that are shipped: directions of R that `learn` found once, for a model that many try.

* `find` returns those that belong to a basis, if there are any; `Shipped.apply` puts them into it.
* `pack` writes such a file from a basis that was learned.
"""

from .shipped import Shipped, find, pack, shipped, shipped_file

__all__ = ["Shipped", "find", "pack", "shipped", "shipped_file"]
