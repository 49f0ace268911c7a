"""The Berkeley Function Calling Leaderboard against a running server: its own data, handler and checker.

    tinylora-edge serve BUNDLE --name m --n-ctx 1536 --max-tokens 128 --store users.db
    python benchmarks/bfcl.py --url http://127.0.0.1:8000/v1 --models m m@user

`--data FILE` writes a training set instead: the other halves of `simple_python` and `irrelevance`, by a hash
of their questions; what is measured is never trained on. Its answers are what the leaderboard takes, and
`DECLINED` where no function fits.

Needs `pip install --no-deps bfcl-eval` and the packages that its checker imports: tree_sitter==0.21.3,
tree-sitter-java==0.21.0, tree-sitter-javascript==0.21.4, overrides, python-dotenv, tenacity.
"""

from __future__ import annotations

import hashlib
import importlib.resources
import json
import os
import sys
import types
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import _common
import jsonschema

from tinylora_edge.tasks.sample import read_functions, spelled

CATEGORIES = ("simple_python", "multiple", "irrelevance")
TRAINED = ("simple_python", "irrelevance")
DECLINED = "None of these functions can do that."
HELD_OUT = 16  # of the halves that are trained on


def leaderboard(models: list[str]) -> Any:
    """Import the leaderboard, with these models in the place of its registry, which needs 40 packages."""
    registry: Any = types.ModuleType("bfcl_eval.constants.model_config")
    registry.MODEL_CONFIG_MAPPING = {
        model: types.SimpleNamespace(underscore_to_dot=True, is_fc_model=True) for model in models
    }
    sys.modules[registry.__name__] = registry
    from bfcl_eval.constants.enums import Language
    from bfcl_eval.eval_checker.ast_eval.ast_checker import ast_checker
    from bfcl_eval.model_handler.api_inference.openai_completion import OpenAICompletionsHandler

    return types.SimpleNamespace(Language=Language, check=ast_checker, Handler=OpenAICompletionsHandler)


def entries(category: str, *, trained: bool) -> list[dict[str, Any]]:
    """Return the questions of a category that are trained on, or those that are measured, with answers."""
    folder = importlib.resources.files("bfcl_eval") / "data"
    name = f"BFCL_v4_{category}.json"
    found = [json.loads(line) for line in (folder / name).read_text("utf-8").splitlines()]
    if (answers := folder / "possible_answer" / name).is_file():
        for entry, line in zip(found, answers.read_text("utf-8").splitlines(), strict=True):
            entry["answer"] = json.loads(line)["ground_truth"]
    if category not in TRAINED:
        return found
    halves = [hashlib.sha256(json.dumps(entry["question"]).encode()).digest()[0] & 1 for entry in found]
    return [entry for entry, half in zip(found, halves, strict=True) if half == trained]


def first(options: Any) -> Any:
    """Return the first value that the leaderboard takes; objects have options inside."""
    value = next((option for option in options if option != ""), "")
    if isinstance(value, list):
        return [first([each]) for each in value]
    if isinstance(value, dict):
        return {name: first(inner) for name, inner in value.items() if "" not in inner}
    return value


def write_data(handler: Any, path: Path) -> None:
    """Write the halves that are trained on, a question once, shortest prompts first."""
    found = dict[str, dict[str, Any]]()
    for category in TRAINED:
        for entry in entries(category, trained=True):
            tools, answer = handler._compile_tools({}, entry)["tools"], DECLINED
            if "answer" in entry:
                (function,) = read_functions(tools)
                ((_, options),) = entry["answer"][0].items()
                first_values = {name: first(options[name]) for name in options if "" not in options[name]}
                order = [name for name in function["parameters"]["properties"] if name in first_values]
                answer = spelled(function["name"], {name: first_values[name] for name in order})
            row = {"messages": entry["question"][0], "tools": tools, "answer": answer}
            found.setdefault(str(row["messages"]), row)
    rows = sorted(found.values(), key=lambda row: len(str(row)))
    split = ["held_out" if number % (len(rows) // HELD_OUT) == 0 else "train" for number in range(len(rows))]
    lines = [json.dumps({**row, "split": side}) for row, side in zip(rows, split, strict=True)]
    path.write_text("".join(f"{line}\n" for line in lines), "utf-8")


def measure(bfcl: Any, handler: Any, model: str, category: str, count: int) -> dict[str, Any]:
    """Return how many answers of a model are right, and how many calls keep to their schemas."""
    questions = entries(category, trained=False)[:count]

    def judge(entry: dict[str, Any]) -> tuple[bool, int, int]:
        result, _ = handler.inference(entry, include_input_log=False, exclude_state_log=True)
        calls = [] if isinstance(result, str) or result is None else result
        tools = handler._compile_tools({}, entry)["tools"]
        schemas = {each["name"]: each["parameters"] for each in read_functions(tools)}
        valid = 0
        for call in calls:
            ((name, arguments),) = call.items()
            valid += jsonschema.Draft202012Validator(schemas[name]).is_valid(json.loads(arguments))
        if category == "irrelevance":
            return not calls, len(calls), valid
        if not calls:
            return False, 0, 0
        decoded = handler.decode_ast(calls, bfcl.Language.PYTHON, has_tool_call_tag=False)
        found = bfcl.check(
            entry["function"], decoded, entry["answer"], bfcl.Language.PYTHON, category, handler.registry_name
        )
        return bool(found["valid"]), len(calls), valid

    with ThreadPoolExecutor(4) as threads:
        judged = list(threads.map(judge, questions))
    return {
        "model": model,
        "category": category,
        "asked": len(judged),
        "right": sum(right for right, _, _ in judged),
        "answered_with_calls": sum(calls > 0 for _, calls, _ in judged),
        "calls": sum(calls for _, calls, _ in judged),
        "schema_valid": sum(valid for _, _, valid in judged),
    }


def main() -> None:
    parser = _common.parser(__doc__, rounds=1)
    parser.add_argument("--url", default="http://127.0.0.1:8000/v1")
    parser.add_argument("--models", nargs="+", default=["base"], help="the base, and then MODEL@USER")
    parser.add_argument("--categories", nargs="+", default=list(CATEGORIES), choices=CATEGORIES)
    parser.add_argument("--count", type=int, default=100, help="questions of a category (%(default)s)")
    parser.add_argument("--data", type=Path, help="write the training set there, and measure nothing")
    options = parser.parse_args()
    os.environ.update(OPENAI_BASE_URL=options.url, OPENAI_API_KEY=os.environ.get("OPENAI_API_KEY", "none"))
    bfcl = leaderboard(options.models)
    handlers = {name: bfcl.Handler(name, 0, name, is_fc_model=True) for name in options.models}
    if options.data:
        return write_data(handlers[options.models[0]], options.data)
    report = _common.Report("bfcl", options.json)
    report.record["results"] = results = []
    for category in options.categories:
        for name, handler in handlers.items():
            results.append(measure(bfcl, handler, name, category, options.count))
            report.say(json.dumps(results[-1]))
    calls = sum(each["calls"] for each in results)
    report.target(
        "schema-valid share", sum(each["schema_valid"] for each in results) / max(calls, 1), ">=", 1
    )
    right = [each["right"] for each in results if each["category"] == "simple_python"]
    if len(right) > 1:
        report.target("accuracy on simple, times the base's", right[1] / max(right[0], 1), ">=", 3)
    report.finish()
    return None


if __name__ == "__main__":
    main()
