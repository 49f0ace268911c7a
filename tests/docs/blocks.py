"""Blocks of code in the documents, and what each consists of: a program in Python, or commands of a shell."""

from __future__ import annotations

import ast
import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]

DOCUMENTS = sorted(
    path
    for pattern in ("*.md", "docs/**/*.md", "recipes/**/*.md", "examples/**/*.md", "benchmarks/*.md")
    for path in ROOT.glob(pattern)
    if path.name not in ("CHANGELOG.md", "cli.md")  # history, and help pages, which have a test of their own
)

_PROGRAMS = """
    tinylora-edge .venv/bin/tinylora-edge python .venv/bin/python pip make mkdir cp sh cc curl
    llama-server ollama vllm accelerate ./personalize
"""


@dataclass(frozen=True)
class Unit:
    """What is run at once: a block of Python, a command of a shell, or another block as a whole.

    Attributes:
        document: path below the repository.
        line: where it begins.
        language: `python`, `sh`, `text` for what is no code, or what the fence says.
        text: without indentation.
    """

    document: str
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.document}:{self.line}: {self.text.splitlines()[0]}"


def units(path: Path) -> Iterator[Unit]:
    """Yield what the blocks of a document consist of, in order."""
    text, document = path.read_text("utf-8"), path.relative_to(ROOT).as_posix()
    for language, code, line in blocks(text):
        if language != "sh":
            yield Unit(document, line, language, code)
            continue
        command = ""
        for number, part in enumerate(code.splitlines(), line):
            if not command and (not part.strip() or part.startswith("#")):
                continue
            command += part
            if command.endswith("\\"):
                command = command[:-1]
                continue
            yield Unit(document, number, "sh", " ".join(command.split(" ")).strip())
            command = ""


def blocks(text: str) -> Iterator[tuple[str, str, int]]:
    """Yield language, code and first line of each block of a document, fenced or indented."""
    lines = text.splitlines()
    at = 0
    while at < len(lines):
        begin = at
        if lines[at].startswith("```"):
            end = lines.index("```", at + 1)
            yield lines[at][3:] or "text", "\n".join(lines[at + 1 : end]) + "\n", at + 2
            at = end + 1
        elif lines[at].startswith("    ") and (at == 0 or not lines[at - 1].strip()):
            while at < len(lines) and (lines[at].startswith("    ") or not lines[at].strip()):
                at += 1
            code = textwrap.dedent("\n".join(lines[begin:at])).strip("\n") + "\n"
            yield language_of(code), code, begin + 1
        else:
            at += 1


def language_of(code: str) -> str:
    """Return the language of a block that does not say it."""
    first = next(line for line in code.splitlines() if line.strip())
    program = re.sub(r"^(?:\w+=\S* )+", "", first).split(" ")[0]
    if program in _PROGRAMS.split() or first.startswith(("#!", "#SBATCH")):
        return "sh"
    try:
        compile(code, "block", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT | ast.PyCF_ONLY_AST)
    except SyntaxError:
        return "text"
    return "python"
