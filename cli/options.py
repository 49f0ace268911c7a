"""Arguments and options that several commands have, each under one name, with one help text."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from typer import Argument, BadParameter, Option

from tinylora_edge import load_bundle

from . import console

if TYPE_CHECKING:
    from tinylora_edge.tasks import Preamble, Task

CONTEXT = 2048
"""Default tokens of a context, whatever the model was made for."""

Dtype = Literal["fp32", "bf16", "fp16", "int8", "q2", "q4"]
Engine = Literal["llama", "onnx"]


def file_needed(output: Path) -> Path:
    """Return an output path. BadParameter: it is `-`, as stdout cannot take several files, or has no name."""
    if str(output) == "-" or not output.name:
        raise BadParameter(f"stdout cannot take what this command writes: name a file, not {str(output)!r}")
    return output


BundleArgument = Annotated[
    Path, Argument(metavar="BUNDLE", help="A bundle, or a .gguf with <stem>.basis.gguf beside it.")
]
BasisArgument = Annotated[
    Path, Argument(metavar="BUNDLE", help="The bundle, or basis, that the vector is for.")
]
VectorArgument = Annotated[str, Argument(metavar="FILE", help="The vector: bytes or text; - is stdin.")]
OutputOption = Annotated[str, Option("--output", "-o", metavar="FILE", help="Where to write; - is stdout.")]
RunFrameOption = Annotated[
    Path, Option("--output", "-o", metavar="FILE", help="The frame to write.", callback=file_needed)
]
JsonOption = Annotated[bool, Option("--json", help="Report as JSON.")]
EngineOption = Annotated[Engine | None, Option(help="Engine to use. [default: llama if there is a GGUF]")]
ThreadsOption = Annotated[int | None, Option(metavar="N", min=1, help="CPU threads.")]
PortOption = Annotated[int, Option(metavar="N", min=0, max=65535, help="Port; 0: any that is free.")]
DataArgument = Annotated[
    str, Argument(metavar="DATA", help="Examples: a JSONL, CSV or text file, or the name of a built-in task.")
]
RewardOption = Annotated[
    str | None,
    Option(metavar="SPEC", help="json, max_words(12), MODULE:FUNCTION. [default: chosen by the answers]"),
]
DropDuplicatesOption = Annotated[
    bool,
    Option("--drop-duplicates", help="Leave out repeated lines, and training prompts that are held out too."),
]
SchemaOption = Annotated[
    str | None,
    Option(metavar="FILE", help="Constrain answers to this JSON schema, or to the labels in DATA: `label`."),
]
VectorsOption = Annotated[
    list[str] | None,
    Option(
        "--vector",
        metavar="FILE",
        help="A vector; - is stdin. Repeatable: shared ones first, the user's last.",
    ),
]
UnderOption = Annotated[
    Path | None, Option(metavar="FILE", help="A shared vector, kept unchanged beneath the user's.")
]
SystemOption = Annotated[
    str | None, Option("--system", metavar="TEXT", help="Put this system prompt before every prompt.")
]
ExamplesOption = Annotated[
    int | None, Option("--examples", metavar="K", min=1, help="Put K training examples before every prompt.")
]
KeysOption = Annotated[
    list[Path] | None,
    Option("--key", metavar="FILE", help="A public key (PEM) or MAC key to trust. Repeatable."),
]
BundleKeysOption = Annotated[
    list[Path] | None,
    Option(
        "--bundle-key", metavar="FILE", help="Load the bundle only if this public key signed it. Repeatable."
    ),
]
SignerOption = Annotated[
    Path | None, Option("--key", metavar="FILE", help="Private key that signs a signed bundle again.")
]
StateOption = Annotated[
    Path | None,
    Option(metavar="FILE", help="A file that keeps the highest sequence, to refuse older vectors."),
]
StoreOption = Annotated[
    str | None, Option(metavar="FILE|URL", help="Users' vectors: an SQLite file, or postgresql://...")
]
MaxTokensOption = Annotated[int, Option(metavar="N", min=0, help="Most tokens of an answer; 0: no limit.")]
TemperatureOption = Annotated[
    float, Option(metavar="T", min=0, max=100, help="Of sampling; 0: the likeliest token.")
]
SeedOption = Annotated[int, Option(metavar="N", min=0, max=(1 << 32) - 2, help="Seed of sampling.")]
ContextOption = Annotated[
    int, Option("--n-ctx", metavar="N", min=0, max=1 << 24, help="Context in tokens; 0: the model's own.")
]
MessageOption = Annotated[str | None, Option(metavar="TEXT", help="A system message.")]
UserOption = Annotated[str, Option("--user", metavar="NAME", help="The user to whom the vectors belong.")]


def load_data(data: str, **arguments: Any) -> Task:
    """Return the task of DATA, and print its notes, such as which reward the answers chose."""
    from tinylora_edge.tasks import load_task

    task = load_task(data, **arguments)
    for sentence in task.notes:
        console.note(sentence)
    return task


def make_preamble(task: Task, system: str | None, examples: int | None) -> Preamble:
    """Return what `--system` and `--examples` put before every prompt."""
    from tinylora_edge.tasks import Preamble, draw_examples

    return Preamble(system, () if examples is None else draw_examples(task, examples))


def load_model(
    bundle: Path,
    engine: str | None,
    threads: int | None,
    *,
    n_ctx: int = 64,
    vector: list[bytes] | None = None,
    **options: Any,
) -> Any:
    """Return the deployed model. 64 tokens of context are enough where batches have contexts of their own."""
    from tinylora_edge import runtime

    found = load_bundle(bundle)
    chosen = runtime.engine_of(found, engine)
    options["n_ctx"] = n_ctx
    if threads is not None:
        options |= {"n_threads": threads, **({"n_threads_batch": threads} if chosen == "llama" else {})}
    return runtime.load(found, vector or None, engine=chosen, **options)
