"""The host side of a model: bake its frozen factors into side tensors, once.

`export_gguf` writes a bundle from a GGUF file or from a Hugging Face directory with the GGUF that is
deployed; `export_onnx` writes one with an ONNX graph, alone or beside the GGUF; `add_base` lists another
deployed form of the same model. `export_part` does a share of an export, on any machine, and `merge` joins
the shares. `Export`, `OnnxExport` and `PartExport` are the same in two steps: what can be refused at once is
refused before a weight is read.

Weights are read in row blocks, so a model never has to fit in memory, and a run that was killed goes on where
it was. No engine is needed; where llama-cpp-python is installed, its routines dequantize.

What is exported is called by a path; `resolve` turns other names, those of the catalog and of repositories on
the hub, into paths. `exporters.hub` has more of that, `exporters.interop` the formats of other ecosystems.
Importing this package loads numpy and gguf; torch, onnx and huggingface_hub are loaded by what needs them.
"""

from .bundle_writer import refuse_existing
from .factors.basis import Quality
from .gguf import Export, ExportReport, add_base, export_gguf
from .hub import ResolvedModel, Selection, find, resolve
from .onnx import BakeReport, OnnxExport, OnnxReport, export_onnx
from .parts import PartExport, PartReport, export_part, merge
from .settings import ExportSettings

__all__ = [
    "BakeReport",
    "Export",
    "ExportReport",
    "ExportSettings",
    "OnnxExport",
    "OnnxReport",
    "PartExport",
    "PartReport",
    "Quality",
    "ResolvedModel",
    "Selection",
    "add_base",
    "export_gguf",
    "export_onnx",
    "export_part",
    "find",
    "merge",
    "refuse_existing",
    "resolve",
]
