"""The repository's Markdown files taken apart: links, anchors, commands, Python; and our command line, as data."""

from __future__ import annotations

import ast
import functools
import re
import shlex
import subprocess
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from sea_bake.cli import app

ROOT = Path(__file__).resolve().parent.parent
_FENCE = re.compile(r"^(?P<indent> *)```(?P<kind>\w*)\n(?P<text>.*?)^(?P=indent)```$", re.MULTILINE | re.DOTALL)
_CODE = re.compile(r"(`+)(.+?)\1", re.DOTALL)
_LINK = re.compile(r"!?\[(?:[^\[\]]|\[[^\]]*\])*\]\(([^()\s]*(?:\([^()]*\)[^()\s]*)*)\)")
_PROSE = ("itself", "that")  # "sea-bake itself takes no token"
_OPTION = re.compile(r"(?<![\w-])(--[a-zA-Z][\w-]*|-[a-zA-Z])(?![\w-])")


@dataclass(frozen=True)
class Fence:
    """A block of code.

    Attributes:
        page: the file, from the repository's root.
        line: where it begins.
        kind: "console", "python", ...
    """

    page: str
    line: int
    kind: str
    text: str

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"

    def commands(self) -> list[str]:
        """What stands behind "$ ", without its comment; the rest is what was printed."""
        joined = self.text.replace("\\\n", " ")
        lines = [line[2:] for line in joined.split("\n") if line.startswith("$ ")]
        return [part.strip() for line in lines for part in re.split(r"\s#\s", line)[0].split("&&")]


@functools.cache
def tracked() -> tuple[str, ...]:
    """Files of the repository, new ones too."""
    told = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(told, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\n")
    return tuple(sorted({name for name in names if name and (ROOT / name).is_file()}))


def pages() -> list[str]:
    return [name for name in tracked() if name.endswith(".md")]


@functools.cache
def text_of(page: str) -> str:
    return (ROOT / page).read_text("utf-8")


def fences(page: str, kind: str) -> list[Fence]:
    text = text_of(page)
    return [
        Fence(page, text[: found.start()].count("\n") + 1, found["kind"], textwrap.dedent(found["text"]))
        for found in _FENCE.finditer(text)
        if found["kind"] == kind
    ]


def prose(page: str) -> str:
    """A page without its blocks of code."""
    return _FENCE.sub("", text_of(page))


def code(page: str) -> list[str]:
    """What stands in backticks in the prose, on one line."""
    return [" ".join(found[2].split()) for found in _CODE.finditer(prose(page))]


def links(page: str) -> list[str]:
    """Targets of links and pictures."""
    return _LINK.findall(_CODE.sub("`code`", prose(page)))


def anchors(page: str) -> set[str]:
    """The ids that the forge gives the headings."""
    titles = re.findall(r"^#+ +(.*?) *#*$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", _CODE.sub(r"\2", title).lower()).replace(" ", "-") for title in titles}


# --------------------------------------------------------------------------------------------------- our command line


@functools.cache
def command_line() -> Any:
    return typer.main.get_command(app)


def command(words: list[str]) -> tuple[Any, list[str]]:
    """The command that is named first, and its arguments. Raises LookupError where there is none."""
    found, rest = command_line(), list(words)
    while hasattr(found, "commands") and rest and not rest[0].startswith("-"):
        inner = found.get_command(None, rest[0])
        if inner is None:
            raise LookupError(f"there is no command {rest[0]}")
        found = inner
        del rest[0]
    return found, rest


def options(found: Any) -> set[str]:
    """Every spelling of every option."""
    return {"--help", "-h", *(name for p in found.params for name in (*p.opts, *p.secondary_opts))}


def whole(line: str) -> None:
    """Hold a whole command ("sea-bake fit MODEL -o x") against the command line.

    Raises:
        Exception: what the command line raises for it: no such command or option, a missing argument, a bad value.
    """
    found, rest = command(shlex.split(line)[1:])
    assert not hasattr(found, "commands") or rest, f"{line} names no command"
    if found is not command_line():
        # As below the whole command line: a command keeps the spellings of --help that it met first.
        found.make_context(line, rest, **command_line().context_settings)


def named(text: str) -> list[str]:
    """What is wrong with the commands that a text names: an unknown command, or an option that it does not have.

    A command ends with the sentence, the clause or the line.
    """
    wrong = []
    for segment in text.split("sea-bake ")[1:]:
        segment = re.split(r"[;,:)`\n]|\.(?:\s|$)", segment)[0].strip()
        words = [word for word in segment.split() if re.fullmatch(r"[a-z][a-z-]*", word)]
        if not segment or not segment.startswith(tuple(words)) or words[0] in _PROSE:
            continue
        try:
            found, _ = command(words[: 2 if words[0] == "export" else 1])
        except LookupError as error:
            wrong.append(f"sea-bake {segment}: {error}")
            continue
        wrong += [f"sea-bake {segment}: no option {o}" for o in _OPTION.findall(segment) if o not in options(found)]
    return wrong


def strings(path: Path) -> Iterator[tuple[int, str]]:
    """Line and text of every string in a module; what is filled in at run time becomes X. A command in words is one."""
    tree = ast.parse(path.read_text("utf-8"))
    inner = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in ast.walk(node)}
    inner -= {id(node) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ("command", "go_on"):
            words = [
                a.value if isinstance(a, ast.Constant) else "X" for a in node.args if not isinstance(a, ast.Starred)
            ]
            yield node.lineno, f"Next: {' '.join(map(str, words))}"
        if isinstance(node, ast.JoinedStr):
            parts = (p.value if isinstance(p, ast.Constant) else "X" for p in node.values)
            yield node.lineno, "".join(map(str, parts))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inner:
            yield node.lineno, node.value
