"""The page docs/reference/cli.md: every command with the help that it prints.

python docs/site/commands.py writes it; with --check it says whether the file is true, and exits 1 where not.
"""

from __future__ import annotations

import sys
from pathlib import Path

from typer.testing import CliRunner

from tinylora_edge.cli.app import COMMANDS, app

PAGE = Path(__file__).parents[1] / "reference" / "cli.md"
COLUMNS = 100


def render() -> str:
    """Return the page."""
    lines = ["# Command line", ""]
    for title, section in COMMANDS.items():
        lines.append(f"- {title}: {', '.join(f'[{name}](#{name})' for name in section)}")
    lines += ["", "Errors are one line and exit code 1; `--debug` before the command shows the trace. Wrong"]
    lines += ["usage is exit code 2."]
    for name in (name for section in COMMANDS.values() for name in section):
        done = CliRunner().invoke(
            app, [name, "--help"], prog_name="tinylora-edge", terminal_width=COLUMNS, catch_exceptions=False
        )
        told = [line for line in done.stdout.splitlines() if not line.startswith("  -h, --help")]
        lines += ["", f"## {name}", "", "```text", *told, "```"]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Write the page, or check it."""
    page = render()
    if "--check" in sys.argv[1:]:
        if PAGE.read_text("utf-8") == page:
            return 0
        print(f"{PAGE} is not what the commands say: run python docs/site/commands.py", file=sys.stderr)
        return 1
    PAGE.write_text(page, "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
