"""Files that host and device share. Their readers expect that a file is damaged, or meant to do damage.

* `bundle` finds a deployed base, its basis and its graph from one path; `signatures` says who signed them.
* `side_tensors` is `basis.gguf` (docs/FORMAT.md, "Side tensors"), `gguf` is its container.
* `onnx_graph` is what a baked graph says about itself, `onnx_adapter` is ONNX Runtime's own file for a
  vector.
"""
