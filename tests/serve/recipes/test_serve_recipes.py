"""The recipes for containers: what they start is what the command takes, and what they ask the server has."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml
from typer.main import get_command

from tinylora_edge.cli.app import app
from tinylora_edge.serve.application import _ROUTES

RECIPES = Path(__file__).parents[3] / "recipes" / "serve"


def parsed(arguments: list[str]) -> dict[str, Any]:
    """The options of `tinylora-edge serve`."""
    command = get_command(app).commands["serve"]  # type: ignore[attr-defined]
    found: dict[str, Any] = command.make_context("serve", list(arguments), resilient_parsing=True).params
    return found


def test_the_image_starts_the_server() -> None:
    text = (RECIPES / "Dockerfile").read_text("utf-8")
    found = dict(re.findall(r"^(ENTRYPOINT|CMD) (\[.+\])$", text, re.M))
    assert json.loads(found["ENTRYPOINT"]) == ["tinylora-edge", "serve"]
    options = parsed(json.loads(found["CMD"]))
    assert (str(options["bundle"]), options["host"]) == ("/bundle", "0.0.0.0")
    assert options["api_keys"] is not None
    assert "USER 10001" in text


def test_the_manifest_agrees_with_itself_and_the_server() -> None:
    deployment, service, ingress = yaml.safe_load_all((RECIPES / "kubernetes.yaml").read_text("utf-8"))
    pod = deployment["spec"]["template"]
    (container,) = pod["spec"]["containers"]
    options = parsed(container["args"])
    assert str(options["bundle"]) == "/bundle"
    assert options["api_keys"] is not None
    labels = pod["metadata"]["labels"]
    assert deployment["spec"]["selector"]["matchLabels"] == labels == service["spec"]["selector"]
    (port,) = container["ports"]
    assert port["name"] == service["spec"]["ports"][0]["targetPort"]
    paths = {container[probe]["httpGet"]["path"] for probe in ("readinessProbe", "livenessProbe")}
    assert paths <= {path for path, method, _ in _ROUTES if method == "GET"}
    assert {mount["name"] for mount in container["volumeMounts"]} == {
        v["name"] for v in pod["spec"]["volumes"]
    }
    (rule,) = ingress["spec"]["rules"]
    backend = rule["http"]["paths"][0]["backend"]["service"]
    assert (backend["name"], backend["port"]["name"]) == (
        service["metadata"]["name"],
        service["spec"]["ports"][0]["name"],
    )


def test_the_commands_of_convert_parse() -> None:
    text = (RECIPES / "README.md").read_text("utf-8")
    (line,) = re.findall(r"^    tinylora-edge convert (.+)$", text, re.M)
    command = get_command(app).commands["convert"]  # type: ignore[attr-defined]
    options = command.make_context("convert", line.split()).params
    assert "lora" in str(options["to"])
