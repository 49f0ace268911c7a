"""`trust`: the group of commands that make, change, publish and show trust files."""

from __future__ import annotations

import typer

from ...shared.advice import AdvisedCommand
from .keys import add, revoke
from .roots import init, rotate, sign
from .show import accept, publish, show

trust = typer.Typer(
    help="Say over years which keys may sign vectors: a trust file.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
trust.command("init", cls=AdvisedCommand)(init)
trust.command("add", cls=AdvisedCommand)(add)
trust.command("revoke", cls=AdvisedCommand)(revoke)
trust.command("rotate", cls=AdvisedCommand)(rotate)
trust.command("sign", cls=AdvisedCommand)(sign)
trust.command("show", cls=AdvisedCommand)(show)
trust.command("publish", cls=AdvisedCommand)(publish)
trust.command("accept", cls=AdvisedCommand)(accept)
