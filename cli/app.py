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

from ..errors import TinyLoraError
from ..system import set_waiting
from .shared import console
from .surface.commands import Entry, LazyGroup, Section
from .surface.version import print_version

COMMANDS = (
    Section(
        "Start here",
        (
            Entry("demo", "demo.command:demo", "Teach a real model with 37 bytes, prove it, take it back."),
            Entry("doctor", "doctor.command:doctor", "Say what is missing or wrong here, and what mends it."),
        ),
    ),
    Section(
        "Make a bundle, once per model",
        (
            Entry("export", "commands.bundles.export:export", "Bake a model's frozen part into a bundle."),
            Entry("models", "commands.bundles.models:models", "List the models that have short names."),
            Entry("learn", "commands.training.learn:learn", "Learn which 13 directions are worth a number."),
            Entry("inspect", "commands.bundles.inspect:inspect", "Show and check a bundle, basis or vector."),
            Entry("merge", "commands.bundles.merge:merge", "Join the parts of an export into a bundle."),
            Entry("sign", "commands.bundles.sign:sign", "Sign a bundle, so that devices load no other."),
        ),
    ),
    Section(
        "Find a vector",
        (
            Entry("train", "commands.training.train:train", "Train for a task with GRPO, on a host."),
            Entry("tune", "commands.training.tune:tune", "Tune for a task on this device, without PyTorch."),
            Entry("distill", "commands.training.distill:distill", "Turn a prompt into a vector."),
            Entry(
                "eval", "commands.training.eval:evaluate", "Measure whether a vector helps, and by how much."
            ),
            Entry("tasks", "commands.training.tasks:tasks", "List the built-in tasks, each with an example."),
        ),
    ),
    Section(
        "Use it",
        (
            Entry("run", "commands.answers.run:run_prompt", "Ask once, with or without a vector."),
            Entry("chat", "commands.answers.chat:chat", "Talk with the model, and change its vector."),
            Entry("play", "commands.serving.play:play", "Open a page: sliders, two answers side by side."),
        ),
    ),
    Section(
        "Ship it",
        (
            Entry("vector", "commands.vectors.group:vector", "Make, look at, sign, carry, average vectors."),
            Entry(
                "convert", "commands.vectors.convert:convert", "Convert a vector to or from other formats."
            ),
            Entry(
                "links", "commands.shipping.links:links", "Show which frame fits which radio, SMS or code."
            ),
            Entry(
                "publish", "commands.shipping.publish:publish", "Put a vector where any web server serves it."
            ),
            Entry(
                "fetch", "commands.shipping.fetch:fetch", "Fetch the newest vector, check it, replace a file."
            ),
            Entry("keygen", "commands.shipping.keygen:keygen", "Make a key pair, or a MAC key."),
            Entry("trust", "commands.trust.group:trust", "Say over years which keys may sign vectors."),
        ),
    ),
    Section(
        "Serve many users",
        (
            Entry(
                "serve", "commands.serving.serve:serve", "Speak OpenAI's API, with a vector for each user."
            ),
            Entry(
                "vectors", "commands.serving.store:vectors", "Look into a server's store, fill or copy it."
            ),
        ),
    ),
)
"""All commands, a line each, by what people want to do: name, where it is, and what it is for."""

_INTERRUPTED = 128 + signal.SIGINT
_BROKEN_PIPE = 128 + 13  # SIGPIPE, which Windows does not name

_signals: list[int] = []  # that told this process to end


class _Root(LazyGroup):
    """The root of all commands. It turns every error that a user can cause into one line and an exit code."""

    table = COMMANDS

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
        except Exception as error:
            if hasattr(
                error, "format_message"
            ):  # a click exception, which typer brings under a name of its own
                console.wrap_usage_error(error)
            raise


app = typer.Typer(
    name="tinylora-edge",
    cls=_Root,
    help="Personalize a frozen language model on a device with a dozen numbers.",
    epilog="tinylora-edge COMMAND --help explains a command, with examples.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # surface/help.py writes the help; typer's boxes cut and cannot be piped
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(value: bool) -> None:
    if value:
        print_version()
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
            setattr(error, console.ADVICE, "--show-completion prints the script, to be put where it can be")
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
