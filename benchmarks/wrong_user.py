"""Whether a server ever answers somebody with another user's adapter.

Each user has an adapter under which the answers to a few prompts, which share their beginning, differ from
those of all other users and of the base. References are the greedy answers of each user, alone. Then all ask,
16 at a time: in mixed order, some the same twice, some streaming, and some of these leave in the middle. Each
answer is compared with all references:

* own: it is the reference of who asked, or its beginning where they left;
* another's: it is the reference of somebody else, or of the base;
* nobody's: it is none of them. Some of these begin more like their own reference than like any other.

    python benchmarks/wrong_user.py --servers onnx llama stock stock-cached --json record.jsonl
    python benchmarks/wrong_user.py --url 127.0.0.1:8000 --models sql-lora chat-lora

The first form starts our server, with references from a pool, and stock llama-server, whose requests name the
adapter in `lora`, without its cache of prompts and with it; its references are its own answers, alone and
without that cache. The second form asks any OpenAI server whose adapters are models, alone and then at once.
"""

from __future__ import annotations

import asyncio
import json
import random
import tempfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

import _common as bench  # first: it sets what libraries read when loaded
import _servers as servers
from _subjects import add_bundles, bundle_of
from _tables import wrong_users

from tinylora_edge import MicroVector, load_bundle, runtime
from tinylora_edge.process import cores

AT_ONCE, TOKENS, LEFT_AFTER = 16, 12, 4
NORM = 4.0  # Frobenius norm of R: answers stay sensible, and differ between users
BASE = -1  # the number of the base among users
OURS, STOCK = ("onnx", "llama"), {"stock": False, "stock-cached": True}
GUIDE = {
    "role": "system",
    "content": "You are the guide of a small museum by the sea, open from nine to five, with ships, maps, "
    "clocks, coins and a garden. You answer in one short sentence.",
}
QUESTIONS = ("What can I see today?", "What is the oldest thing here?", "Tell me about the garden.")
PROMPTS: list[list[dict[str, str]]] = [[GUIDE, {"role": "user", "content": each}] for each in QUESTIONS]
PROMPTS[2][1:1] = [PROMPTS[0][1], {"role": "assistant", "content": "Ships and maps."}]  # another turn

References = dict[tuple[int, int], str]
"""Answers by user and number of the prompt."""


@dataclass(frozen=True)
class Query:
    """A request: whose, which prompt, whether the answer is streamed, and whether its user leaves it."""

    user: int
    prompt: int
    streams: bool
    leaves: bool


def body(own: servers.Own, user: int, prompt: int) -> dict[str, Any]:
    return {"messages": PROMPTS[prompt], "max_tokens": TOKENS, "temperature": 0, **own(user)}


def answered(server: servers.Server, own: servers.Own, query: Query) -> str:
    """Ask; return the answer, or what came until the user left."""
    connection = server.connect()
    request = body(own, query.user, query.prompt)
    try:
        if not query.streams:
            reply = json.loads(server.post(connection, request).read())
            return str(reply["choices"][0]["message"]["content"])
        texts, response = "", server.post(connection, request | {"stream": True})
        for number, (text, _) in enumerate(servers.pieces(response)):
            texts += text
            if query.leaves and number + 1 >= LEFT_AFTER:
                response.close()
                break
        return texts
    finally:
        connection.close()


def plan(users: int, again: int, seed: int) -> list[Query]:
    """Return all users' requests for all prompts, and some again, in random order, some twice in a row."""
    draw = random.Random(seed)
    pairs = [(user, prompt) for user in range(users) for prompt in range(len(PROMPTS))]
    pairs += draw.choices(pairs, k=again)
    draw.shuffle(pairs)
    for at in range(0, len(pairs) - 1, 8):
        pairs[at + 1] = pairs[at]
    kinds = [(False, False), (True, False), (True, True)]
    return [Query(*pair, *draw.choices(kinds, (2, 1, 1))[0]) for pair in pairs]


def judged(query: Query, text: str, references: References) -> str:
    theirs = {user: text_of for (user, prompt), text_of in references.items() if prompt == query.prompt}
    if any_own(text, theirs[query.user], query.leaves):
        return "own"
    if any(any_own(text, other, query.leaves) for other in theirs.values()):
        return "another's"
    alike = {
        user: sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(text, other, strict=False)))
        for user, other in theirs.items()
    }
    mine = alike.pop(query.user)
    return "nobody's, begins as his own" if mine > max(alike.values(), default=0) else "nobody's"


def any_own(text: str, reference: str, leaves: bool) -> bool:
    return reference.startswith(text) if leaves else text == reference


def ask_all(
    server: servers.Server, own: servers.Own, references: References, *, users: int, again: int, seed: int = 0
) -> dict[str, Any]:
    """Let all users ask; return how many answers were whose, and some that were not the user's own."""
    requests = plan(users, again, seed)
    with ThreadPoolExecutor(AT_ONCE) as threads, bench.stopwatch() as watch:
        texts = list(threads.map(lambda query: answered(server, own, query), requests))
    counts, wrong = Counter[str](), list[dict[str, Any]]()
    for query, text in zip(requests, texts, strict=True):
        whose = judged(query, text, references)
        counts[whose] += 1
        if whose != "own" and len(wrong) < 8:
            expected = references[query.user, query.prompt]
            wrong.append({**vars(query), "whose": whose, "text": text, "his own": expected})
    left = sum(query.leaves for query in requests)
    return {"counts": dict(counts), "left": left, "seconds": round(watch.seconds, 1), "wrong": wrong}


def alone(server: servers.Server, own: servers.Own, users: Iterator[int] | list[int]) -> References:
    """Ask as one user after the other; return the answers."""
    return {
        (user, prompt): answered(server, own, Query(user, prompt, False, False))
        for user in users
        for prompt in range(len(PROMPTS))
    }


async def marked(bundle: Path, engine: str, slots: int, users: int) -> tuple[list[MicroVector], References]:
    """Return vectors under which all answers differ from each other's and the base's, and these answers."""
    references, vectors = References(), list[MicroVector]()
    with runtime.Pool(bundle, engine=engine, slots=slots, n_ctx=servers.N_CTX) as pool:

        async def say(user: int, vector: MicroVector | None) -> References:
            answers = [
                await pool.chat(messages, vector=vector, max_tokens=TOKENS, temperature=0)
                for messages in PROMPTS
            ]
            return {(user, prompt): answer.text for prompt, answer in enumerate(answers)}

        references = await say(BASE, None)
        for user in range(users):
            for seed in range(user, 10**6, users):
                vector = servers.vector(pool.bases, user, norm=NORM, seed=seed)
                answers = await say(user, vector)
                others = [(prompt, text) for (_, prompt), text in references.items()]
                if not any((prompt, text) in others for (_, prompt), text in answers.items()):
                    break
            vectors.append(vector)
            references |= answers
    return vectors, references


def with_lora(cached: bool) -> servers.Own:
    """Return what names a user's adapter in requests to llama-server, and whether its cache may be used."""

    def own(user: int) -> dict[str, Any]:
        return {"cache_prompt": cached, "lora": [{"id": user, "scale": 1}] if user != BASE else []}

    return own


def with_model(user: int) -> dict[str, Any]:
    return {"model": f"m@{servers.name(user)}" if user != BASE else "m"}


def measure(options: Any, folder: Path) -> Iterator[dict[str, Any]]:
    users, size = options.users, {"users": options.users, "again": options.again}
    engines = {"onnx" if each == "onnx" else "llama" for each in options.servers}
    bundles = {engine: bundle_of(engine, options, folder) for engine in engines}
    vectors: list[MicroVector] = []
    for engine in (each for each in OURS if each in options.servers):
        base, slots = bundles[engine], AT_ONCE if engine == "onnx" else -(-AT_ONCE // cores())
        vectors, references = asyncio.run(marked(base, engine, slots, users))
        place = folder / engine
        place.mkdir(exist_ok=True)
        servers.fill(place / "users.db", load_bundle(base).bases, iter(vectors))
        arguments = ["--engine", engine, "--slots", str(slots), "--store", str(place / "users.db")]
        with servers.ours(base, place, *arguments) as server:
            yield {"server": engine} | size | ask_all(server, with_model, references, **size)
    if kinds := [each for each in STOCK if each in options.servers]:
        bases = load_bundle(bundles["llama"]).bases
        vectors = vectors or [servers.vector(bases, user, norm=NORM) for user in range(users)]
        loras = servers.write_loras(folder, bases, iter(vectors))
        with servers.stock(bundles["llama"] / "base.gguf", loras, folder, slots=AT_ONCE) as server:
            references = alone(server, with_lora(False), [BASE, *range(users)])
            for kind in kinds:
                found = ask_all(server, with_lora(STOCK[kind]), references, **size)
                yield {"server": kind} | size | found


def ask_url(options: Any) -> dict[str, Any]:
    """Return the figures of a server that runs already."""
    host, _, port = options.url.rpartition(":")
    server = servers.Server(int(port), host=host)
    users = range(len(options.models))

    def own(user: int) -> dict[str, Any]:
        return {"model": options.models[user]}

    references = alone(server, own, list(users))
    again = alone(server, own, list(reversed(users)))
    unsteady = sum(references[key] != again[key] for key in references)
    alike = len(references) - len({(prompt, text) for (_, prompt), text in references.items()})
    found = {"server": options.url, "users": len(users), "unsteady alone": unsteady, "alike": alike}
    return found | ask_all(server, own, references, users=len(users), again=options.again)


def main() -> None:
    parser = bench.parser(__doc__, rounds=1)
    parser.add_argument("--servers", nargs="+", default=[*OURS, *STOCK], choices=[*OURS, *STOCK])
    parser.add_argument("--users", type=int, default=64, help="with an adapter each (%(default)s)")
    parser.add_argument("--again", type=int, default=64, help="requests beside one of each prompt (64)")
    add_bundles(parser)
    parser.add_argument("--url", metavar="HOST:PORT", help="a server that runs; then --models")
    parser.add_argument(
        "--models", nargs="+", default=[], metavar="NAME", help="its adapters, by their names"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        rows = [ask_url(options)] if options.url else measure(options, Path(name))
        run, found = {"commit": bench.commit(), "environment": bench.environment()}, []
        for row in rows:
            found.append(row | run)
            if options.json:
                bench.keep(Path(options.json), found[-1])
            print(json.dumps(row, ensure_ascii=False, indent=1))
    print(wrong_users(found))


if __name__ == "__main__":
    main()
