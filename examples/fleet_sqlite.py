"""A fleet in one SQLite file: a vector for each user, signed for him alone, and what a store refuses.

    python examples/fleet_sqlite.py BUNDLE fleet.db [USERS]

The vectors are random, and the key is 32 zeros: yours come from `train`, `tune` or clicks, and from `keygen`.
Needs the extra `serve`, and no engine.
"""

import sys
from time import perf_counter

from tinylora_edge import Hmac, MicroVector, Policy, VectorError, load_basis
from tinylora_edge.serve.store import SqliteStore

bundle, path, users = sys.argv[1], sys.argv[2], int(sys.argv[3]) if len(sys.argv) > 3 else 1000
basis, key = load_basis(f"{bundle}/basis.gguf"), Hmac(bytes(32))
store = SqliteStore(path, basis)
policy = Policy("mac", keys=[key], state=store.marks)


def frame(user: str, number: int, sequence: int = 1) -> bytes:
    values = MicroVector.random(basis, 0.2, seed=number).values
    return MicroVector(values, "bf16", sequence).to_bytes(basis, key, stream=user)


began = perf_counter()
told = store.import_frames((f"user-{number}", frame(f"user-{number}", number)) for number in range(users))
print(f"{told.added} vectors of {len(frame('user-0', 0))} bytes added in {perf_counter() - began:.2f} s")

store.put("user-7", frame("user-7", 8, sequence=2), policy)
print(f"user-7 has a newer vector: sequence {store.get('user-7').sequence}")
for what, taken in {"an older one": frame("user-7", 9), "user-8's": frame("user-8", 8, sequence=3)}.items():
    try:
        store.put("user-7", taken, policy)
    except VectorError as error:
        print(f"{what} is refused for user-7: {type(error).__name__}")
store.close()
