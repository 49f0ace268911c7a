"""Prompts as token ids: chat is the default, everywhere the same; raw is the exception."""

from __future__ import annotations

import pytest

from tinylora_edge import TrainError
from tinylora_edge.runtime import RewardLearner, tune
from tinylora_edge.runtime.feedback.learner import FeedbackLearner
from tinylora_edge.runtime.llama.batch import Batch
from tinylora_edge.runtime.llama.prompts import encode, has_template
from tinylora_edge.tasks import Completion, Sample

QUESTION = "Name a colour."
MESSAGES = [{"role": "user", "content": QUESTION}]


@pytest.fixture(scope="module")
def smollm2(smollm2_bundle):
    from tinylora_edge import runtime

    with runtime.load(smollm2_bundle, engine="llama", n_ctx=256, n_threads=1) as llm:
        yield llm


def test_text_is_a_message_of_the_user(smollm2):
    assert has_template(smollm2)
    chat = encode(smollm2, MESSAGES).tolist()
    assert encode(smollm2, QUESTION).tolist() == chat
    assert encode(smollm2, Sample(QUESTION)).tolist() == chat
    raw = smollm2.tokenize(QUESTION.encode(), special=True)
    assert encode(smollm2, QUESTION, raw=True).tolist() == raw != chat
    assert encode(smollm2, Sample(QUESTION, raw=True)).tolist() == raw


def test_it_is_what_the_app_evaluates(smollm2):
    used = smollm2.create_chat_completion(MESSAGES, max_tokens=1)["usage"]["prompt_tokens"]
    assert len(encode(smollm2, QUESTION)) == used


def test_a_model_without_a_template_continues_text(tiny_bundle, load):
    with load(tiny_bundle) as llm:
        assert not has_template(llm)
        assert encode(llm, "one two").tolist() == llm.tokenize(b"one two", special=True)


def test_messages_cannot_be_raw(smollm2):
    with pytest.raises(TrainError, match="a raw prompt is text"):
        encode(smollm2, MESSAGES, raw=True)


def test_batch_tuning_and_feedback_ask_as_the_app_does(smollm2):
    """One answer each, from the same tokens: before, a text bypassed the template in all of them."""
    samples = Sample(tuple(MESSAGES)), Sample(QUESTION), Sample(QUESTION, raw=True)
    with Batch(smollm2, n_ctx_seq=64, sequences=2, n_threads=1) as batch:
        # One by one: how llama.cpp sums up a row depends on its place among others on some processors.
        (chat,), (text,), (raw,) = (batch.answer([sample], max_tokens=8) for sample in samples)
    assert chat == text != raw

    with FeedbackLearner(smollm2, max_tokens=8, n_ctx_seq=64, n_threads=1) as tuner:
        first = tuner.ask(QUESTION)
    with FeedbackLearner(smollm2, max_tokens=8, n_ctx_seq=64, n_threads=1) as tuner:
        assert tuner.ask(MESSAGES).text == first.text
    with FeedbackLearner(smollm2, max_tokens=8, n_ctx_seq=64, n_threads=1) as tuner:
        assert tuner.ask(QUESTION, raw=True).text != first.text

    seen: list[tuple[Sample, Completion]] = []

    def reward(completion: Completion, sample: Sample) -> float:
        seen.append((sample, completion))
        return float(len(completion.text))

    prompts = [QUESTION, "Name an animal."]
    options = {"budget": "1ktokens", "max_tokens": 8, "n_threads": 1, "sequences": 2}
    for raw_prompts in (False, True):
        seen.clear()
        tuning = RewardLearner(
            smollm2, prompts, reward, raw=raw_prompts, max_tokens=8, n_threads=1, sequences=2
        )
        tuning.run("1ktokens")
        assert {sample.raw for sample, _ in seen} == {raw_prompts}
    with pytest.raises(TrainError, match="a raw prompt is text"):
        tune(smollm2, [MESSAGES, QUESTION], reward, raw=True, **options)
