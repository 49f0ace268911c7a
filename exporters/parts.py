"""Parts of an export: any scheduler runs them, on machines that share nothing but files; `merge` joins them.

Every part factorizes a run of consecutive modules, chosen so that all parts read about as many bytes, and
writes one file, which says of what it is a part. The merged basis has the digest of an export in one piece.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from itertools import accumulate
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import BaseMismatchError, ExportError
from ..formats.gguf import MalformedGGUFError, open_gguf
from ..formats.side_tensors import fingerprint
from ..system import __version__, sync_directory
from .bundle_writer import refuse_existing, write_bundle
from .factors.basis import Quality, basis_of, gather
from .factors.factorize import Progress, factorized
from .factors.journal import Factors, read_part
from .gguf import ExportReport
from .manifest import describe_export
from .settings import ExportSettings
from .source import Source

_FORMAT = 1
_KEYS = {
    *("format", "part", "mine", "architecture", "from", "settings", "modules", "tying"),
    *("fingerprints", "base", "source", "tool"),
}
"""Of a plan in that format."""


@dataclass(frozen=True)
class PartReport:
    """The outcome of one part of an export.

    Attributes:
        output: the file.
        part: I and N: the I-th of N parts, from 1.
        modules: that it holds.
        quality: of their factorization.
    """

    output: Path
    part: tuple[int, int]
    modules: list[str]
    quality: Quality

    def __repr__(self) -> str:
        part = f"{self.part[0]} of {self.part[1]}, {len(self.modules)} modules"
        return f"PartReport({str(self.output)!r}, {part}, {self.quality})"


class PartExport:
    """A planned part of an export: every cheap check has passed, no weight has been read.

    Args:
        model, output, base, settings, workers, provenance: as for `Export`, and the same for every part. The
            file is `<output>.part-I-of-N`.
        part: I and N.

    Attributes:
        modules: of this part.
        bytes: of their weights.

    Raises:
        ExportError: there is no such part, or as for `Export`.
        UnsupportedModelError, BasisError: as for `Export`.
    """

    def __init__(
        self,
        model: str | PathLike[str],
        output: str | PathLike[str],
        part: tuple[int, int],
        *,
        base: str | PathLike[str] | None = None,
        settings: ExportSettings | None = None,
        workers: int | None = None,
        provenance: dict[str, Any] | None = None,
    ) -> None:
        index, count = part
        self._provenance = provenance
        self.part, self.settings, self._workers = part, settings or ExportSettings(), workers
        output = Path(output)
        self.output = output.with_name(f"{output.name}.part-{index}-of-{count}")
        self._source = Source(Path(model), Path(base) if base is not None else None, self.settings)
        assert self._source.base is not None
        self.base = self._source.base
        refuse_existing(self.output)
        self._source.warn()
        every, self._tying = self._source.plan()
        if not 1 <= index <= count <= len(every):
            raise ExportError(
                f"there is no part {index} of {count}: choose I from 1 to N, and N from 1 to {len(every)}, "
                "the number of modules"
            )
        self._every = every
        self.modules = share(every, [self._source.nbytes(module) for module in every], index, count)
        self.bytes = sum(map(self._source.nbytes, self.modules))

    def run(self, progress: Progress = lambda module, size: None) -> PartReport:
        """Factorize, and write the part's file atomically. A killed run goes on where it was.

        Args:
            progress: called after each module with its name and the bytes it has in the base.

        Raises:
            ExportError: a weight cannot be adapted, or the file cannot be written.
            BaseMismatchError: the weights are not those of the base.
        """
        plan = self._plan()
        with factorized(self.output, self._source, self.modules, self._workers, progress, plan) as journal:
            quality = gather(journal.read(), self.modules)
            journal.sync()
            os.rename(journal.path, self.output)
            sync_directory(self.output.parent)
        return PartReport(self.output, self.part, self.modules, quality)

    def _plan(self) -> dict[str, Any]:
        """What all parts have in common, and which of them this one is."""
        return {
            "format": _FORMAT,
            "part": list(self.part),
            "mine": self.modules,
            "architecture": self._source.architecture,
            "from": self._source.kind,
            "settings": asdict(self.settings),
            "modules": self._every,
            "tying": self._tying.tolist(),
            "fingerprints": list(self._source.fingerprints(self._every)),
            "base": str(self.base.absolute()),
            "source": self._provenance,
            "tool": f"tinylora-edge {__version__}",
        }


def export_part(
    model: str | PathLike[str],
    output: str | PathLike[str],
    part: tuple[int, int],
    *,
    progress: Progress = lambda module, size: None,
    **options: Any,
) -> PartReport:
    """Write part I of N of an export, `<output>.part-I-of-N`. Arguments and errors: see `PartExport`."""
    return PartExport(model, output, part, **options).run(progress)


def share(modules: Sequence[str], sizes: Sequence[int], index: int, count: int) -> list[str]:
    """Return the modules of part `index` of `count`: consecutive, about as many bytes as any other's, >= 1.

    Args:
        modules: all of them, in canonical order.
        sizes: bytes of each.
        index: from 1.
        count: at most len(modules).
    """
    ends = list(accumulate(sizes))
    edges = [0]
    for part in range(1, count):
        wanted = ends[-1] * part / count
        nearest = min(range(len(modules)), key=lambda i: abs(ends[i] - wanted)) + 1
        edges.append(min(max(nearest, edges[-1] + 1), len(modules) - (count - part)))
    edges.append(len(modules))
    return list(modules[edges[index - 1] : edges[index]])


def merge(
    parts: Sequence[str | PathLike[str]],
    output: str | PathLike[str],
    *,
    base: str | PathLike[str] | None = None,
) -> ExportReport:
    """Write a bundle from all parts of an export.

    Args:
        parts: their files, in any order.
        output: the bundle; it must not exist.
        base: the GGUF that is deployed; by default where the first part found it.

    Raises:
        ExportError: a part is missing, there twice, damaged, or of another export; the base is not there;
            the bundle cannot be written.
        BaseMismatchError: the base is another one than the parts were made for.
    """
    output = Path(output)
    refuse_existing(output)
    plan, found = _join([Path(part) for part in parts])
    base = Path(base if base is not None else plan["base"])
    settings = ExportSettings(**{**plan["settings"], "targets": tuple(plan["settings"]["targets"])})
    modules, marks = plan["modules"], tuple(plan["fingerprints"])
    _check_base(base, modules, marks[0])
    tying = np.array(plan["tying"], np.int32)
    basis = basis_of(found, modules, tying, settings, plan["architecture"], marks)
    quality, provenance = gather(found, modules), plan["source"]
    sections = describe_export(quality, plan["from"], settings, provenance)
    basis, placed = write_bundle(output, basis, sections, base=base)
    assert placed is not None
    return ExportReport(output, basis, quality, placed, provenance)


def _join(paths: list[Path]) -> tuple[dict[str, Any], dict[str, Factors]]:
    """Return what the parts have in common, and all their modules."""
    if not paths:
        raise ExportError("there are no parts to merge: name the files that export --part I/N wrote")
    common: dict[str, Any] = {}
    found: dict[str, Factors] = {}
    seen: dict[int, Path] = {}
    count = 0
    for path in paths:
        plan, factors = read_part(path)
        _check_format(plan, path)
        number, of = plan.pop("part")
        mine, where = plan.pop("mine"), plan.pop("base")
        if not seen:
            common, count = plan | {"base": where}, of
        for key, value in plan.items():
            if common.get(key) != value or of != count:
                raise ExportError(
                    f"{path} is part of another export than {paths[0]}: "
                    + _difference(common, plan, count, of)
                )
        if number in seen:
            raise ExportError(f"{path} and {seen[number]} are both part {number} of {count}: name each once")
        seen[number] = path
        lacking = [module for module in mine if module not in factors]
        if lacking:
            raise ExportError(f"{path} lacks {lacking[0]}, which is its own: make this part again")
        found |= {module: factors[module] for module in mine}
    missing = [str(number) for number in range(1, count + 1) if number not in seen]
    if missing:
        raise ExportError(
            f"part {', '.join(missing[:5])}{', ...' if len(missing) > 5 else ''} of {count} is missing: "
            "make it with --part, and name all parts"
        )
    return common, found


def _check_format(plan: dict[str, Any], path: Path) -> None:
    part, settings, known = plan.get("part"), plan.get("settings"), {f.name for f in fields(ExportSettings)}
    same = plan.get("format") == _FORMAT and plan.keys() == _KEYS
    numbers = isinstance(part, list) and [type(number) for number in part] == [int, int]
    if not (same and numbers and isinstance(settings, dict) and settings.keys() == known):
        raise ExportError(
            f"{path} has a plan of format {plan.get('format')} by {plan.get('tool')}, which tinylora-edge "
            f"{__version__} does not read (its own is {_FORMAT}): make and merge all parts with one release"
        )


def _difference(common: dict[str, Any], plan: dict[str, Any], count: int, of: int) -> str:
    if of != count:
        return f"one of {of} parts, not of {count}"
    key = next(key for key in plan if common.get(key) != plan[key])
    ours, theirs = common.get(key), plan[key]
    if isinstance(ours, dict) and isinstance(theirs, dict):
        nothing = object()  # None is a value, too
        key = next(name for name in ours | theirs if ours.get(name, nothing) != theirs.get(name, nothing))
        ours, theirs = ours.get(key), theirs.get(key)
    return f"its {key} is {str(theirs)[:60]}, not {str(ours)[:60]}"


def _check_base(base: Path, modules: list[str], expected: str) -> None:
    try:
        found = fingerprint(open_gguf(base), modules)
    except FileNotFoundError:
        raise ExportError(f"{base} does not exist: name the GGUF that is deployed with --base FILE") from None
    except MalformedGGUFError as error:
        raise ExportError(f"{base} is not a usable GGUF model: {error}") from None
    if found != expected:
        raise BaseMismatchError(
            f"{base} has fingerprint {found[:16]}..., but the parts were made for {expected[:16]}...: name "
            "that base with --base FILE"
        )
