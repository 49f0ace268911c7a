"""The README of the distribution, whose links lead to the repository; an extension that is built where a
compiler is; and a list of what the wheel holds of others (PEP 770). The rest is in pyproject.toml."""

import json
import os
import re
import sys
import tomllib
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel

HERE = Path(__file__).parent
if (HERE / "tinylora_edge/cli").is_file():
    sys.exit(
        "tinylora_edge/cli is a file in place of a link: git clone -c core.symlinks=true (docs/INSTALL.md)"
    )

REPOSITORY = tomllib.loads((HERE / "pyproject.toml").read_text("utf-8"))["project"]["urls"]["Repository"]


def lead(link: re.Match[str]) -> str:
    """Return the beginning of a link, with the place of its file in the repository."""
    return f"{link[0]}{REPOSITORY}/{'raw' if link[0].startswith('!') else 'blob'}/HEAD/"


class Wheel(bdist_wheel):
    """A wheel that has sbom.cdx.json, with its version, in the folder of its metadata."""

    def egg2dist(self, egginfo_path: str, distinfo_path: str) -> None:
        """Write the folder of metadata."""
        super().egg2dist(egginfo_path, distinfo_path)
        bill = json.loads((HERE / "sbom.cdx.json").read_text("utf-8"))
        own, version = bill["metadata"]["component"], self.distribution.get_version()
        own |= {"version": version, "purl": f"pkg:pypi/{own['name']}@{version}"}
        folder = Path(distinfo_path, "sboms")
        folder.mkdir(exist_ok=True)
        (folder / "tinylora-edge.cdx.json").write_text(json.dumps(bill, indent=2) + "\n", "utf-8")


setup(
    cmdclass={"bdist_wheel": Wheel},
    long_description=re.sub(r"!?\[[^\]]*\]\((?!https?:|#)", lead, (HERE / "README.md").read_text("utf-8")),
    long_description_content_type="text/markdown",
    # A wheel for every platform is made without it.
    ext_modules=[]
    if os.environ.get("TINYLORA_EDGE_PURE")
    else [
        Extension(
            "tinylora_edge.runtime.llama._columns",
            ["runtime/llama/columns.c"],
            extra_compile_args=[] if sys.platform == "win32" else ["-O3"],
            optional=True,  # columns.py does the same
            py_limited_api=True,
        )
    ],
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
