"""A vector with a last day that stays applied: once the day is over it answers nothing, wherever it is."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import date
from typing import Any

import numpy as np
import onnx_bundles
import onnx_models
import pytest

from tinylora_edge import ExpiredError, MicroVector, Policy, load_bundle, runtime
from tinylora_edge.runtime.batch import Batch

DAY, PROMPT = date(2026, 3, 1), [72, 101, 108, 108, 111]


class Clock:
    def __init__(self) -> None:
        self.today = DAY

    def __call__(self) -> date:
        return self.today


@pytest.fixture(params=["llama", "onnx"])
def engine(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def framed(bundle: Any, norm: float = 1.0, until: date | None = DAY) -> bytes:
    basis = load_bundle(bundle).basis(rank=2)
    return MicroVector.random(basis, norm).to_bytes(basis, until=until)


@pytest.mark.parametrize("beneath", [False, True], ids=["own", "beneath"])
def test_what_a_model_keeps_is_asked_again(engine: str, beneath: bool) -> None:
    """A model's vector, a block's, an admitted one in a pool and in a batch; also where it lies beneath."""
    bundle, clock = onnx_bundles.both(), Clock()
    frames = [framed(bundle), framed(bundle, 0.5, until=None)] if beneath else [framed(bundle)]
    policy = Policy(today=clock)
    with runtime.load(bundle, frames, policy=policy, engine=engine, n_ctx=64, n_threads=1) as llm:
        kept = llm.vector
        with Batch(llm, n_ctx_seq=32, n_threads=1) as batch, runtime.Pool(llm, n_ctx=64, n_threads=1) as pool:

            def pooled() -> str:
                return asyncio.run(pool.complete("Hello", vector=kept, max_tokens=2)).text

            uses: list[Callable[[], Any]] = [
                lambda: llm.create_completion("Hello", max_tokens=2),
                lambda: [*llm.create_completion("Hello", max_tokens=2, stream=True)],
                lambda: next(iter(llm.generate(PROMPT))),
                lambda: batch.generate([PROMPT], vectors=kept, max_tokens=2),
                lambda: batch.score_each([kept], [PROMPT], [[PROMPT]]),
                lambda: llm.swap(kept),
                pooled,
            ]
            for use in uses:
                use()
            with llm.using(kept):
                clock.today = date(2026, 3, 2)
                for use in uses:
                    with pytest.raises(
                        ExpiredError, match="last day was 2026-03-01, and today is 2026-03-02"
                    ):
                        use()
            for use in uses:
                with pytest.raises(ExpiredError):
                    use()
            assert llm.vector is kept, "which can be looked at"
            llm.clear()
            assert llm.create_completion("Hello", max_tokens=2)["choices"]


def test_rows_of_a_session_are_asked_at_each_run() -> None:
    bundle, clock = onnx_bundles.tiny(), Clock()
    session = runtime.OnnxSession(bundle, policy=Policy(today=clock), sess_options=onnx_models.options())
    rows = session.rows([framed(bundle), None])
    feeds = onnx_models.feeds(session.session, [PROMPT] * 2)
    found = session.run(["logits"], feeds, rows)[0]
    assert np.array_equal(found, session.session.run(["logits"], feeds | {"tinylora_r": np.array(rows)})[0])
    clock.today = date(2026, 3, 2)
    for some in (rows, rows[::-1]):
        with pytest.raises(ExpiredError):
            session.run(["logits"], feeds, some)
    session.run(["logits"], feeds)
