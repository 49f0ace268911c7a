"""The device side: load a base with its basis, apply a micro-vector, exchange it while running.

    from tinylora_edge import runtime
    llm = runtime.load("bundle", vector_bytes)      # it is a llama_cpp.Llama
    llm.create_chat_completion(messages=[...])
    llm.swap(other_bytes)                           # atomic; returns the MicroVector now active
    llm.clear()                                     # the base again, bit for bit

Needs numpy, gguf and one engine. Importing this package loads no engine: `load` does.
"""

from typing import TYPE_CHECKING, Any

from .._policy import Policy
from ._load import load

if TYPE_CHECKING:
    from .llama import TinyLoraLlama

__all__ = ["Policy", "TinyLoraLlama", "load"]


def __getattr__(name: str) -> Any:
    if name == "TinyLoraLlama":
        from .llama import TinyLoraLlama

        return TinyLoraLlama
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
