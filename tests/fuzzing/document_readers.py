"""Harnesses of documents, and of what programs keep: states, configurations, tasks."""

from __future__ import annotations

import math
from functools import partial
from random import Random
from typing import Any

import numpy as np
from harness import Harness, folder
from mutations import as_json, changed, number

from tinylora_edge.exporters.weights.hf import HFConfig, shards
from tinylora_edge.formats.onnx_graph import check_config
from tinylora_edge.jsonio import restored
from tinylora_edge.runtime.learning.posterior import Posterior
from tinylora_edge.runtime.learning.state import SearchState, load_state
from tinylora_edge.tasks import load_task

DIGEST = "0123456789abcdef" * 4

_IDENTITY = {"digest": DIGEST, "settings": {"seed": 1}}


def _make_tuning(random: Random) -> bytes:
    state = {"search": {"mean": [0.0], "sigma": 0.1}, "start": [0.0], "best": [0.5], "tokens": 5}
    content = changed({"state": state, "format": 3}, random)
    if random.random() < 0.9 and isinstance(content, dict):
        content = {"identity": changed(_IDENTITY, random, random.choice((0, 0, 1))), **content}
    return as_json(content)


def _read_tuning(data: bytes) -> None:
    path = folder() / "tuning.json"
    path.write_bytes(data)
    load_state(path, partial(restored, SearchState), _IDENTITY)


_VALUES = 3
_CLICKS = {"precision": (_VALUES + 1) ** 2, "shift": _VALUES + 1, "fisher": _VALUES**2}


def _make_clicks(random: Random) -> bytes:
    state: dict[str, Any] = {name: [0.0] * size for name, size in _CLICKS.items()}
    numbers = random.choice(list(state.values()))
    numbers[random.randrange(len(numbers))] = random.choice((math.nan, math.inf, -1.0, 1e308, 0.0))
    state |= {"answers": number(random), "clicks": 3, "step": 0.05}
    state = changed(state, random, random.choice((0, 1)))
    return as_json({"format": 3, "identity": _IDENTITY, "state": state})


def _read_clicks(data: bytes) -> None:
    path = folder() / "clicks"
    path.write_bytes(data)
    posterior = load_state(path, lambda record: Posterior.of(record, _VALUES, None), _IDENTITY)
    assert np.isfinite(posterior.vector()).all()


def _make_config(random: Random) -> bytes:
    config: dict[str, Any] = {"model_type": "llama", "num_hidden_layers": 2, "num_attention_heads": 4}
    config |= {"num_key_value_heads": 2, "hidden_size": 64, "head_dim": 16}
    config["architectures"] = ["LlamaForCausalLM"]
    index = {"metadata": {"total_size": 5}, "weight_map": {"a.weight": "model-00001-of-00002.safetensors"}}
    return as_json(changed(config, random)) + b"\n" + as_json(changed(index, random))


def _read_config(data: bytes) -> None:
    home = folder() / "config"
    home.mkdir(exist_ok=True)
    (home / "model-00001-of-00002.safetensors").touch()
    head, _, index = data.partition(b"\n")
    (home / "config.json").write_bytes(head)
    (home / "model.safetensors.index.json").write_bytes(index)
    HFConfig(home)
    shards(home)


def _make_task(random: Random) -> bytes:
    if random.random() < 0.2:
        cells = [f'"{place} + 2?",{place + 2},{"train" if place % 3 else "held_out"}' for place in range(6)]
        return "\r\n".join(["prompt,answer,split", *cells]).encode()
    rows: list[Any] = []
    for place in range(random.choice((2, 3, 12))):
        row: Any = {"prompt": f"{place} + 2?", "answer": random.choice(("4", place, {"sum": place}))}
        if random.random() < 0.3:
            turns = (("user", "Hi"), ("assistant", "Ho"))
            row = {"messages": [{"role": role, "content": f"{word} {place}"} for role, word in turns]}
        row["split"] = ("train", "held_out", "shifted")[place % 3]
        rows.append(changed(row, random, 1) if random.random() < 0.1 else row)
    return b"\n".join(map(as_json, rows))


def _read_task(data: bytes) -> None:
    path = folder() / ("task.csv" if data.startswith(b"prompt") else "task.jsonl")
    path.write_bytes(data)
    task = load_task(str(path))
    assert task.train


# genai_config.json of an ONNX folder, which may name no native code.


def _make_genai(random: Random) -> bytes:
    decoder = {"filename": "model.onnx", "session_options": {"provider_options": [{"a": "b"}]}}
    if random.random() < 0.3:
        decoder[random.choice(("Custom_Ops_Library ", "library_path"))] = "x.so"
    return as_json(changed({"model": {"decoder": decoder, "context_length": 8192, "vocab_size": 9}}, random))


def _read_genai(data: bytes) -> None:
    home = folder() / "genai"
    home.mkdir(exist_ok=True)
    (home / "genai_config.json").write_bytes(data)
    check_config(home)
    assert b'"library_path":' not in data


HARNESSES = [
    Harness("genai_config", _make_genai, _read_genai),
    Harness("tuning_state", _make_tuning, _read_tuning),
    Harness("click_state", _make_clicks, _read_clicks),
    Harness("config", _make_config, _read_config),
    Harness("task", _make_task, _read_task),
]
