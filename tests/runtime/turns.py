"""Threads and streams, as the tests of taking turns use them."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future

PATIENCE = 20.0  # seconds until a thread counts as stuck; nothing here takes one
MOMENT = 0.05  # seconds given to a thread that must not get on; too short a time hides errors, and makes none
LENGTH = 40


def start(function, *args, **kwargs):
    future = Future()

    def run():
        try:
            future.set_result(function(*args, **kwargs))
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


def blocked(future):
    time.sleep(MOMENT)
    return not future.done()


def bits(answer):
    return [token.logprob for token in answer.tokens]


def complete(llm, prompt="abc def"):
    return llm(prompt, max_tokens=LENGTH, temperature=0.0)["choices"][0]["text"]


def stream(llm, prompt="abc def"):
    for chunk in llm(prompt, max_tokens=LENGTH, temperature=0.0, stream=True):
        yield chunk["choices"][0]["text"]
