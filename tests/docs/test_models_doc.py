"""docs/MODELS.md: its catalog is read, its fields are all of them, its commands and its Python exist."""

from __future__ import annotations

import ast
import inspect
import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tinylora_edge import exporters
from tinylora_edge.cli.app import app
from tinylora_edge.exporters.hub import catalog, gguf_names

PAGE = (Path(__file__).parents[2] / "docs" / "MODELS.md").read_text("utf-8")
TOUR = (Path(__file__).parents[2] / "docs" / "TOUR.md").read_text("utf-8")
COMMANDS = re.findall(r"^    (tinylora-edge [^#\n]+)", PAGE + TOUR.partition("## Your model")[2], re.M)


def test_the_example_is_a_catalog(tmp_path: Path) -> None:
    (example,) = re.findall(r"^```toml\n(.*?)^```", PAGE, re.M | re.S)
    path = tmp_path / "models.toml"
    path.write_text(example)
    (model,) = catalog.read_catalog(path).values()
    assert (model.name, model.default) == ("support-bot", "q8_0")
    for field in catalog._KINDS:
        assert re.search(rf"^{field} = ", example, re.M), field


def test_every_field_is_explained() -> None:
    table = PAGE.partition("| field | |")[2]
    assert set(re.findall(r"^\| `(\w+)` \|", table, re.M)) == set(catalog._KINDS)


def test_the_order_of_the_defaults() -> None:
    stated = re.search(r"the first is taken of ([^.]+)\.", PAGE)
    assert stated is not None
    assert tuple(re.findall(r"\w+\d\w*", stated[1])) == gguf_names.PREFERRED


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_parses(command: str) -> None:
    _, *words = shlex.split(command)
    assert CliRunner().invoke(app, [*words, "--help"]).exit_code == 0
    assert CliRunner().invoke(app, [*words, "--no-such-option"]).exit_code == 2
    names = catalog.read_catalog(catalog.SHIPPED)
    if words[0] == "export" and "/" not in words[1] and not words[1].endswith(".gguf"):
        assert words[1] in names


def test_the_commands_were_found() -> None:
    assert len(COMMANDS) >= 8


def test_the_python_calls_what_there_is() -> None:
    (code,) = re.findall(r"^    (from tinylora_edge import exporters\n.*?)\n\n##", PAGE, re.M | re.S)
    code = "\n".join(line.removeprefix("    ") for line in code.splitlines())
    calls = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call)]
    assert {ast.unparse(call.func) for call in calls} == {"exporters.resolve", "exporters.export_gguf"}
    for call in calls:
        function = getattr(exporters, ast.unparse(call.func).partition(".")[2])
        target = exporters.find if function is exporters.resolve else function
        inspect.signature(target).bind(*call.args, **{str(k.arg): k.value for k in call.keywords})
