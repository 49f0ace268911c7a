"""Tasks: prompts to train on, prompts never trained on, and a reward. No torch, no engine.

`load_task` returns a built-in task (`BUILTIN`) or one from a file; `Task.score` judges a completion
with the task's reward and refuses whatever is not a finite number. `rewards` has the built-in rewards, and
finds them by name (`rewards.parse_reward`). `Preamble` is a system prompt and worked examples
before every prompt; `draw_examples` draws those from the training split, and `instruction` makes the obvious
system prompt of its answers.
"""

from . import rewards
from .instruction import instruction
from .load import BUILTIN, load_task, read_schema
from .sample import Prompt, Sample
from .task import Completion, Preamble, Reward, Task, draw_examples

__all__ = [
    "BUILTIN",
    "Completion",
    "Preamble",
    "Prompt",
    "Reward",
    "Sample",
    "Task",
    "draw_examples",
    "instruction",
    "load_task",
    "read_schema",
    "rewards",
]
