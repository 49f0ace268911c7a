"""The probe: a process that loads one engine, lets a tiny model answer, and says how it went as JSON.

It is a process of its own (`python -m tinylora_edge.cli.doctor.probe ENGINE`), since an engine that was built
for another processor ends the process that it is loaded in.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

_TOKENS = 4


def llama() -> dict[str, Any]:
    """Return what llama.cpp is, after a tiny model answered with a vector and as the base again.

    Raises:
        AssertionError: the vector changed nothing, or the base did not come back.
    """
    from ... import MicroVector, runtime
    from ...runtime.libraries import import_llama_cpp
    from .tiny_model import write_basis, write_gguf

    libraries = import_llama_cpp()  # before the bindings, which may have no libraries of their own
    import llama_cpp

    with tempfile.TemporaryDirectory(prefix="tinylora-doctor-") as folder:
        model = Path(folder, "tiny.gguf")
        write_gguf(model)
        basis = write_basis(model, Path(folder, "tiny.basis.gguf"))
        start = time.perf_counter()
        llm = runtime.load(model, None, engine="llama", n_ctx=256, n_threads=1, n_threads_batch=1)
        logits = []
        for vector in (None, MicroVector.random(basis, 1.0, seed=1), None):
            llm.clear() if vector is None else llm.swap(vector)
            llm.reset()
            llm.eval([256, 72, 101])
            pointer = llama_cpp.llama_get_logits_ith(llm.ctx, -1)
            logits.append(np.ctypeslib.as_array(pointer, shape=(llm.n_vocab(),)).tobytes())
        answered = llm.create_completion([256, 72, 101], max_tokens=_TOKENS, temperature=0.0)
        assert logits[0] == logits[2], "the base did not come back"
        assert logits[0] != logits[1], "the vector changed nothing"
        llm.close()
    return {
        "version": llama_cpp.__version__,
        "answered": answered["usage"]["completion_tokens"],
        "seconds": time.perf_counter() - start,
        "system": llama_cpp.llama_print_system_info().decode(),
        "path": str(libraries.folder),
    }


def onnx() -> dict[str, Any]:
    """Return what ONNX Runtime is, after it multiplied two matrices.

    Raises:
        AssertionError: their product is wrong.
    """
    import onnxruntime

    from .tiny_model import onnx_product

    start = time.perf_counter()
    weight = np.arange(12, dtype=np.float32).reshape(4, 3)
    session = onnxruntime.InferenceSession(onnx_product(weight), providers=["CPUExecutionProvider"])
    x = np.ones((1, 4), np.float32)
    (y,) = session.run(None, {"x": x})
    assert np.array_equal(y, x @ weight), f"it says {y.tolist()}, where {(x @ weight).tolist()} is right"
    return {
        "version": onnxruntime.__version__,
        "answered": y.size,
        "seconds": time.perf_counter() - start,
        "path": str(Path(onnxruntime.__file__).parent),
    }


def main(engine: str) -> None:
    """Probe an engine, and print what was found as the last line of stdout."""
    try:
        found = {"llama": llama, "onnx": onnx}[engine]()
    except Exception as error:  # whatever an engine raises is what the doctor is to say
        found = {"error": f"{type(error).__name__}: {error}"}
    sys.stdout.flush()
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1])
