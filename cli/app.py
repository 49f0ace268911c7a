"""The application: its table of commands, its global options, and how errors and signals end it."""

from __future__ import annotations

import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Annotated, Any

import typer
from typer import Option
from typer.core import TyperGroup

from tinylora_edge.errors import TinyLoraError
from tinylora_edge.process import set_waiting
from tinylora_edge.version import __version__

from . import console
from .chat import chat
from .convert import convert
from .demo import demo
from .doctor import doctor
from .eval import evaluate
from .export import export
from .inspect import inspect
from .keyfiles import keygen, sign
from .learn import learn
from .pack import pack
from .play import play
from .run import run_prompt
from .serve import serve
from .ship import fetch, publish
from .train import train
from .tune import tune

COMMANDS: dict[str, dict[str, Callable[..., None]]] = {
    "Start here": {"demo": demo, "doctor": doctor},
    "Make a bundle, once per model": {
        "export": export, "learn": learn, "inspect": inspect, "sign": sign
    },
    "Find a vector": {"train": train, "tune": tune, "eval": evaluate},
    "Use it": {"run": run_prompt, "chat": chat, "play": play},
    "Ship it": {
        "pack": pack, "convert": convert, "publish": publish, "fetch": fetch, "keygen": keygen
    },
    "Serve many users": {"serve": serve},
}  # fmt: skip
"""All commands by what people want to do."""

_INTERRUPTED = 128 + signal.SIGINT
_BROKEN_PIPE = 128 + 13  # 13 is SIGPIPE, for which Windows has no name
_LEAVE_S = 2.0  # most time from SIGTERM until the process ends, whatever its threads do
_SETTINGS = {"help_option_names": ["-h", "--help"]}

_signals: list[int] = []  # the signals that told this process to end


class _Root(TyperGroup):
    """The group of all commands. It turns each error that a user can cause into one line and an exit code."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        for title, section in COMMANDS.items():
            with formatter.section(title):
                formatter.write_dl([(name, self.commands[name].get_short_help_str(100)) for name in section])

    def make_context(self, info_name: str | None, args: list[str], *more: Any, **extra: Any) -> Any:
        with _one_line_errors(debug="--debug" in args):  # --version and --help print here
            return super().make_context(info_name, args, *more, **extra)

    def invoke(self, ctx: Any) -> Any:  # ctx is a click Context, of which typer has a copy of its own
        with console.readable_warnings(), _one_line_errors(debug=ctx.params.get("debug")):
            return super().invoke(ctx)


@contextmanager
def _one_line_errors(*, debug: bool) -> Iterator[None]:
    try:
        try:
            yield
        finally:
            sys.stdout.flush()  # so that a full disk or a closed pipe is an error here, not when Python ends
    except KeyboardInterrupt:
        raise typer.Exit(_INTERRUPTED) from None
    except BrokenPipeError:  # the reader of the output, such as `head`, has ended
        _flush_or_forget()
        raise typer.Exit(_BROKEN_PIPE) from None
    except (TinyLoraError, OSError, UnicodeError) as error:
        # The signal caused the error: `run` handles it. After SIGINT it is an error of its own, as in a chat
        # Ctrl-C ends only an answer.
        if _signals and _signals[-1] != signal.SIGINT:
            raise
        if debug:
            traceback.print_exc()
        console.fail(error)
        _flush_or_forget()
        raise typer.Exit(1) from None


app = typer.Typer(
    name=console.NAME,
    cls=_Root,
    help="Personalize a frozen language model on a device with a vector of a few numbers.",
    epilog="tinylora-edge COMMAND --help explains a command, with examples.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain text, as typer's boxes cut long texts, and cannot be piped
    context_settings=_SETTINGS,
)
for _section in COMMANDS.values():
    for _name, _function in _section.items():
        app.command(_name, context_settings=_SETTINGS)(_function)


def _print_version(value: bool) -> None:
    if value:
        console.say(f"{console.NAME} {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[bool, Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    pass


def run() -> None:
    """Run the application as this process, with its signals, streams and exit code."""
    set_waiting()  # before any library with threads is loaded: PyTorch has an OpenMP of its own
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) == signal.SIG_DFL:  # under nohup SIGHUP is ignored
            signal.signal(number, _leave)
    if signal.getsignal(signal.SIGINT) == signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupt)
    console.prepare_streams()
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(_INTERRUPTED)
    except Exception:
        if not _signals:  # code that a signal interrupts may raise anything
            raise
        sys.exit(128 + _signals[-1])


def _leave(number: int, frame: FrameType | None) -> None:
    # The process ends by an exception, so that half-written files are removed on the way. Code in C, such as
    # a module of numpy that is being imported, may turn it into another exception. Threads that compute may
    # take minutes to notice, so the timer ends the process without them: files on the disk are whole.
    _signals.append(number)
    end = threading.Timer(_LEAVE_S, os._exit, (128 + number,))
    end.daemon = True
    end.start()
    sys.exit(128 + number)


def _interrupt(number: int, frame: FrameType | None) -> None:
    _signals.append(number)
    if sys.stderr and sys.stderr.isatty():
        console.acknowledge_interrupt("stopping")  # now, as threads of an engine may take seconds to end
    raise KeyboardInterrupt


def _flush_or_forget() -> None:
    """Write what stdout still holds. If that fails, discard it, or Python would try again when it ends."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)
