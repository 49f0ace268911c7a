"""A small assistant that learns on the device itself, in minutes, to answer in one short sentence.

It needs `tinylora-edge[llama,tune]` (numpy, llama.cpp and cmaes): no PyTorch, no gradients, no network.
Usage: tune_on_device.py BUNDLE [BUDGET]
"""

import sys
from importlib.util import find_spec
from pathlib import Path

from tinylora_edge import MicroVector, runtime
from tinylora_edge.tasks import load_task, rewards

bundle, budget = Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else "155s"
kept, fresh, unfinished = (bundle / f"mine.{end}" for end in ("bin", "new", "state"))
task = load_task("brevity", held_out=6)  # questions about nouns; yours may be any texts or chat messages
questions = [sample.prompt for sample in task.held_out]
brief = rewards.max_words(14)  # guarded: an answer that says nothing, or its prompt again, gets 0


def reward(completion, sample):  # yours: any function of these that returns a number, the higher the better
    return brief(completion, sample) if len(completion.text.split()) >= 4 else 0.0


def progress(figures):
    if "reward" in figures:
        print(f"  step {figures['step']}: reward {figures['reward']:.2f}", flush=True)
    elif "score" in figures:
        print(f"On prompts held back: {figures['start_score']:.2f} before, {figures['score']:.2f} now.")


def answers():
    chats = (llm.create_chat_completion(list(q), max_tokens=24, temperature=0) for q in questions)
    return [chat["choices"][0]["message"]["content"].strip() for chat in chats]


print(f"PyTorch is {'' if find_spec('torch') else 'not '}installed here.")
llm = runtime.load(bundle, kept.read_bytes() if kept.exists() else None, n_ctx=256)
before = answers()
print(f"Learning for {budget}{', from the vector of last time' if llm.vector else ''}:", flush=True)
vector: MicroVector = runtime.tune(
    llm,
    task.train,
    reward,
    budget=budget,
    max_tokens=24,
    settings=runtime.TuneSettings(held_back=24),  # fewer than usual: three minutes are short
    path=unfinished,  # an app that is killed goes on here; it holds numbers, no text
    report=progress,
)
fresh.write_bytes(vector.to_bytes(llm.bases.of(vector)))
fresh.replace(kept)  # whole or not at all; then the state is not needed any more
unfinished.unlink()
for question, old, new in zip(questions, before, answers(), strict=True):
    print(f"\n{question[0]['content']}\n  before: {old}\n  after:  {new}")
print(f"\n{kept}: {kept.stat().st_size} bytes. Delete it, and the base is back.")
