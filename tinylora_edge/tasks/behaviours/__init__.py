"""Behaviours: prompts that a vector can take the place of, and the questions that they are asked with.

Learning a basis and distilling a prompt compare two views of one question: the teacher sees it behind a
system prompt or worked examples (`Behaviour.messages`), the student sees it alone (`Behaviour.bare`). Two
files are shipped, both written for this project: `behaviours.jsonl`, and `questions.jsonl` for the behaviours
that bring no questions of their own. Both have a side to learn from and one to measure on. A family of
behaviours is on one side only, and so is what a question is about.
"""

from ._files import load_behaviours, load_examples, load_questions
from .behaviour import FEWEST_QUESTIONS, Behaviour, Split

__all__ = [
    "FEWEST_QUESTIONS",
    "Behaviour",
    "Split",
    "load_behaviours",
    "load_examples",
    "load_questions",
]
