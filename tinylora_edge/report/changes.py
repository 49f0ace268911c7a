"""What a vector changed, prompt by prompt: how many it gained, lost, and left as they were."""

from __future__ import annotations

from .markup import Markup, table

_HIGH = 10


def changes(gained: int, lost: int, n: int | None = None) -> str:
    """Return prompts gained and lost as one bar with its figures.

    Args:
        gained: prompts with a higher reward than before.
        lost: prompts with a lower one.
        n: all prompts; None where only the changed ones are known, and the bar is theirs alone.
    """
    same = 0 if n is None else n - gained - lost
    whole, at, parts = max(gained + same + lost, 1), 0.0, []
    for name, count in (("gain", gained), ("same", same), ("loss", lost)):
        width = 100 * count / whole
        parts.append(f'<rect class="{name}" x="{at:.2f}" y="1" width="{width:.2f}" height="8"/>')
        at += width
    bar = f'<svg viewBox="0 0 100 {_HIGH}" preserveAspectRatio="none" aria-hidden="true">'
    words = [f'<span class="gain">+{gained} gained</span>', f'<span class="loss">-{lost} lost</span>']
    if n is not None:
        words.append(f'<span class="dim">{same} as before</span>')
    cells = Markup(bar + "".join(parts) + "</svg>"), Markup(" &#183; ".join(words))
    return table((), [cells], ("bar", "number"))
