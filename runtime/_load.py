"""`load`: from a path and bytes to a personalized model."""

from __future__ import annotations

from os import PathLike
from typing import TYPE_CHECKING, Any, TypeGuard, cast

from .._bundle import Bundle
from .._policy import Policy
from .._vector import MicroVector
from ..errors import MissingExtraError

if TYPE_CHECKING:
    from .llama import TinyLoraLlama


def load(
    base: str | PathLike[str],
    vector_bytes: bytes | MicroVector | None = None,
    *,
    policy: Policy | None = None,
    **engine_options: Any,
) -> TinyLoraLlama:
    """Load a base model and apply a micro-vector to it.

    Everything that can be checked without the engine is checked before it starts: a vector or a base
    that is refused costs milliseconds.

    Args:
        base: a bundle directory that `tinylora-edge export` wrote, or a `.gguf` with
            `<stem>.basis.gguf` beside it.
        vector_bytes: a frame or a raw payload (DESIGN 7), a `MicroVector` that the app made itself
            (no policy applies to it), or None for the base alone.
        policy: what is demanded of vectors, now and at every `swap`.
        engine_options: passed to `llama_cpp.Llama` (`n_ctx`, `n_gpu_layers`, `chat_format`, ...).
            `verbose` is False unless given.

    Returns:
        A `llama_cpp.Llama` with `swap`, `clear`, `using` and `vector` besides.

    Raises:
        FileNotFoundError: a part of the bundle is missing.
        CorruptBasisError: the side tensors are damaged.
        BaseMismatchError: the base is not one that the basis was exported for.
        VectorError: the vector was refused; the subclass says why.
        MissingExtraError: llama-cpp-python is not installed.
    """
    bundle = Bundle.find(base)
    policy = policy or Policy()
    if _is_bytes(vector_bytes):
        vector: MicroVector | None = policy.check(vector_bytes, bundle.basis)
    else:
        vector = cast("MicroVector | None", vector_bytes)
    if vector is not None:
        bundle.basis.values(vector)  # an app's own vector has to fit, too
    bundle.check_base()
    try:
        from .llama import TinyLoraLlama
    except ModuleNotFoundError as error:
        if error.name != "llama_cpp":
            raise
        raise MissingExtraError("the llama.cpp runtime", "llama-cpp-python", "llama") from None
    engine_options.setdefault("verbose", False)
    llm = TinyLoraLlama(str(bundle.base), basis=bundle.basis, policy=policy, **engine_options)
    if vector is not None:
        llm.swap(vector)
        if _is_bytes(vector_bytes):
            policy.record(vector, bundle.basis)
    return llm


def _is_bytes(value: object) -> TypeGuard[bytes]:
    return isinstance(value, bytes | bytearray | memoryview)
