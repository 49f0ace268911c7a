"""A replay of the demo: a vector that was trained beforehand, for a basis that is shipped, signed together.

Beside this file lie `basis.gguf` and `manifest.json` of a bundle of SmolLM2-135M-Instruct, `vector.bin` (37
bytes), `recipe.json` (how the vector came about, and what was measured), `signature.json` over these and the
model, and `project.pub`, the key that signed. The basis is shipped since another machine's factors differ in
their last bits, and with them the digest that the vector is bound to.
"""
