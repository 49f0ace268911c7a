"""The host side of a vector: SFT or GRPO finds its numbers, and evaluation measures them.

`train` runs a task on a bundle and writes a frame. The parts are there for those who run their own loop:
`Adapter` puts a basis into a transformers model, `Learner` turns scored completions into a gradient of v,
`Trainer` is the loop. Needs the extra `train` (torch, transformers); `train` itself, which draws and
evaluates in the deployed engine, needs `llama` or `onnx` too.
"""

from ..errors import MissingExtraError

try:
    import torch  # noqa: F401
except ModuleNotFoundError:
    raise MissingExtraError("training", "torch", "train") from None

from .adapter import Adapter
from .learner import Group, Learner
from .many import UserResult, train_many
from .options import Options, Outcome, Result, grown
from .run import train
from .trainer import Trainer

__all__ = [
    "Adapter",
    "Group",
    "Learner",
    "Options",
    "Outcome",
    "Result",
    "Trainer",
    "UserResult",
    "grown",
    "train",
    "train_many",
]
