"""The sdist and the wheel of what is committed, the same bytes wherever and whenever they are built.

    python .ci/distributions.py FOLDER [SOURCE]

setuptools takes the times of a wheel from SOURCE_DATE_EPOCH, but those of an sdist from the files, with the
owner and the modes that they have here. So the sdist is packed anew, and the wheel is built from it, as pip
would. The time is that of the last commit, unless SOURCE_DATE_EPOCH says another. SOURCE is a checkout, by
default this one; where it is none of git, it is taken whole. Needs git and setuptools. For the same bytes use
the same versions of setuptools and zlib.
"""

from __future__ import annotations

import gzip
import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path


def copied(source: Path, target: Path) -> int:
    """Copy what is committed; return its time, in seconds since 1970."""
    epoch = os.environ.get("SOURCE_DATE_EPOCH", "")
    if not (source / ".git").exists():
        shutil.copytree(source, target, symlinks=True)
        return int(epoch or 0)
    git = ["git", "-c", f"safe.directory={source}", "-C", str(source)]
    committed = subprocess.run([*git, "archive", "HEAD"], stdout=subprocess.PIPE, check=True).stdout
    with tarfile.open(fileobj=io.BytesIO(committed)) as archive:
        archive.extractall(target, filter="tar")
    log = subprocess.run([*git, "log", "-1", "--format=%ct"], stdout=subprocess.PIPE, check=True)
    return int(epoch or log.stdout)


def build(kind: str, source: Path, output: Path, epoch: int) -> Path:
    """Build one of `sdist` and `wheel` in a process of its own, and return its file."""
    code = f"import sys, setuptools.build_meta as b; print(b.build_{kind}(sys.argv[1]))"
    done = subprocess.run(
        [sys.executable, "-c", code, str(output)],
        cwd=source,
        env=os.environ | {"SOURCE_DATE_EPOCH": str(epoch)},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(f"distributions: setuptools could not build the {kind}:\n{done.stderr}")
    return output / done.stdout.splitlines()[-1]


def repacked(archive: Path, target: Path, epoch: int) -> None:
    """Write an sdist again: in the order of names, of nobody, with one time, and two modes."""
    packed = io.BytesIO()
    with (
        tarfile.open(archive) as found,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as made,
    ):
        for member in sorted(found.getmembers(), key=lambda one: one.name):
            member.uid = member.gid = 0
            member.uname = member.gname = ""
            member.mtime, member.pax_headers = epoch, {}
            member.mode = 0o755 if member.isdir() or member.mode & 0o100 else 0o644
            made.addfile(member, found.extractfile(member) if member.isfile() else None)
    target.write_bytes(gzip.compress(packed.getvalue(), 9, mtime=epoch))


def main(folder: str, source: str = "") -> None:
    """Write both into a folder."""
    output = Path(folder).resolve()
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as work:
        tree, unpacked = Path(work) / "tree", Path(work) / "unpacked"
        epoch = copied(Path(source).resolve() if source else Path(__file__).resolve().parents[1], tree)
        raw = build("sdist", tree, Path(work), epoch)
        sdist = output / raw.name
        repacked(raw, sdist, epoch)
        with tarfile.open(sdist) as archive:
            archive.extractall(unpacked, filter="data")
        (top,) = unpacked.iterdir()
        wheel = build("wheel", top, output, epoch)
    print(sdist, wheel, sep="\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
