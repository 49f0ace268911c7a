"""The host side of a model: bake its frozen factors into side tensors, once.

`export_gguf` writes a bundle from a GGUF file or from a Hugging Face directory with the GGUF that is
deployed; `export_onnx` writes one with an ONNX graph, alone or beside the GGUF; `add_base` lists another
deployed form of the same model. `export_part` does a share of an export, on any machine, and `merge` joins
the shares. Reads weights in row blocks, so a model never has to fit in memory, and goes on where a killed run
ended. Needs no engine; where llama-cpp-python is installed, its routines dequantize.

What is exported is called by a path; `resolve` turns other names, those of the catalog and of repositories on
the hub, into paths.
"""

from .bundle_writer import refuse_existing
from .gguf import ExportReport, add_base, export_gguf
from .hub.resolve import find, resolve
from .hub.selection import Found, Resolved
from .onnx.export import OnnxReport, export_onnx
from .parts import PartReport, export_part, merge
from .settings import Settings

__all__ = [
    "ExportReport",
    "Found",
    "OnnxReport",
    "PartReport",
    "Resolved",
    "Settings",
    "add_base",
    "export_gguf",
    "export_onnx",
    "export_part",
    "find",
    "merge",
    "refuse_existing",
    "resolve",
]
