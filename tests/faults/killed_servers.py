"""Two servers on one store, killed at any moment: what was acknowledged is there, and nothing older is taken.

    python tests/faults/killed_servers.py --rounds 100

Users' vectors are replaced over HTTP all the time, and read from the store's file by this process. Each round
kills one of the servers or both (SIGKILL), and starts them again on the same file.
"""

from __future__ import annotations

import argparse
import http.client
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent / "serve"), str(HERE.parent)]

import models  # noqa: E402
from serving import Serving, as_text, framed, mac_file, serving  # noqa: E402

from tinylora_edge import load_bundle  # noqa: E402
from tinylora_edge.exporters import export_gguf  # noqa: E402
from tinylora_edge.serve.store import Store  # noqa: E402

USERS = [f"user{number}" for number in range(6)]
MOST_S = 0.4  # that servers live after they are there
OLDER = 0.2  # of what is sent: sequences that were there before


class Users:
    """Users of two servers: what was acknowledged to each of them, and how much was done."""

    def __init__(self, bundle: Path, folder: Path) -> None:
        self.bundle, self.folder, self.store = bundle, folder, folder / "users.db"
        self.bases = load_bundle(bundle).bases
        self.basis = self.bases.basis(numbers=13)
        self.acknowledged = dict.fromkeys(USERS, 0)
        self.done: Counter[str] = Counter()
        self.servers: list[Serving] = []
        self.over = threading.Event()

    def frame(self, user: str, sequence: int) -> bytes:
        return framed(self.basis, user, seed=1 + sequence % 7, sequence=sequence)

    def write(self, user: str) -> None:
        """Replace a user's vector until it is over, and try older ones."""
        draw, sent = random.Random(user), 0
        while not self.over.is_set():
            older = self.acknowledged[user] > 1 and draw.random() < OLDER
            sent += not older
            sequence = draw.randrange(1, self.acknowledged[user]) if older else sent
            body = {"vector": as_text(self.frame(user, sequence))}
            try:
                status, reply = draw.choice(self.servers).ask("PUT", f"/v1/vectors/{user}", body)
            except (OSError, http.client.HTTPException):  # killed: nobody knows what became of it
                self.done["unknown"] += 1
                time.sleep(0.02)
                continue
            if older:
                assert (status, reply["error"]["code"]) == (403, "vector_stale"), (status, reply)
            else:
                assert (status, reply.get("sequence")) == (200, sequence), (status, reply)
                self.acknowledged[user] = sequence
            self.done["refused" if older else "acknowledged"] += 1

    def read(self) -> None:
        """Read what the store has until it is over: whole, never older, and nothing acknowledged is lost."""
        store, seen = Store(self.store, self.bases), dict.fromkeys(USERS, 0)
        while not self.over.is_set():
            for user in USERS:
                least = max(seen[user], self.acknowledged[user])
                found = store.get(user)
                seen[user] = 0 if found is None else found.sequence
                assert seen[user] >= least, f"{user} has {seen[user]}, and {least} was there"
                assert found is None or found.frame == self.frame(user, found.sequence)
                self.done["read"] += 1
            time.sleep(0.005)
        store.close()


def killed(bundle: Path, folder: Path, rounds: int) -> Counter[str]:
    """Kill servers so many times; return what was done. AssertionError: something did not hold."""
    users, draw = Users(bundle, folder), random.Random(0)
    with ThreadPoolExecutor(len(USERS) + 3) as threads, ExitStack() as at_the_end:
        at_the_end.callback(users.over.set)
        stacks = [at_the_end.enter_context(ExitStack()) for _ in range(2)]

        def start(number: int) -> Serving:
            logs = folder / str(number)
            logs.mkdir(exist_ok=True)
            options = ("--store", users.store, "--key", mac_file(logs), "--n-ctx", "64", "--contexts", "1")
            return stacks[number].enter_context(serving(logs, bundle, *options))

        users.servers = list(threads.map(start, range(2)))
        work = [threads.submit(users.write, user) for user in USERS] + [threads.submit(users.read)]
        for _ in range(rounds):
            time.sleep(draw.uniform(0, MOST_S))
            victims = draw.choice(([0], [1], [0, 1]))
            for number in victims:
                users.servers[number].process.kill()
                stacks[number].close()
            for number, server in zip(victims, threads.map(start, victims), strict=True):
                users.servers[number] = server
            users.done["kills"] += len(victims)
            users.done["rounds"] += 1
            print(dict(users.done), file=sys.stderr, flush=True)
            for each in work:
                assert not each.done(), each.exception()
        users.over.set()
        for each in work:
            each.result()
    return users.done


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=100)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        gguf = models.write_gguf(models.tiny_model("llama"), folder / "tiny.gguf")
        bundle = export_gguf(gguf, folder / "tiny").output
        done = killed(bundle, folder, parser.parse_args().rounds)
    print("nothing was lost:", ", ".join(f"{count:,} {what}" for what, count in sorted(done.items())))
    return 0


if __name__ == "__main__":
    sys.exit(main())
