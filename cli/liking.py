"""Likes and dislikes in a conversation: the vector moves towards what its user likes."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import MicroVector
from . import console

if TYPE_CHECKING:
    from ..runtime import TinyLoraLlama, TinyLoraOnnx
    from ..runtime.feedback.clicks import Clicks

_STEP = 256  # tokens by which the room for a prompt with its answer grows
_MORE = 16  # an answer read again may have a few tokens more than it was written with


@dataclass(frozen=True)
class Said:
    """An answer in a conversation.

    Attributes:
        messages: what it answers.
        text: the answer.
        ended: it ended by itself.
        temperature: that it was drawn at.
    """

    messages: Sequence[dict[str, str]]
    text: str
    ended: bool
    temperature: float


class Liking:
    """What the likes and dislikes of one conversation say, counted from the vector that it began with.

    Another vector begins anew: `begin_with`. The state is kept for as long as this lives.

    Args:
        llm: the model of the conversation; its vector is left alone.
        threads: cores to use; None for all.

    Raises:
        CommandError: the engine cannot score answers.
    """

    def __init__(self, llm: TinyLoraLlama | TinyLoraOnnx, threads: int | None) -> None:
        if not llm.model_path.endswith(".gguf"):
            raise console.CommandError(
                "likes and dislikes need llama.cpp, which scores answers, and this is ONNX Runtime: "
                "start the chat with --engine llama"
            )
        self._llm: Any = llm
        self._threads = threads
        self._start: MicroVector | None = None
        self._clicks: Clicks | None = None
        self._room = 0
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self.count = 0

    def begin_with(self, vector: MicroVector | None) -> None:
        """Forget what was clicked; what comes moves this vector, or the base."""
        self.close()
        self._start, self.count = vector, 0

    def tell(self, said: Said, reward: int) -> MicroVector:
        """Learn that an answer was liked (+1), or was not (-1), and return the vector of now.

        Raises:
            TrainError: the answer is empty, or the model's logits are not finite. Nothing was learned.
        """
        from ..runtime.feedback.given import Given
        from ..runtime.llama.prompts import encode, turn_end

        prompt = encode(self._llm, list(said.messages)).tolist()
        tokens = self._llm.tokenize(said.text.encode(), add_bos=False, special=False)
        if said.ended:
            tokens = [*tokens, turn_end(self._llm)]
        clicks, state = self._ready(len(prompt) + len(tokens) + _MORE)
        given = Given(tuple(prompt), tuple(tokens), self._llm.vector, said.temperature)
        moved = clicks.tell(state, given, reward)
        self.count += 1
        return moved

    def close(self) -> None:
        """Free the contexts, and forget."""
        if self._clicks is not None:
            self._clicks.close()
        if self._folder is not None:
            self._folder.cleanup()
        self._clicks = self._folder = None
        self._room = 0

    def _ready(self, room: int) -> tuple[Clicks, Path]:
        """Return what learns, with room for so many tokens, and the file of its state."""
        from ..runtime.feedback.clicks import Clicks
        from ..runtime.llama.batch import Batch

        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="tinylora-chat-")
        if self._clicks is None or room > self._room:
            if self._clicks is not None:
                self._clicks.close()
            self._room = -(-room // _STEP) * _STEP
            batch = Batch(self._llm, n_ctx_seq=self._room, sequences=2, n_threads=self._threads)
            self._clicks = Clicks(self._llm.basis, batch, start=self._start)
        return self._clicks, Path(self._folder.name) / "clicks.state"
