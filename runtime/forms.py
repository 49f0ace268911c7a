"""The deployed forms of a model beside each other: by how much a graph differs from the GGUF, in answers.

Engines round in different places, and a graph may have been rounded once more. Logits do not tell what that
does to a user: whether he reads the same words, or none.
"""

from __future__ import annotations

from contextlib import closing
from os import PathLike
from pathlib import Path
from typing import Any

from ..formats.bundle import load_bundle
from ..tasks.general import load_general
from .libraries import import_llama_cpp
from .load import LLAMA, ONNX, load, missing_engine
from .model import PersonalizedModel

PROMPTS, TOKENS, BEGINNING = 16, 24, 8
_N_CTX = 64  # of the model's own context, which nothing is asked in


def compare_forms(
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
            texts = [llm.vocabulary.decode(one.tokens[: -1 if one.ended else None].tolist()) for one in found]
        answers.append([one.tokens.tolist() for one in found])
        empty[form] = sum(not text.strip() for text in texts)
    pairs = list(zip(*answers, strict=True))
    same = sum(here == there for here, there in pairs)
    alike = sum(here[:BEGINNING] == there[:BEGINNING] for here, there in pairs)
    return {"prompts": len(pairs), "same": same, "begin_alike": alike, "empty": empty}


def told(alike: dict[str, Any]) -> str:
    """Return in words what `compare_forms` found."""
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
        from .llama.model import TinyLoraLlama
    except ModuleNotFoundError as error:
        raise missing_engine(error) from None
    return TinyLoraLlama(str(base), bases=load_bundle(bundle).bases, n_ctx=_N_CTX, verbose=False)
