"""The catalog: what is shipped is sound, and a user's own comes on top of it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tinylora_edge import ExportError
from tinylora_edge.exporters.hub.catalog import (
    SHIPPED,
    load_catalog,
    near,
    read_catalog,
    split_repository,
    user_file,
)
from tinylora_edge.exporters.hub.gguf_names import models_in, normal

MINE = """
["my-model"]
gguf = "me/my-model-GGUF@v1"
files = "my-model-{quant}.gguf"
quants = { Q8_0 = 1000, q4_0 = 500 }
"""
PROMISED = {
    *(f"qwen2.5-{size}" for size in ("0.5b", "1.5b", "3b", "7b")),
    *(f"qwen3-{size}" for size in ("0.6b", "1.7b", "4b", "8b", "14b", "30b-a3b")),
    *("llama-3.2-1b", "llama-3.2-3b", "llama-3.1-8b", "mistral-7b", "phi-4-mini", "gpt-oss-20b"),
    *("gemma-3-270m", "gemma-3-1b", "gemma-3-4b", "smollm2-135m", "smollm2-360m", "smollm2-1.7b"),
}


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv("TINYLORA_EDGE_CATALOG", raising=False)
    return tmp_path


def write(path: Path, text: str = MINE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


# What is shipped


def test_the_promised_names():
    assert set(read_catalog(SHIPPED)) >= PROMISED


@pytest.mark.parametrize("model", read_catalog(SHIPPED).values(), ids=lambda model: model.name)
def test_an_entry_is_sound(model):
    assert split_repository(model.gguf) is not None
    assert model.weights is not None
    assert split_repository(model.weights) is not None
    assert model.license
    assert model.default in model.quants
    for quant, size in model.quants.items():
        assert quant == normal(quant)
        bits = size * 8 / model.parameters
        assert 3.5 < bits < 21, quant  # 4 bits and scales, up to 16 bits and a second copy of the vocabulary
        (found,) = models_in([model.files.format(quant=quant)])
        assert found.quant == quant
    by_bits = [
        quant for quant in ("q4_0", "q4_k_m", "q5_k_m", "q6_k", "q8_0", "f16") if quant in model.quants
    ]
    assert by_bits == sorted(by_bits, key=model.quants.__getitem__)


# A user's own


def test_where_it_is(home):
    assert user_file() == home / "config" / "tinylora-edge" / "models.toml"


@pytest.mark.skipif(os.name == "nt", reason="%APPDATA% there")
def test_where_it_is_without_xdg(monkeypatch, home):
    monkeypatch.delenv("XDG_CONFIG_HOME")
    monkeypatch.setenv("HOME", str(home))
    assert user_file() == home / ".config" / "tinylora-edge" / "models.toml"


def test_it_extends_what_is_shipped():
    before = load_catalog()
    assert "my-model" not in before
    write(user_file())
    after = load_catalog()
    assert after.keys() == before.keys() | {"my-model"}
    mine = after["my-model"]
    assert (mine.gguf, mine.default, mine.quants) == (
        "me/my-model-GGUF@v1",
        "q8_0",
        {"q8_0": 1000, "q4_0": 500},
    )
    assert (mine.weights, mine.parameters, mine.license, mine.gated) == (None, None, None, False)
    assert mine.origin == user_file()


def test_one_that_is_named_comes_on_top(home, monkeypatch):
    write(user_file())
    named = write(home / "a.toml", MINE.replace("v1", "v2"))
    assert load_catalog(named)["my-model"].gguf == "me/my-model-GGUF@v2"
    monkeypatch.setenv("TINYLORA_EDGE_CATALOG", str(named))
    assert load_catalog()["my-model"].gguf == "me/my-model-GGUF@v2"
    other = write(home / "b.toml", MINE.replace("v1", "v3"))
    assert load_catalog(other)["my-model"].gguf == "me/my-model-GGUF@v3"


def test_an_entry_replaces_the_whole_one_of_its_name():
    write(user_file(), MINE.replace("my-model", "qwen2.5-7b"))
    assert load_catalog()["qwen2.5-7b"].weights is None


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("not toml", "is not TOML"),
        ('a = "b"', r"\['a'\]: it is 'b', expected a table"),
        ('["a b"]', r"a name has letters"),
        (MINE.replace("files", "file"), r"unknown field 'file'; the fields are parameters, "),
        (MINE.replace("gguf =", "weights ="), "gguf is missing"),
        (MINE.replace("me/my-model-GGUF@v1", "my-model"), "gguf is 'my-model', expected 'org/name'"),
        (
            MINE.replace("{quant}", ""),
            r"files is 'my-model-\.gguf', expected a name like 'Model-\{quant\}\.gguf'",
        ),
        (MINE.replace("1000", '"1 kB"'), "quants.q8_0 is '1 kB', expected a size in bytes"),
        (MINE + "gated = 1", "gated is 1, expected true or false"),
        (MINE + "parameters = true", "parameters is True, expected a number"),
    ],
)
def test_a_wrong_one_is_refused(home, text, match):
    path = write(home / "wrong.toml", text)
    with pytest.raises(ExportError, match=match) as caught:
        load_catalog(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_one_that_is_not_there(home):
    with pytest.raises(ExportError, match=r"the catalog .*none\.toml does not exist"):
        load_catalog(home / "none.toml")
    with pytest.raises(ExportError, match="cannot be read: Is a directory"):
        load_catalog(home)


# Names


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("org/name", ("org/name", None)),
        ("org/name-1.5_B@refs/pr/1", ("org/name-1.5_B", "refs/pr/1")),
        ("org/name@0123abc", ("org/name", "0123abc")),
        ("name", None),
        ("a/b/c", None),
        ("/a/b", None),
        ("./a", None),
        ("org/name@", None),
        ("org/name:Q4_K_M", None),
    ],
)
def test_repositories(text, expected):
    assert split_repository(text) == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("qwen2.5-7", "qwen2.5-7b"),
        ("QWEN3-8b", "qwen3-8b"),
        ("lama-3.2-1b", "llama-3.2-1b"),
        ("gpt-oss", "gpt-oss-20b"),
    ],
)
def test_near_names(name, expected):
    assert expected in near(name, read_catalog(SHIPPED)).split(", ")


def test_nothing_is_near():
    assert near("zzzz", read_catalog(SHIPPED)) == ""
