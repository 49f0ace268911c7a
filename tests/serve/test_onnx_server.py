"""The real client of OpenAI against a server of an ONNX bundle: clicks, and vectors that the server signs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx_bundles
import openai
import pytest
from serving import Serving, mac_file, serving

from tinylora_edge import Ed25519Signer
from tinylora_edge.wire import tags

QUESTION = [{"role": "user", "content": "Name three fruits."}]
LIMIT = 12


@pytest.fixture(scope="module")
def bundle() -> Path:
    return onnx_bundles.tiny()


@pytest.fixture(scope="module")
def server(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    folder = tmp_path_factory.mktemp("server")
    options = ("--name", "tiny", "--store", folder / "users.db", "--key", mac_file(folder), "--slots", "6")
    signer = Ed25519Signer(bytes(range(32)))
    (folder / "key").write_text(tags.private_pem(bytes(range(32))))
    (folder / "key").chmod(0o600)
    (folder / "key.pub").write_text(tags.public_pem(signer.public_key))
    learning = ("--feedback", folder / "states", "--sign", folder / "key", "--key", folder / "key.pub")
    with serving(folder, bundle, *options, *learning, "--n-ctx", "400") as running:
        yield running


def ask(client: openai.OpenAI, model: str = "tiny", **options: Any) -> Any:
    given: Any = {"messages": QUESTION, "max_tokens": LIMIT, "temperature": 0} | options
    return client.chat.completions.create(model=model, **given)


def test_clicks_move_a_users_vector(server: Serving, client: openai.OpenAI) -> None:
    def rate(**body: Any) -> tuple[int, Any]:
        return server.ask("POST", "/v1/feedback", body)

    def clicked(reward: int) -> tuple[int, Any]:
        answer = ask(client, user="clara", temperature=1, seed=3)
        return rate(id=answer.id, reward=reward)

    assert server.ask("GET", "/v1/vectors/clara")[0] == 404
    status, body = clicked(1)
    assert (status, body["sequence"]) == (200, 1), body
    first = server.ask("GET", "/v1/vectors/clara")[1]["vector"]
    assert clicked(-1)[1]["sequence"] == 2
    assert server.ask("GET", "/v1/vectors/clara")[1]["vector"] != first
    pair = ask(client, "tiny@clara", temperature=1, seed=5, n=2).id
    assert rate(better=f"{pair}:1", worse=pair)[1]["sequence"] == 3
    assert ask(client, "tiny@clara").choices
    assert server.ask("GET", "/v1/vectors/nobody")[0] == 404
