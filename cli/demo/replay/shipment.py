"""The shipment: the files of the replay, what the project signed, and the bundle that they become."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ....errors import TrustError
from ....formats.bundle import BASE_NAME, BASIS_NAME, MANIFEST_NAME
from ....formats.hashes import hash_file
from ....formats.signatures import check_hash, signed_hashes
from ....formats.statement import SIGNATURE_NAME, Statement
from ....system import atomic_write
from ....trust.envelope import canonical
from ....wire.tags import Ed25519Signer
from ... import keyfiles
from ..story import VECTOR

FOLDER = Path(__file__).parent
RECIPE = "recipe.json"
KEY = "project.pub"

_SIGNED = (BASIS_NAME, MANIFEST_NAME, VECTOR, RECIPE)


@dataclass(frozen=True)
class Checked:
    """A shipment that was checked.

    Attributes:
        key: id of the key that signed.
        files: names of what was signed.
    """

    key: str
    files: tuple[str, ...]


@dataclass(frozen=True)
class Shipment:
    """The files that a replay starts from.

    Attributes:
        model: the GGUF that the basis belongs to, from another package.
        folder: of everything else.
    """

    model: Path
    folder: Path = FOLDER

    def check(self) -> Checked:
        """Check every file against the project's signature, before any of them is used.

        Raises:
            TrustError: the signature does not hold, or a file is not as it was signed.
            MissingExtraError: `cryptography` is not installed.
            OSError: a file is missing.
        """
        keys = keyfiles.public_keys([self.folder / KEY])
        path = self.folder / SIGNATURE_NAME
        said, listed = signed_hashes(path, keys)
        sources = dict(self._sources())
        if set(listed) != set(sources):
            raise TrustError(
                f"the signature {path} is of {', '.join(sorted(listed))}, and the replay needs "
                f"{', '.join(sorted(sources))}. Install tinylora-edge again"
            )
        for name, source in sources.items():
            check_hash(source, hash_file(source)[0], listed[name])
        return Checked(said.key, tuple(listed))

    def sign(self, signer: Ed25519Signer) -> None:
        """Sign all files, as `sign_bundle` does: whoever makes a shipment calls it, and ships the key.

        Raises:
            OSError: a file is missing, or the signature cannot be written.
        """
        files = {name: hash_file(source)[0] for name, source in self._sources()}
        statement = Statement(self.folder.name, files, (SIGNATURE_NAME,))
        with atomic_write(self.folder / SIGNATURE_NAME) as file:
            file.write(canonical(statement.enveloped().signed([signer]).to_json()) + b"\n")

    def unpack(self, output: Path) -> str:
        """Make the bundle, complete or not at all; return how the model came into it.

        Args:
            output: the bundle, with vector, recipe, signature and key; it must not exist.

        Raises:
            ExportError: it exists, its parent is missing or not writable, or the disk is full.
        """
        from ....exporters.bundle_writer import new_bundle, place_base

        with new_bundle(output) as partial:
            for name in (*_SIGNED, SIGNATURE_NAME, KEY):
                shutil.copyfile(self.folder / name, partial / name)
            return place_base(self.model, partial / BASE_NAME)

    def _sources(self) -> Iterator[tuple[str, Path]]:
        yield BASE_NAME, self.model
        yield from ((name, self.folder / name) for name in _SIGNED)
