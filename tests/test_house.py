"""The house keeps its order: imports go down, lazy ones too, there is no circle, and each room is small."""

from __future__ import annotations

import ast
import graphlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import sea_bake

HOUSE = Path(sea_bake.__file__).parent
# From the ground up: what stands in a room may import from rooms before it, and from no other.
ORDER = (
    "errors",
    "modeling_sea",
    "io",
    "demonstrations",
    "model",
    "activations",
    "methods",
    "edit",
    "artefact",
    "baking",
    "pages",
    "verification",
    "exporting",
    "evaluation",
    "fitting",
    "reporting",
    "serving",
    "publishing",
    "recipes",
    "cli",
    # The door plate and ``python -m``: they name rooms of every floor, and no room imports them.
    "__init__",
    "__main__",
)
PAPERS = {"README.md", "py.typed"}  # beside the code: its guide, and the mark that it is typed
FORBIDDEN = {"utils", "util", "common", "core", "helpers", "misc", "base", "shared"}
VERB = re.compile(r"sea_bake(\.\w+)+:\w+(\.\w+)?")  # a function by name, as recipes and commands call it: an import too


def modules() -> list[Path]:
    return sorted(HOUSE.rglob("*.py"))


def room(path: Path) -> str:
    """``sea_bake/cli/fit.py`` -> "cli"."""
    parts = path.relative_to(HOUSE).parts
    return parts[0].removesuffix(".py")


def imports(tree: ast.AST, *, lazy: bool) -> Iterator[str]:
    """Full names of what is imported; with ``lazy`` also inside functions. ``if TYPE_CHECKING`` does not run."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and VERB.fullmatch(node.value):
            yield node.value.replace(":", ".")
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            yield from (a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str))
            yield from imports(node, lazy=lazy)
        elif lazy or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from imports(node, lazy=lazy)


def imported_rooms(source: str, *, lazy: bool = True) -> set[str]:
    """Rooms that a module's text imports. What the package itself gives, but its version, counts as its door plate."""
    found = set()
    for name in imports(ast.parse(source), lazy=lazy):
        package, _, rest = name.partition(".")
        if package == "sea_bake" and rest != "__version__":
            found.add(rest.split(".")[0] if rest.split(".")[0] in ORDER else "__init__")
    return found


def outside(source: str, *, lazy: bool) -> set[str]:
    """Packages other than the standard library and sea_bake that a module's text imports."""
    names = {name.split(".")[0] for name in imports(ast.parse(source), lazy=lazy)}
    return names - set(sys.stdlib_module_names) - {"sea_bake"}


def runs_up(name: str, source: str) -> set[str]:
    """Rooms above (or beside) a room that a text in it imports."""
    floor = ORDER.index(name)
    return {other for other in imported_rooms(source) if other != name and ORDER.index(other) >= floor}


def modules_imported(path: Path) -> set[str]:
    """Dotted names of our modules that a module imports, lazily or not."""
    known = {dotted(p) for p in modules()}
    found = set()
    for name in imports(ast.parse(path.read_text("utf-8")), lazy=True):
        found |= {name} & known or {name.rpartition(".")[0]} & known
    return found


def dotted(path: Path) -> str:
    return ".".join(("sea_bake", *path.relative_to(HOUSE).with_suffix("").parts)).removesuffix(".__init__")


def test_imports_go_down() -> None:
    found = {str(p.relative_to(HOUSE)): runs_up(room(p), p.read_text("utf-8")) for p in modules()}
    assert {name: rooms for name, rooms in found.items() if rooms} == {}


def test_no_circle() -> None:
    """Between single modules, inside a room too."""
    graph = {dotted(p): modules_imported(p) - {dotted(p)} for p in modules()}
    order = list(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError
    assert order.index("sea_bake.errors") < order.index("sea_bake.cli")


def test_rooms_are_small_and_named() -> None:
    for path in modules():
        text = path.read_text("utf-8")
        assert text.count("\n") <= 300, f"{path.name} has {text.count(chr(10))} lines"
        assert not {part.removesuffix(".py") for part in path.relative_to(HOUSE).parts} & FORBIDDEN
        assert ast.get_docstring(ast.parse(text)), f"{path.name} does not say what it is for"


def test_the_door_is_thin() -> None:
    assert sum(path.read_text("utf-8").count("\n") for path in (HOUSE / "cli").glob("*.py")) < 1500


def test_every_room_is_on_the_plan() -> None:
    entries = {path.name for path in HOUSE.iterdir()} - {"__pycache__"} - PAPERS
    assert {name.removesuffix(".py") for name in entries} == set(ORDER)
    assert len(entries) <= 22


def test_one_place_knows_the_records_names() -> None:
    """What opens an artefact asks :class:`Artefact`: the files inside it are named in ``artefact/names.py`` alone."""
    for name in ("bake.json", "export.json", "sea_verification.json", "sea/evaluation.json", "sea/report.json"):
        there = {room(p) for p in modules() if f'{name}"' in p.read_text("utf-8")}
        assert there <= {"artefact"}, f"{name} is spelt in {there}"


def raw_records(source: str) -> list[str]:
    """Calls in a module's text that read or write one of the records by hand, by its constant or a name it is given."""
    tree = ast.parse(source)
    records = {"RECORD", "EXPORT", "EVALUATION", "VERIFICATION", "PAGE_NUMBERS"}
    aliases = [
        alias
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module == "sea_bake.artefact.names"
        for alias in node.names
    ]
    known = {alias.asname or alias.name for alias in aliases if alias.name in records}
    json_calls = {"read_json", "write_json", "loads", "load", "read_text", "write_text", "read_bytes", "open"}
    return [
        ast.unparse(node)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and (getattr(node.func, "id", None) or getattr(node.func, "attr", None)) in json_calls
        and {n.id for n in ast.walk(node) if isinstance(n, ast.Name)} & known
    ]


def test_one_place_reads_and_writes_records() -> None:
    """Other rooms have them as classes, with the checks of their ``from_json``."""
    there = {str(p.relative_to(HOUSE)): raw_records(p.read_text("utf-8")) for p in modules() if room(p) != "artefact"}
    assert {name: calls for name, calls in there.items() if calls} == {}
    names = "from sea_bake.artefact.names import EXPORT, RECORD as BAKED\n"  # controls
    assert raw_records(names + "read_json(folder / BAKED)") == ["read_json(folder / BAKED)"]
    assert len(raw_records(names + "write_json(stage / EXPORT, {})\n(folder / EXPORT).read_text()")) == 2
    assert raw_records(names + "read_json(folder / 'config.json')\n(folder / BAKED).is_file()") == []


def test_one_place_fetches_from_the_hub() -> None:
    there = {str(p.relative_to(HOUSE)) for p in modules() if "snapshot_download" in p.read_text("utf-8")}
    assert there == {"io/hub.py"}


def test_the_ground_floor_stands_on_python_alone() -> None:
    """Heavy libraries are imported there inside functions only: help and refusals come at once."""
    light = [HOUSE / "errors.py", *(HOUSE / "demonstrations").glob("*.py")]
    files = ("files", "hub", "interrupts", "leases", "progress", "replacing", "staging")
    light += [HOUSE / "io" / f"{name}.py" for name in files]
    light += [HOUSE / "model" / f"{name}.py" for name in ("anatomy", "source")]
    assert {path.name: names for path in light if (names := outside(path.read_text("utf-8"), lazy=False))} == {}


REFUSALS = {
    "run, no recipe": ("run", "nothing.yaml"),
    "run, a recipe of nonsense": ("run", "odd.yaml"),
    "init, the file is there": ("init", "odd.yaml"),
    "fit, the output is there": ("fit", "nomodel", "-o", "odd.yaml"),
    "fit, no model": ("fit", "-o", "new"),
    "fit, no such model": ("fit", "./nomodel", "-o", "new"),
    "import, the output is there": ("import", "a.pt", "b.pt", "--base", "nomodel", "-o", "odd.yaml"),
    "inspect, no such file": ("inspect", "nothing.safetensors"),
    "plan, no such edit": ("plan", "nomodel", "nothing.safetensors"),
    "ask, an empty prompt": ("ask", "nomodel", "-p", " "),
    "ask, no such model": ("ask", "./nomodel", "-p", "x"),
    "chat, no such model": ("chat", "./nomodel"),
    "serve, a host of others": ("serve", "./nomodel", "--host", "0.0.0.0"),
    "help": ("fit", "--help"),
    "doctor": ("doctor", "--quiet"),
}


@pytest.mark.slow
def test_what_is_refused_by_its_words_does_not_wait_for_torch(tmp_path: Path) -> None:
    """Each in a process of its own, as users start it."""
    (tmp_path / "odd.yaml").write_text("modle: x\n", "utf-8")
    script = (
        "import sys\nfrom sea_bake.cli import main\ntry:\n    main()\n"
        "except SystemExit as ended:\n    print(ended.code, *sorted({'torch', 'transformers'} & set(sys.modules)))"
    )
    said = {}
    for name, arguments in {**REFUSALS, "control": ("verify", "nothing")}.items():
        ran = subprocess.run(
            [sys.executable, "-c", script, *arguments], cwd=tmp_path, capture_output=True, text=True, check=True
        )
        said[name] = ran.stdout.splitlines()[-1].split()
    assert said.pop("control")[:2] == ["2", "torch"]
    assert said == {name: ["0" if name in ("help", "doctor") else "2"] for name in REFUSALS}


def test_the_mathematics_stand_on_torch_alone() -> None:
    assert outside((HOUSE / "methods" / "sea.py").read_text("utf-8"), lazy=True) == {"torch"}


def test_the_file_that_travels_is_self_contained() -> None:
    """torch and transformers, and of the standard library nothing either: no file, socket, process or eval."""
    text = (HOUSE / "modeling_sea.py").read_text("utf-8")
    names = {name.split(".")[0] for name in imports(ast.parse(text), lazy=True)}
    assert names == {"torch", "transformers"}
    called = {
        node.func.id for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call) and hasattr(node.func, "id")
    }
    assert not called & {"eval", "exec", "compile", "open", "__import__", "input"}


def test_the_process_that_proves_does_not_know_us() -> None:
    """``answers`` runs as a script in a process where sea_bake cannot be imported."""
    text = (HOUSE / "verification" / "answers.py").read_text("utf-8")
    assert imported_rooms(text) == set()
    assert outside(text, lazy=True) == {"torch", "safetensors", "transformers", "peft"}


def test_the_process_that_proves_exports_does_not_know_torch() -> None:
    """``onnx_answers`` runs as a script in a process where sea_bake cannot be imported, and torch is not."""
    text = (HOUSE / "verification" / "onnx_answers.py").read_text("utf-8")
    assert imported_rooms(text) == set()
    assert outside(text, lazy=True) == {"onnxruntime", "numpy", "safetensors"}


@pytest.mark.slow
def test_importing_is_instant() -> None:
    """``import sea_bake``, and its public names listed, without torch; a name is resolved when it is used."""
    script = (
        "import sys, sea_bake\n"
        "sea_bake.__version__, sea_bake.__all__, sea_bake.Site, sea_bake.Demonstration, sea_bake.SeaBakeError\n"
        "print(sorted(m for m in ('torch', 'transformers', 'numpy', 'rich', 'typer') if m in sys.modules))\n"
        "sea_bake.Projector; print('torch' in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert ran.stdout.split("\n")[:2] == ["[]", "True"], ran.stderr


def test_every_public_name_is_there() -> None:
    for name in sea_bake.__all__:
        assert getattr(sea_bake, name).__doc__, f"{name} does not say what it is"
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        sea_bake.nothing  # noqa: B018


def test_the_walk_sees_what_it_should() -> None:
    """The controls: what must not pass is seen, wherever in a module it stands."""
    assert imported_rooms("from sea_bake.cli import main") == {"cli"}
    assert imported_rooms("from sea_bake import methods") == {"methods"}
    assert imported_rooms("step = 'sea_bake.cli.run:run'") == {"cli"}
    assert imported_rooms("import importlib\nimportlib.import_module('sea_bake.cli')") == {"cli"}
    assert imported_rooms("def f():\n    return __import__('sea_bake.cli.main')") == {"cli"}
    assert runs_up("io", "def f():\n    from sea_bake.model import hooks") == {"model"}
    assert runs_up("model", "from sea_bake.io import staging\nfrom sea_bake.model import hooks") == set()
    assert imported_rooms("import sea_bake.baking.insert as i") == {"baking"}
    assert imported_rooms("def f():\n    class C:\n        from sea_bake.cli import main") == {"cli"}
    assert imported_rooms("import sea_bake") == imported_rooms("from sea_bake import fit") == {"__init__"}
    assert imported_rooms("if TYPE_CHECKING:\n    from sea_bake.cli import main") == set()
    assert outside("import torch.nn, json\ntry:\n    import rich\nexcept ImportError: pass", lazy=False) == {
        "torch",
        "rich",
    }
    assert outside("def f():\n    import torch", lazy=False) == set()
    assert outside("def f():\n    import torch", lazy=True) == {"torch"}


@pytest.mark.slow
def test_every_public_name_is_there_without_the_extras() -> None:
    """What an extra brings is imported where it is used: ``verify`` of a checkpoint needs no ONNX Runtime."""
    script = (
        "import sys\n"
        "extras = 'datasets gguf onnx onnx_ir onnxruntime onnxscript matplotlib lm_eval optuna sklearn'\n"
        "extras += ' fastapi openai prompt_toolkit uvicorn'\n"
        "sys.modules.update(dict.fromkeys(extras.split()))\n"
        "import sea_bake\n"
        "print(len([getattr(sea_bake, name) for name in sea_bake.__all__]) == len(sea_bake.__all__))"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert ran.stdout == "True\n", ran.stderr
