"""The hub: which files a repository has, and those files on this machine.

Names, tokens, proxies, `HF_ENDPOINT`, `HF_HUB_OFFLINE` and the cache are the client's; files lie in its cache
and in its layout, so that other programs find them and it finds theirs. Two things it does not do, and they
are done here: a download that was killed goes on where it stopped (the client throws a partial file away),
and what arrived is hashed before anybody can see it. For both, files come by plain HTTP with ranges, not
by Xet, which has neither; Xet is left to the files that the hub serves in no other way (over 50 GB).

Layout of the cache: https://huggingface.co/docs/huggingface_hub/guides/manage-cache
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from ...errors import HubError
from ...system import __version__, atomic_write, sync_directory
from .client import Counted, explain, import_client, silent, status_of, unreachable

Download = Callable[[str, int, int], None]
"""Called with a file's name, the bytes of all files that are there, and how many there will be."""

_TIMEOUT = 30.0  # seconds for the list of files


@dataclass(frozen=True)
class HubFile:
    """A file of a repository, as the hub states it.

    Attributes:
        name: its path, with `/`.
        size: bytes.
        etag: SHA-256 for what is in Git LFS, otherwise Git's SHA-1 of the blob; None for a file in a cache
            that keeps no such names.
    """

    name: str
    size: int
    etag: str | None


@dataclass(frozen=True)
class Repository:
    """The files of a repository at one commit.

    Attributes:
        name: `org/name`.
        commit: 40 hexadecimal digits.
        files: by name.
        cached: they are those in the cache; the hub was not asked.
        reason: why the hub could not be reached; "" where it was, or where it is not to be asked.
    """

    name: str
    commit: str
    files: dict[str, HubFile] = field(repr=False)
    cached: bool = False
    reason: str = ""

    def __str__(self) -> str:
        return f"{'the cache of ' if self.cached else ''}{self.name}@{self.commit[:12]}"


class Hub:
    """A hub, and a cache of its files.

    Args:
        endpoint: its URL; None for `HF_ENDPOINT`, or huggingface.co.
        cache: the client's cache; None for `HF_HUB_CACHE`, or `HF_HOME`, or its default.

    Raises:
        MissingExtraError: huggingface_hub is not installed.
        HubError: the cache is in the home folder, and this user has none.
    """

    def __init__(self, *, endpoint: str | None = None, cache: Path | None = None) -> None:
        self._client = import_client()
        self.endpoint = (endpoint or self._client.constants.ENDPOINT).rstrip("/")
        try:
            self.cache = (cache or Path(self._client.constants.HF_HUB_CACHE)).expanduser().absolute()
        except RuntimeError:
            raise HubError("this user has no home folder for downloads: set HOME or HF_HOME") from None

    def repository(self, name: str, revision: str | None = None) -> Repository:
        """Ask the hub what a repository has; where it cannot be reached, look into the cache.

        Args:
            name: `org/name`.
            revision: a branch, a tag or a commit; None for the newest commit of `main`.

        Raises:
            HubError: there is no such repository or revision, access is refused, or the hub cannot be
                reached and the cache does not have it.
        """
        api = self._client.HfApi(
            endpoint=self.endpoint, library_name="tinylora-edge", library_version=__version__
        )
        try:
            info = api.model_info(name, revision=revision, files_metadata=True, timeout=_TIMEOUT)
        except Exception as error:
            if (reason := unreachable(self._client, self.endpoint, error)) is None:
                raise explain(self._client, self.endpoint, error, name, revision) from error
            wanted = isinstance(error, self._client.errors.OfflineModeIsEnabled)
            if (cached := self.cached(name, revision, "" if wanted else reason)) is not None:
                return cached
            raise HubError(
                f"{name} is not in the cache {self.cache}, and {reason}. Point the export at local files "
                "instead (a .gguf file, or a directory with --base), or copy the cache of a machine that "
                "has them (HF_HUB_CACHE)"
            ) from error
        files = [_stated(sibling) for sibling in info.siblings or []]
        if not info.sha:
            raise HubError(f"{self.endpoint} names no commit for {name}: is HF_ENDPOINT a hub?")
        return Repository(name, info.sha, {file.name: file for file in files if file is not None})

    def cached(self, name: str, revision: str | None = None, reason: str = "") -> Repository | None:
        """What the cache has of a repository, without asking anybody; None where it has nothing."""
        folder = self._folder(name)
        commit = revision or "main"
        with suppress(OSError):
            commit = (folder / "refs" / commit).read_text("utf-8").strip()
        snapshot = folder / "snapshots" / commit
        files = {}
        for path in sorted(snapshot.rglob("*")):
            if path.is_file():
                relative = path.relative_to(snapshot).as_posix()
                blob = path.resolve()
                etag = blob.name if path.is_symlink() and blob.parent.name == "blobs" else None
                files[relative] = HubFile(relative, blob.stat().st_size, etag)
        return Repository(name, commit, files, cached=True, reason=reason) if files else None

    def fetch(
        self,
        repository: Repository,
        names: Iterable[str],
        progress: Download = lambda name, done, total: None,
        *,
        revision: str | None = None,
    ) -> Path:
        """Bring files of a repository into the cache, and return the directory that they lie in.

        What is there already is not downloaded again, but its size is checked; what is downloaded is
        checked against the hash that the hub states. A download that ends early is kept and goes on.

        Args:
            repository: from `repository`.
            names: of files in it.
            progress: called as bytes arrive.
            revision: what was asked for, so that the cache knows it too when there is no network.

        Raises:
            HubError: there is no room, access is refused, the network fails, or a file is not what the hub
                said. Nothing damaged is left in the cache.
        """
        files = [self._known(repository, name) for name in names]
        todo = [file for file in files if not self._is_here(repository, file)]
        self.check_space([(repository, [file.name for file in files])])
        done, total = 0, sum(file.size for file in files)
        for file in files:
            before = done
            if file in todo:

                def step(here: int, name: str = file.name, before: int = before) -> None:
                    progress(name, before + here, total)

                self._download(repository, file, step)
            done += file.size
            progress(file.name, done, total)
        if not repository.cached:
            with suppress(OSError):  # the cache may be another's, and read-only
                self._remember(repository, revision or "main")
        return self._snapshot(repository)

    def is_cached(self, repository: Repository, name: str) -> bool:
        """Whether a file needs no download."""
        return self._is_here(repository, self._known(repository, name))

    def sha256(self, repository: Repository, name: str) -> str:
        """SHA-256 of a file that was fetched: as the hub states it, or computed for what it has in Git."""
        file = self._known(repository, name)
        if file.etag is not None and len(file.etag) == 64:
            return file.etag
        with open(self._snapshot(repository) / name, "rb") as content:
            return hashlib.file_digest(content, "sha256").hexdigest()

    def _known(self, repository: Repository, name: str) -> HubFile:
        if name not in repository.files:
            raise HubError(f"{repository} has no file {name}")
        return repository.files[name]

    def _is_here(self, repository: Repository, file: HubFile) -> bool:
        """Whether the cache shows a file.

        Raises:
            HubError: it does, in another size.
        """
        path = self._snapshot(repository) / file.name
        if not path.is_file():
            return False
        if (size := path.stat().st_size) != file.size:
            raise HubError(
                f"{path} is damaged: it has {size:,} bytes, but {file.name} of {repository} has "
                f"{file.size:,}. Remove it and the file that it links to, and run the command again"
            )
        return True

    def check_space(self, wanted: Iterable[tuple[Repository, Iterable[str]]]) -> None:
        """Check that there is room for what is missing of some files, less what has arrived of them.

        Raises:
            HubError: there is not, or a file in the cache is damaged.
        """
        needed, repositories = 0, []
        for repository, names in wanted:
            repositories.append(repository.name)
            for file in (self._known(repository, name) for name in names):
                if not self._is_here(repository, file):
                    needed += max(file.size - self._arrived(repository, file), 0)
        if not needed:
            return
        place = next(folder for folder in (self.cache, *self.cache.parents) if folder.exists())
        free = shutil.disk_usage(place).free
        if needed > free:
            raise HubError(
                f"{' and '.join(repositories)} need {needed:,} bytes in {self.cache}, which has {free:,} "
                "free: make room (hf cache prune), point HF_HUB_CACHE at another disk, or choose a smaller "
                "--quant"
            )

    def _arrived(self, repository: Repository, file: HubFile) -> int:
        blob = self._blob(repository, file)
        for path in (blob, blob.with_name(f"{blob.name}.incomplete")):
            with suppress(OSError):
                return path.stat().st_size
        return 0

    def _download(self, repository: Repository, file: HubFile, step: Callable[[int], None]) -> None:
        """Download a file and make the cache show it."""
        blob = self._blob(repository, file)
        by_http = file.size <= self._client.constants.MAX_HTTP_DOWNLOAD_SIZE
        try:
            if by_http and not blob.exists():
                with self._client.utils.WeakFileLock(self._lock(repository, file)):
                    if not blob.exists():  # another process may have been at it
                        self._get(repository, file, blob, step)
            # The client makes the link, or a copy where there are no links; it asks the hub once more.
            options = {
                "cache_dir": self.cache,
                "endpoint": self.endpoint,
                "tqdm_class": silent(self._client),
            }
            path = Path(
                self._client.hf_hub_download(
                    repository.name, file.name, revision=repository.commit, **options
                )
            )
        except HubError:
            raise
        except Exception as error:
            where = repository.name, repository.commit, file.name
            raise explain(self._client, self.endpoint, error, *where) from error
        if not by_http or path.resolve() != blob.resolve():
            try:
                _check(path, repository, file)
            except HubError:
                path.resolve().unlink(missing_ok=True)
                path.unlink(missing_ok=True)
                raise
        self._is_here(repository, file)

    def _get(self, repository: Repository, file: HubFile, blob: Path, step: Callable[[int], None]) -> None:
        """Download a blob, from where an earlier download stopped, and check it."""
        blob.parent.mkdir(parents=True, exist_ok=True)
        partial = blob.with_name(f"{blob.name}.incomplete")
        if partial.exists() and partial.stat().st_size > file.size:
            partial.unlink()
        url = self._client.hf_hub_url(
            repository.name, file.name, revision=repository.commit, endpoint=self.endpoint
        )
        with open(partial, "ab") as output:
            here = output.tell()
            step(here)
            try:
                self._client.file_download.http_get(
                    url,
                    Counted(output, step),
                    resume_size=here,
                    headers=self._client.utils.build_hf_headers() | {"Accept-Encoding": "identity"},
                    expected_size=file.size,
                    tqdm_class=silent(self._client),
                )
            except OSError as error:
                # Without a number and without a response it is the client's word for another size.
                if error.errno is not None or status_of(error) is not None:
                    raise
            os.fsync(output.fileno())
        try:
            _check(partial, repository, file)
        except HubError:
            partial.unlink()
            raise
        os.replace(partial, blob)
        sync_directory(blob.parent)

    def _lock(self, repository: Repository, file: HubFile) -> Path:
        """The client's own lock on a blob: no two processes write to the same partial file."""
        lock = self.cache / ".locks" / self._folder(repository.name).name / f"{file.etag}.lock"
        lock.parent.mkdir(parents=True, exist_ok=True)
        return lock

    def _remember(self, repository: Repository, revision: str) -> None:
        if revision == repository.commit:
            return
        reference = self._folder(repository.name) / "refs" / revision
        reference.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(reference) as output:
            output.write(repository.commit.encode())

    def _folder(self, name: str) -> Path:
        return self.cache / f"models--{name.replace('/', '--')}"

    def _snapshot(self, repository: Repository) -> Path:
        return self._folder(repository.name) / "snapshots" / repository.commit

    def _blob(self, repository: Repository, file: HubFile) -> Path:
        return self._folder(repository.name) / "blobs" / str(file.etag)


def _stated(sibling: Any) -> HubFile | None:
    """What the hub's list says of a file; None where it does not say enough to check it."""
    parts = PurePosixPath(sibling.rfilename).parts
    if ".." in parts or sibling.rfilename.startswith("/") or "\\" in sibling.rfilename:
        return None
    etag = sibling.lfs.sha256 if sibling.lfs is not None else sibling.blob_id
    size = sibling.lfs.size if sibling.lfs is not None else sibling.size
    if size is None or not isinstance(etag, str) or len(etag) not in (40, 64) or not etag.isalnum():
        return None
    return HubFile(sibling.rfilename, size, etag)


def _etag(path: Path, like: str) -> str:
    """Hash a file as the hub does: SHA-256, or Git's SHA-1 of a blob."""
    with open(path, "rb") as file:
        if len(like) == 64:
            return hashlib.file_digest(file, "sha256").hexdigest()
        digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
        digest.update(file.read())
        return digest.hexdigest()


def _check(path: Path, repository: Repository, file: HubFile) -> None:
    """Check that a file is what the hub states.

    Raises:
        HubError: it has another size or hash.
    """
    what = f"{file.name} of {repository} arrived with"
    again = "Nothing was kept; run the command again, and tell the repository's owner if it stays so"
    if (size := path.stat().st_size) != file.size:
        raise HubError(f"{what} {size:,} bytes, but the hub states {file.size:,}. {again}")
    assert file.etag is not None  # files without one are only ever found in a cache
    if (found := _etag(path, file.etag)) != file.etag:
        kind = "SHA-256" if len(file.etag) == 64 else "Git SHA-1"
        raise HubError(f"{what} {kind} {found}, but the hub states {file.etag}. {again}")
