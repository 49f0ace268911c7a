"""`trust`: the group of commands that make, change, publish and show trust files."""

from __future__ import annotations

from ...surface.commands import group
from .keys import add, revoke
from .roots import init, rotate, sign
from .show import accept, publish, show

trust = group(
    "Say over years which keys may sign vectors: a trust file.",
    {
        "init": init,
        "add": add,
        "revoke": revoke,
        "rotate": rotate,
        "sign": sign,
        "show": show,
        "publish": publish,
        "accept": accept,
    },
)
