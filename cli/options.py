"""Arguments and options that several commands have, each under one name, with one help text."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from . import console


class Dtype(StrEnum):
    """Types that values travel in."""

    fp32 = "fp32"
    bf16 = "bf16"
    fp16 = "fp16"
    int8 = "int8"


class EngineName(StrEnum):
    """The engines that a bundle may have a base for."""

    llama = "llama"
    onnx = "onnx"


BasisArgument = Annotated[
    Path, typer.Argument(metavar="BUNDLE", help="The bundle, or basis, that it is for.")
]
RunnableArgument = Annotated[
    Path, typer.Argument(metavar="BUNDLE", help="A bundle, or a .gguf with <stem>.basis.gguf beside it.")
]
VectorArgument = Annotated[str, typer.Argument(metavar="FILE", help="The vector: bytes or text; - is stdin.")]

OutputOption = Annotated[
    str, typer.Option("--output", "-o", metavar="FILE", help="Where to write; - is stdout.")
]


def _a_file(output: Path) -> Path:
    if str(output) == "-":
        raise typer.BadParameter(
            "a run writes files beside its frame, which stdout has no place for: name a file"
        )
    return output


RunFrameOption = Annotated[
    Path,
    typer.Option("--output", "-o", metavar="FILE", help="The frame to write.", callback=_a_file),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Report as JSON.")]

EngineOption = Annotated[
    EngineName | None, typer.Option(help="What runs it. [default: what BUNDLE has; llama where it has both]")
]
ThreadsOption = Annotated[
    int | None, typer.Option(metavar="N", min=1, help="CPU threads. [default: the engine's]")
]
GpuLayersOption = Annotated[
    int | None,
    typer.Option(
        "--gpu-layers",
        metavar="N",
        min=-1,
        help="Layers that llama.cpp computes on a GPU; -1 for all. [default: none]",
    ),
]
TaskOption = Annotated[
    str, typer.Option("--task", metavar="TASK", help="A built-in task, such as brevity, or a JSONL file.")
]
RewardOption = Annotated[
    str | None,
    typer.Option(metavar="SPEC", help="Reward, such as '0.5*max_words(12)+0.5*ends_itself', or MODULE:NAME."),
]
AnchorOption = Annotated[
    float,
    typer.Option(metavar="X", min=0, help="Hold it near the base in general: what a nat away costs."),
]
EvaluateOption = Annotated[bool, typer.Option(help="Measure gain and drift on held-out prompts at the end.")]
KeysOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--key",
        metavar="FILE",
        help="A trusted key: an Ed25519 public key in PEM, or a MAC key. May be repeated.",
    ),
]
StateOption = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Keep the sequence here, and refuse a lower one ever after."),
]
StreamOption = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="Which stream of vectors it belongs to: in another one it is refused. [default: default]",
    ),
]
PublishedStreamOption = Annotated[
    str, typer.Option("--stream", metavar="NAME", help="Which stream of vectors: one a user, or one for all.")
]


def engine_options(engine: str, threads: int | None, gpu_layers: int | None = None) -> dict[str, Any]:
    """Return what `runtime.load` takes for the options of an engine; nothing for what nobody asked for.

    Args:
        engine: that runs the model, `llama` or `onnx`.
        threads: of the CPU.
        gpu_layers: that llama.cpp computes on a GPU.

    Raises:
        CommandError: another engine has no such layers, or llama.cpp was built for no GPU and would ignore
            the wish without a word.
    """
    options: dict[str, Any] = {} if threads is None else {"n_threads": threads}
    if engine == EngineName.llama and threads is not None:
        options["n_threads_batch"] = threads
    if gpu_layers is None:
        return options
    if engine != EngineName.llama:
        raise console.CommandError(
            f"--gpu-layers {gpu_layers} is an option of llama.cpp, and {engine} runs this bundle: leave it "
            "out, or choose --engine llama"
        )
    from ..runtime.libraries import built_for_a_gpu

    if gpu_layers and not built_for_a_gpu():
        raise console.CommandError(
            f"--gpu-layers {gpu_layers}: the llama.cpp that is installed was built for no GPU. Leave it out, "
            "or install a llama-cpp-python that was built for this one"
        )
    return options | {"n_gpu_layers": gpu_layers}


def load_quietly(
    bundle: Path,
    engine: EngineName | None,
    threads: int | None,
    gpu_layers: int | None = None,
    *,
    vector: bytes | None = None,
    **options: Any,
) -> Any:
    """Return the deployed model, for answers in contexts of their own: llama.cpp's is the smallest one."""
    from .. import runtime

    chosen = runtime.engine_of(bundle, engine and engine.value)
    if chosen == EngineName.llama:
        options["n_ctx"] = 64
    options |= engine_options(chosen, threads, gpu_layers)
    return runtime.load(bundle, vector, engine=chosen, **options)
