"""Two rules that judge an answer without a model: whether it repeats itself, and whether it is right."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from ..rewards.guards import repeats, words

_RUN = 4  # words
_TIMES = 3


def repeats_itself(text: str) -> bool:
    """Whether an answer repeats itself.

    It does where a phrase of 1 to 8 words occurs three times in a row, or the same four words in a row occur
    three times anywhere. Letter case and punctuation do not count.
    """
    sequence = words(text)
    runs = Counter(tuple(sequence[i : i + _RUN]) for i in range(len(sequence) - _RUN + 1))
    return max(runs.values(), default=0) >= _TIMES or repeats(text)


def is_right(text: str, answers: Sequence[str]) -> bool:
    """Whether one of the accepted answers stands in a text, as words or a number of its own.

    Letter case does not count. The 12 in "112", "1,012" and "12.5" is no 12, and "art" is not in "party".
    """
    return any(
        re.search(rf"(?<!\w)(?<!\d[.,]){re.escape(answer)}(?!\w|[.,]\d)", text, re.IGNORECASE)
        for answer in answers
    )
