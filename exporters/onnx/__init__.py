"""The ONNX side of an export: a graph is built, and the basis baked into it."""
