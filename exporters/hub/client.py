"""The border to huggingface_hub: its import, its errors in our words, and its downloads without its bar."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, BinaryIO

from ...errors import HubError, MissingExtraError


def import_client() -> Any:
    """Return the module huggingface_hub.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        import huggingface_hub
        import huggingface_hub.errors
        import huggingface_hub.file_download
        import huggingface_hub.utils
    except ImportError:
        raise MissingExtraError("downloading models", "huggingface-hub", "hub") from None
    return huggingface_hub


def unreachable(client: Any, endpoint: str, error: BaseException | None) -> str | None:
    """Why the hub cannot be reached; None for an answer of it, and for what went wrong here.

    Args:
        client: the module huggingface_hub.
        endpoint: the hub's URL.
        error: raised by the client.
    """
    errors = client.errors
    if isinstance(error, errors.LocalEntryNotFoundError):  # it says that both hub and cache failed
        error = error.__cause__
    if isinstance(error, errors.OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE forbids asking the hub"
    status = status_of(error)
    if status is not None and status >= 500:
        return f"{endpoint} answers with {status}"
    # The client has changed its HTTP library before; that one's errors are the base of the client's own.
    transport = tuple(base for base in errors.HfHubHTTPError.__bases__ if base is not OSError)
    if status is None and isinstance(error, (*transport, ConnectionError, TimeoutError)):
        text = " ".join(str(error).split()) or type(error).__name__
        return f"{endpoint} cannot be reached ({text})"
    return None


def explain(
    client: Any, endpoint: str, error: Exception, name: str, revision: str | None, file: str | None = None
) -> HubError:
    """Turn an error of the client into one of ours.

    Args:
        client, endpoint, error: see `unreachable`.
        name: of the repository.
        revision: that was asked for.
        file: that was asked for, or None.
    """
    errors, page = client.errors, f"{endpoint}/{name}"
    status = status_of(error)
    if isinstance(error, errors.GatedRepoError):
        return HubError(f"{name} is gated: {_access(client, page)}")
    if isinstance(error, errors.RepositoryNotFoundError):
        return HubError(
            f"{endpoint} has no model {name}, or a private one: check the name, or log in (hf auth login, or "
            "HF_TOKEN) where it is private"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return HubError(f"{name} has no revision {revision!r}: see {page}/commits/main")
    if isinstance(error, errors.EntryNotFoundError) and file is not None and status == 404:
        return HubError(f"{name}@{revision} lists {file}, but does not have it: try another --quant")
    if isinstance(error, client.utils.HFValidationError):
        return HubError(f"{name!r} is no name of a repository: expected 'org/name'")
    if status in (401, 403):
        return HubError(f"access to {name} is refused: {_access(client, page)}")
    if (reason := unreachable(client, endpoint, error)) is not None:
        return HubError(f"{name} was not downloaded: {reason}. Run the command again to go on")
    text = getattr(error, "strerror", None) or str(error)
    return HubError(f"{name} was not downloaded: {' '.join(text.split())}")


def status_of(error: object) -> int | None:
    """The HTTP status of the response that an error of the client carries, if it carries one."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    return status if isinstance(status, int) else None


def _access(client: Any, page: str) -> str:
    if client.get_token() is None:
        return f"accept its licence at {page}, then log in (hf auth login, or HF_TOKEN); no token is set now"
    return f"accept its licence at {page} with the account that the token in use belongs to"


class Counted:
    """A file that says how long it is after every write."""

    def __init__(self, file: BinaryIO, step: Callable[[int], None]) -> None:
        self._file, self._step = file, step

    def write(self, data: bytes) -> int:
        """Write, flush, and report the length so far."""
        written = self._file.write(data)
        self._file.flush()  # a killed process leaves what had arrived
        self._step(self._file.tell())
        return written

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def silent(client: Any) -> Any:
    """The client's progress bar, showing nothing: who asked for progress gets it by a call."""

    class Silent(client.utils.tqdm):  # type: ignore[misc]
        """A bar that is never drawn."""

        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **(options | {"disable": True}))

    return Silent
