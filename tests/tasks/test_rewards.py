"""Every built-in reward: what earns it, what does not, and the cheap answers that its guard refuses."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from answers import LOOPS, NOTHING, RIVER, asked, said
from hypothesis import given
from hypothesis import strategies as st

from tinylora_edge import MissingExtraError, TrainError
from tinylora_edge.tasks import rewards
from tinylora_edge.tasks.guards import copies, count_words, own_words, repeats

# exact_number


APPLES = asked("Tom has 3 apples and gets 4 more. How many apples does Tom have now?", "3 + 4 = 7\n#### 7")


@pytest.mark.parametrize("text", ["7", "#### 7", r"\boxed{7}", "He has 7 apples.", "7.00", "$7", "3 + 4 = 7"])
def test_exact_number_takes_every_notation(text: str) -> None:
    assert rewards.exact_number(said(text), APPLES) == 1.0


@pytest.mark.parametrize("text", ["", "8", "-7", "seven", "77", "7 or 8", "7.5"])
def test_exact_number_refuses_other_numbers(text: str) -> None:
    assert rewards.exact_number(said(text), APPLES) == 0.0


@pytest.mark.parametrize("text", ["#### 6\n#### 7", "#### 6 or 7", r"\boxed{6}\boxed{7}", r"\boxed{6, 7}"])
def test_exact_number_refuses_to_be_hedged(text: str) -> None:
    assert rewards.exact_number(said(text), APPLES) == 0.0


def test_exact_number_does_not_count_a_number_at_the_cut() -> None:
    assert rewards.exact_number(said("3 + 4 = 7", ended=False), APPLES) == 0.0
    assert rewards.exact_number(said("3 + 4 = 7 apples", ended=False), APPLES) == 1.0


def test_exact_number_is_not_won_by_saying_the_prompt_back() -> None:
    sample = asked("Is the largest of these numbers 12, 5, or 40?", "40")
    assert rewards.exact_number(said("Is the largest of these numbers 12, 5, or 40?"), sample) == 0.0
    assert rewards.exact_number(said("numbers 12, 5, or 40"), sample) == 0.0
    assert rewards.exact_number(said("40"), sample) == 1.0
    assert rewards.exact_number(said("The largest is 40."), sample) == 1.0


@pytest.mark.parametrize("answer", [None, "", "none", "#### 5 or 6"])
def test_exact_number_needs_a_reference(answer: str | None) -> None:
    with pytest.raises(ValueError, match="needs a sample whose answer has a number"):
        rewards.exact_number(said("7"), asked("?", answer))


# max_words, ends_itself


def test_max_words_counts_words() -> None:
    reward = rewards.max_words(4)
    assert reward(said("Water flowing downhill."), RIVER) == 1.0
    assert reward(said("Water flowing far downhill."), RIVER) == 1.0
    assert reward(said("Water flowing very far downhill."), RIVER) == 0.0
    assert reward(said("Water-flowing_very/far.downhill"), RIVER) == 0.0


def test_max_words_refuses_an_answer_that_the_limit_made_short() -> None:
    assert rewards.max_words(4)(said("Water flowing", ended=False), RIVER) == 0.0


@pytest.mark.parametrize("text", [*NOTHING, *LOOPS])
def test_max_words_and_ends_itself_refuse_cheap_answers(text: str) -> None:
    assert rewards.max_words(100)(said(text), RIVER) == 0.0
    assert rewards.ends_itself(said(text), RIVER) == 0.0


@pytest.mark.parametrize("n", [0, -1, 2.5, "12", True, None])
def test_max_words_needs_a_number_of_words(n: object) -> None:
    with pytest.raises(TrainError, match="number of words"):
        rewards.max_words(n)  # type: ignore[arg-type]


def test_ends_itself_is_about_the_end() -> None:
    long = "Water that flows downhill from mountains towards some distant sea, through valleys and towns."
    assert rewards.ends_itself(said(long), RIVER) == 1.0
    assert rewards.ends_itself(said(long, ended=False), RIVER) == 0.0


# regex


def test_regex_searches() -> None:
    assert rewards.regex(r"\bwater\b")(said("Flowing water."), RIVER) == 1.0
    assert rewards.regex(r"\bwater\b")(said("Waterfalls."), RIVER) == 0.0
    assert rewards.regex(r"^water")(said("Flowing water."), RIVER) == 0.0


def test_regex_ignores_empty_matches() -> None:
    assert rewards.regex(r"z*")(said("Flowing water."), RIVER) == 0.0
    assert rewards.regex(r"")(said("Flowing water."), RIVER) == 0.0


def test_regex_is_not_won_by_saying_the_prompt_back() -> None:
    sample = asked("Write a date in the form Date: 2024-01-31, please.")
    reward = rewards.regex(r"Date: \d{4}-\d\d-\d\d")
    assert reward(said("Write a date in the form Date: 2024-01-31, please."), sample) == 0.0
    assert reward(said("Okay. Write a date in the form Date: 2024-01-31, please."), sample) == 0.0
    assert reward(said("Date: 2031-12-07"), sample) == 1.0


@pytest.mark.parametrize("text", [*NOTHING, *LOOPS])
def test_regex_refuses_cheap_answers(text: str) -> None:
    assert rewards.regex(r"\S")(said(text), RIVER) == 0.0


@pytest.mark.parametrize("pattern", ["(", "[a", 5])
def test_regex_needs_a_valid_pattern(pattern: object) -> None:
    with pytest.raises(TrainError, match="not a regular expression"):
        rewards.regex(pattern)  # type: ignore[arg-type]


# picks_answer


PICK = asked(
    "List: dog, lamp, ice cream, tree. What is the last word in the list?",
    "tree",
    others=("dog", "lamp", "ice cream"),
)


@pytest.mark.parametrize("text", ["tree", 'The last word in the list is "Tree."', "It is tree, the tree."])
def test_picks_answer_takes_the_word(text: str) -> None:
    assert rewards.picks_answer(said(text), PICK) == 1.0


@pytest.mark.parametrize(
    "text",
    [
        "",
        "lamp",
        "trees",
        "street",
        "dog, lamp, ice cream, tree",
        "tree or lamp",
        "Ice cream and tree",
        "tree tree",
        "tree " * 5,
    ],
)
def test_picks_answer_refuses_everything_else(text: str) -> None:
    assert rewards.picks_answer(said(text), PICK) == 0.0


@pytest.mark.parametrize(
    "sample",
    [asked("?"), asked("?", "tree"), asked("?", "tree", others="dog"), asked("?", None, others=["dog"])],
)
def test_picks_answer_needs_the_choices(sample: object) -> None:
    with pytest.raises(ValueError, match="answer and a list"):
        rewards.picks_answer(said("tree"), sample)  # type: ignore[arg-type]


# Sums and products


def test_sums_weigh_and_products_gate() -> None:
    one, zero = (lambda completion, sample: 1.0), (lambda completion, sample: 0.0)

    def never(completion: object, sample: object) -> float:
        raise AssertionError("a factor behind a zero was called")

    assert rewards.weighted_sum([(0.25, one), (0.5, one), (9.0, zero)])(said("x"), RIVER) == 0.75
    assert rewards.product([one, one])(said("x"), RIVER) == 1.0
    assert rewards.product([one, zero, never])(said("x"), RIVER) == 0.0


# JSON

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


def test_json_schema_reads_a_file(tmp_path: Path) -> None:
    path = tmp_path / "schema.json"
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


# Guards


@pytest.mark.parametrize("text", LOOPS)
def test_three_times_in_a_row_is_a_repetition(text: str) -> None:
    assert repeats(text)


@pytest.mark.parametrize(
    "text", ["water water", "to be or not to be", "a b c d e f g h i a b c d e f g h i", ""]
)
def test_less_is_not(text: str) -> None:
    assert not repeats(text)


@given(st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=8), st.text("xyz ", max_size=10))
def test_any_phrase_of_up_to_8_words_is_noticed(unit: list[str], before: str) -> None:
    assert repeats(f"{before} {' '.join(unit * 3)} end")


def test_gluing_words_together_does_not_make_them_fewer() -> None:
    assert count_words("one two three") == 3
    assert count_words("one-two_three/four") == 4
    assert count_words("internationalization") == 1
    assert count_words("a" * 200) == 10
    assert count_words("\u5927\u304d\u306a\u5ddd") == 4
    assert count_words("it's John\u2019s") == 2


def test_own_words_are_neither_the_prompts_nor_function_words() -> None:
    assert own_words("A river is a wide stream; 3 words.", RIVER) == ["wide", "stream", "3"]


def test_a_copy_is_a_whole_answer_out_of_the_prompt() -> None:
    sample = asked("Tom has 3 apples and gets 4 more.")
    assert copies("has 3 apples and", sample)
    assert copies("HAS 3 apples, and gets", sample)
    assert not copies("gets 4 more", sample)  # three words may be chance
    assert not copies("has 3 apples and 4 more", sample)
    assert not copies("", sample)
