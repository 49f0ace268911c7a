"""Parity of a model's deployed forms: how many answers a graph gives as the GGUF does, token for token.

Engines round in different places, and a graph may have been rounded once more. Logits do not tell what that
does to users: whether they read the same words, or none.
"""

from __future__ import annotations

from contextlib import closing
from os import PathLike
from pathlib import Path
from typing import Any

from ..formats.bundle import load_bundle
from ..runtime.llama import import_llama_cpp
from ..runtime.load import LLAMA, ONNX, load, missing_engine
from ..runtime.model import PersonalizedModel
from ..tasks.load import load_general

PROMPTS, TOKENS, BEGINNING = 16, 24, 8
_N_CTX = 64  # of the model's own context, which nothing is asked in


def measure_parity(
    bundle: str | PathLike[str], *, base: Path | None = None, n_threads: int | None = None
) -> dict[str, Any]:
    """Compare the greedy answers of a bundle's GGUF with those of its graph: 24 tokens, 16 general prompts.

    `base` is the GGUF that the graph was built from, where the bundle has none. Each engine is loaded and
    closed in turn.

    Returns:
        The number of prompts; answers that are the `same`, token for token; those whose first 8 tokens are
        (`begin_alike`); and those without a word, by the form (`empty`).

    Raises:
        MissingExtraError: an engine is not installed.
        TinyLoraError: an engine cannot run its form.
    """
    answers, empty, samples = [], {}, load_general()[:PROMPTS]
    for form in (LLAMA, ONNX):
        with closing(_opened(bundle, form, base)) as llm:
            with llm.batch(samples, TOKENS, n_threads=n_threads) as batch:
                found = batch.generate(batch.encode(samples), max_tokens=TOKENS)
            texts = [
                llm.chat_tokenizer.decode(one.tokens[: -1 if one.ended else None].tolist()) for one in found
            ]
        answers.append([one.tokens.tolist() for one in found])
        empty[form] = sum(not text.strip() for text in texts)
    pairs = list(zip(*answers, strict=True))
    same = sum(here == there for here, there in pairs)
    alike = sum(here[:BEGINNING] == there[:BEGINNING] for here, there in pairs)
    return {"prompts": len(pairs), "same": same, "begin_alike": alike, "empty": empty}


def in_words(alike: dict[str, Any]) -> str:
    """Return what `measure_parity` found as half a sentence."""
    empty = [f"{count} of {form}'s" for form, count in alike["empty"].items() if count]
    return (
        f"{alike['same']} of {alike['prompts']} answers are word for word the same, {alike['begin_alike']} "
        f"begin alike, {' and '.join(empty) + ' are' if empty else 'none is'} empty"
    )


def _opened(bundle: str | PathLike[str], form: str, base: Path | None) -> PersonalizedModel:
    if form == ONNX or base is None:
        return load(bundle, engine=form, n_ctx=_N_CTX)
    try:
        import_llama_cpp()
        from ..runtime.llama.model import TinyLoraLlama
    except ModuleNotFoundError as error:
        raise missing_engine(error) from None
    return TinyLoraLlama(str(base), bases=load_bundle(bundle).bases, n_ctx=_N_CTX, verbose=False)
