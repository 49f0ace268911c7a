"""The page of a report: one HTML file that needs nothing else, runs nothing, and reads in light and dark."""

from __future__ import annotations

from collections.abc import Iterable

from .markup import text
from .style import page_style


def page(title: str, body: Iterable[str]) -> str:
    """Return a whole HTML document that is well-formed XML too.

    Args:
        title: for the tab; it is escaped.
        body: the elements, in order.
    """
    inner = "\n".join(body)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8"/>\n'
        # A browser that opens this file loads and runs nothing, whatever text it quotes.
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
        "style-src 'unsafe-inline'\"/>\n"
        '<meta name="viewport" content="width=device-width, initial-scale=1"/>\n'
        f"<title>{text(title)}</title>\n<style>{page_style()}</style>\n</head>\n"
        f'<body class="tinylora">\n{inner}\n</body>\n</html>\n'
    )
