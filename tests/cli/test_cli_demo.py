"""`demo`: what it claims is checked against the library."""

from __future__ import annotations

import re
from pathlib import Path

import llama_cpp
import numpy as np
import pytest
from commands import Cli, contents

from tinylora_edge import MicroVector, load_basis, runtime
from tinylora_edge.cli import demo


def test_the_demo_in_a_pipe(process: Cli, tmp_path: Path) -> None:
    text = process("demo", "--threads", 1, cwd=tmp_path).done()

    assert "\x1b" not in text
    assert "\r" not in text
    assert max(len(line) for line in text.splitlines()) <= 120
    frame = re.search(r"^ *([0-9a-f]{74})$", text, re.MULTILINE)
    assert frame is not None
    assert frame[1].startswith("11")  # version 1, bf16, CRC-32
    assert "37 bytes" in text
    assert "bit for bit" in text
    assert re.search(r"worst residual \d\.\de-0[34]", text)
    assert "tinylora-edge demo -o smollm2" in text
    assert contents(tmp_path) == {}  # nothing is kept


def test_the_demo_as_json_keeps_what_it_made(cli: Cli, tmp_path: Path) -> None:
    out = tmp_path / "kept"
    record = cli("demo", "-o", out, "--threads", 1, "--json").record()

    assert sorted(contents(out)) == ["base.gguf", "basis.gguf", "manifest.json", "vector.bin"]
    frame = (out / "vector.bin").read_bytes()
    assert record["frame"] == {
        "hex": frame.hex(),
        "bytes": 37,
        "values": MicroVector.from_bytes(frame, load_basis(out / "basis.gguf")).values.tolist(),
    }
    assert record["digest"] == load_basis(out / "basis.gguf").digest
    assert record["proof"]["restored_bit_for_bit"] is True
    assert record["proof"]["restored_difference"] == 0
    assert record["proof"]["vector_difference"] > 0.1
    assert [answer["prompt"] for answer in record["answers"]] == list(demo.PROMPTS)
    # On this machine or another: the vector is to change what a reader sees, in most answers at least.
    changed = [answer["base"] != answer["personalized"] for answer in record["answers"]]
    assert sum(changed) >= 3
    assert all(answer["personalized"].strip() for answer in record["answers"])
    cli("vector", "inspect", out / "vector.bin", out).done()


def test_an_output_that_exists_is_left_alone(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"precious")
    cli("demo", "-o", tmp_path).refused(str(tmp_path), "exists already")
    cli("demo", "-o", tmp_path, "--json").refused(str(tmp_path), "exists already")
    assert contents(tmp_path) == {"file": b"precious"}


def test_the_proof_fails_where_the_base_is_not_restored(smollm2_bundle: Path) -> None:
    """Real logits: of a plain Llama, under the vector, and of a `clear` that was forgotten."""
    llm = runtime.load(smollm2_bundle, n_ctx=512, n_threads=1, n_threads_batch=1)
    plain = llama_cpp.Llama(
        str(smollm2_bundle / "base.gguf"), n_ctx=512, n_threads=1, n_threads_batch=1, verbose=False
    )
    prompt = demo.PROMPTS[0]
    base = [demo._logits(plain, prompt)]
    llm.swap(MicroVector.random(llm.basis, demo.NORM, seed=demo.SEED))
    changed = [demo._logits(llm, prompt)]
    with pytest.raises(demo.DemoError, match=r"not restored: .* differ by up to [1-9]"):
        demo.prove(base, changed, changed)
    llm.clear()
    restored = [demo._logits(llm, prompt)]
    with pytest.raises(demo.DemoError, match="changed no logit"):
        demo.prove(base, restored, restored)
    assert demo.prove(base, changed, restored)["restored_difference"] == 0
    one_bit = [np.nextafter(restored[0], np.float32(np.inf))]
    with pytest.raises(demo.DemoError, match="not restored"):
        demo.prove(base, changed, one_bit)
    llm.close()
    plain.close()
