"""Whether a grammar can be made: a process of its own tries first, and ends where one takes too much.

llguidance 1.9 has no limit that holds while it makes a grammar: three numbers with `multipleOf` keep it busy
for minutes, and -2^63 overflows its stack. What the other process could make within its limits, this process
makes again, with as much work. The other process runs this file too; there it imports nothing of the package,
and has 20 MB.
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from selectors import EVENT_READ, DefaultSelector
from typing import Any

SECONDS = 0.5
"""Most processor time in which a grammar is made. Usual schemas take some milliseconds."""

MEGABYTES = 256
"""Most memory of the process that makes a grammar. macOS does not enforce it."""

_LOOK_S = 0.05  # seconds between two looks whether anybody still waits

_started: set[subprocess.Popen[bytes]] = set()
_idle: list[subprocess.Popen[bytes]] = []


def _forget() -> None:
    """In a fork: the processes are its parent's, which it must neither use nor end."""
    _idle.clear()
    _started.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


class Left(Exception):  # noqa: N818 - nobody is there to be told
    """Nobody waits for a grammar any more."""


def why_not(grammar: str, limits: dict[str, Any], left: Callable[[], bool]) -> str | None:
    """Return why llguidance makes no grammar; "" where it makes one, None where that takes too much.

    Any thread may call it; `left` tells whether nobody waits any more. Left: nobody waits. OSError: the
    process cannot be started, or has ended.
    """
    if not hasattr(os, "fork"):  # Windows, which has no such limits
        return ""
    try:
        process = _idle.pop()
    except IndexError:
        process = _start(limits)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(json.dumps(grammar).encode() + b"\n")
        process.stdin.flush()
        with DefaultSelector() as answered:
            answered.register(process.stdout, EVENT_READ)
            while not answered.select(_LOOK_S):
                if left():
                    raise Left
        answer: str | None = json.loads(process.stdout.readline() or _ended())
    except BaseException:
        _end(process)
        raise
    _idle.append(process)
    return answer


def _ended() -> bytes:
    raise OSError("the process that makes grammars has ended")


def _start(limits: dict[str, Any]) -> subprocess.Popen[bytes]:
    import llguidance

    packages = os.path.dirname(os.path.dirname(llguidance.__file__))
    process = subprocess.Popen(
        [sys.executable, "-I", __file__, packages, json.dumps(limits)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # a Ctrl-C is for this process alone
    )
    _started.add(process)
    return process


def _end(process: subprocess.Popen[bytes]) -> None:
    _started.discard(process)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    with process:  # closes its pipes, and waits for it
        pass


@atexit.register
def _end_all() -> None:
    for process in list(_started):
        _end(process)


# The other process


class _Bytes:
    """A vocabulary of bytes: what a grammar costs to make does not depend on the tokens."""

    eos_token_id, bos_token_id, special_token_ids = 256, None, (256,)
    tokens = (*(bytes([byte]) for byte in range(256)), b"<end>")

    def __call__(self, text: bytes) -> list[int]:
        return list(text)


def _answer(packages: str, limits: str) -> None:
    """Make the grammar of each line of stdin in a fork, and write the answer of `why_not` as a line."""
    import resource

    sys.path.append(packages)
    from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper

    tokenizer, known = LLTokenizer(TokenizerWrapper(_Bytes())), LLParserLimits(**json.loads(limits))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for line in sys.stdin.buffer:
        if child := os.fork():
            if os.waitpid(child, 0)[1]:
                os.write(1, b"null\n")
            continue
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_DATA, (MEGABYTES << 20, MEGABYTES << 20))
        signal.setitimer(signal.ITIMER_PROF, SECONDS)  # its signal ends the process: nobody handles it
        try:
            matcher = LLMatcher(tokenizer, json.loads(line), log_level=0, limits=known)
            os.write(1, json.dumps(matcher.get_error()[:1000]).encode() + b"\n")
        except BaseException:
            os._exit(1)
        os._exit(0)


if __name__ == "__main__":
    _answer(*sys.argv[1:])
