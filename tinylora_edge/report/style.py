"""The style of reports: one set of colours for light and dark, which a notebook takes too."""

from __future__ import annotations

_LIGHT = """--text: #1f2328; --dim: #59636e; --line: #d1d9e0; --back: #ffffff; --box: #f6f8fa;
  --base: #818b98; --vector: #0969da; --prompt: #8250df; --gain: #1a7f37; --loss: #cf222e;"""
_DARK = """--text: #f0f6fc; --dim: #9198a1; --line: #3d444d; --back: #0d1117; --box: #151b23;
  --base: #7d8590; --vector: #4493f8; --prompt: #ab7df8; --gain: #3fb950; --loss: #f85149;"""

DRAWINGS = """
.tinylora table { border-collapse: collapse; width: 100%; }
.tinylora th, .tinylora td { border-bottom: 1px solid var(--line); padding: .35rem .6rem; text-align: left;
  vertical-align: top; background: none; color: var(--text); }
.tinylora th { font-weight: 600; }
.tinylora code, .tinylora td.hex { font-family: ui-monospace, monospace; font-size: .9em;
  overflow-wrap: anywhere; }
.tinylora td.text { white-space: pre-wrap; overflow-wrap: anywhere; }
.tinylora td.number { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
.tinylora td.bar { width: 55%; min-width: 6rem; vertical-align: middle; }
.tinylora td.bar svg { display: block; width: 100%; height: 1rem; overflow: visible; }
.tinylora .dim { color: var(--dim); }
.tinylora span.gain { color: var(--gain); } .tinylora span.loss { color: var(--loss); }
.tinylora svg .gain { fill: var(--gain); } .tinylora svg .loss { fill: var(--loss); }
.tinylora svg .same { fill: var(--line); } .tinylora svg .base { fill: var(--base); }
.tinylora svg .vector { fill: var(--vector); } .tinylora svg .prompt { fill: var(--prompt); }
.tinylora svg .zero { stroke: var(--dim); vector-effect: non-scaling-stroke; }
.tinylora svg .whisker { stroke: var(--text); stroke-width: 2; vector-effect: non-scaling-stroke; }
"""
"""Of what is drawn, under the class `tinylora`, so that it changes nothing else of a notebook."""

PAGE = """
body { margin: 2rem auto; max-width: 48rem; padding: 0 1rem; color: var(--text); background: var(--back);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.25; margin-bottom: .5rem; text-wrap: balance; }
h2 { font-size: 1.2rem; margin-top: 2.4rem; }
p.headline { font-size: 2.2rem; font-weight: 650; line-height: 1.2; margin: 1.2rem 0 .2rem;
  font-variant-numeric: tabular-nums; }
p.headline small { font-size: 1rem; font-weight: 400; color: var(--dim); white-space: nowrap; }
p.frame { background: var(--box); padding: .6rem; border-radius: .4rem; }
p.verdict { font-weight: 600; }
figure { margin: 1rem 0; } figcaption { color: var(--dim); font-size: .9rem; }
details { margin: 1.2rem 0; border: 1px solid var(--line); border-radius: .4rem; padding: .5rem .8rem; }
summary { cursor: pointer; font-weight: 600; }
details[open] summary { margin-bottom: .6rem; }
td.gain, td.loss { border-left: 3px solid; padding-left: .6rem; }
td.gain { border-left-color: var(--gain); } td.loss { border-left-color: var(--loss); }
td .reward { display: block; color: var(--dim); font-size: .85rem; }
td.gain .reward { color: var(--gain); } td.loss .reward { color: var(--loss); }
svg.curve { width: 100%; height: auto; } svg .label { fill: var(--dim); font-size: 12px; }
svg .grid { stroke: var(--line); } svg .event { stroke: var(--dim); stroke-dasharray: 3 3; }
svg polyline { fill: none; } svg polyline.sampled { stroke: var(--prompt); stroke-width: 1.5;
  stroke-dasharray: 5 3; }
svg polyline.validation { stroke: var(--vector); stroke-width: 2; }
svg circle { fill: var(--vector); }
svg circle.best { fill: var(--back); stroke: var(--vector); stroke-width: 3; }
.sampled { color: var(--prompt); } .validation { color: var(--vector); }
@media (max-width: 36rem) {
  body { margin: 1rem auto; } p.headline { font-size: 1.7rem; }
  p.headline small { display: block; white-space: normal; } svg .label { font-size: 20px; }
  .tinylora th, .tinylora td { padding: .35rem .3rem; }
  .tinylora td.number { white-space: normal; } .tinylora td.bar { width: 40%; min-width: 4rem; }
  table.answers, table.answers tbody, table.answers tr, table.answers td { display: block; }
  table.answers thead { display: none; } table.answers td { border-bottom: none; }
  table.answers tr { border-bottom: 1px solid var(--line); padding: .5rem 0; }
  table.answers td::before { content: attr(data-head); display: block; color: var(--dim);
    font-size: .8rem; }
}
"""
"""Of a page: its text, its headline, its curve, and how answers stack on a phone."""


def page_style() -> str:
    """Return the style sheet of a page, which follows what the reader's system prefers."""
    return (
        f":root {{ color-scheme: light dark; {_LIGHT} }}\n"
        f"@media (prefers-color-scheme: dark) {{ :root {{ {_DARK} }} }}{DRAWINGS}{PAGE}"
    )


def notebook_style() -> str:
    """Return the style sheet of a drawing in a notebook, which says by attributes when it is dark."""
    dark = "[data-jp-theme-light='false'] .tinylora, .vscode-dark .tinylora"
    return f".tinylora {{ {_LIGHT} }}\n{dark} {{ {_DARK} }}{DRAWINGS}"
