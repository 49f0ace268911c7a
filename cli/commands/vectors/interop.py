"""Formats of other programs that `convert` reads and writes: GGUF LoRAs, scales, PEFT directories."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from pathlib import Path

import typer

from .... import Basis, MicroVector
from ...shared import console, vectors

SCALES = "scales.json"

_DIRECTORIES = ("gguf-loras", "peft", "lora", "bundle")
_NEED_MODEL = ("peft", "lora")


@dataclass(frozen=True)
class Done:
    """A conversion that was written: the output, its files in order, and what to do with it."""

    output: Path
    files: tuple[Path, ...]
    hint: str = ""


def is_scales(data: bytes) -> bool:
    """Tell whether bytes are a list of scales in JSON, and not a raw payload that begins like one."""
    text = data.strip(b" \t\r\n")
    return data.isascii() and text[:1] == b"[" and text[-1:] == b"]"


def read_scales(data: bytes, basis: Basis) -> MicroVector:
    """Return the vector in a list of scales. Errors: those of `llama_lora.from_scales`."""
    from ....exporters.interop import llama_lora

    return llama_lora.from_scales(basis, data)


def write_scales(vector: MicroVector, basis: Basis) -> bytes:
    """Return a vector as a list of scales. Errors: those of `llama_lora.scales`."""
    from ....exporters.interop import llama_lora

    return f"{json.dumps(llama_lora.scales(basis, vector))}\n".encode()


def is_lora(source: str) -> bool:
    """Tell whether a source is a GGUF file."""
    if source == vectors.STREAM or not Path(source).is_file():
        return False
    with open(source, "rb") as file:
        return file.read(4) == b"GGUF"


def read_lora(source: str, basis: Basis) -> MicroVector:
    """Return the vector in a folded LoRA. Errors: those of `llama_lora.from_folded`."""
    from ....exporters.interop import llama_lora

    return llama_lora.from_folded(basis, source)


def is_checkpoint(source: str) -> bool:
    """Tell whether a source is a directory that PEFT wrote, or some other that cannot be a vector."""
    return source != vectors.STREAM and Path(source).is_dir()


@dataclass(frozen=True)
class Request:
    """A conversion that is asked for, without its source.

    Attributes:
        to: name of the format.
        output: where to.
        bundle: of the vector; a checkpoint brings a basis of its own.
        model: Hugging Face directory.
        base: deployed GGUF.
        untie: write a PEFT checkpoint without tying.
        force: replace files that are there.
    """

    to: str
    output: Path
    bundle: Path | None
    model: Path | None
    base: Path | None
    untie: bool
    force: bool

    def check(self) -> None:
        """Check what can be checked before any work.

        Raises:
            typer.BadParameter: options that do not go together.
            FileExistsError: something is at the output.
            CommandError: the output is stdout, where only a vector goes.
        """
        if self.to in _NEED_MODEL and self.model is None:
            raise typer.BadParameter(
                f"{self.to} is for a Hugging Face model: name its directory", param_hint="--model"
            )
        if self.untie and self.to != "peft":
            raise typer.BadParameter("only a PEFT checkpoint is tied: pass --to peft", param_hint="--untie")
        if self.to == "bundle" and self.base is None:
            raise typer.BadParameter("a bundle has a deployed model: name its GGUF", param_hint="--base")
        if self.to in (*_DIRECTORIES, "gguf-lora") and str(self.output) == vectors.STREAM:
            raise console.CommandError(f"{self.to} is no stream of bytes: pass -o PATH")
        if self.to == "gguf-lora":
            vectors.check_target(str(self.output), force=self.force)
        if self.to in _DIRECTORIES and self.output.exists():
            empty = self.output.is_dir() and not any(self.output.iterdir())
            if self.to == "bundle" or not ((self.force and self.output.is_dir()) or empty):
                raise FileExistsError(f"{self.output} exists already: choose another output")

    def read_checkpoint(self, source: Path) -> tuple[Basis, MicroVector]:
        """Return what a PEFT checkpoint holds.

        Raises:
            typer.BadParameter: the model is not named.
            TinyLoraError: those of `peft_format.read_tinylora`.
        """
        from ....exporters.interop import peft as peft_format

        if self.model is None:
            raise typer.BadParameter(
                "a PEFT checkpoint belongs to a Hugging Face model: name its directory", param_hint="--model"
            )
        return peft_format.read_tinylora(source, self.model, base=self.base)

    def write(self, basis: Basis, vector: MicroVector) -> Done:
        """Write the output.

        Raises:
            TinyLoraError: those of the format.
        """
        from ....exporters.interop import llama_lora, peft_files
        from ....exporters.interop import peft as peft_format

        if self.to == "gguf-lora":
            llama_lora.write_folded(basis, vector, self.output)
            return Done(
                self.output, (self.output,), f"in a Modelfile: ADAPTER {shlex.quote(str(self.output))}"
            )
        if self.to == "gguf-loras":
            files = llama_lora.write_groups(basis, self.output)
            scales = self.output / SCALES
            vectors.write(str(scales), write_scales(vector, basis))
            start = shlex.join(["llama-server", "-m", "MODEL.gguf", *llama_lora.server_arguments(files)])
            hint = f'serve them with: {start}\nand send {scales} as "lora" in each request'
            return Done(self.output, (*files, scales), hint)
        if self.to == "bundle":
            assert self.base is not None
            if self.model is None:
                raise typer.BadParameter("only a PEFT checkpoint becomes a bundle", param_hint="--to")
            peft_format.write_bundle(basis, vector, self.base, self.output)
            return Done(self.output, tuple(sorted(self.output.iterdir())))
        assert self.model is not None
        if self.to == "peft":
            peft_format.write_tinylora(basis, vector, self.output, self.model, untie=self.untie)
        else:
            peft_format.write_lora(basis, vector, self.output, self.model)
        files = [self.output / peft_files.CONFIG, self.output / peft_files.WEIGHTS]
        hint = ""
        if self.to == "peft" and (basis.axes or basis.has_prior):
            hint = f"PEFT has no place for the names and the prior of the axes: keep {self.bundle} for them"
        return Done(self.output, tuple(files), hint)
