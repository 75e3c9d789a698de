"""What every study needs of files and words: a folder for a smoke run, answers written whole, tables in Markdown."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import bench_common as common

common.use_repository_python()
os.environ["OMP_NUM_THREADS"] = "1"  # of several processes on one machine: threads of each their own crawl

from sea_bake.io.staging import staged_file  # noqa: E402
from sea_bake.model.processes import is_main_process, on_main  # noqa: E402


def say(text: str) -> None:
    common.say(text, quiet=not is_main_process())


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """A folder for a smoke run, the same for all processes."""
    with contextlib.ExitStack() as stack:
        made = tempfile.TemporaryDirectory(prefix="study-smoke-")
        yield Path(on_main(lambda: stack.enter_context(made)))
        on_main(lambda: None)  # nobody reads there any longer


def keep(path: Path, found: Any) -> None:
    """Write an answer whole."""
    with staged_file(path, overwrite=True) as stage:
        stage.write_text(json.dumps(found, default=lambda value: value.tolist()), "utf-8")


def markdown(made: common.Table) -> str:
    """A table without its title."""
    lines = [made.columns, ["---"] + ["---:"] * (len(made.columns) - 1), *made.rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
