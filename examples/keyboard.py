"""A keyboard that learns how you write: three next words while you type, and a vector that learns at night.

    python examples/keyboard.py BUNDLE [--under shared.bin [--torch]] [--texts me.jsonl]

Type some words and press enter: the app suggests three next words. 1, 2 or 3 takes one, an empty line sends
the message, and `night` learns from all sent messages. me.jsonl has the messages, me.jsonl.bin the vector. If
you delete me.jsonl, the next start deletes the vector too. The app needs numpy and llama.cpp, but no PyTorch
and no network. A night takes minutes of forward passes, and finds 13 numbers in 63 bytes. With --torch it
takes seconds of a few gradients, and finds a vector of 55 kB for SmolLM2.
"""

import argparse
import json
from collections.abc import Sequence
from contextlib import closing
from itertools import islice
from pathlib import Path

from tinylora_edge import MicroVector, TinyLoraError, runtime
from tinylora_edge.tasks import Sample, rewards
from tinylora_edge.tasks.files import read_samples

STOPS = [" ", "\n", ".", ",", "!", "?"]
"""What ends a word."""


def suggestions(llm: runtime.TinyLoraLlama, typed: str) -> list[str]:
    """Return the three likeliest next words behind a text, of which the last may be unfinished."""
    start = llm.encode(Sample("", typed, raw=True))[0]  # what texts without a prompt begin with
    tokens = [*start, *llm.chat_tokenizer.encode_plain(typed)[-200:]]  # the context has 256
    llm.create_completion(tokens, max_tokens=1)
    ranked = map(int, (-llm.scores[len(tokens) - 1]).argsort())
    found = []
    for token in islice((token for token in ranked if not llm.chat_tokenizer.ends(token)), 3):
        (rest,) = llm.create_completion([*tokens, token], max_tokens=3, temperature=0, stop=STOPS)["choices"]
        found.append(llm.chat_tokenizer.data(token).decode(errors="replace") + rest["text"])
    return found


def by_gradients(bundle: str, under: Path, samples: Sequence[Sample]) -> bytes:
    """Return the frame of a vector on a shared one, which its whitening lies beside."""
    from tinylora_edge.train import Options
    from tinylora_edge.train.texts import Texts, whitening_path

    beside = whitening_path(under)
    whitening = beside.read_bytes() if beside.exists() else None
    with closing(Texts(bundle, Options(under=under.read_bytes(), whitening=whitening))) as texts:
        vector = MicroVector(texts.learn(samples).values, under=texts.shared)
        return texts.options.framed(vector, texts.basis).to_bytes(texts.basis)


def main() -> None:
    """Suggest, keep what is sent, and learn when night comes."""
    arguments = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    arguments.add_argument("bundle")
    arguments.add_argument("--under", type=Path, help="a shared vector that learned how people write")
    arguments.add_argument("--texts", type=Path, default=Path("me.jsonl"), help="the file of sent messages")
    arguments.add_argument("--torch", action="store_true", help="learn by gradients, with PyTorch")
    arguments.add_argument("--budget", default="5m", help="time of a night, without --torch (%(default)s)")
    arguments.add_argument("--threads", type=int, help="cores to use (default: all)")
    options = arguments.parse_args()
    if options.torch and not options.under:
        arguments.error("--torch learns on a shared vector: name it (--under)")
    own, fresh = (options.texts.with_name(f"{options.texts.name}.{end}") for end in ("bin", "new"))
    if not options.texts.exists():
        for each in (own, fresh):
            each.unlink(missing_ok=True)  # the user deleted the messages that it was learned from
    llm = runtime.load(options.bundle, engine="llama", n_ctx=256, logits_all=True, n_threads=options.threads)
    under = [options.under] if options.under else []
    shared, basis = llm.swap(under) if under else None, llm.bases.basis(numbers=13)
    if own.exists():
        llm.swap([*under, own])
    typed, offered = "", list[str]()
    while True:
        try:
            line = input("> ").encode(errors="ignore").decode()  # without bytes that are no UTF-8
        except EOFError:
            break
        if line == "night":
            how = {"basis": basis, "under": shared, "n_threads": options.threads}
            try:
                lines, _ = read_samples(options.texts)
                samples = [line.sample for line in lines]
                if options.torch:
                    frame = by_gradients(options.bundle, options.under, samples)
                else:
                    found = runtime.RewardLearner(llm, samples, rewards.text, **how).run(options.budget)
                    frame = found.vector.to_bytes(basis) if found.improved else b""
            except TinyLoraError as error:  # there are too few texts, or a line is damaged
                print(error)
                continue
            if frame:
                fresh.write_bytes(frame)
                fresh.replace(own)  # whole or not at all
                llm.swap([*under, own])
            print(f"{'learned from' if frame else 'nothing new in'} {len(samples)} texts")
        elif line:
            typed += offered[int(line) - 1] if offered and line in ("1", "2", "3") else line
            offered = suggestions(llm, typed)
            print(f"{typed}|  " + "  ".join(f"{n}:{word}" for n, word in enumerate(offered, 1)))
        elif typed.strip():
            with options.texts.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"text": typed.strip()}) + "\n")
            typed, offered = "", []


if __name__ == "__main__":
    main()
