"""A chat template is a program that comes with a model: it is tried in a process that can be stopped.

That process runs this file by its path, so that it imports nothing of the package but what it needs.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..errors import TinyLoraError

SECONDS = 20.0
"""That a trial may take, the start of its process included."""

MEMORY = 1 << 30
"""Bytes that the template may take in it (on Linux)."""

_BEGUN = "begun"  # printed once a trial is about to try
_NO_TEMPLATE, _OUT_OF_MEMORY = 3, 4  # exit codes; why a template cannot be read is on stderr
_MESSAGES = [{"role": role, "content": "Hello"} for role in ("system", "user", "assistant", "user")]


@lru_cache(64)
def check_template(template: str, folder: str = "") -> None:
    """Render a few short messages with a template, in a process of its own.

    A template may refuse messages, such as a system's. Where no Python can be started, as in an app that has
    it built in, nothing is tried.

    Args:
        template: Jinja, as a GGUF has it.
        folder: of the ONNX model whose template it is: onnxruntime-genai then renders, else Jinja2.

    Raises:
        TinyLoraError: it cannot be read, or takes too much time or memory.
    """
    request = json.dumps({"template": template, "folder": folder, "memory": MEMORY})
    command = [sys.executable, "-P", __file__]
    try:
        done = subprocess.run(
            command, input=request, capture_output=True, encoding="utf-8", timeout=SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        raise _refused(f"takes more than {SECONDS:g} s for a short chat") from None
    except OSError:
        return
    if not done.stdout.startswith(_BEGUN) or done.returncode == 0:
        return
    if done.returncode == _NO_TEMPLATE:
        raise _refused(f"cannot be read: {' '.join(done.stderr.split())[:200]}")
    raise _refused(f"takes more than {MEMORY >> 30} GB of memory for a short chat")


def _refused(why: str) -> TinyLoraError:
    from ..errors import TinyLoraError

    return TinyLoraError(f"the model's chat template {why}. It came with the model: use another file of it")


def _trial() -> int:
    """Render what stdin names, and return the exit code."""
    request = json.load(sys.stdin)
    make = _genai(request["folder"]) if request["folder"] else _jinja(request["template"])
    _limit(request["memory"])
    print(_BEGUN, flush=True)
    try:
        render = make()
    except MemoryError:
        return _OUT_OF_MEMORY
    except Exception as error:  # of the compiler: whatever it is, there is no template
        print(error or type(error).__name__, file=sys.stderr)
        return _NO_TEMPLATE
    try:
        render()
    except MemoryError:
        return _OUT_OF_MEMORY
    except Exception:  # it refuses the short chat, which is no reason to refuse the template
        pass
    return 0


def _jinja(template: str) -> Callable[[], Callable[[], object]]:
    """Return what compiles a template as llama-cpp-python does."""
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class PassThrough(Extension):
        tags = {"generation"}  # noqa: RUF012 - as Jinja2 has it

        def parse(self, parser):  # type: ignore[no-untyped-def]
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    made = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[PassThrough, loopcontrols]
    )

    def compiled() -> Callable[[], object]:
        render = made.from_string(template).render
        return lambda: render(
            messages=_MESSAGES, bos_token="", eos_token="", add_generation_prompt=True, strftime_now=str
        )

    return compiled


def _genai(folder: str) -> Callable[[], Callable[[], object]]:
    """Return what renders with onnxruntime-genai, which reads a template when it renders it."""
    import onnxruntime_genai as og

    tokenizer, messages = og.Tokenizer(og.Config(folder)), json.dumps(_MESSAGES)
    return lambda: lambda: tokenizer.apply_chat_template(messages, add_generation_prompt=True)


def _limit(more: int) -> None:
    """Let this process grow by so many bytes."""
    try:
        import resource

        with open("/proc/self/statm") as file:
            now = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + more, now + more))
    except (ImportError, OSError):  # Windows, macOS: the time alone is limited
        pass


if __name__ == "__main__":
    sys.exit(_trial())
