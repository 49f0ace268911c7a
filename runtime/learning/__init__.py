"""Learning on a device, by forward passes alone: from a reward (`tune`), from clicks (`Clicks`).

A reward is learned from by one learner (`learner.py`: sittings, checks, budgets) over a search. A user's
clicks are evidence about their vector, a Gaussian posterior. Both keep a file of numbers (`state.py`).
"""

from .clicks import Clicks, SampledAnswer
from .learner import RewardLearner, Tuned, TuneSettings, tune
from .state import Budget

__all__ = [
    "Budget",
    "Clicks",
    "RewardLearner",
    "SampledAnswer",
    "TuneSettings",
    "Tuned",
    "tune",
]
