"""Every built-in reward: what earns it, what does not, and the cheap answers that its guard refuses."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from answers import LOOPS, NOTHING, RIVER, asked, said

from tinylora_edge import MissingExtraError, TrainError
from tinylora_edge.tasks import Sample, rewards

APPLES = asked("Tom has 3 apples and gets 4 more. How many apples does Tom have now?", "3 + 4 = 7\n#### 7")
LARGEST = asked("Is the largest of these numbers 12, 5, or 40?", "40")
DATE = asked("Write a date in the form Date: 2024-01-31, please.")
PICK = asked(
    "List: dog, lamp, ice cream, tree. What is the last word in the list?",
    "tree",
    others=("dog", "lamp", "ice cream"),
)
WHO = asked('Describe a person as JSON, for example {"name": "Bob", "age": 3}.')
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer", "minimum": 0}},
    "required": ["name"],
}
FOUR, WORD = rewards.max_words(4), rewards.regex(r"\bwater\b")
DATED = rewards.regex(r"Date: \d{4}-\d\d-\d\d")
AS_PERSON, ANY = rewards.json_schema(PERSON), rewards.json_schema(True)


@pytest.mark.parametrize(
    ("reward", "sample", "text"),
    [
        (rewards.number, APPLES, "3 + 4 = 7"),
        (rewards.number, APPLES, r"\boxed{7.00}"),
        (rewards.number, LARGEST, "The largest is 40."),
        (FOUR, RIVER, "Water flowing far downhill."),
        (rewards.ends_itself, RIVER, "Water that flows downhill towards some distant sea, through valleys."),
        (WORD, RIVER, "Flowing water."),
        (DATED, DATE, "Date: 2031-12-07"),
        (rewards.picks_answer, PICK, 'The last word in the list is "Tree."'),
        (rewards.picks_answer, PICK, "It is tree, the tree."),
        (AS_PERSON, WHO, '{"name": "Ann", "age": 5}'),
        (AS_PERSON, WHO, '```json\n{"name": "Ann"}\n```'),
        (rewards.json_schema({"type": "integer"}), WHO, "3"),
    ],
)
def test_what_earns_a_reward(reward: rewards.Reward, sample: Sample, text: str) -> None:
    assert reward(said(text), sample) == 1.0


@pytest.mark.parametrize(
    ("reward", "sample", "texts"),
    [
        (rewards.number, APPLES, ["", "8", "seven", "7 or 8", "#### 6\n#### 7", r"\boxed{6}\boxed{7}"]),
        (rewards.number, LARGEST, [LARGEST.text, "numbers 12, 5, or 40"]),
        (FOUR, RIVER, ["Water flowing very far downhill.", "Water-flowing_very/far.downhill"]),
        (rewards.max_words(100), RIVER, [*NOTHING, *LOOPS]),
        (rewards.ends_itself, RIVER, [*NOTHING, *LOOPS]),
        (WORD, RIVER, ["Waterfalls."]),
        (rewards.regex(r"\S"), RIVER, [*NOTHING, *LOOPS]),
        (rewards.regex(r"z*"), RIVER, ["Flowing water."]),
        (DATED, DATE, [DATE.text, f"Okay. {DATE.text}"]),
        (rewards.picks_answer, PICK, ["", "lamp", "trees", "dog, lamp, ice cream, tree", "tree or lamp"]),
        (rewards.picks_answer, PICK, ["Ice cream and tree", "tree tree", "tree " * 5]),
        (AS_PERSON, WHO, ["", "Ann", "[]", '{"age": 5}', '{"name": "Ann", "age": -1}', '{"name": "Ann"']),
        (AS_PERSON, WHO, ['{"name": "Ann"} Hope this helps!', '{"name": "Ann", "age": NaN}']),
        (AS_PERSON, WHO, ['{"name":"Bob","age":3}', "[" * 100_000, "9" * 10_000]),
        (ANY, WHO, ["{}", "[]", "null", '""', '{"a": null}', '{"a": {}}', '{"a": "..."}', '{"a": "x x x"}']),
        (ANY, WHO, ['{"a": 1, "a": 2}']),
    ],
)
def test_what_does_not(reward: rewards.Reward, sample: Sample, texts: list[str]) -> None:
    for text in texts:
        assert reward(said(text), sample) == 0.0, text


def test_what_the_limit_cut() -> None:
    assert rewards.number(said("3 + 4 = 7", ended=False), APPLES) == 0.0
    assert rewards.number(said("3 + 4 = 7 apples", ended=False), APPLES) == 1.0
    assert FOUR(said("Water flowing", ended=False), RIVER) == 0.0
    assert rewards.ends_itself(said("Water flowing", ended=False), RIVER) == 0.0


@pytest.mark.parametrize("answer", [None, "none", "#### 5 or 6"])
def test_what_a_sample_has_to_have(answer: str | None) -> None:
    with pytest.raises(ValueError, match="needs a sample whose answer has a number"):
        rewards.number(said("7"), asked("?", answer))
    with pytest.raises(ValueError, match="answer and a list"):
        rewards.picks_answer(said("tree"), asked("?", answer, others="dog"))


def test_sums_weigh_and_products_gate() -> None:
    one, zero = (lambda completion, sample: 1.0), (lambda completion, sample: 0.0)

    def never(completion: object, sample: object) -> float:
        raise AssertionError("a factor behind a zero was called")

    assert rewards.weighted_sum([(0.25, one), (0.5, one), (9.0, zero)])(said("x"), RIVER) == 0.75
    assert rewards.product(one, one)(said("x"), RIVER) == 1.0
    assert rewards.product(zero, never)(said("x"), RIVER) == 0.0


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "nonsense"},
        "no/such/file.json",
        5,
        {"$schema": {}},
        {"$schema": "http://[bad"},
        {"pattern": "a{99999999999999}"},
        {"pattern": "(" * 3000 + ")" * 3000},
    ],
)
def test_json_schema_needs_a_valid_schema(schema: object) -> None:
    with pytest.raises(TrainError, match="json_schema"):
        rewards.json_schema(schema)  # type: ignore[arg-type]


def test_json_schema_reads_a_file_and_fetches_nothing(tmp_path: Path) -> None:
    path = tmp_path / "schema.json"
    path.write_text('{"type": "array", "minItems": 2}')
    assert [rewards.json_schema(str(path))(said(text), WHO) for text in ("[1, 2]", "[1]")] == [1.0, 0.0]
    with pytest.raises(Exception, match="Unresolvable"):
        rewards.json_schema({"$ref": "http://127.0.0.1:9/schema.json"})(said('{"name": "Ann"}'), WHO)


def test_json_schema_names_the_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jsonschema", None)
    with pytest.raises(MissingExtraError, match=r"json_schema reward needs .* jsonschema.*\[train\]"):
        rewards.json_schema(PERSON)
