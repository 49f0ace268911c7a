"""A task's prompts and reward as TRL takes them, and the checks that TRL does not make."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from os import PathLike
from pathlib import Path
from typing import Any

import datasets
import transformers

from ... import runtime
from ...errors import TrainError
from ...formats.gguf import read_once
from ...runtime.llama.prompts import encode
from ...tasks import Completion, Sample, Task

_COMPARED = 64  # prompts whose tokens are compared with the deployed engine's


def reward_function(
    task: Task, samples: Sequence[Sample], tokenizer: Any, ends: frozenset[int]
) -> Callable[..., list[float]]:
    """Return the task's reward as TRL calls it: with the columns of the data set, a list for a batch."""

    def reward(completion_ids: list[list[int]], index: list[int], **kwargs: Any) -> list[float]:
        scores = []
        for ids, position in zip(completion_ids, index, strict=True):
            text = tokenizer.decode(ids, skip_special_tokens=True)
            ended = bool(ids) and ids[-1] in ends
            scores.append(task.score(Completion(text, ended, len(ids)), samples[position]))
        return scores

    return reward


def data_set(samples: Sequence[Sample], first: int, end: int, tokenizer: Any) -> Any:
    """Return samples[first:end] for TRL; the reward finds a sample again by its index."""
    rows = [{"index": i, "prompt": _rendered(tokenizer, samples[i])} for i in range(first, end)]
    return datasets.Dataset.from_list(rows)


def load_tokenizer(source: Path) -> Any:
    """Load the tokenizer of a GGUF file or of a Hugging Face directory.

    Raises:
        TrainError: there is none.
    """
    location: dict[str, Any] = {"pretrained_model_name_or_path": str(source)}
    if source.is_file():
        location = {"pretrained_model_name_or_path": str(source.parent), "gguf_file": source.name}
    try:
        with read_once():
            return transformers.AutoTokenizer.from_pretrained(**location)
    # its readers let through whatever their formats' libraries raise
    except Exception as error:
        raise TrainError(
            f"transformers finds no tokenizer in {source}: {error}. "
            "Pass a directory with weights and tokenizer as --weights DIR"
        ) from error


def end_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    """Return the ids that end a completion, as TRL takes them."""
    ids = model.generation_config.eos_token_id
    found = set(ids) if isinstance(ids, list | tuple) else {ids}
    return frozenset(i for i in found | {tokenizer.eos_token_id} if i is not None)


def check_prompts(
    tokenizer: Any,
    task: Task,
    samples: Sequence[Sample],
    *,
    room: int,
    bundle: str | PathLike[str] | None = None,
) -> None:
    """See that TRL would run the prompts, and with the tokens that the device will see.

    Args:
        tokenizer: that TRL uses.
        task: for the messages.
        samples: whose prompts are trained on.
        room: tokens that a prompt may have.
        bundle: of the base that is deployed, to compare its tokens; None does not.

    Raises:
        TrainError: prompts of two kinds, chat prompts without a chat template, a prompt that is too long,
            or other tokens than the deployed engine's.
    """
    kinds = {isinstance(_rendered(tokenizer, sample), str) for sample in samples}
    if len(kinds) > 1:
        raise TrainError(f"task {task.name} mixes raw and chat prompts: TRL takes only one kind at a time")
    if kinds == {False} and tokenizer.chat_template is None:
        raise TrainError("the tokenizer has no chat template: use text prompts, or other weights")
    tokens = [_encode(tokenizer, sample) for sample in samples]
    longest = max(map(len, tokens))
    if longest > room:
        raise TrainError(
            f"the longest prompt of task {task.name} has {longest} tokens, but the model's context leaves "
            f"room for {room} beside what is generated: shorten it, or lower the token limit"
        )
    if bundle is None:
        return
    with closing(runtime.load(bundle, engine="llama", n_ctx=64)) as deployed:
        for sample, found in zip(samples[:_COMPARED], tokens, strict=False):
            expected = encode(deployed, sample).tolist()
            if found != expected:
                raise TrainError(
                    f"prompt {sample.text[:80]!r} becomes other tokens here ({len(found)}: {found[:8]}...) "
                    f"than on the device ({len(expected)}: {expected[:8]}...): tokenizer or template differ. "
                    "Use weights that match the deployed file"
                )


def _rendered(tokenizer: Any, sample: Sample) -> str | list[dict[str, str]]:
    prompt = sample.rendered_by(template=tokenizer.chat_template is not None)
    return prompt if isinstance(prompt, str) else [dict(message) for message in prompt]


def _encode(tokenizer: Any, sample: Sample) -> list[int]:
    prompt = _rendered(tokenizer, sample)
    if isinstance(prompt, str):
        return list(tokenizer(prompt)["input_ids"])
    found = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=True)
    return list(found["input_ids"])
