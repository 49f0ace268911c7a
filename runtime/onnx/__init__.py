"""ONNX Runtime: the engine of baked graphs. Importing this folder loads no engine."""
