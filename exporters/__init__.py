"""The host side of a model: bake its frozen factors into side tensors, once.

`export_gguf` writes a bundle from a GGUF file, or from a Hugging Face directory with the GGUF that is
deployed; `export_onnx` writes one with an ONNX graph, alone or beside the GGUF; `Export` is both, in steps.
`add_base` lists another deployed form of the same model, `add_projection` adds learned directions. Weights
are read a few at a time, so a model never has to fit in memory. No engine is needed; where llama-cpp-python
is installed, its routines dequantize.

An export takes paths; `resolve` turns names of the catalog and of repositories on the hub into paths.
`exporters.convert` writes vectors in the formats of other programs.
Importing this package loads numpy and gguf; torch, onnx and huggingface_hub are loaded by what needs them.
"""

from .export import Export, ExportReport, add_base, add_projection, export_gguf, export_onnx, refuse_existing
from .factorize import ExportSettings
from .hub import ResolvedModel, default_name, resolve

__all__ = [
    "Export",
    "ExportReport",
    "ExportSettings",
    "ResolvedModel",
    "add_base",
    "add_projection",
    "default_name",
    "export_gguf",
    "export_onnx",
    "refuse_existing",
    "resolve",
]
