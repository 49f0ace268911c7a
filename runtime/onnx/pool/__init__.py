"""The scheduler of a pool on ONNX Runtime: one running batch, which requests join and leave at any token."""
