"""From a file, a folder or a hub id to rows, each with the place it came from; ``formats`` knows what they mean."""

from __future__ import annotations

import csv
import itertools
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from sea_bake.demonstrations.behaviours import BEHAVIOURS
from sea_bake.demonstrations.formats import Row
from sea_bake.errors import DemonstrationError, missing_extra
from sea_bake.io.regular import open_regular

MAX_LINE_BYTES: Final = 16 * 2**20
"""Far beyond any model's context, far below any machine's memory: a longer line is another kind of file."""

Placed = tuple[str, Row]


def rows(source: str | Path, split: str = "train") -> Iterator[Placed]:
    """(where, row) of every row of a .jsonl, .json, .csv or .tsv file, a folder, or a dataset on the hub.

    A path that exists wins over a hub id. ``where`` is ``file:line`` or the dataset's row, for error messages.

    Raises:
        DemonstrationError: the source does not exist or cannot be read, or a row is damaged.
        MissingExtraError: a folder or a hub id, and ``datasets`` is not installed.
    """
    name = os.fspath(source)
    path = Path(name) if name else None
    if path and os.path.isdir(path):
        return dataset_rows(name, split)
    if path and os.path.exists(path):
        reader = READERS.get(path.suffix.lower())
        if reader is None:
            raise DemonstrationError(
                f"{name}: demonstrations are read from {', '.join(READERS)} files, and folders, and hub ids; "
                f"'{path.suffix or 'no suffix'}' is none of them. Convert or rename the file."
            )
        return reader(path)
    is_path = isinstance(source, Path) or name.startswith((".", "/", "~")) or name.lower().endswith(tuple(READERS))
    if is_path or not HUB_ID.fullmatch(name):
        raise DemonstrationError(
            f"{name!r}: no such file or folder (looked in {os.getcwd()}). Check the path; the built-in sets are "
            f"called {', '.join(('builtin', *BEHAVIOURS))}, and a dataset on the hub owner/name."
        )
    return dataset_rows(name, split)


def json_rows(path: Path) -> Iterator[Placed]:
    """JSON Lines, blank lines skipped; a ``.json`` file may also be one list of objects.

    The published ``.json`` files are of both kinds (HaluEval's hold one object a line), so a ``.json`` is told by its
    first character.
    """
    lines = ((number, line) for number, line in _lines(path) if line.strip())
    first = next(lines, None)
    if first is None:
        return
    if path.suffix.lower() == ".json" and first[1].lstrip().startswith("["):
        found = _array(path, first[0], "".join(line for _, line in _lines(path)).lstrip())
    else:
        found = ((number, _parse(path, number, line)) for number, line in itertools.chain([first], lines))
    for number, value in found:
        if not isinstance(value, dict):
            raise DemonstrationError(
                f"{path}:{number}: a JSON object {{...}} is wanted here, and this is of type {type(value).__name__}. "
                "Write one object a line in a .jsonl file, or one list of objects in a .json file."
            )
        yield f"{path}:{number}", value


def csv_rows(path: Path) -> Iterator[Placed]:
    """Comma-separated values, tab-separated for ``.tsv``, with a header; an empty cell becomes None."""
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    reader = csv.reader((line for _, line in _lines(path)), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    while True:
        where = f"{path}:{reader.line_num + 1}"  # a quoted field may hold line ends: the line the record starts on
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise DemonstrationError(
                f"{where}: not a readable CSV record: {error}. Save the file again as CSV with quoted fields, doubled "
                "quotation marks inside them, and ordinary line ends."
            ) from error
        if cells is None:
            return
        if not cells:
            continue
        if header is None:
            header = [name.strip() for name in cells]
            twice = sorted({name for name in header if name and header.count(name) > 1})
            if twice:
                raise DemonstrationError(f"{where}: the column '{twice[0]}' appears twice. Rename or remove one.")
            continue
        if len(cells) != len(header):
            raise DemonstrationError(
                f"{where}: {len(cells)} fields, where the header has {len(header)}. Quote the fields that hold a "
                f"{'tab' if delimiter == chr(9) else 'comma'}, or complete the row."
            )
        yield where, {name: cell if cell.strip() else None for name, cell in zip(header, cells)}


def dataset_rows(name: str, split: str) -> Iterator[Placed]:
    """A folder written by ``save_to_disk``, a folder of data files, or a hub id ``owner/name[:config]``.

    A single dataset written by ``save_to_disk`` answers to the default, "train", whatever its split was called.

    Raises:
        DemonstrationError: it cannot be loaded (offline, unknown, no such split).
        MissingExtraError: ``datasets`` is not installed.
    """
    try:
        import datasets
    except ImportError as error:
        raise missing_extra("datasets", "datasets", f"reading the demonstrations of '{name}'") from error
    is_folder = os.path.isdir(name)
    try:
        data: Any
        if is_folder and any((Path(name) / mark).exists() for mark in ("dataset_dict.json", "state.json")):
            data = _saved_split(datasets.load_from_disk(name), name, split)
        elif is_folder:
            data = datasets.load_dataset(name, split=split)
        else:
            repository, _, config = name.partition(":")
            data = datasets.load_dataset(repository, config or None, split=split)
        found = [dict(row) for row in data]
    except DemonstrationError:
        raise
    except Exception as error:  # the library raises some thirty kinds, of its own and of what it stands on
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        cure = (
            "Check that it holds data files, or was written by save_to_disk, and that the split exists."
            if is_folder
            else f"There is no file or folder of that name in {os.getcwd()}, so it was taken for a dataset on the hub. "
            "Check the id, the split, the configuration (owner/name:config) and the connection, or download it and "
            "give the folder."
        )
        raise DemonstrationError(
            f"'{name}', split '{split}', cannot be loaded: {reason.rstrip('.')}. {cure}"
        ) from error
    return ((f"{name}, split '{split}', row {number}", row) for number, row in enumerate(found, start=1))


READERS: Final = {".jsonl": json_rows, ".json": json_rows, ".csv": csv_rows, ".tsv": csv_rows}
HUB_ID: Final = re.compile(r"[\w.-]+(/[\w.-]+)?(:[\w.-]+)?")


def _saved_split(loaded: Any, name: str, split: str) -> Any:
    splits = loaded if isinstance(loaded, dict) else {"train": loaded, str(loaded.split or split): loaded}
    if split not in splits:
        raise DemonstrationError(f"'{name}' has no split '{split}'. Take one of its own: {', '.join(splits)}.")
    return splits[split]


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """(number from 1, text with its line end), without a byte order mark."""
    try:
        with open_regular(path) as handle:
            for number in itertools.count(1):
                raw = handle.readline(MAX_LINE_BYTES + 1)
                if not raw:
                    return
                if len(raw) > MAX_LINE_BYTES:
                    raise DemonstrationError(
                        f"{path}:{number}: this line is longer than {MAX_LINE_BYTES // 2**20} MiB, which no triple is. "
                        "Check that the file is what it should be; a JSON list needs line ends between its objects."
                    )
                try:
                    yield number, raw.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError as error:
                    raise DemonstrationError(
                        f"{path}:{number}: not UTF-8 (byte {raw[error.start]:#04x}). Save the file as UTF-8."
                    ) from error
    except OSError as error:
        raise DemonstrationError(f"{path}: cannot be read: {error.strerror or error}. Check the file.") from error


def _parse(path: Path, line: int, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        if isinstance(error, json.JSONDecodeError):
            line, problem = line + error.lineno - 1, f"{error.msg}, column {error.colno}"
        else:
            problem = str(error)
        raise DemonstrationError(
            f'{path}:{line}: not valid JSON: {problem}. Write one object a line ({{"prompt": ..., "positive": ..., '
            '"negative": ...}) in a .jsonl file, or one list of objects in a .json file.'
        ) from error


def _array(path: Path, line: int, text: str) -> Iterator[tuple[int, Any]]:
    values = _parse(path, line, text)
    decoder, between, position = json.JSONDecoder(), re.compile(r"[\s,]*"), 1
    for value in values:  # valid JSON by now: walked a second time only for the lines the objects start on
        start = between.match(text, position).end()  # type: ignore[union-attr]
        line += text.count("\n", position, start)
        yield line, value
        _, position = decoder.raw_decode(text, start)
        line += text.count("\n", start, position)
