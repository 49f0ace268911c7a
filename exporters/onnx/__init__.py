"""The ONNX side of an export: `build` makes a graph of a model, `bake` puts factors into a graph.

Importing this package does not load the onnx package.
"""

from .bake import FLAVOURS, BakeReport, bake
from .builder import PRECISIONS, build, check_graph
from .pack import Packed

__all__ = ["FLAVOURS", "PRECISIONS", "BakeReport", "Packed", "bake", "build", "check_graph"]
