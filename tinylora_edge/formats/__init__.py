"""Files that host and device share. Each is read with distrust: it may be damaged, or meant to do damage.

* `bundle` finds a deployed base, its basis and its graph from one path.
* `side_tensors` is `basis.gguf` (docs/FORMAT.md, "Side tensors"); `gguf`, `gguf_split` are its container.
* `onnx_graph` is what a baked graph says about itself, `onnx_adapter` is ONNX Runtime's own file for a
  vector, and `protobuf` is what the graph is written in.
"""

from . import bundle, gguf, gguf_split, onnx_adapter, onnx_graph, protobuf, side_tensors

__all__ = ["bundle", "gguf", "gguf_split", "onnx_adapter", "onnx_graph", "protobuf", "side_tensors"]
