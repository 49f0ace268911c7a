"""The application: the table of commands, global options, and what becomes of errors and signals."""

from __future__ import annotations

import importlib
import os
import platform
import signal
import sys
import traceback
from contextlib import suppress
from importlib import metadata
from types import FrameType
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from ..errors import TinyLoraError
from ..system import __version__, set_waiting
from . import console

COMMANDS = {
    "Start here": {
        "demo": "demo:demo",
        "doctor": "doctor:doctor",
    },
    "Make a bundle, once per model": {
        "export": "export:export",
        "models": "models:models",
        "learn": "learn:learn",
        "inspect": "inspect:inspect",
        "sign": "sign:sign",
    },
    "Find a vector": {
        "train": "train:train",
        "tune": "tune:tune",
        "distill": "distill:distill",
        "eval": "eval:evaluate",
    },
    "Use it": {
        "run": "run:run_prompt",
        "chat": "chat:chat",
        "play": "play:play",
    },
    "Ship it": {
        "pack": "pack:pack",
        "convert": "convert:convert",
        "links": "links:links",
        "publish": "publish:publish",
        "fetch": "fetch:fetch",
        "keygen": "keygen:keygen",
    },
    "Serve many users": {
        "serve": "serve:serve",
    },
}
"""All commands by what people want to do: name -> module below `tinylora_edge.cli`, and function."""

ENGINES = {"llama-cpp-python": "llama", "onnxruntime": "onnx", "onnxruntime-genai": "onnx"}
"""Distributions of engines, and the extra that installs each."""

_PLACES = {name: place for section in COMMANDS.values() for name, place in section.items()}
_INTERRUPTED = 128 + signal.SIGINT
_BROKEN_PIPE = 128 + 13  # SIGPIPE, which Windows does not name

_signals: list[int] = []  # that told this process to end


class _Root(TyperGroup):
    """The root of all commands, each imported when it is asked for.

    It turns every error that a user can cause into one line and an exit code.
    """

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names of the commands."""
        return list(_PLACES)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return a command, as click has it; None for a name that is none."""
        if cmd_name not in self.commands and cmd_name in _PLACES:
            module, _, function = _PLACES[cmd_name].partition(":")
            single = typer.Typer(add_completion=False, rich_markup_mode=None)
            target = importlib.import_module(f"{__package__}.{module}")
            single.command(cmd_name, context_settings=_SETTINGS)(getattr(target, function))
            self.commands[cmd_name] = typer.main.get_command(single)
            self.commands[cmd_name].name = cmd_name
        return self.commands.get(cmd_name)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the commands by sections, each with the first sentence of its help."""
        for title, section in COMMANDS.items():
            with formatter.section(title):
                rows = [(name, self.get_command(ctx, name).get_short_help_str(100)) for name in section]
                formatter.write_dl(rows)

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


_SETTINGS = {"help_option_names": ["-h", "--help"]}

app = typer.Typer(
    name=console.NAME,
    cls=_Root,
    help="Personalize a frozen language model on a device with a dozen numbers.",
    epilog="tinylora-edge COMMAND --help explains a command, with examples.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain text: typer's boxes cut what is long, and cannot be piped
    context_settings=_SETTINGS,
)


def _print_version(value: bool) -> None:
    if value:
        console.say(f"{console.NAME} {__version__}")
        console.say(f"  Python {platform.python_version()} ({platform.system()} {platform.machine()})")
        for name, extra in ENGINES.items():  # asked of their packages, which are not imported
            try:
                console.say(f"  {name} {metadata.version(name)}")
            except metadata.PackageNotFoundError:
                console.say(f'  {name} is not installed: pip install "tinylora-edge[{extra}]"')
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version, and the engines'."
        ),
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    pass


def run() -> None:
    """Run the application as the process: waiting threads, signals, encodings, exit code."""
    set_waiting()  # before any library that has threads: PyTorch brings an OpenMP of its own
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
    except Exception as error:
        if _signals:
            sys.exit(128 + _signals[0])
        if isinstance(error, OSError):  # before any command: the shell's own files cannot be written
            console.fail(error)
            sys.exit(1)
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
