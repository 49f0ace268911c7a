"""A plain LoRA that is trained in v's place, by the same loop: a bound to compare a vector with.

`Options(lora=8)` asks for one. It has thousands of numbers for each of v's, and is written as a GGUF file
that stock llama.cpp loads. What a vector is made, shipped or loaded with does not need it.
"""
