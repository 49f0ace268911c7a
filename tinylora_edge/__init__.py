"""Personalize a frozen language model on a device with a vector of a few numbers.

TinyLoRA (arXiv 2602.04118) changes every adapted linear layer of a model by W' = W + B R A, where A and B
come from the SVD of W and stay frozen. R is made of a vector's numbers, 13 to 107,520 of them, which are all
that is learned. A tour:

* `Factors` are what is frozen of a model: A and B. `tinylora-edge export` computes them once a model and
  writes them beside the GGUF. A `Projection` makes R of a vector's numbers; a `Basis` is the pair.
  `load_bundle(path)` has all bases of a model: `bundle.basis(numbers=13)`, `bundle.basis(rank=2)`,
  `bundle.basis(rank=(64, 8))`.
* `MicroVector` is everything personal. `MicroVector.to_bytes` frames it for a link (63 bytes in fp32, 37
  in bf16); `MicroVector.from_bytes` takes it in again, all or nothing, under a `Policy`.
* `tinylora_edge.runtime.load(base, vector_bytes)` returns a `llama_cpp.Llama` that answers with it.
* Everything raised on purpose is a `TinyLoraError`; `tinylora_edge.errors` has them all.

Importing this package loads numpy and gguf, no engine.
"""

from pathlib import Path as _Path

from . import errors
from .basis import Bases, Basis
from .errors import *  # noqa: F403
from .factors import Factors
from .formats.bundle import Bundle, load_bundle
from .projection import Projection
from .vector import AdmittedVector, MicroVector, Policy
from .version import __version__
from .wire.tags import Crc32, Ed25519Signer, Ed25519Verifier, Hmac

if _Path(__file__).with_name("cli").is_file():  # as a clone on Windows has links
    raise ImportError(
        "tinylora_edge/cli is a file in place of a link: clone again with git clone -c core.symlinks=true "
        "(on Windows: turn on Developer Mode first)"
    )

__all__ = [
    "AdmittedVector",
    "Bases",
    "Basis",
    "Bundle",
    "Crc32",
    "Ed25519Signer",
    "Ed25519Verifier",
    "Factors",
    "Hmac",
    "MicroVector",
    "Policy",
    "Projection",
    "__version__",
    "load_bundle",
]
__all__ += errors.__all__
