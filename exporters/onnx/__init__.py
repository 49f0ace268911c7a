"""The ONNX side of an export: `build` makes a graph of a model, `bake` puts factors into it.

Importing this package does not load the onnx package.
"""

from .bake import FLAVOURS, bake
from .builder import PRECISIONS, build, check_builder

__all__ = ["FLAVOURS", "PRECISIONS", "bake", "build", "check_builder"]
