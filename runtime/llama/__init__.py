"""llama.cpp: the engine of GGUF bundles. Importing this folder loads no engine."""
