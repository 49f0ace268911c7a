"""TRL as the engine of training: for models that need a GPU, or several.

`train_trl` runs a task on a bundle with TRL's `GRPOTrainer`; `python -m tinylora_edge.train.trl` runs a
recipe. `peft_model` puts a basis into PEFT, with `vector_of` and `set_vector` for its micro-vector. The
libraries (TRL, PEFT, accelerate) are imported when one of these is asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .peft_tinylora import peft_model, set_vector, vector_of
    from .training import train_trl

__all__ = ["peft_model", "set_vector", "train_trl", "vector_of"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = "training" if name == "train_trl" else "peft_tinylora"
    return getattr(import_module(f".{home}", __name__), name)
