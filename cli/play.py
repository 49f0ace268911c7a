"""`play`: a server's page in a browser on this machine, with base and personalized model side by side."""

from __future__ import annotations

import tempfile
import threading
import webbrowser
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

from typer import Option

from . import console, vectors
from . import options as opts


def play(
    bundle: opts.BundleArgument,
    vector: opts.VectorsOption = None,
    keep: Annotated[
        Path | None, Option(metavar="DIR", help="Folder that keeps what is learned from clicks.")
    ] = None,
    port: opts.PortOption = 0,
    no_open: Annotated[bool, Option("--no-open", help="Open no browser.")] = False,
    threads: opts.ThreadsOption = None,
) -> None:
    """Open a page in the browser: base and personalized model side by side, and the vector as sliders.

    The page is served to this machine alone, and its address has a token. Ctrl-C ends the command.

    \b
    Examples:
      tinylora-edge play out/demo
      tinylora-edge play out/demo --vector vector.bin --keep my-clicks
    """
    from tinylora_edge.serve import app, run

    frames = vectors.read_stack(vector)
    if keep is not None:
        keep.mkdir(mode=0o700, exist_ok=True)
    with nullcontext(keep) if keep is not None else tempfile.TemporaryDirectory("-tinylora-play") as folder:
        made = app(
            bundle,
            store=Path(folder) / "vectors.db",
            feedback=True,
            page=True,
            vector=frames[-1] if frames else None,
            under=frames[:-1] or None,
            slots=3,  # for both panes at once, as an account has to leave one slot free
            n_ctx=opts.CONTEXT,
            n_threads=threads,
        )

        def ready(url: str) -> None:
            address = f"{url}/#token={made.state.editor.token}"  # browsers do not send what is behind the #
            console.say(f"the page is at {address}")
            console.note("Ctrl-C ends it")
            if not no_open:  # in a thread, as a browser in the terminal would block the server
                threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()

        run(made, host="127.0.0.1", port=port, ready=ready, quiet=True, grace=2)
