"""`vector`: the group of commands that make, read and carry micro-vectors."""

from __future__ import annotations

import typer

from ...shared.advice import AdvisedCommand
from .average import average
from .inspect import inspect_vector
from .new import new
from .pack import pack
from .qr import qr
from .receipt import receipt
from .text import as_text
from .verify import verify

vector = typer.Typer(
    help="Make, look at, sign, carry and average micro-vectors.", no_args_is_help=True, rich_markup_mode=None
)
vector.command("new", cls=AdvisedCommand)(new)
vector.command("inspect", cls=AdvisedCommand)(inspect_vector)
vector.command("average", cls=AdvisedCommand)(average)
vector.command("pack", cls=AdvisedCommand)(pack)
vector.command("verify", cls=AdvisedCommand)(verify)
vector.command("receipt", cls=AdvisedCommand)(receipt)
vector.command("text", cls=AdvisedCommand)(as_text)
vector.command("qr", cls=AdvisedCommand)(qr)
