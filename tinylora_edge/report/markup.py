"""Elements of HTML that are well-formed XML too. Text is escaped where it enters."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

from .style import notebook_style


@dataclass(frozen=True)
class Markup:
    """Markup that is made already, where a cell or a paragraph would else be escaped.

    Attributes:
        html: the elements.
    """

    html: str


Content = str | Markup
"""Text, which is escaped, or markup, which is not."""


def text(content: Content) -> str:
    """Return markup of content; what no page may hold, such as control codes, becomes U+FFFD."""
    if isinstance(content, Markup):
        return content.html
    return escape("".join(c if _shows(c) else "\ufffd" for c in content))


def _shows(character: str) -> bool:
    # Of spaces Python prints one alone, and a joiner, which makes one emoji of several, not at all.
    return character.isprintable() or character in "\n\t\u200d" or unicodedata.category(character) == "Zs"


def element(tag: str, content: Content, name: str = "") -> str:
    """Return an element with a class, or with none."""
    return f'<{tag} class="{name}">{text(content)}</{tag}>' if name else f"<{tag}>{text(content)}</{tag}>"


def paragraph(content: Content, name: str = "") -> str:
    """Return a `<p>`."""
    return element("p", content, name)


def heading(content: Content) -> str:
    """Return an `<h2>`."""
    return element("h2", content)


def folded(summary: str, body: str) -> str:
    """Return a `<details>` that is closed at first."""
    return f"<details>{element('summary', summary)}{body}</details>"


@dataclass(frozen=True)
class Cell:
    """A cell of a table.

    Attributes:
        content: text or markup.
        name: its class; empty for the class of its column.
    """

    content: Content
    name: str


def table(
    head: Sequence[str],
    rows: Iterable[Sequence[Content | Cell]],
    classes: Sequence[str] = (),
    *,
    name: str = "",
) -> str:
    """Return a `<table>`.

    Args:
        head: of the columns; none at all for a table without one.
        rows: the cells.
        classes: of the columns' cells; empty for none.
        name: class of the table. Where it is `answers`, a narrow screen stacks the cells of a row.
    """
    lines = [f'<table class="{name}">' if name else "<table>"]
    if head:
        lines.append("<thead><tr>" + "".join(element("th", cell) for cell in head) + "</tr></thead>")
    lines.append("<tbody>")
    for row in rows:
        lines.append("<tr>")
        for column, given in enumerate(row):
            default = classes[column] if classes else ""
            cell = given if isinstance(given, Cell) else Cell(given, default)
            attributes = f' class="{cell.name or default}"' if cell.name or default else ""
            if name == "answers" and head:
                attributes += f' data-head="{text(head[column])}"'
            lines.append(f"<td{attributes}>{text(cell.content)}</td>")
        lines.append("</tr>")
    lines.append("</tbody></table>")
    return "\n".join(lines)


def drawing(body: str) -> str:
    """Return what a notebook shows of an object: the drawing with its style."""
    return f'<div class="tinylora"><style>{notebook_style()}</style>{body}</div>'
