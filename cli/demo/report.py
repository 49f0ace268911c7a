"""The demo's report: one HTML file that needs nothing else, runs nothing, and reads in light and dark."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from html import escape
from typing import Any

from .curve import curve
from .results import DemoResult, duration

_STYLE = """
:root { color-scheme: light dark; --text: #1f2328; --dim: #59636e; --line: #d1d9e0; --back: #ffffff;
  --first: #8250df; --second: #0969da; --box: #f6f8fa; }
@media (prefers-color-scheme: dark) { :root { --text: #f0f6fc; --dim: #9198a1; --line: #3d444d;
  --back: #0d1117; --first: #ab7df8; --second: #4493f8; --box: #151b23; } }
body { margin: 2rem auto; max-width: 48rem; padding: 0 1rem; color: var(--text); background: var(--back);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.2rem; }
table { border-collapse: collapse; width: 100%; }
th, td { border-bottom: 1px solid var(--line); padding: .35rem .6rem; text-align: left; vertical-align: top; }
th { font-weight: 600; } td.text { white-space: pre-wrap; overflow-wrap: anywhere; }
code, td.hex { font-family: ui-monospace, monospace; font-size: .9em; overflow-wrap: anywhere; }
p.frame { background: var(--box); padding: .6rem; } p.verdict { font-weight: 600; }
.dim, figcaption { color: var(--dim); } figure { margin: 1rem 0; }
svg { width: 100%; height: auto; } svg .label { fill: var(--dim); font-size: 12px; }
svg .grid { stroke: var(--line); } svg .event { stroke: var(--dim); stroke-dasharray: 3 3; }
svg polyline { fill: none; } svg polyline.sampled { stroke: var(--first); stroke-width: 1.5;
  stroke-dasharray: 5 3; }
svg polyline.validation { stroke: var(--second); stroke-width: 2; } svg circle { fill: var(--second); }
svg circle.best { fill: var(--back); stroke: var(--second); stroke-width: 3; }
.first { color: var(--first); } .second { color: var(--second); }
"""


def render(found: DemoResult) -> str:
    """Return the report: HTML that is well-formed XML too. Whatever it quotes is escaped."""
    body = "\n".join(_body(found))
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8"/>\n'
        # A browser that opens this file loads and runs nothing, whatever text it quotes.
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
        "style-src 'unsafe-inline'\"/>\n"
        '<meta name="viewport" content="width=device-width, initial-scale=1"/>\n'
        f"<title>tinylora-edge: {found.frame.bytes} bytes</title>\n<style>{_STYLE}</style>\n</head>\n"
        f"<body>\n{body}\n</body>\n</html>\n"
    )


def _body(found: DemoResult) -> Iterator[str]:
    held, training, frame = found.held_out, found.training, found.frame
    settings = training.options["settings"]
    yield f"<h1>{frame.bytes} bytes for {_text(found.model)}</h1>"
    short = " It was a short run: the whole demo trains longer." if found.quick else ""
    yield _p(
        f"A frozen model was exported, measured, trained with GRPO on the task {held.task}, and measured "
        f"again with the vector, which came out of a frame of {frame.bytes} bytes. All of it took "
        f"{duration(found.seconds)} with {found.threads} threads.{short}"
    )

    yield "<h2>On prompts never trained on</h2>"
    rows = [*held.rows(), *found.prompted.rows()]
    yield _table(["", f"mean reward, {held.n} prompts, greedy answers"], rows)
    yield _p(held.verdict(), "verdict")
    yield _p(found.prompted.summary())
    yield _p(
        "Behind +- is the standard error. Base and vector answer the same prompts in the deployed runtime, "
        "so their difference is paired; McNemar's exact test asks how likely gains and losses this uneven "
        "would be if the vector made no difference.",
        "dim",
    )

    yield "<h2>Training</h2><figure>"
    yield curve(training.curve, training.best_step, max(training.steps, 1))
    yield (
        '<figcaption><span class="first">dashed: mean reward of the sampled answers of each step</span>; '
        f'<span class="second">solid: greedy answers to {training.validation} prompts held back</span>, '
        "the step that was kept with a ring.</figcaption></figure>"
    )
    yield _p(
        f"{training.steps} steps of {settings['prompts']} prompts with {training.options['samples']} "
        f"samples each took {duration(training.seconds)}. {training.summary()}"
    )

    yield f"<h2>The frame</h2><p class='frame'><code>{_text(frame.hex)}</code></p>"
    yield _table(["bytes", "what they are"], frame.parts, classes=("hex", ""))
    yield _p("The values: " + ", ".join(f"{value:.4g}" for value in frame.values))

    yield "<h2>Answers</h2>"
    for title, chosen in found.answers.groups():
        yield _p(f"To {title}:")
        yield _table(
            ["prompt", "base", "with the vector"],
            [
                (
                    a.prompt,
                    f"{a.base}\n(reward {a.base_reward:g})",
                    f"{a.personalized}\n(reward {a.personalized_reward:g})",
                )
                for a in chosen
            ],
            classes=("text", "text", "text"),
        )

    timing = found.timing
    yield "<h2>Exchange, and the base again</h2>"
    yield _p(
        f"A load took {timing.load * 1e3:.0f} ms with the vector, and {timing.plain_load * 1e3:.0f} ms for a "
        f"plain llama_cpp.Llama; a swap {timing.swap * 1e3:.2f} ms (median of {timing.swaps})."
    )
    summary = found.proof.summary()
    yield _p(summary[0].upper() + summary[1:])

    yield "<h2>How to get the same</h2>"
    export = found.export
    yield _table(
        ["what", "value"],
        [
            ("model", found.model),
            ("basis", export.digest),
            ("modules", f"{export.modules}, worst residual {export.residual:.1e}"),
            ("seed", str(found.seed)),
            *_flat(training.options),
            *found.versions.items(),
        ],
        classes=("", "hex"),
    )
    yield _p("The curve as data, and the values, are in vector.bin.json beside this file.", "dim")


def _flat(options: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for name, value in options.items():
        if isinstance(value, dict):
            yield from ((f"{name}.{inner}", rest) for inner, rest in _flat(value))
        elif value is not None:  # None is decided by the run itself
            yield name, str(value)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], classes: Sequence[str] = ()) -> str:
    named = [f' class="{name}"' if name else "" for name in classes] or [""] * len(head)
    lines = ["<table><thead><tr>" + "".join(f"<th>{_text(cell)}</th>" for cell in head) + "</tr></thead>"]
    lines.append("<tbody>")
    for row in rows:
        cells = zip(named, row, strict=True)
        lines.append("<tr>" + "".join(f"<td{name}>{_text(cell)}</td>" for name, cell in cells) + "</tr>")
    lines.append("</tbody></table>")
    return "\n".join(lines)


def _p(text: str, name: str = "") -> str:
    return f'<p class="{name}">{_text(text)}</p>' if name else f"<p>{_text(text)}</p>"


def _text(text: str) -> str:
    """Escape text; what no page may hold, such as control codes of a model's answer, becomes U+FFFD."""
    return escape("".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text))
