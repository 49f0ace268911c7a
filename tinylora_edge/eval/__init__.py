"""Measuring: how much a vector gains in the deployed model, and how much a prompt would gain instead.

    from tinylora_edge import eval
    base, own = (eval.evaluate(batch, task, vector) for vector in (None, llm.vector))
    eval.compare(base, own)                      # the paired difference, with its error and a test
    eval.measure_drift(llm, llm.vector)          # how far it is from the base on general prompts

Over `runtime`, which never imports it: a device that only answers or learns has no need of it.
"""

from .drift import Drift, measure_drift, measure_parity
from .measure import Comparison, Evaluation, compare, evaluate, find_prompt

__all__ = [
    "Comparison",
    "Drift",
    "Evaluation",
    "compare",
    "evaluate",
    "find_prompt",
    "measure_drift",
    "measure_parity",
]
