"""`load`: from a path and bytes to a personalized model."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, overload

from tinylora_edge.errors import MissingExtraError, OptionError, TinyLoraError
from tinylora_edge.formats.bundle import Bundle, BundleOrPath, load_bundle
from tinylora_edge.formats.signatures import signed
from tinylora_edge.vector import Policy
from tinylora_edge.wire.tags import Ed25519Verifier

from .model import VectorSource, admitted

if TYPE_CHECKING:
    from .llama.model import TinyLoraLlama
    from .onnx.model import TinyLoraOnnx

    _Model: TypeAlias = TinyLoraLlama | TinyLoraOnnx

_Vector: TypeAlias = VectorSource | None

LLAMA, ONNX = "llama", "onnx"


@overload
def load(
    base: BundleOrPath, vector_bytes: _Vector = ..., *, engine: Literal["llama"], **options: Any
) -> TinyLoraLlama: ...
@overload
def load(
    base: BundleOrPath, vector_bytes: _Vector = ..., *, engine: str | None = ..., **options: Any
) -> _Model: ...
def load(
    base: BundleOrPath,
    vector_bytes: _Vector = None,
    *,
    policy: Policy | None = None,
    bundle_keys: Sequence[Ed25519Verifier] = (),
    user: str = "",
    engine: str | None = None,
    **engine_options: Any,
) -> _Model:
    """Load a base model and apply a micro-vector to it. Bad input is refused before the engine starts.

    Args:
        base: a bundle directory that `tinylora-edge export` wrote, the `onnx/` directory in one, the
            `model.onnx` in that, or a `.gguf` with `<stem>.basis.gguf` beside it; or a `Bundle`, which is
            not read again.
        vector_bytes: a frame (docs/FORMAT.md), the `pathlib.Path` of a file with one, a
            `MicroVector` that the app made itself (of the policy `max_norm` alone applies to it), a list of
            these, a stack, or None for the base alone.
        policy: what is demanded of vectors, now and at every `swap`.
        bundle_keys: public keys, one of which must have signed the bundle; without any, no signature is
            checked.
        user: whose vector it is: its sequence is compared with theirs (see `Policy`).
        engine: `llama` (llama.cpp) or `onnx` (ONNX Runtime). By default the one that the bundle is for,
            llama.cpp where it is for both.
        engine_options: those of `llama_cpp.Llama` (`n_ctx`, `n_gpu_layers`, `chat_format`, ...; `verbose` is
            False by default), or of `TinyLoraOnnx` (`n_ctx`, `n_threads`).

    Returns:
        A `llama_cpp.Llama` that also has `swap`, `clear`, `using` and `vector`, or a `TinyLoraOnnx`.

    Raises:
        FileNotFoundError: a part of the bundle is missing.
        CorruptBasisError: the side tensors are damaged.
        BaseMismatchError: the base is not one that the factors were exported for.
        TrustError: the bundle is not as one of `bundle_keys` signed it.
        VectorError: the vector was refused; the subclass says why.
        MissingExtraError: the engine is not installed.
        OptionError: the engine has no such option.
        TinyLoraError: there is no such engine, the bundle has nothing for it, or its libraries do not fit.
        OSError: the policy's state file cannot be written.
    """
    bundle = load_bundle(base)
    engine = _choose(bundle, engine)
    policy = policy or Policy()
    with ExitStack() as undo:
        with ExitStack() as admission:  # which records the vector at its end
            with signed(bundle, bundle_keys, engine=engine):
                vector = None
                if vector_bytes is not None:
                    checked = admitted(vector_bytes, bundle.bases, policy, user=user)
                    vector = admission.enter_context(checked)
                try:
                    llm = _start(engine, bundle, policy, engine_options)
                except ModuleNotFoundError as error:
                    raise missing_engine(error) from None
                undo.callback(llm.close)
            if vector is not None:
                llm.swap(vector)
        undo.pop_all()
    return llm


def engine_of(base: BundleOrPath, engine: str | None = None) -> str:
    """Return the engine that `load` uses for a bundle: `llama` or `onnx`. Arguments and errors: as there."""
    return _choose(load_bundle(base), engine)


def _choose(bundle: Bundle, engine: str | None) -> str:
    has = {LLAMA: bundle.base != bundle.onnx, ONNX: bundle.onnx is not None}
    if engine is None:
        return LLAMA if has[LLAMA] else ONNX
    if engine not in has:
        raise TinyLoraError(f"there is no engine {engine!r}: choose {LLAMA!r} or {ONNX!r}")
    if not has[engine]:
        lacks, form = ("a GGUF base", "gguf") if engine == LLAMA else ("an ONNX graph", "onnx")
        raise TinyLoraError(
            f"the bundle of {bundle.basis_path} lacks {lacks}, which the engine {engine} runs: export it "
            f"again with --format {form}, or both"
        )
    return engine


def _start(engine: str, bundle: Bundle, policy: Policy, options: dict[str, Any]) -> _Model:
    known: Sequence[str]
    start: Callable[..., _Model]
    if engine == ONNX:
        from .onnx.model import TinyLoraOnnx

        known = [
            name for name in inspect.signature(TinyLoraOnnx).parameters if name not in ("base", "policy")
        ]
        start = partial(TinyLoraOnnx, bundle)
    else:
        from .llama import import_llama_cpp

        bundle.check_base()
        import_llama_cpp()
        from .llama.model import OPTIONS, TinyLoraLlama

        known = OPTIONS  # llama_cpp itself ignores a name that it does not know
        start = partial(TinyLoraLlama, str(bundle.base), bases=bundle.bases)
        options = {"verbose": False, **options}
    for name in options:
        if name not in known:
            raise OptionError(f"load() has no option {name!r}: this engine's are {', '.join(known)}")
    return start(policy=policy, **options)


def missing_engine(error: ModuleNotFoundError) -> ImportError:
    """Return the error that names the pip command, where an engine is missing; else the error itself."""
    known = {
        "llama_cpp": MissingExtraError("the llama.cpp runtime", "llama-cpp-python", "llama"),
        "onnxruntime": MissingExtraError("the ONNX runtime", "onnxruntime", "onnx"),
        "onnxruntime_genai": MissingExtraError("the ONNX runtime", "onnxruntime-genai", "onnx"),
    }
    return known.get(error.name or "", error)
