"""`chat`: a conversation, in which the vector can be replaced, and learns from what the user likes."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from typer import BadParameter

from tinylora_edge import MicroVector, TinyLoraError
from tinylora_edge.process import first_interrupt
from tinylora_edge.projection import NUMBERS
from tinylora_edge.wire.frame import DEFAULT_USER, bound_name

from . import console, keyfiles, vectors
from . import options as opts
from .run import answer, messages, write

if TYPE_CHECKING:
    from tinylora_edge.runtime import Clicks, SampledAnswer

_COMMANDS = """\
/vector FILE  replace the vector (of a stack, the last one); without FILE, say which vector is active
/base         remove the vector; the conversation stays
/like         learn from the last answer that you want more of this: 13 numbers, with any vector loaded
/dislike      learn from the last answer that you want less of this
/save FILE    write the vector as it is now; if it has more than 13 numbers, what was learned on top of it
/clear        forget the conversation; the vector stays
/quit         leave, as with /exit or at the end of the input"""
"""The commands that may be typed in place of a message."""


def chat(
    bundle: opts.BundleArgument,
    vector: opts.VectorsOption = None,
    max_tokens: opts.MaxTokensOption = 512,
    temperature: opts.TemperatureOption = 0.0,
    seed: opts.SeedOption = 0,
    n_ctx: opts.ContextOption = opts.CONTEXT,
    threads: opts.ThreadsOption = None,
    engine: opts.EngineOption = None,
    system: opts.MessageOption = None,
    keys: opts.KeysOption = None,
    user: opts.UserOption = DEFAULT_USER,
) -> None:
    """Talk with the model, and change its vector on the way.

    Each line is a turn of the conversation. /help lists the commands, such as /vector FILE, /like and /save
    FILE. Lines may come from a pipe; the first error then ends the command.

    \b
    Example:
      tinylora-edge chat out/demo --vector vector.bin
    """
    if vectors.STREAM in (vector or ()):
        raise BadParameter("stdin is used for the conversation: pass a file", param_hint="--vector")
    policy, user = keyfiles.policy(keys), bound_name(user)
    frames = vectors.read_stack(vector)
    with console.progress("loading the model"):
        llm = opts.load_model(bundle, engine, threads, n_ctx=n_ctx, vector=frames, policy=policy, user=user)
    options = {"max_tokens": max_tokens, "temperature": temperature, "seed": seed}
    interactive = sys.stdin.isatty()
    if interactive:
        _note(f"{_described(llm.vector)}. /help lists the commands.")
    with tempfile.TemporaryDirectory(prefix="tinylora-chat-") as folder:
        state = Path(folder) / "clicks.state"
        conversation = Conversation(llm, system, options, user, threads, state, interactive)
        for line in _lines(interactive):
            try:
                if not conversation.take(line):
                    break
            except (TinyLoraError, OSError) as error:
                if not interactive or isinstance(error, BrokenPipeError):
                    raise
                console.fail(error)


@dataclass
class Conversation:
    """The messages so far, the vector, and what a line of input does with them.

    `options` are those of every answer; `state` is the file in which clicks are kept.
    """

    llm: Any
    system: str | None
    options: dict[str, Any]
    user: str
    threads: int | None
    state: Path
    interactive: bool

    def __post_init__(self) -> None:
        self._messages = messages(self.system)
        self.begin_with(self.llm.vector)

    def begin_with(self, vector: MicroVector | None) -> None:
        """Start from a vector: forget the clicks, which were on another one."""
        self.state.unlink(missing_ok=True)
        # The last answer, until it is rated: messages, reply, and whether it ended by itself.
        self._last: tuple[list[dict[str, str]], str, bool] | None = None
        self._clicks: Clicks | None = None
        self._loaded, self._count = vector, 0

    def take(self, line: str) -> bool:
        """Do what a line of input says; return False if it ends the conversation."""
        word, _, rest = line.strip().partition(" ")
        rest = rest.strip()
        if not word.startswith("/"):
            if word:
                self._turn(line.strip())
        elif word in ("/quit", "/exit"):
            return False
        elif word == "/vector":
            if rest == vectors.STREAM:
                raise console.CommandError("stdin is used for the conversation: name a file, /vector FILE")
            if rest:
                under = self._loaded and self._loaded.under
                self.llm.swap([*([under] if under else []), vectors.read(rest)], user=self.user)
                self.begin_with(self.llm.vector)
            _note(f"vector: {_described(self.llm.vector)}")
        elif word == "/base":
            self.llm.clear()
            self.begin_with(None)
            _note(_described(None))
        elif word == "/clear":
            self._messages, self._last = messages(self.system), None
            _note("the conversation is forgotten")
        elif word in ("/like", "/dislike"):
            self._click(1 if word == "/like" else -1)
        elif word == "/save":
            self._save(rest)
        elif word == "/help":
            for each in _COMMANDS.splitlines():
                console.note(each)
        else:
            raise console.CommandError(f"unknown command {line.strip()!r}: /help lists the commands")
        return True

    def _turn(self, text: str) -> None:
        conversation = [*self._messages, *messages(None, text)]
        stopped: list[int] = []
        with first_interrupt(lambda: stopped.append(1)) if self.interactive else nullcontext():
            reply, reason = answer(self.llm, conversation, stopped=stopped, **self.options)
        write("\n")
        self._messages = [*conversation, {"role": "assistant", "content": reply}]
        ended = not stopped and reason == "stop"
        self._last = (conversation, reply, ended) if reply else None

    def _click(self, reward: int) -> None:
        if self._last is None:
            raise console.CommandError("there is no answer to rate, or it was rated already: ask something")
        from tinylora_edge.runtime import Clicks

        loaded = self._loaded
        if self._clicks is None:
            # A click reads the answer twice for each number, so it moves 13 numbers on top of a large vector.
            small = loaded is None or loaded.values.size <= NUMBERS
            place: dict[str, Any] = {"start": loaded} if small else {"under": loaded}
            self._clicks = Clicks(self.llm, **place, n_threads=self.threads)
        try:
            with console.progress("learning from the answer") as show:
                answer = clickable(self.llm, *self._last, self.options["temperature"])
                moved = self._clicks.tell(self.state, answer, reward, scored=_timed(show))
        except KeyboardInterrupt:
            if not self.interactive:
                raise
            _note("stopped: nothing was learned")
            return
        self.llm.swap(moved)
        self._last, self._count = None, self._count + 1
        clicks = console.counted(self._count, "click")
        _note(f"learned from {clicks}: {vectors.summary(moved)}. /save FILE keeps the vector")

    def _save(self, file: str) -> None:
        vector = self.llm.vector
        if file in ("", vectors.STREAM):
            raise console.CommandError("stdout is used for the answers: name a file, /save FILE")
        if vector is None:
            why = "there is no vector to save: /like or /dislike an answer first"
            raise console.CommandError(why)
        vectors.check_target(file)
        data = vector.to_bytes(self.llm.bases.of(vector), user=self.user)
        vectors.write(file, data)
        _note(f"wrote {file}: {len(data)} bytes, {vectors.summary(vector)}, CRC-32")
        if vector.under is not None:
            _note(f"load it on top of the vector that was loaded: --vector THAT --vector {file}")


def clickable(
    llm: Any, conversation: list[dict[str, str]], reply: str, ended: bool, temperature: float
) -> SampledAnswer:
    """Return an answer as `Clicks` takes it; if it ended by itself, its last token is the end of a turn."""
    from tinylora_edge.runtime import SampledAnswer

    tokens = (*llm.chat_tokenizer.encode_plain(reply), *((llm.turn_end,) if ended else ()))
    return SampledAnswer(tuple(llm.encode(conversation)[0]), tokens, llm.vector, temperature)


def _timed(show: console.Show) -> Callable[[int, int], None]:
    """Return a callback that shows how much of a click is done, and how long all of it will take."""
    began = time.monotonic()

    def scored(done: int, total: int) -> None:
        seconds = (time.monotonic() - began) * total / done
        show(f"learning from the answer: read {done} of {total} times, {seconds:.0f} s in all")

    return scored


def _note(text: str) -> None:
    console.note(text, "dim")  # dim, to tell it from the model's text


def _lines(interactive: bool) -> Iterator[str]:
    if not interactive:
        yield from sys.stdin
        return
    with suppress(ImportError):
        import readline  # noqa: F401 - gives input() editing and a history
    with suppress(EOFError):
        while True:
            yield input("> ")
    write("\n")


def _described(vector: MicroVector | None) -> str:
    if vector is None:
        return "the base, with no vector"
    return f"{vectors.summary(vector)}, sequence {vector.sequence}"
