"""What it costs to keep an answer to a JSON schema: llguidance, as the runtime has it, and llama.cpp's own.

* a grammar, and a mask of the whole vocabulary for each token of an answer that fits it;
* the same for a pattern of n parts that may be left out, of which llama.cpp goes through all ways.
"""

from __future__ import annotations

import ctypes
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import _common as bench  # first: it sets what libraries read when loaded
import llama_cpp
import numpy as np
from _subjects import SCALES, export
from llama_cpp.llama_grammar import json_schema_to_gbnf
from numpy.typing import NDArray

from tinylora_edge.runtime import Pool

ENTRY = np.dtype([("id", "<i4"), ("logit", "<f4"), ("p", "<f4")])  # llama_token_data
PERSON: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "pattern": "^[A-Z][a-z]{1,20}$"},
        "age": {"type": "integer"},
        "likes": {"type": "array", "items": {"enum": ["tea", "chess", "rain"]}, "maxItems": 9},
    },
    "required": ["name", "age", "likes"],
    "additionalProperties": False,
}
SCHEMAS: dict[str, tuple[dict[str, Any], str]] = {
    "an object": (PERSON, '{"name": "Ada", "age": 36, "likes": ["tea", "rain"]}'),
    "a text": ({"type": "string", "maxLength": 200}, '"The museum keeps what would be forgotten."'),
    "a choice": ({"enum": ["yes", "no", "perhaps", None]}, '"perhaps"'),
}


class Stock:
    """llama.cpp's grammar of a schema."""

    def __init__(self, vocab: Any, schema: dict[str, Any], size: int) -> None:
        grammar = json_schema_to_gbnf(json.dumps(schema)).encode()
        self._sampler = llama_cpp.llama_sampler_init_grammar(vocab, grammar, b"root")
        assert self._sampler
        self._entries = np.zeros(size, ENTRY)

    def masked(self, logits: NDArray[np.float32]) -> None:
        self._entries["id"], self._entries["logit"] = np.arange(len(logits)), logits
        data = self._entries.ctypes.data_as(llama_cpp.llama_token_data_p)
        array = llama_cpp.llama_token_data_array(data, len(logits), -1, False)
        llama_cpp.llama_sampler_apply(self._sampler, ctypes.byref(array))

    def allows(self, token: int) -> bool:
        return bool(np.isfinite(self._entries["logit"][token]))

    def accept(self, token: int) -> None:
        llama_cpp.llama_sampler_accept(self._sampler, token)

    def __del__(self) -> None:
        llama_cpp.llama_sampler_free(self._sampler)


def answered(make: Callable[[], Any], tokens: Sequence[int], size: int) -> Callable[[], float]:
    """Seconds of a grammar and of all masks of an answer; it is freed afterwards."""
    logits = np.zeros(size, np.float32)

    def run() -> float:
        with bench.stopwatch() as watch:
            grammar = make()
            for token in tokens:
                grammar.masked(logits)
                assert grammar.allows(token)
                grammar.accept(token)
        return watch.seconds

    return run


def main() -> int:
    parser = bench.parser(__doc__, rounds=15)
    parser.add_argument(
        "--parts", type=int, nargs="*", default=[25, 50, 100], metavar="N", help="(%(default)s)"
    )
    options = parser.parse_args()
    cases = SCHEMAS | {
        f"{parts} parts": ({"type": "string", "pattern": f"^(a?){{{parts}}}b$"}, '"b"')
        for parts in options.parts
    }
    report = bench.Report("grammars", options.json)
    with tempfile.TemporaryDirectory() as name:
        bundle, _ = export(Path(name), SCALES)
        with Pool(bundle, contexts=1, slots=1, n_ctx=64, n_threads=1) as pool:
            scheduler: Any = pool._scheduler
            llm, grammars = scheduler._llm, scheduler._grammars
            vocab, size = llama_cpp.llama_model_get_vocab(llm.model), llm.n_vocab()
            racing = {}
            counts = {}
            for kind, (schema, answer) in cases.items():
                tokens = llm.tokenize(answer.encode(), add_bos=False, special=False)
                counts[kind] = len(tokens)
                racing[f"{kind}, llguidance"] = answered(partial(grammars.of, schema), tokens, size)
                racing[f"{kind}, llama.cpp"] = answered(partial(Stock, vocab, schema, size), tokens, size)
            times = bench.interleave(racing, options.rounds, warmup=1)
    figures = {name: bench.summarize(values) for name, values in times.items()}
    rows, ratios = [], {}
    for kind, count in counts.items():
        mine, other = (figures[f"{kind}, {engine}"]["median"] for engine in ("llguidance", "llama.cpp"))
        ratios[kind] = mine / other
        rows.append([kind, str(count), f"{1e3 * mine:.2f}", f"{1e3 * other:.2f}", f"{ratios[kind]:.4f}"])
    report.say(f"\nms for a grammar and the masks of an answer's tokens, {size:,} tokens in the vocabulary\n")
    report.say(bench.table(["schema", "tokens", "llguidance", "llama.cpp", "ratio"], rows))
    report.record |= {"vocabulary": size, "tokens": counts, "seconds": figures, "ratios": ratios}
    slowest = max(ratios[kind] for kind in SCHEMAS)
    report.target("llguidance / llama.cpp, the slowest schema", slowest, "<=", 0.25)
    report.finish()
    return 0


if __name__ == "__main__":
    sys.exit(main())
