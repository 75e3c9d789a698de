"""What a bake and an export did: returned to the caller, and kept in the artefact as its record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from sea_bake.artefact.names import EDIT, EXPORT, GRAPH_FILES, RECORD
from sea_bake.edit import Edit
from sea_bake.edit.measured import Measured
from sea_bake.io.edits import ORIGIN
from sea_bake.io.files import write_json
from sea_bake.io.typed import build

WAYS = ("insert", "fold", "adapter")
_WRITTEN = ("how", "why", "base", "architecture", "sites", "layers", "left_out", "coverage", "details")  # by any bake
_PACKAGES = ("sea-bake", "torch", "transformers", "onnx", "onnxscript", "onnxruntime")


@dataclass(frozen=True)
class BakeRecord:
    """What a bake did.

    Attributes:
        how: "insert", "fold" or "adapter".
        why: why it was baked so, for people.
        base, revision: the base model as it is named in the artefact.
        architecture: the class that loads it.
        sites: edited site of each edit, in the order in which they act.
        layers: decoder layers that any of them edits, ascending.
        left_out: files of the base that were not carried over: weights in other forms, and code.
        coverage: of a fold: "changed" (tensor -> its relative Frobenius change), "unchanged_writers"; "granted" where
            its configuration grants biases that the base lacks: their "keys" and "tensors".
        details: what one way alone has to say, such as an adapter's rank or an approximation's error.
        shards: of an insert: the base's shards, old name -> new name.
        patched: of an insert: the base's files that are other ones now, or new.
        edits: the copies of the edits inside the artefact.
        origins: of a copy, the "USER/REPO@COMMIT" that it came from, where that was the Hub.
        measured: of a copy, what was measured of the edit when it was fitted.
        sea_bake: the version that made it.
        output: the artefact's folder; not in the file.
        bytes_linked, bytes_written: sizes of what was hard-linked, and of what was written; not in the file.
    """

    how: str
    base: str
    why: str = ""
    revision: str | None = None
    architecture: str = ""
    sites: list[str] = field(default_factory=list)
    layers: tuple[int, ...] = ()
    left_out: list[str] = field(default_factory=list)
    coverage: dict[str, Any] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)
    shards: dict[str, str] = field(default_factory=dict)
    patched: list[str] = field(default_factory=list)
    edits: list[str] = field(default_factory=list)
    origins: dict[str, str] = field(default_factory=dict)
    measured: dict[str, Measured] = field(default_factory=dict)
    sea_bake: str = ""
    output: Path = Path()
    bytes_linked: int = 0
    bytes_written: int = 0

    @classmethod
    def of(cls, edits: Sequence[Edit], output: Path, **facts: Any) -> BakeRecord:
        """Of edits that are being baked; ``facts`` are the other attributes."""
        return cls(
            sites=[edit.site.value for edit in edits],
            layers=layers_of(edits),
            edits=[EDIT.format(i) for i in range(len(edits))],
            origins={EDIT.format(i): edit.origin for i, edit in enumerate(edits) if edit.origin},
            measured={EDIT.format(i): edit.measured for i, edit in enumerate(edits) if edit.measured},
            sea_bake=version("sea-bake"),
            output=output,
            **facts,
        )

    @property
    def approximation(self) -> dict[str, Any] | None:
        """Of a linear stand-in: its calibration and errors; None where the artefact is the edit itself."""
        return self.details.get("approximation")

    @property
    def exact(self) -> bool:
        """Whether the artefact is the edit, and not a stand-in for it."""
        return self.approximation is None

    @property
    def promised_kl(self) -> float | None:
        """The mean KL per token from the true edit that a stand-in promises, over all tokens of its held-out texts,
        template and all, as ``verify`` reads its own texts; None of an exact artefact.
        """
        return None if self.approximation is None else float(self.approximation["end_to_end"]["kl_of_all_tokens"])

    @property
    def changed(self) -> dict[str, float]:
        """Of a fold: tensor -> its relative Frobenius change."""
        return dict(self.coverage.get("changed") or {})

    @property
    def granted(self) -> list[str]:
        """Of a fold: the keys of its configuration that grant biases which the base lacks."""
        found = self.coverage.get("granted")
        keys = found.get("keys") if isinstance(found, Mapping) else None
        return [key for key in keys if isinstance(key, str)] if isinstance(keys, list) else []

    @property
    def rewritten(self) -> str | None:
        """Of a fold: the family that the base is written as, where that is another one."""
        found = self.details.get("rewritten")
        return str(found.get("as")) if isinstance(found, Mapping) else None

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "output": str(self.output)}

    def stored(self) -> dict[str, Any]:
        """As it lies in the artefact."""
        return portable(self.to_json())

    def with_base(self, name: str) -> BakeRecord:
        """The same of a base of another name, without a commit."""
        return replace(self, base=name, revision=None)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> BakeRecord:
        """Raises ValueError for what no bake leaves behind: lacking or garbled fields, names that lead elsewhere."""
        if not isinstance(data, Mapping):
            raise ValueError(f"the record of a bake is a {type(data).__name__} and no object")
        lost = [name for name in _WRITTEN if name not in data]
        if lost:
            raise ValueError(f"{lost[0]} is missing")
        found = build(cls, portable(data))
        if found.how not in WAYS:
            raise ValueError(f"how is {found.how!r}, none of {', '.join(WAYS)}")
        _check_edits(found.edits)
        for name, told in found.measured.items():
            if name not in found.edits:
                raise ValueError(f"it says what was measured of {name!r:.80}, which is no edit of it")
            Measured.from_json(told.to_json())
        for name, origin in found.origins.items():
            if name not in found.edits or not ORIGIN.fullmatch(origin):
                raise ValueError(f"it says of {name!r:.80} that it came from {origin!r:.80}")
        for name in (*found.shards, *found.shards.values(), *found.patched):
            if Path(name).name != name or name.startswith("."):
                raise ValueError(f"it points outside of its folder ({name!r})")
        for name in found.left_out:
            if Path(name).is_absolute() or ".." in Path(name).parts:
                raise ValueError(f"it points outside of its folder ({name!r})")
        if found.how == "insert" and not (found.shards and found.patched):
            raise ValueError("it does not list the base's files")
        if found.how == "fold" and not found.changed:
            raise ValueError("it does not list the changed tensors")
        if not all(isinstance(c, int | float) and not isinstance(c, bool) for c in found.changed.values()):
            raise ValueError("a change in its coverage is no number")
        _check_approximation(found)
        return found

    def write(self, stage: Path, edits: Sequence[Edit], *, linked: int = 0) -> BakeRecord:
        """Leave the edits and itself inside an artefact that is being made.

        Args:
            linked: bytes of it that were hard-linked.

        Returns:
            The same, with the sizes of what lies there.
        """
        (stage / RECORD).parent.mkdir(exist_ok=True)
        for edit, name in zip(edits, self.edits, strict=True):
            edit.save(stage / name, overwrite=True)
        write_json(stage / RECORD, self.stored())
        total = sum(file.stat().st_size for file in stage.rglob("*") if file.is_file())
        return replace(self, bytes_linked=linked, bytes_written=total - linked)


@dataclass(frozen=True)
class OnnxRecord:
    """What an export to ONNX wrote.

    Attributes:
        base, revision: the base model as it is named in the folder.
        how: "insert" or "fold", as the artefact was baked; "unedited" for a base.
        architecture: the class that was traced.
        dtype: "fp32" or "fp16".
        opset: version of the ONNX operators.
        edits: the edits' copies in the folder.
        layers: edited decoder layers.
        sea_nodes: names of the edit's own nodes in the graph; a fold has none.
        strength: None, or "optional" or "required": whether the input ``sea_strength`` may be left out.
        nodes: number of nodes of the graph.
        error: norm of the difference between the graph's logits and the model's, over the norm of the model's, at a few
            tokens (left-padded, with the cache).
        files: graph or weight file -> bytes.
        variants: "int8", "int4" -> what ``quantise`` says of it, and its "distance" from the fp32 graph.
        bake: the record of the artefact that was exported; None of a base.
        versions: package -> version.
        output: the folder; not in the file.
        seconds: step -> wall time; not in the file.
    """

    base: str
    how: str
    architecture: str = ""
    dtype: str = "fp32"
    opset: int = 18
    revision: str | None = None
    edits: list[str] = field(default_factory=list)
    layers: tuple[int, ...] = ()
    sea_nodes: list[str] = field(default_factory=list)
    strength: str | None = None
    nodes: int = 0
    error: float = 0.0
    files: dict[str, int] = field(default_factory=dict)
    variants: dict[str, Any] = field(default_factory=dict)
    bake: BakeRecord | None = None
    versions: dict[str, str] = field(default_factory=dict)
    output: Path = Path()
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def graphs(self) -> list[str]:
        """The graph that the others were made of first: "fp32", "int8", "int4"."""
        return [self.dtype, *(name for name in GRAPH_FILES if name in self.variants)]

    def to_json(self) -> dict[str, Any]:
        bake = None if self.bake is None else self.bake.stored()
        return {"format": "onnx", **asdict(self), "bake": bake, "output": str(self.output)}

    def stored(self) -> dict[str, Any]:
        """As it lies in the export."""
        return portable(self.to_json())

    def with_base(self, name: str) -> OnnxRecord:
        """The same of a base of another name, without a commit."""
        bake = None if self.bake is None else self.bake.with_base(name)
        return replace(self, base=name, revision=None, bake=bake)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> OnnxRecord:
        """Raises ValueError for what no export leaves behind."""
        bake = data.get("bake")
        found = build(cls, {**portable(data), "bake": None})
        if found.how not in ("insert", "fold", "unedited") or found.dtype not in GRAPH_FILES:
            raise ValueError("it does not say how, or in which dtype, it was exported")
        if found.how == "unedited":
            return found
        _check_edits(found.edits)
        return OnnxRecord(**{**vars(found), "bake": None if bake is None else BakeRecord.from_json(bake)})

    def write(self, stage: Path) -> None:
        """Leave the record inside an export that is being made."""
        versions = {"versions": {name: version(name) for name in _PACKAGES}}
        (stage / EXPORT).parent.mkdir(exist_ok=True)
        write_json(stage / EXPORT, self.stored() | versions)


def layers_of(edits: Sequence[Edit]) -> tuple[int, ...]:
    """Decoder layers that any of the edits edits, ascending."""
    return tuple(sorted({layer for edit in edits for layer in edit.layers}))


def portable(data: Mapping[str, Any]) -> dict[str, Any]:
    """A record without what is this machine's business alone: as it lies in the artefact."""
    return {k: v for k, v in data.items() if k not in ("output", "bytes_linked", "bytes_written", "seconds")}


def _check_edits(names: list[str]) -> None:
    if not names or names != [EDIT.format(i) for i in range(len(names))]:
        raise ValueError("it does not list the edits as sea_bake writes them")


def _check_approximation(record: BakeRecord) -> None:
    """What a stand-in's artefact says of its error has to be numbers, since ``verify`` holds it to them."""
    if record.approximation is None:
        return
    try:
        end, shares = record.approximation["end_to_end"], [e["share"] for e in record.approximation["layers"]]
        numbers = [float(end[key]) for key in ("kl", "base_kl", "top1", "base_top1", "kl_of_all_tokens")]
        numbers += map(float, shares)
    except (KeyError, TypeError, ValueError, IndexError, OverflowError) as error:
        raise ValueError(f"it lacks or garbles the error of its approximation: {error}") from None
    if not 0 <= (record.promised_kl or 0.0) < float("inf") or not all(n == n and abs(n) < 1e300 for n in numbers):
        raise ValueError("it promises an approximation with an error that is no number")
