"""`vector`: the group of commands that make, read and carry micro-vectors."""

from __future__ import annotations

import typer

from .average import average
from .inspect import inspect_vector
from .new import new
from .pack import pack
from .qr import qr
from .text import as_text
from .verify import verify

vector = typer.Typer(
    help="Make, look at, sign, carry and average micro-vectors.", no_args_is_help=True, rich_markup_mode=None
)
vector.command("new")(new)
vector.command("inspect")(inspect_vector)
vector.command("average")(average)
vector.command("pack")(pack)
vector.command("verify")(verify)
vector.command("text")(as_text)
vector.command("qr")(qr)
