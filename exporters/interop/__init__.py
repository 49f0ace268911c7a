"""Vectors and bases in the formats of other ecosystems, both ways.

* `llama_lora`: stock GGUF LoRA files and scales, for llama-server, Ollama, LM Studio and llama.rn.
* `peft`: PEFT's TinyLoRA checkpoints, and plain PEFT LoRAs.
* `peft_lora`: plain PEFT LoRAs as GGUF LoRAs.

ONNX Runtime's `.onnx_adapter` is in the core, since devices read it.
"""
