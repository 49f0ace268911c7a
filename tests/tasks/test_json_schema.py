"""The reward for answers in JSON: what fits a schema, and the values that its guard refuses."""

from __future__ import annotations

import sys

import pytest
from answers import asked, said

from tinylora_edge import MissingExtraError, TrainError
from tinylora_edge.tasks import rewards

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer", "minimum": 0}},
    "required": ["name"],
}
WHO = asked('Describe a person as JSON, for example {"name": "Bob", "age": 3}.')


@pytest.mark.parametrize(
    "text",
    [
        '{"name": "Ann", "age": 5}',
        '```json\n{"name": "Ann"}\n```',
        '```\n{"name": "Ann"}\n```',
        ' {"name":"Ann"}\n',
    ],
)
def test_json_schema_takes_what_fits(text: str) -> None:
    assert rewards.json_schema(PERSON)(said(text), WHO) == 1.0


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Ann",
        "[]",
        '{"name": 5}',
        '{"age": 5}',
        '{"name": "Ann", "age": -1}',
        '{"name": "Ann"} Hope this helps!',
        'Here: {"name": "Ann"}',
        '{"name": "Ann"',
        '{"name": "Ann", "age": NaN}',
        "[" * 100_000,
        "9" * 10_000,
    ],
)
def test_json_schema_refuses_what_does_not(text: str) -> None:
    assert rewards.json_schema(PERSON)(said(text), WHO) == 0.0


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        "[]",
        "null",
        '""',
        '{"a": null}',
        '{"a": {}}',
        '{"a": "..."}',
        '{"a": "x x x"}',
        '{"a": 1, "a": 2}',
    ],
)
def test_json_schema_refuses_empty_values_that_fit(text: str) -> None:
    assert rewards.json_schema(True)(said(text), WHO) == 0.0


def test_json_schema_refuses_the_prompts_own_example() -> None:
    assert rewards.json_schema(PERSON)(said('{"name":"Bob","age":3}'), WHO) == 0.0
    assert rewards.json_schema({"type": "integer"})(said("3"), WHO) == 1.0


def test_json_schema_reads_a_file(tmp_path: object) -> None:
    path = tmp_path / "schema.json"  # type: ignore[operator]
    path.write_text('{"type": "array", "minItems": 2}')
    reward = rewards.json_schema(str(path))
    assert reward(said("[1, 2]"), WHO) == 1.0
    assert reward(said("[1]"), WHO) == 0.0


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "nonsense"},
        "no/such/file.json",
        [],
        5,
        {"minimum": "x"},
        {"$schema": {}},
        {"$schema": 5},
        {"$schema": "http://[bad"},
        {"pattern": "a{99999999999999}"},
        {"pattern": "(" * 3000 + ")" * 3000},
    ],
)
def test_json_schema_needs_a_valid_schema(schema: object) -> None:
    with pytest.raises(TrainError, match="json_schema"):
        rewards.json_schema(schema)  # type: ignore[arg-type]


def test_json_schema_never_fetches_a_reference() -> None:
    reward = rewards.json_schema({"$ref": "http://127.0.0.1:9/schema.json"})
    with pytest.raises(Exception, match="Unresolvable"):
        reward(said('{"name": "Ann"}'), WHO)


def test_json_schema_names_the_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jsonschema", None)
    with pytest.raises(
        MissingExtraError, match=r"json_schema reward needs .* jsonschema.*tinylora-edge\[train\]"
    ):
        rewards.json_schema(PERSON)
