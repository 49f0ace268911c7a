"""The deployed forms of a model beside each other: by how much a graph differs from the GGUF, in answers.

Engines round in different places, and a graph may have been rounded once more. Logits do not tell what that
does to a user: whether he reads the same words, or none.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import asdict, dataclass
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


@dataclass(frozen=True)
class Likeness:
    """How alike the greedy answers of two deployed forms are, of up to 24 tokens to 16 general prompts.

    Attributes:
        prompts: that were asked.
        same: answers that are the same, token for token.
        begin_alike: answers whose first 8 tokens are.
        empty: answers without a word, of each form.
    """

    prompts: int
    same: int
    begin_alike: int
    empty: dict[str, int]

    def __str__(self) -> str:
        empty = [f"{count} of {form}'s" for form, count in self.empty.items() if count]
        return (
            f"{self.same} of {self.prompts} answers are word for word the same, {self.begin_alike} begin "
            f"alike, {' and '.join(empty) + ' are' if empty else 'none is'} empty"
        )

    def record(self) -> dict[str, Any]:
        """Return the figures as JSON takes them."""
        return asdict(self)


def compare_forms(
    bundle: str | PathLike[str],
    *,
    base: Path | None = None,
    n_threads: int | None = None,
) -> Likeness:
    """Compare the answers of a bundle's GGUF in llama.cpp with those of its graph in ONNX Runtime.

    Args:
        bundle: with a graph, and a GGUF unless `base` names one. Each engine is loaded and closed in turn.
        base: the GGUF that the graph was built from, where the bundle has none.
        n_threads: cores to use; by default all that this process may use.

    Raises:
        MissingExtraError: an engine is not installed.
        TinyLoraError: an engine cannot run its form.
    """
    answers = {}
    for form in (LLAMA, ONNX):
        with closing(_opened(bundle, form, base)) as llm:
            samples = load_general()[:PROMPTS]
            with llm.batch(samples, TOKENS, n_threads=n_threads) as batch:
                found = batch.generate(batch.encode(samples), max_tokens=TOKENS)
            decode = llm.vocabulary.decode
            answers[form] = [
                (list(one.tokens), decode(one.tokens[: -1 if one.ended else None].tolist())) for one in found
            ]
    pairs = list(zip(answers[LLAMA], answers[ONNX], strict=True))
    return Likeness(
        len(pairs),
        sum(here == there for (here, _), (there, _) in pairs),
        sum(here[:BEGINNING] == there[:BEGINNING] for (here, _), (there, _) in pairs),
        {form: sum(not text.strip() for _, text in each) for form, each in answers.items()},
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
