"""Learning on a device, by forward passes alone: from a reward (`tune`), from clicks (`Clicks`).

`learner.py` learns from a reward by a search, in sittings with checks and budgets. `clicks.py` takes a user's
clicks as evidence about their vector, a Gaussian posterior. Both keep a file of numbers (`state.py`).
"""

from .clicks import Clicks, SampledAnswer
from .learner import RewardLearner, Tuned, TuneSettings, tune
from .state import Budget

__all__ = ["Budget", "Clicks", "RewardLearner", "SampledAnswer", "TuneSettings", "Tuned", "tune"]
