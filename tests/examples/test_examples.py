"""The examples in Python, run as their top comments print it."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(*arguments: object) -> str:
    """What an example prints."""
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def fleet(smollm2_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The store that the example makes, and what it says."""
    path = tmp_path_factory.mktemp("fleet") / "fleet.db"
    return path, run(EXAMPLES / "fleet_sqlite.py", smollm2_bundle, path, 20)


def test_a_fleet(fleet: tuple[Path, str]) -> None:
    first, *rest = fleet[1].splitlines()
    assert first.startswith("20 vectors of 41 bytes added in ")
    assert rest == [
        "user-7 has a newer vector: sequence 2",
        "an older one is refused for user-7: RollbackError",
        "user-8's is refused for user-7: SignatureError",
    ]


def test_a_fastapi_handler(
    fleet: tuple[Path, str], smollm2_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Users with vectors and without, through the app; a frame that was changed in the store is refused."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # starlette's of its own client
        from fastapi.testclient import TestClient

    monkeypatch.syspath_prepend(EXAMPLES)
    monkeypatch.setenv("BUNDLE", str(smollm2_bundle))
    monkeypatch.setenv("STORE", str(fleet[0]))
    import ask_fastapi

    client = TestClient(ask_fastapi.app)
    ask: Any = {"params": {"question": "What is a tide?"}}
    try:
        with ask_fastapi.pool:
            one, two, base, nobody = (
                client.get(f"/ask/{user}", **ask) for user in ("user-7", "user-8", "somebody", ".no-user")
            )
            assert [each.status_code for each in (one, two, base, nobody)] == [200, 200, 200, 400]
            assert len({each.json()["answer"] for each in (one, two, base)}) == 3
            frame = ask_fastapi.store.get("user-3").frame
            with ask_fastapi.store._transaction() as writer:
                writer.execute("UPDATE vectors SET frame = ? WHERE user = 'user-4'", (frame,))
            assert client.get("/ask/user-4", **ask).status_code == 403
    finally:
        ask_fastapi.store.close()
        del sys.modules["ask_fastapi"]


NOTEBOOKS = sorted(EXAMPLES.glob("*.ipynb"))


@pytest.mark.filterwarnings("ignore::tinylora_edge.UnauthenticatedVectorWarning")
@pytest.mark.parametrize("path", NOTEBOOKS, ids=[path.stem for path in NOTEBOOKS])
def test_a_notebook(path: Path, smollm2_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its cells run one after the other, the last expression of each shown as a notebook shows it."""
    os.environ["BUNDLE"] = str(smollm2_bundle)
    names: dict[str, Any] = {"__name__": "__main__"}
    try:
        for cell in cells(path):
            if cell["cell_type"] == "code":
                *body, last = ast.parse("".join(cell["source"])).body
                expression = isinstance(last, ast.Expr)
                exec(
                    compile(ast.Module([*body, *([] if expression else [last])], []), str(path), "exec"),
                    names,
                )
                if expression:
                    assert repr(eval(compile(ast.Expression(last.value), str(path), "eval"), names))
    finally:
        del os.environ["BUNDLE"]
    said = capsys.readouterr().out
    assert said.startswith("63 bytes\nbase:     ")
    assert "checksum" in said


def cells(path: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(path.read_text("utf-8"))["cells"]
    return found


@pytest.mark.parametrize("path", NOTEBOOKS, ids=[path.stem for path in NOTEBOOKS])
def test_a_notebook_is_stored_without_outputs(path: Path) -> None:
    for cell in cells(path):
        assert cell["metadata"] == {}
        assert cell.get("outputs", []) == []
        assert cell.get("execution_count") is None


def test_every_example_says_what_it_shows() -> None:
    for path in EXAMPLES.glob("*.py"):
        first = (ast.get_docstring(ast.parse(path.read_text("utf-8"))) or "").partition("\n")[0]
        assert first.endswith("."), path.name
        assert len(path.read_text("utf-8").splitlines()) <= 60, path.name
