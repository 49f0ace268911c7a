"""A chat template is a program that comes with a model: it is tried in a process that can be stopped."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import lru_cache
from pathlib import Path

from ..errors import TinyLoraError
from .template_trial import BEGUN, NO_TEMPLATE

SECONDS = 20.0
"""That a trial may take, the start of its process included."""

MEMORY = 1 << 30
"""Bytes that the template may take in it (on Linux)."""


@lru_cache(64)
def check_template(template: str, folder: str = "") -> None:
    """Render a few short messages with a template, in a process of its own.

    What a template refuses, such as a system message, it may refuse. Where there is no Python to start, as in
    an app that has it built in, nothing is tried.

    Args:
        template: Jinja, as a GGUF has it.
        folder: of the ONNX model whose template it is: onnxruntime-genai then renders, else Jinja2.

    Raises:
        TinyLoraError: it cannot be read, or takes too much time or memory.
    """
    program = Path(__file__).with_name("template_trial.py")
    asked = json.dumps({"template": template, "folder": folder, "memory": MEMORY})
    command = [sys.executable, "-P", str(program)]
    try:
        done = subprocess.run(
            command, input=asked, capture_output=True, encoding="utf-8", timeout=SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        raise _refused(f"takes more than {SECONDS:g} s for a short chat") from None
    except OSError:
        return
    if not done.stdout.startswith(BEGUN) or done.returncode == 0:
        return
    if done.returncode == NO_TEMPLATE:
        raise _refused(f"cannot be read: {' '.join(done.stderr.split())[:200]}")
    raise _refused(f"takes more than {MEMORY >> 30} GB of memory for a short chat")


def _refused(why: str) -> TinyLoraError:
    return TinyLoraError(f"the model's chat template {why}. It came with the model: use another file of it")
