"""The errors that tinylora-edge raises on purpose, all of them `TinyLoraError`s.

Whatever is raised, nothing was changed: the model, the files and the policy's state stay as they were. The
command line prints an error, and each `TinyLoraWarning`, as one line.
"""

from __future__ import annotations

__all__ = [
    "BaseMismatchError", "BasisError", "BasisMismatchError", "BusyError", "ChecksumError",
    "CorruptBasisError", "ExpiredError", "ExportError", "FrameError", "HubError", "MissingExtraError",
    "ModulesLeftOutWarning", "NonFiniteError", "NotImprovedWarning", "OptionError", "OverloadError",
    "ProjectionsLeftOutWarning", "RequestError", "RollbackError", "SignatureError", "StoreError",
    "TinyLoraError", "TinyLoraWarning", "TrainError", "TransferError", "TrustError",
    "UnsupportedModelError", "UntestedArchitectureWarning", "VectorError",
]  # fmt: skip


class TinyLoraError(Exception):
    """Base of every error below; catch it to catch them all."""


class VectorError(TinyLoraError, ValueError):
    """A micro-vector, or the bytes of one, cannot be used here."""


class FrameError(VectorError):
    """The bytes are not a frame that fits the basis."""


class ChecksumError(VectorError):
    """The CRC-32 of a frame does not match: it was damaged on its way, or is another user's."""


class SignatureError(VectorError):
    """A frame's MAC or signature does not verify, or the policy demands one that is not there."""


class RollbackError(VectorError):
    """A frame's sequence is lower than one accepted from the same user, or that of another vector."""


class ExpiredError(VectorError):
    """A frame's last day is over."""


class BasisMismatchError(VectorError):
    """The vector was made for a basis that is not among those of the loaded model."""


class NonFiniteError(VectorError):
    """A value of the vector is NaN or infinite."""


class BasisError(TinyLoraError, ValueError):
    """A basis, or a parameter of one, is not valid."""


class BaseMismatchError(BasisError):
    """The base model is not one that the factors were exported for."""


class CorruptBasisError(BasisError):
    """A file is not a file of side tensors, or is truncated or damaged."""


class ExportError(TinyLoraError):
    """A model could not be exported; nothing was left half written."""


class HubError(ExportError):
    """A model could not be fetched from the hub; nothing damaged was left in the cache."""


class UnsupportedModelError(ExportError):
    """The model has no tensors that can be adapted, or names them in a way that is unknown."""


class TrainError(TinyLoraError):
    """Training cannot start or continue."""


class TransferError(TinyLoraError):
    """A vector could not be published or fetched; the files on both sides stay as they were."""


class TrustError(TinyLoraError, ValueError):
    """A bundle does not match a signature of a trusted key."""


class BusyError(TinyLoraError):
    """A callback of a generation called its own model, which would wait for itself."""


class OverloadError(TinyLoraError):
    """Too many requests wait in a pool or a server; ask again later."""


class StoreError(TinyLoraError):
    """A store of users' vectors cannot be read or written; it stays as it was."""


class RequestError(TinyLoraError, ValueError):
    """A request cannot be answered as it stands; `param` names the part of it that is wrong."""

    def __init__(self, *args: object, param: str = "", code: str = "invalid_value") -> None:
        super().__init__(*args)
        self.param = param
        self.code = code  # the `code` of OpenAI's error object


class OptionError(TinyLoraError, TypeError):
    """A call has an unknown option, or options that exclude each other."""


class MissingExtraError(TinyLoraError, ImportError):
    """A feature needs a package that is not installed; the message has the pip command that installs it."""

    def __init__(self, feature: str, package: str, extra: str) -> None:
        super().__init__(feature, package, extra)

    def __str__(self) -> str:
        feature, package, extra = self.args
        return f'{feature} needs the package {package}. Install it with: pip install "tinylora-edge[{extra}]"'


class TinyLoraWarning(UserWarning):
    """Base of this package's warnings."""


class ProjectionsLeftOutWarning(TinyLoraWarning):
    """The projections that are shipped for this model were learned with other factors, and are left out."""


class UntestedArchitectureWarning(TinyLoraWarning):
    """The export knows this architecture's names, but no test compares its logits with those of torch."""


class ModulesLeftOutWarning(TinyLoraWarning):
    """The model has linear layers on which llama.cpp would ignore an adapter; they get no factors."""


class NotImprovedWarning(TinyLoraWarning):
    """Tuning found nothing better than the start, and returned the start."""
