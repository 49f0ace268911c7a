"""The trial of a chat template (see `template`): run by its path, it imports nothing of this package."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable

BEGUN = "begun"
"""What a trial prints once it is about to try."""

NO_TEMPLATE = 3
"""Its exit code where the template cannot be read; the reason is on stderr."""

_OUT_OF_MEMORY = 4
_ROLES = "system", "user", "assistant", "user"
_MESSAGES = [{"role": role, "content": "Hello"} for role in _ROLES]


def main() -> int:
    """Render what stdin asks for: {"template": ..., "folder": ..., "memory": bytes}."""
    asked = json.load(sys.stdin)
    make = _genai(asked["folder"]) if asked["folder"] else _jinja(asked["template"])
    _limit(asked["memory"])
    print(BEGUN, flush=True)
    try:
        render = make()
    except MemoryError:
        return _OUT_OF_MEMORY
    except Exception as error:  # of the compiler: whatever it is, there is no template
        print(error or type(error).__name__, file=sys.stderr)
        return NO_TEMPLATE
    try:
        render()
    except MemoryError:
        return _OUT_OF_MEMORY
    except Exception:
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
    sys.exit(main())
