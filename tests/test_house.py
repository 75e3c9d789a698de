"""The house keeps its order: imports go down or stay on their floor, and each room is small."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import sea_bake

HOUSE = Path(sea_bake.__file__).parent
FLOORS = {
    "errors": 0,
    "anatomy": 0,
    "interrupts": 0,
    "staging": 0,
    "progress": 0,
    "source": 0,
    "demonstrations": 0,
    "spectral": 1,
    "modeling_sea": 1,
    "sites": 2,
    "discovery": 2,
    "exactness": 2,
    "fingerprint": 2,
    "hooks": 2,
    "one_layer": 2,
    "store": 2,
    "loading": 2,
    "lora": 2,
    "activations": 2,
    "edit": 2,
    "fitting": 2,
    "checkpoint": 3,
    "baking": 3,
    "exporting": 4,
    "verification": 5,
    "plotting": 5,
    "evaluation": 5,
    "cli": 6,
    "publishing": 6,
    "recipes": 6,
    "reporting": 6,
    "serving": 6,
    "tuning": 6,
    # The door plate and ``python -m``: they name rooms of every floor, and no room imports them.
    "__init__": 7,
    "__main__": 7,
}
FORBIDDEN = {"utils", "util", "common", "core", "helpers", "misc", "base", "shared"}


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
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        elif lazy or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from imports(node, lazy=lazy)


def imported_rooms(source: str, *, lazy: bool = True) -> set[str]:
    """Rooms that a module's text imports. What the package itself gives, but its version, counts as its door plate."""
    found = set()
    for name in imports(ast.parse(source), lazy=lazy):
        package, _, rest = name.partition(".")
        if package == "sea_bake" and rest != "__version__":
            found.add(rest.split(".")[0] if rest.split(".")[0] in FLOORS else "__init__")
    return found


def outside(source: str, *, lazy: bool) -> set[str]:
    """Packages other than the standard library and sea_bake that a module's text imports."""
    names = {name.split(".")[0] for name in imports(ast.parse(source), lazy=lazy)}
    return names - set(sys.stdlib_module_names) - {"sea_bake"}


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(HOUSE)))
def test_imports_go_down(path: Path) -> None:
    floor = FLOORS[room(path)]  # a room that is not on the plan has to be put there
    above = {name for name in imported_rooms(path.read_text("utf-8")) if FLOORS[name] > floor}
    assert not above, f"{path.name} is on floor {floor} and imports from above: {above}"


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(HOUSE)))
def test_rooms_are_small_and_named(path: Path) -> None:
    lines = path.read_text("utf-8").count("\n")
    assert lines <= 300, f"{path.name} has {lines} lines"
    assert not {part.removesuffix(".py") for part in path.relative_to(HOUSE).parts} & FORBIDDEN
    docstring = ast.get_docstring(ast.parse(path.read_text("utf-8")))
    assert docstring, f"{path.name} does not say what it is for"


@pytest.mark.parametrize("path", [p for p in modules() if FLOORS[room(p)] == 0], ids=lambda p: p.name)
def test_the_ground_floor_stands_on_python_alone(path: Path) -> None:
    """Heavy libraries are imported there inside functions only."""
    assert outside(path.read_text("utf-8"), lazy=False) == set()


def test_the_mathematics_stand_on_torch_alone() -> None:
    assert outside((HOUSE / "spectral.py").read_text("utf-8"), lazy=True) == {"torch"}


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


def test_every_room_is_on_the_plan() -> None:
    found = {room(path) for path in modules()}
    assert found <= set(FLOORS)
    assert found >= set(FLOORS)


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
    assert imported_rooms("from sea_bake import spectral") == {"spectral"}
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
