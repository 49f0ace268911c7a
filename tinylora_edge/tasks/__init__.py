"""Tasks: prompts to train on, prompts never trained on, and a reward. No torch, no engine.

`load_task` returns a built-in task (`BUILTIN`) or one from a JSONL file; `Task.score` judges a completion
with the task's reward and refuses whatever is not a finite number. `rewards` has the built-in rewards and
the grammar that combines them (`rewards.parse_reward`). Training, on-device tuning and evaluation all
read the same tasks.
"""

from . import rewards
from ._load import BUILTIN, load_task
from .preamble import Preamble
from .task import Completion, Prompt, Reward, Sample, Task

__all__ = ["BUILTIN", "Completion", "Preamble", "Prompt", "Reward", "Sample", "Task", "load_task", "rewards"]
