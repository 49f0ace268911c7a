"""The server of the page: it gives out this folder, a bundle, and a vector.

    python examples/browser/serve.py BUNDLE [--vector FILE] [--port 8000]

It is for trying on this machine, and answers nobody else. Any web server does: what matters are the two
headers `Cross-Origin-...`, without which browsers run ONNX Runtime on one thread. Needs Python alone.
"""

import argparse
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

HERE = Path(__file__).resolve().parent


class Handler(SimpleHTTPRequestHandler):
    """`/bundle/` is the bundle, `/vector.bin` the vector, and everything else this folder."""

    extensions_map = SimpleHTTPRequestHandler.extensions_map | {
        ".mjs": "text/javascript",
        ".wasm": "application/wasm",
    }

    def __init__(self, *arguments: object, bundle: Path, vector: Path, **options: object) -> None:
        self._bundle, self._vector = bundle, vector
        super().__init__(*arguments, directory=str(HERE), **options)

    def translate_path(self, path: str) -> str:
        """Return the file of an address."""
        found = Path(super().translate_path(path)).relative_to(HERE)
        if found == Path("vector.bin"):
            return str(self._vector)
        if found.parts[:1] == ("bundle",):
            return str(self._bundle.joinpath(*found.parts[1:]))
        return str(HERE / found)

    def end_headers(self) -> None:
        """Add what lets the engine use threads, and keeps browsers from showing what was changed since."""
        self.send_header("Cross-Origin-Opener-Policy", "same-origin")
        self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
        self.send_header("Cache-Control", "no-cache")
        super().end_headers()

    def log_message(self, *arguments: object) -> None:
        """Say nothing of each file."""


def main() -> None:
    """Serve until the process is ended."""
    arguments = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    arguments.add_argument("bundle", type=Path, help="exported with --format onnx --onnx-input required")
    arguments.add_argument("--vector", type=Path, help="a frame (default: vector.bin in the bundle)")
    arguments.add_argument("--port", type=int, default=8000, help="0: any that is free (default: 8000)")
    options = arguments.parse_args()
    if not (options.bundle / "onnx" / "model.onnx").exists():
        arguments.error(f"{options.bundle} has no onnx/model.onnx: export it with --format onnx")
    if not (HERE / "node_modules").exists():
        arguments.error(f"run 'npm ci' in {HERE} first")
    vector = options.vector or options.bundle / "vector.bin"
    handler = partial(Handler, bundle=options.bundle, vector=vector)
    with ThreadingHTTPServer(("127.0.0.1", options.port), handler) as server:
        print(f"http://127.0.0.1:{server.server_port}/?frame=/vector.bin", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main()
