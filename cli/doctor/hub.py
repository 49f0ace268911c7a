"""The hub: whether models can be downloaded by name."""

from __future__ import annotations

import http.client
import os
import urllib.error
import urllib.request
from collections.abc import Iterator

from .finding import FAULT, NOTE, OK, Finding

CHECK = "hub"

_HOME = "https://huggingface.co"
_SECONDS = 4
_TRUE = ("1", "ON", "YES", "TRUE")


def check() -> Iterator[Finding]:
    """Yield whether the hub answers; `HF_ENDPOINT` names another, `HF_HUB_OFFLINE` forbids to ask."""
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in _TRUE:
        yield Finding(
            CHECK, NOTE, "HF_HUB_OFFLINE is set: models come from the cache", "unset HF_HUB_OFFLINE"
        )
        return
    chosen = os.environ.get("HF_ENDPOINT", "")
    endpoint = (chosen or _HOME).rstrip("/")
    why = _refusal(endpoint)
    if not why:
        yield Finding(CHECK, OK, f"{endpoint} answers")
    elif chosen:
        yield Finding(
            CHECK, FAULT, f"HF_ENDPOINT is {chosen}, which does not answer: {why}", "unset HF_ENDPOINT"
        )
    else:
        text = f"{endpoint} does not answer ({why}): models of your own disk need no hub"
        yield Finding(CHECK, NOTE, text, "export HF_HUB_OFFLINE=1")


def _refusal(endpoint: str) -> str:
    try:
        request = urllib.request.Request(f"{endpoint}/api/models?limit=1", method="HEAD")
        with urllib.request.urlopen(request, timeout=_SECONDS):
            return ""
    except urllib.error.HTTPError as error:
        return "" if error.code < 500 and error.code not in (404, 407) else f"HTTP {error.code}"
    except (OSError, ValueError) as error:  # no such host, a closed port, a proxy, no URL
        return str(getattr(error, "reason", error))[:120]
    except http.client.HTTPException as error:  # what answers is no web server, or the URL has no port
        return f"{type(error).__name__}: {' '.join(str(error).split())}"[:120]
