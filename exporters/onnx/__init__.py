"""The ONNX side of an export: a graph is built, and the basis baked into it.

`export_onnx` writes a bundle of a model; `bake.bake` puts a basis that is there into a graph that is there.
Importing this package does not load the onnx package.
"""

from .bake import BakeReport
from .export import OnnxExport, OnnxReport, export_onnx

__all__ = ["BakeReport", "OnnxExport", "OnnxReport", "export_onnx"]
