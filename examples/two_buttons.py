"""A terminal app with two buttons: it asks, you press + or -, and 13 numbers learn what you like.

    python examples/two_buttons.py BUNDLE [--state FILE] [--pairs]

BUNDLE is a folder that `tinylora-edge export` or `demo` wrote. The state, a file of 3 kB without any text,
holds what was learned, and the next start continues from it. The app needs numpy and llama.cpp.
"""

import argparse
import random
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress

from tinylora_edge import runtime


def main() -> None:
    """Ask, show, and learn from the button that is pressed."""
    arguments = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    arguments.add_argument("bundle")
    arguments.add_argument("--state", default="me.state")
    arguments.add_argument("--pairs", action="store_true", help="show two answers, and press the better one")
    arguments.add_argument("--threads", type=int, help="cores to use (default: all)")
    options = arguments.parse_args()
    llm = runtime.load(options.bundle, n_ctx=64, engine="llama", n_threads=options.threads)
    learning: Future[object] | None = None
    clicks = runtime.Clicks(llm, n_threads=options.threads)
    vector, seed = clicks.vector(options.state), random.randrange(1 << 32)
    with ThreadPoolExecutor(1) as later, suppress(EOFError):  # Ctrl-D ends it, too
        print(f"{vector.sequence} clicks so far. An empty question ends.")
        while question := input("\nask: ").strip():
            messages, seed = [{"role": "user", "content": question}], seed + 1
            vector = clicks.vector(options.state)
            if options.pairs:
                first, second = clicks.ask(messages, vector, max_tokens=24, seed=seed)
                print(f"1: {first.text}\n2: {second.text}")
                button = input("better [1/2, enter: neither]: ").strip()
                if button in ("1", "2") and first.tokens != second.tokens:
                    better, worse = (first, second) if button == "1" else (second, first)
                    learning = later.submit(clicks.prefer, options.state, better, worse)
            else:
                (answer,) = clicks.ask(messages, vector, count=1, max_tokens=24, seed=seed)
                print(answer.text)
                button = input("good? [+/-, enter: neither]: ").strip()
                if button in ("+", "-"):
                    learning = later.submit(clicks.tell, options.state, answer, 1 if button == "+" else -1)
        if learning is not None:
            learning.result()  # what was clicked last is learned, and kept, before the app ends
        vector = clicks.vector(options.state)
        print(f"{vector.sequence} clicks, vector of norm {vector.norm:.3f}: {options.state}")


if __name__ == "__main__":
    main()
