"""A FastAPI handler that answers many users at once, each under the vector that a store has of him.

    pip install "tinylora-edge[llama,serve]" fastapi
    python examples/fleet_sqlite.py BUNDLE fleet.db
    BUNDLE=smollm2 STORE=fleet.db uvicorn --app-dir examples ask_fastapi:app
    curl "http://127.0.0.1:8000/ask/user-7?question=What+is+a+tide%3F"

Every request checks the frame anew. Whoever has none gets the base. A whole server is `tinylora-edge serve`.
"""

import os

from fastapi import FastAPI, HTTPException

from tinylora_edge import Hmac, Policy, TinyLoraError, VectorError, load_basis, runtime
from tinylora_edge.serve.store import SqliteStore

BUNDLE = os.environ["BUNDLE"]
store = SqliteStore(os.environ["STORE"], load_basis(f"{BUNDLE}/basis.gguf"))
policy = Policy("mac", keys=[Hmac.from_hex(os.environ.get("KEY", "00" * 32))], state=store.marks)
pool = runtime.Pool(BUNDLE, policy=policy, n_ctx=512)
app = FastAPI()


@app.get("/ask/{user}")
async def ask(user: str, question: str) -> dict[str, str]:
    try:
        kept = store.get(user)
        answer = await pool.chat(question, user=user, vector=kept and kept.frame, max_tokens=48)
    except VectorError as error:  # forged, stale, or another user's
        raise HTTPException(403, str(error)) from None
    except TinyLoraError as error:
        raise HTTPException(400, str(error)) from None
    return {"user": user, "answer": answer.text}
