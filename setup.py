"""The README of the distribution: its links lead to the repository. The rest is in pyproject.toml."""

import re
import sys
import tomllib
from pathlib import Path

from setuptools import setup

HERE = Path(__file__).parent
if (HERE / "tinylora_edge/cli").is_file():
    sys.exit(
        "tinylora_edge/cli is a file in place of a link: git clone -c core.symlinks=true (docs/INSTALL.md)"
    )

REPOSITORY = tomllib.loads((HERE / "pyproject.toml").read_text("utf-8"))["project"]["urls"]["Repository"]


def lead(link: re.Match[str]) -> str:
    """Return the beginning of a link, with the place of its file in the repository."""
    return f"{link[0]}{REPOSITORY}/{'raw' if link[0].startswith('!') else 'blob'}/HEAD/"


setup(
    long_description=re.sub(r"!?\[[^\]]*\]\((?!https?:|#)", lead, (HERE / "README.md").read_text("utf-8")),
    long_description_content_type="text/markdown",
)
