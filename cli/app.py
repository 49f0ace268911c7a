"""The application: global options, the commands, and what becomes of errors and signals."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from contextlib import suppress
from types import FrameType
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from .. import __version__
from ..errors import TinyLoraError
from .commands.answers.chat import chat
from .commands.answers.run import run_prompt
from .commands.bundles.export import export
from .commands.bundles.inspect import inspect
from .commands.bundles.merge import merge
from .commands.bundles.models import models
from .commands.bundles.sign import sign
from .commands.serving.serve import serve
from .commands.serving.store import vectors
from .commands.shipping.fetch import fetch
from .commands.shipping.keygen import keygen
from .commands.shipping.links import links
from .commands.shipping.publish import publish
from .commands.training.distill import distill
from .commands.training.eval import evaluate
from .commands.training.learn import learn
from .commands.training.tasks import tasks
from .commands.training.train import train
from .commands.training.tune import tune
from .commands.trust.group import trust
from .commands.vectors.convert import convert
from .commands.vectors.group import vector
from .demo.command import demo
from .doctor.command import doctor
from .shared import console
from .shared.advice import AdvisedCommand

_INTERRUPTED = 128 + signal.SIGINT
_BROKEN_PIPE = 128 + 13  # SIGPIPE, which Windows does not name

_signals: list[int] = []  # that told this process to end


class _Root(TyperGroup):
    """The root of all commands. It turns every error that a user can cause into one line and an exit code."""

    def invoke(self, ctx: Any) -> Any:  # a click Context, which typer brings under a name of its own
        """Invoke the command that was named."""
        try:
            with console.readable_warnings():
                result = super().invoke(ctx)
            sys.stdout.flush()  # a full disk or a closed pipe shows here, not when Python ends
            return result
        except KeyboardInterrupt:
            raise typer.Exit(_INTERRUPTED) from None
        except BrokenPipeError:  # the reader, `head` say, has seen enough
            _detach_stdout()
            raise typer.Exit(_BROKEN_PIPE) from None
        except (TinyLoraError, OSError) as error:
            if _signals:  # what the signal broke is no error of its own: `run` ends with the signal
                raise
            if ctx.params.get("debug"):
                traceback.print_exc()
            console.fail(error)
            raise typer.Exit(1) from None


app = typer.Typer(
    name="tinylora-edge",
    cls=_Root,
    help="Personalize a frozen language model on a device with a dozen numbers.",
    epilog="Start with: tinylora-edge demo",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help and usage errors read the same in a pipe
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(value: bool) -> None:
    if value:
        console.say(f"tinylora-edge {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    pass


app.command(cls=AdvisedCommand)(demo)
app.command(cls=AdvisedCommand)(doctor)
app.command(cls=AdvisedCommand)(export)
app.command(cls=AdvisedCommand)(merge)
app.command(cls=AdvisedCommand)(models)
app.command(cls=AdvisedCommand)(inspect)
app.command(cls=AdvisedCommand)(sign)
app.command("run", cls=AdvisedCommand)(run_prompt)
app.command(cls=AdvisedCommand)(chat)
app.command(cls=AdvisedCommand)(learn)
app.command(cls=AdvisedCommand)(train)
app.command(cls=AdvisedCommand)(distill)
app.command(cls=AdvisedCommand)(tune)
app.command("eval", cls=AdvisedCommand)(evaluate)
app.command(cls=AdvisedCommand)(convert)
app.command(cls=AdvisedCommand)(tasks)
app.command(cls=AdvisedCommand)(serve)
app.command(cls=AdvisedCommand)(keygen)
app.command(cls=AdvisedCommand)(links)
app.command(cls=AdvisedCommand)(publish)
app.command(cls=AdvisedCommand)(fetch)
app.add_typer(vector, name="vector")
app.add_typer(trust, name="trust")
app.add_typer(vectors, name="vectors")


def run() -> None:
    """Run the application as the process: signals, encodings, exit code."""
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) == signal.SIG_DFL:  # nohup ignores SIGHUP
            signal.signal(number, _leave)
    console.replace_closed_streams()
    console.survive_any_text()
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(_INTERRUPTED)
    except Exception:
        if _signals:
            sys.exit(128 + _signals[0])
        raise


def _leave(number: int, frame: FrameType | None) -> None:
    # As an exception, so that what is half written is removed on the way out. Where it passes through code
    # written in C (a module of numpy that is being imported), it arrives as another one.
    _signals.append(number)
    sys.exit(128 + number)


def _detach_stdout() -> None:
    # Python flushes stdout once more when it ends, and would complain about the same pipe again.
    with suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)
