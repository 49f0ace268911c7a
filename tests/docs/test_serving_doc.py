"""docs/SERVING.md says what there is: options, routes, codes and limits."""

from __future__ import annotations

import json
import re
import statistics
from pathlib import Path

from typer.testing import CliRunner

from tinylora_edge.cli.app import app
from tinylora_edge.serve import Limits
from tinylora_edge.serve.application import _PAGE_ROUTES, _ROUTES
from tinylora_edge.serve.bodies import _NOT_HERE

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "SERVING.md").read_text("utf-8")
FOLDERS = [ROOT / folder for folder in ("tinylora_edge/serve", "runtime/pool", "runtime/llama/pool")]
FILES = [ROOT / "tinylora_edge/errors.py", *(path for folder in FOLDERS for path in folder.rglob("*.py"))]
SOURCES = "".join(path.read_text("utf-8") for path in FILES)


def test_options_are_those_of_the_command() -> None:
    helps = [CliRunner().invoke(app, [command, "--help"]).output for command in ("serve", "play")]
    known = set(re.findall(r"--[a-z][a-z-]+", "".join(helps)))
    assert set(re.findall(r"--[a-z][a-z-]+", TEXT)) <= known


def test_routes_are_all_there() -> None:
    section = TEXT.partition("## Routes")[2].partition("A completion takes")[0]
    routes = {path.replace(":path", "") for path, _, _ in _ROUTES}  # a name may have slashes
    assert routes == set(re.findall(r"(/(?:v1|health|metrics)[^ `,]*)", section))


def test_routes_of_the_page_are_all_there() -> None:
    section = TEXT.partition("## The page")[2].partition("## ")[0]
    assert {path for path, _, _ in _PAGE_ROUTES} == set(re.findall(r"(?:GET|POST) (/[^ `]*)`", section))


def test_codes_are_those_that_the_server_has() -> None:
    section = TEXT.partition("## Errors")[2].partition("## Log")[0]
    for code in re.findall(r"`([a-z_]+)`", section):
        assert f'"{code}"' in SOURCES, code


def test_limits_are_those_that_hold() -> None:
    limits = Limits()
    shown = dict(re.findall(r"`(--max-[a-z]+)` \| ([\d,]+(?: MiB)?) \|", TEXT))
    assert shown == {
        "--max-requests": f"{limits.requests:,}",
        "--max-body": f"{limits.body >> 20} MiB",
        "--max-tokens": f"{limits.tokens:,}",
        "--max-seconds": f"{limits.seconds:g}",
    }


def test_how_fast_it_is_says_the_record() -> None:
    record = json.loads((ROOT / "benchmarks" / "results" / "serve.json").read_text("utf-8"))
    columns = (
        "onnx, a vector each",
        "onnx, one shared",
        "llama, a vector each",
        "llama-server, a LoRA a request",
    )
    for users, runs in record["load"].items():
        rates = [statistics.median(each["tokens_per_second"] for each in runs[name]) for name in columns]
        assert f"| {users} | {' | '.join(f'{rate:.0f}' for rate in rates)} |" in TEXT
    llama, onnx = (
        statistics.median(record["client_leaves"][engine]["ratio"]) for engine in ("llama", "onnx")
    )
    freed = f"within {llama:.2f} tokens in llama.cpp, and {onnx:.2f} in ONNX Runtime"
    assert freed.replace(" 0.", " .") in TEXT


def test_what_is_not_supported_is_named() -> None:
    sentence = TEXT[: TEXT.index("are refused by name")]
    missing = [name for name in _NOT_HERE if f"`{name}`" not in sentence and not name.endswith("_penalty")]
    assert missing == []
