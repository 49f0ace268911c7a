"""What a like tells: the answer as the model gave it, with the token that ended it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import models
import pytest

from tinylora_edge import runtime
from tinylora_edge.cli.liking import Liking, Said
from tinylora_edge.exporters import export_gguf
from tinylora_edge.runtime.feedback.clicks import Clicks
from tinylora_edge.runtime.feedback.given import Given

TEMPLATE = "{% for m in messages %}{{ m.content }}<pad>{% endfor %}"
MESSAGES = [{"role": "user", "content": "hello"}]


def test_a_turn_that_ended_is_scored_with_what_ends_turns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not with what ends texts, which the model may find unlikely there."""
    metadata: dict[str, str | int] = {"tokenizer.chat_template": TEMPLATE, "tokenizer.ggml.eot_token_id": 258}
    gguf = models.write_gguf(models.tiny_model("llama"), tmp_path / "tiny.gguf", metadata=metadata)
    scored: list[tuple[int, ...]] = []
    real = Clicks.tell

    def tell(self: Clicks, path: Any, given: Given, reward: int) -> Any:
        scored.append(given.tokens)
        return real(self, path, given, reward)

    monkeypatch.setattr(Clicks, "tell", tell)
    bundle = export_gguf(gguf, tmp_path / "bundle").output
    with runtime.load(bundle, engine="llama", n_ctx=64, n_threads=1) as llm:
        liking = Liking(llm, 1)
        liking.begin_with(None)
        for ended in (True, False):
            liking.tell(Said(MESSAGES, "abc", ended, 0.0), 1)
        liking.close()
    assert scored == [(*b"abc", 258), (*b"abc",)]
