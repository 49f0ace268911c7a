"""Learning on a device, by forward passes alone: from a reward, from clicks, from a prompt.

One learner (`learner.py`: sittings, checks, budgets) over one search (CMA-ES) and one file of state has two
objectives: the reward of answers (`tune`), and nearness to a prompted model (`distill`). A user's clicks are
evidence about his vector, a Gaussian posterior that is kept in such a file, too (`Clicks`).
"""

from .clicks import Clicks, Given
from .contrast import Distilled, Replacement
from .learner import Tuned, TuneSettings
from .prompt import distill
from .reward import RewardLearner, tune
from .state import Budget

__all__ = [
    "Budget",
    "Clicks",
    "Distilled",
    "Given",
    "Replacement",
    "RewardLearner",
    "TuneSettings",
    "Tuned",
    "distill",
    "tune",
]
