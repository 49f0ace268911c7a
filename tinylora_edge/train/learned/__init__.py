"""Learned projections: the directions of R that are worth a number, found once per model.

* `learn` takes the slopes of many behaviours, prompts that the model follows, in all of R, and finds the
  directions that they share, measured in nats (`Metric`). It returns a basis with explicit projections.
* `Student` takes the slopes of one lesson, or fits R or coordinates to it; `prepare_lessons` makes lessons.
"""

from .contrasts import Axis
from .learning import Learned, learn, questions_of, take_slopes
from .lessons import Lesson, prepare_lessons
from .metric import Metric
from .settings import FORMS, LearnSettings
from .student import Fit, Slopes, Student

__all__ = [
    "FORMS",
    "Axis",
    "Fit",
    "LearnSettings",
    "Learned",
    "Lesson",
    "Metric",
    "Slopes",
    "Student",
    "learn",
    "prepare_lessons",
    "questions_of",
    "take_slopes",
]
