"""An export as a page reads it: which of its files, how large, and with a strength that a browser can set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sea_bake.artefact import Artefact, OnnxRecord
from sea_bake.artefact.names import EXPORT, GRAPHS
from sea_bake.artefact.names import GRAPH_FILES as FILES
from sea_bake.errors import CheckpointError, SettingError, need
from sea_bake.io.files import read_json
from sea_bake.model.checkpoint import place

STRENGTH = "sea_strength"
# Graph -> what transformers.js calls it, and what the page does.
KINDS = {
    "fp32": ("fp32", "32 bits"),
    "fp16": ("fp16", "16 bits"),
    "int8": ("q8", "8 bits"),
    "int4": ("q4", "4 bits"),
}
_NEEDED = ("config.json", "tokenizer.json", "tokenizer_config.json")
_WELCOME = ("generation_config.json",)


@dataclass(frozen=True)
class WebModel:
    """An export, and the graphs of it that a page offers.

    Attributes:
        artefact: the export.
        graphs: "fp32", "fp16", "int8" or "int4"; at least one.
    """

    artefact: Artefact
    graphs: tuple[str, ...]

    @property
    def folder(self) -> Path:
        return self.artefact.folder

    @property
    def record(self) -> OnnxRecord:
        return self.artefact.onnx

    def files(self, graph: str) -> list[str]:
        """Graph and weights, as paths inside the export."""
        return [f"{GRAPHS}/{p.name}" for p in sorted((self.folder / GRAPHS).glob(f"{FILES[graph]}*"))]

    def carried(self) -> list[str]:
        """All files that a page reads, as paths inside the export."""
        plain = [*_NEEDED, *(name for name in _WELCOME if (self.folder / name).is_file())]
        return plain + [name for graph in self.graphs for name in self.files(graph)]

    def bytes(self, graph: str) -> int:
        """What a browser downloads for one graph."""
        names = {*self.carried()} - {name for other in self.graphs if other != graph for name in self.files(other)}
        return sum((self.folder / name).stat().st_size for name in names)


def open_model(folder: str | Path, graphs: Sequence[str] | None) -> WebModel:
    """An export, with every check that can be made before anything is written.

    Args:
        graphs: which of them, in any order: the most precise comes first. None takes the main one.

    Raises:
        CheckpointError: it is no ONNX export of ours, or incomplete.
        SettingError: a graph that it does not have.
    """
    artefact = Artefact.open(folder)
    folder, record = artefact.folder, artefact.onnx
    there = [name for name in KINDS if (folder / GRAPHS / FILES[name]).is_file()]
    wanted = graphs or [record.dtype]
    for name in wanted:
        if name not in KINDS:
            raise SettingError(f"unknown graph {name!r}: use {', '.join(KINDS)}")
        if name not in there:
            raise SettingError(f"{folder} has no graph {name}, but {', '.join(there) or 'none at all'}")
    for name in _NEEDED:
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder} is incomplete: {name} is missing, without which no page can load it")
    announced = read_json(folder / "config.json").get("transformers.js_config")
    if not isinstance(announced, dict):
        raise CheckpointError(f"{folder / 'config.json'} lacks transformers.js_config: it is not as {EXPORT} says")
    return WebModel(artefact, tuple(name for name in KINDS if name in wanted))


def place_model(model: WebModel, target: Path, *, copy: bool) -> None:
    """Put an export's files beside a page: hard-linked, or copied; a graph with a default strength is rewritten."""
    (target / GRAPHS).mkdir(parents=True)
    graphs = {f"{GRAPHS}/{FILES[name]}" for name in model.graphs}
    for name in model.carried():
        if name in graphs and model.record.strength == "optional":
            _require_strength(model.folder / name, target / name)
        else:
            # Whoever edits a small file of the page must not edit the export by it.
            place(model.folder / name, target / name, copy=copy or not name.startswith(f"{GRAPHS}/"))


def _require_strength(source: Path, target: Path) -> None:
    """A graph whose strength has no default: ONNX Runtime in JavaScript does not feed an input that has one."""
    need("onnx", "A page with a strength slider", "onnx")
    import onnx

    model = onnx.load(str(source), load_external_data=False)
    default = [value for value in model.graph.initializer if value.name == STRENGTH]
    if len(default) != 1:
        raise CheckpointError(f"{source} has no input {STRENGTH} with a default, which the export's record promises")
    model.graph.initializer.remove(default[0])
    target.write_bytes(model.SerializeToString())
