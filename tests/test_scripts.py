"""Scripts that measure: each runs with ``--smoke``, and the tables of the documents are those that it makes."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import doors
import pytest

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = ROOT / "scripts"
KINDS = ("bench_", "study_", "check_", "plan_", "fuzz", "fault_")
MEASURING = sorted(
    path.name for path in SCRIPTS.iterdir() if path.is_file() and not path.suffix and path.name.startswith(KINDS)
)  # fmt: skip
# Bash, and one whose every process is new, as for a user.
AS_A_SHELL_DOES = ("check_transformers", "study_features")
OTHERS = {"behaviours", "check", "demo", "licences", "lock", "setup", "test", "tree"}


def module(name: str, path: Path) -> ModuleType:
    spec = importlib.util.spec_from_loader(name, importlib.machinery.SourceFileLoader(name, str(path)))
    assert spec is not None
    made = importlib.util.module_from_spec(spec)
    sys.modules[name] = made  # dataclasses look themselves up there
    assert spec.loader is not None
    spec.loader.exec_module(made)
    return made


smoke = module("smoke", SCRIPTS / "smoke.py")


def environment() -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if key not in ("SEA_BAKE_SCRIPT_STARTED_AGAIN", "COLUMNS")}


def test_every_script_is_known() -> None:
    """A new one measures, and has --smoke; or it is one of these."""
    assert {path.name for path in SCRIPTS.iterdir() if path.is_file() and not path.suffix} == {*MEASURING, *OTHERS}
    for name in (*MEASURING, *OTHERS):
        assert os.access(SCRIPTS / name, os.X_OK), name


@pytest.mark.slow
@pytest.mark.parametrize("name", MEASURING)
def test_a_smoke_run_holds_what_its_page_shows(name: str) -> None:
    """In forks (``doors``), but for those of ``AS_A_SHELL_DOES``."""
    if name in AS_A_SHELL_DOES:
        ran = subprocess.run(
            [SCRIPTS / name, "--smoke"], capture_output=True, text=True, timeout=300, env=environment()
        )
    else:
        command = [sys.executable, str(SCRIPTS / name), "--smoke"]
        ran = doors.forked(command, environment())
    assert ran.returncode == 0, ran.stderr[-4000:] + ran.stdout[-4000:]
    assert "no measurement" in ran.stderr.splitlines()[-1]
    if name == "check_transformers":
        assert re.search(r"^transformers \d+\.\d+", ran.stdout, re.MULTILINE)
        assert int(re.findall(r"(\d+) passed", ran.stdout)[0]) > 1
    else:
        rows = re.findall(r"smoke: (\d+) rows? hold", ran.stderr)
        assert rows
        assert all(int(count) > 0 for count in rows)
        assert "│" in ran.stdout or "| ---" in ran.stdout


@pytest.mark.slow
def test_documents_have_the_tables_that_the_scripts_are_held_to() -> None:
    """In a process of its own: the scripts set signals and threads when they are imported."""
    ran = subprocess.run([sys.executable, __file__], capture_output=True, text=True, env=environment(), cwd=ROOT)
    assert ran.returncode == 0, ran.stderr[-4000:]
    assert ran.stdout.split() == [name for name in MEASURING if name != "check_transformers"]


def tables(document: str) -> list[list[list[str]]]:
    """Every table of a document: its header, then its rows."""
    found: list[list[list[str]]] = []
    for line in (SCRIPTS / document).read_text("utf-8").splitlines():
        if not line.startswith("|"):
            found.append([])
            continue
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if not all(re.fullmatch(":?-+:?", cell) for cell in cells):
            found[-1].append(cells)
    return [table for table in found if table]


def compare_documents() -> None:
    """Print each script whose page has its table."""
    sys.path.insert(0, str(SCRIPTS))
    for name in MEASURING:
        if name == "check_transformers":
            continue
        script: Any = module(name, SCRIPTS / name)
        for page in getattr(script, "PAGES", None) or (script.PAGE,):
            wanted = set(page.rows) - {""}
            assert not page.document or any(
                all(smoke.matching(header, column) for column in page.columns)
                and all(smoke.matching([row[0] for row in rows] + header, row) for row in wanted)
                for header, *rows in tables(page.document)
            ), f"{page.document} has no table with the columns {list(page.columns)} and the rows {sorted(wanted)}"
        print(name)


PAGE = smoke.Page("README.md", {"time": ("time",)}, {"ours": ("thin*",)}, blank=("note",), prose=("a.b",))
RESULT = {"a": {"b": 0.0}, "list": [1.5]}


@pytest.mark.parametrize(
    ("result", "columns", "rows", "said"),
    [
        (RESULT, ["", "time", "note"], [["thin 1", "1 s", ""]], ""),
        (RESULT, ["", "hour", "note"], [["thin 1", "1 s", ""]], "no column 'time'"),
        (RESULT, ["", "time", "note"], [["dense", "1 s", ""]], "no row 'thin[*]'"),
        (RESULT, ["", "time", "note"], [], "no rows"),
        (RESULT, ["", "time", "note"], [["thin 1", "", ""]], "'time' of 'thin 1' is empty"),
        (RESULT, ["", "time", "note"], [["thin 1", "nan s", ""]], "is 'nan s'"),
        (RESULT, ["", "time", "note"], [["thin 1", "1 s"]], "2 cells for 3 columns"),
        ({"a": {}}, ["", "time", "note"], [["thin 1", "1 s", ""]], "no a.b"),
        ({"a": {"b": [float("inf")]}}, ["", "time", "note"], [["thin 1", "1 s", ""]], r"result.a.b\[0\] is inf"),
    ],
)
def test_what_a_smoke_run_refuses(result: Any, columns: list[str], rows: list[list[str]], said: str) -> None:
    class Table:
        title = "a table"

    Table.columns, Table.rows = columns, rows  # type: ignore[attr-defined]
    found = smoke.problems(result, [Table], PAGE)
    if not said:
        assert found == []
        smoke.hold(result, [Table], PAGE)
        return
    assert re.search(said, "\n".join(found))
    with pytest.raises(SystemExit, match="the output lacks"):
        smoke.hold(result, [Table], PAGE)


@pytest.mark.skipif(not (ROOT / ".venv").exists(), reason="there is no .venv to link to")
def test_a_linked_environment_is_entered_once(tmp_path: Path) -> None:
    """``.venv`` may be a link; and one whose interpreter is none of its own ends, too."""
    (tmp_path / "scripts").mkdir()
    for name in ("bench_common.py", "smoke.py"):
        shutil.copy(SCRIPTS / name, tmp_path / "scripts")
    script = tmp_path / "scripts" / "bench_nothing"
    script.write_text("import bench_common, sys\nbench_common.use_repository_python()\nprint(sys.prefix)\n")
    (tmp_path / ".venv").symlink_to((ROOT / ".venv").resolve())
    outside = [str(Path(sys.base_prefix) / "bin" / "python3"), str(script)]
    ran = subprocess.run(outside, capture_output=True, text=True, timeout=60, env=environment())
    assert ran.returncode == 0, ran.stderr
    assert Path(ran.stdout.strip()).resolve() == (ROOT / ".venv").resolve()
    (tmp_path / ".venv").unlink()
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "python").symlink_to(outside[0])
    ran = subprocess.run(outside, capture_output=True, text=True, timeout=60, env=environment())
    assert ran.returncode == 0 or "sea_bake is not installed" in ran.stderr


if __name__ == "__main__":
    compare_documents()
