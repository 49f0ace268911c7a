"""The C library: the time of a token with R in llama.cpp's callback, and with R folded into an adapter.

Both are compared with the base, in processor time of one thread. In the callback there is an adapter for
vectors of 8 x 8, and one for all vectors of the bundle.
"""

from __future__ import annotations

import importlib.util
import subprocess
import tempfile
from collections import defaultdict
from pathlib import Path

import _common as bench  # first: it sets what libraries read when loaded
from _subjects import export

NATIVE = Path(__file__).parents[1] / "native"


def build(folder: Path) -> Path:
    """Compile native.c against the llama.cpp that llama-cpp-python was built with."""
    spec = importlib.util.find_spec("llama_cpp")
    assert spec is not None
    assert spec.origin is not None
    site, program = Path(spec.origin).parents[1], folder / "native"
    flags = ["-std=c99", "-O2", "-DTINYLORA_LLAMA", f"-I{NATIVE}", "-isystem", f"{site}/include"]
    libraries = [f"-L{site}/lib", f"-Wl,-rpath,{site}/lib", "-lllama", "-lggml", "-lggml-base", "-lm"]
    sources = [str(Path(__file__).with_suffix(".c")), str(NATIVE / "tinylora.c")]
    subprocess.run(["cc", *flags, *sources, "-o", str(program), *libraries], check=True)
    return program


def main() -> None:
    arguments = bench.parser(__doc__, rounds=40)
    arguments.add_argument("--bundle", type=Path, help="SmolLM2 with 8 outputs, unless given")
    options = arguments.parse_args()
    report = bench.Report("native", options.json)
    times = defaultdict[str, list[float]](list)
    with tempfile.TemporaryDirectory() as name:
        bundle = options.bundle or export(Path(name))[0]
        command = [build(Path(name)), bundle / "base.gguf", bundle / "basis.gguf", options.rounds]
        done = subprocess.run([str(word) for word in command], stdout=subprocess.PIPE, text=True, check=True)
    for line in done.stdout.splitlines():
        contestant, milliseconds = line.split("\t")
        times[contestant].append(float(milliseconds))
    results = {contestant: bench.summarize(values) for contestant, values in times.items()}
    base = results["base"]["median"]
    rows = [
        [contestant, f"{r['min']:.2f}", f"{r['median']:.2f}", f"{r['median'] / base:.2f}"]
        for contestant, r in results.items()
    ]
    report.say(bench.table(["a token, a fold", "best ms", "median ms", "x base"], rows))
    ratio = results["rows, 8 x 8"]["median"] / results["folded"]["median"]
    report.target("token: R in the callback / folded, both of 8 x 8", ratio, 1.05)
    report.record |= {"results": results}
    report.finish()


if __name__ == "__main__":
    main()
