"""Commands that are killed: nothing, or something whole, and the next one works."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from invocation import Cli, contents

from tinylora_edge import Bundle, load_basis

Start = Callable[..., "subprocess.Popen[bytes]"]

JOURNAL = ".out.factors"  # finished modules, for the next run
BUNDLE = ["out/", "out/base.gguf", "out/basis.gguf", "out/manifest.json"]


def started(out: Path) -> bool:
    return (out.parent / f".{out.name}.factors").exists()


def writing(out: Path) -> bool:
    return any(out.parent.glob(f".{out.name}.partial-*/.basis.gguf.*.tmp"))


def basis_written(out: Path) -> bool:
    return any(out.parent.glob(f".{out.name}.partial-*/basis.gguf"))


def placed(out: Path) -> bool:
    return any(out.parent.glob(f".{out.name}.partial-*/base.gguf"))


MOMENTS = {
    "before anything is written": lambda out: True,
    "factorizing": started,
    "writing the basis": writing,
    "basis written": basis_written,
    "base placed": placed,
}


def wait_for(moment: Callable[[Path], bool], out: Path, child: subprocess.Popen[bytes]) -> None:
    """Wait for a moment of an export; return also where it has passed and the export has ended."""
    deadline = time.monotonic() + 120
    while not moment(out) and not out.exists() and child.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.001)  # the export needs the processor too


def check_whole(out: Path, digest: str, *, beside: frozenset[str] = frozenset()) -> None:
    assert sorted(set(contents(out.parent)) - beside) == BUNDLE
    bundle = Bundle.find(out)
    bundle.check_base()
    assert bundle.basis.digest == digest == bundle.manifest["basis"]["digest"]


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL], ids=lambda n: n.name)
def test_an_export_that_is_killed(
    start: Start,
    process: Cli,
    smollm2_gguf: Path,
    smollm2_bundle: Path,
    tmp_path: Path,
    number: signal.Signals,
    moment: str,
) -> None:
    digest = load_basis(smollm2_bundle / "basis.gguf").digest
    out = tmp_path / "out"
    child = start("export", smollm2_gguf, "--projection", "random", "-o", out)
    wait_for(MOMENTS[moment], out, child)
    child.send_signal(number)
    stdout, stderr = child.communicate(timeout=60)

    if out.exists():  # it was too late: then everything is there; who is killed may leave the journal too
        left = {JOURNAL} if number == signal.SIGKILL else set()
        check_whole(out, digest, beside=frozenset(left))
        shutil.rmtree(out)
    elif number != signal.SIGKILL:
        assert set(contents(tmp_path)) <= {JOURNAL}
    assert child.returncode in (0, -number, 128 + number)
    if moment == "factorizing":  # half a second long: not to be missed
        assert child.returncode == (-number if number == signal.SIGKILL else 128 + number)
        assert stdout == stderr == b""

    process("export", smollm2_gguf, "--projection", "random", "-o", out).done()
    check_whole(out, digest)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda n: n.name)
def test_a_signal_at_the_moment_the_partial_bundle_exists(
    start: Start, smollm2_gguf: Path, tmp_path: Path, number: signal.Signals
) -> None:
    # On a busy machine a signal does arrive right then; here the process sends it to itself.
    code = (
        "import os, signal, sys\n"
        "from tinylora_edge.cli import main\n"
        "mkdir = os.mkdir\n"
        "def mkdir_and_signal(path, *rest, **named):\n"
        "    mkdir(path, *rest, **named)\n"
        f"    os.kill(os.getpid(), {int(number)})\n"
        "os.mkdir = mkdir_and_signal\n"
        "main()"
    )
    child = start(
        "export",
        smollm2_gguf,
        "--projection",
        "random",
        "-o",
        tmp_path / "out",
        program=[sys.executable, "-Pc", code],
    )
    _, stderr = child.communicate(timeout=60)
    assert (child.returncode, stderr) == (128 + number, b"")
    assert set(contents(tmp_path)) == {JOURNAL}


@pytest.mark.parametrize("error", ["ImportError('numpy failed to import')", "OSError(5, 'an error')"])
def test_a_signal_that_arrives_as_another_error(
    start: Start, smollm2_gguf: Path, tmp_path: Path, error: str
) -> None:
    # An extension module that is being imported turns every exception into an ImportError.
    code = (
        "import os, signal\n"
        "from tinylora_edge.cli import main\n"
        "def mkdir(path, *rest, **named):\n"
        "    try:\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "    except SystemExit:\n"
        f"        raise {error} from None\n"
        "os.mkdir = mkdir\n"
        "main()"
    )
    arguments = ("export", smollm2_gguf, "--projection", "random", "-o", tmp_path / "out")
    child = start(*arguments, program=[sys.executable, "-Pc", code])
    _, stderr = child.communicate(timeout=60)
    assert (child.returncode, stderr) == (143, b"")


def test_what_a_killed_export_left_is_removed_by_the_next(
    start: Start, process: Cli, smollm2_gguf: Path, smollm2_bundle: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    for _ in range(2):
        child = start("export", smollm2_gguf, "--projection", "random", "-o", out)
        wait_for(writing, out, child)
        child.kill()
        child.communicate()
    left = sorted({name.split("/")[0] for name in contents(tmp_path)})
    assert left[0] == JOURNAL
    assert [name.startswith(".out.partial-") for name in left[1:]] == [True]  # of the second alone
    process("export", smollm2_gguf, "--projection", "random", "-o", tmp_path / "other").done()
    assert set(left) <= {name.split("/")[0] for name in contents(tmp_path)}  # somebody's who exports to `out`
    shutil.rmtree(tmp_path / "other")

    process("export", smollm2_gguf, "--projection", "random", "-o", out).done()
    check_whole(out, load_basis(smollm2_bundle / "basis.gguf").digest)


def test_two_exports_to_one_place(
    start: Start, smollm2_gguf: Path, smollm2_bundle: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    children = [start("export", smollm2_gguf, "--projection", "random", "-o", out) for _ in range(2)]
    stderr = [child.communicate(timeout=300)[1].decode() for child in children]

    codes = [child.returncode for child in children]
    assert sorted(codes) == [0, 1], stderr
    lost = stderr[codes.index(1)]
    assert lost.startswith("error: ")
    assert lost.count("\n") == 1
    assert str(out) in lost
    check_whole(out, load_basis(smollm2_bundle / "basis.gguf").digest)


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)]
)
def test_an_answer_that_is_interrupted(start: Start, smollm2_bundle: Path, number: int, code: int) -> None:
    words = ("Tell me a very long story.", "--threads", 1, "--max-tokens", 0)
    child = start("run", smollm2_bundle, *words)
    assert child.stdout is not None
    assert os.read(child.stdout.fileno(), 65536)
    child.send_signal(number)
    _, stderr = child.communicate(timeout=60)
    assert (child.returncode, stderr) == (code, b"")


def test_nohup_is_respected(start: Start, smollm2_gguf: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    child = start(
        "export",
        smollm2_gguf,
        "--projection",
        "random",
        "-o",
        out,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),
    )
    wait_for(started, out, child)
    child.send_signal(signal.SIGHUP)
    child.communicate(timeout=120)
    assert child.returncode == 0
    assert out.is_dir()


def test_a_demo_that_is_terminated_leaves_nothing(start: Start, tmp_path: Path) -> None:
    out = tmp_path / "demo"
    child = start("demo", "-o", out)
    wait_for(started, out, child)
    child.terminate()
    _, stderr = child.communicate(timeout=60)
    assert (child.returncode, stderr) == (143, b"")
    assert set(contents(tmp_path)) <= {".demo.factors"}  # finished modules, for the next run
