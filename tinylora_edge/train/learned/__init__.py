"""Learned projections: the directions of R that are worth a number, found once per model.

* `learn` fits R to each of many behaviours, prompts that the model follows, and takes the directions that
  they share. It returns a basis with explicit projections.
* `Student` fits R, or coordinates in given directions, to one lesson; `prepare_lessons` makes lessons.
"""

from .learning import FORMS, Learned, LearnSettings, learn, questions_of
from .lessons import Lesson, prepare_lessons
from .student import Fit, Student

__all__ = [
    "FORMS",
    "Fit",
    "LearnSettings",
    "Learned",
    "Lesson",
    "Student",
    "learn",
    "prepare_lessons",
    "questions_of",
]
