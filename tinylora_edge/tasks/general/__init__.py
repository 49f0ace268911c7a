"""General prompts: what people ask a model in general, which no task and no behaviour is about.

A personalized model is compared with its base on these prompts (`runtime.measure_drift`), and held near it on
others of them (`anchor`, in training and in tuning). The file that is shipped was written for this project.
Some of its prompts have answers that a rule can check.
"""

from .judging import is_right, repeats_itself
from .prompts import checkable, load_general

__all__ = ["checkable", "is_right", "load_general", "repeats_itself"]
