"""The device side: load a base with its factors, apply a micro-vector, exchange it while running.

    from tinylora_edge import runtime
    llm = runtime.load("bundle", vector_bytes)      # a llama_cpp.Llama, or a TinyLoraOnnx
    llm.create_chat_completion(messages=[...])
    llm.swap(other_bytes)                           # atomic; returns the MicroVector now active
    llm.clear()                                     # the base again, bit for bit

    runtime.tune(llm, prompts, reward, budget="5m")  # finds a vector, on the device itself

    pool = runtime.Pool("bundle")                   # many users at once, each with a vector of their own
    answer = await pool.chat(messages, user="alice", vector=alice_bytes)

    session = runtime.OnnxSession("bundle")         # a loop of your own on plain ONNX Runtime
    session.run(None, feeds, session.rows([alice_bytes, bob_bytes], users=["alice", "bob"]))

Needs numpy, gguf and one engine. Importing this package loads no engine: `load` does.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from tinylora_edge.errors import NotImprovedWarning
from tinylora_edge.vector import Policy

from .learning import Budget, Clicks, RewardLearner, SampledAnswer, Tuned, TuneSettings, tune
from .load import engine_of, load, missing_engine
from .pool import Pool

if TYPE_CHECKING:
    from .llama.model import TinyLoraLlama
    from .onnx.model import TinyLoraOnnx
    from .onnx.session import OnnxSession

__all__ = [
    "Budget",
    "Clicks",
    "NotImprovedWarning",
    "OnnxSession",
    "Policy",
    "Pool",
    "RewardLearner",
    "SampledAnswer",
    "TinyLoraLlama",
    "TinyLoraOnnx",
    "TuneSettings",
    "Tuned",
    "engine_of",
    "load",
    "tune",
]

_HOMES = {  # these modules load an engine, so each is imported when its name is first used
    "OnnxSession": "onnx.session",
    "TinyLoraLlama": "llama.model",
    "TinyLoraOnnx": "onnx.model",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(import_module(f".{_HOMES[name]}", __name__), name)
    except ModuleNotFoundError as error:
        raise missing_engine(error) from None
