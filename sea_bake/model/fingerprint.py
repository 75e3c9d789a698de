"""Know a model again: what it is called, how it is built, and a sample of its weights.

The same fingerprint is taken from a living model and from a checkpoint that is never loaded, in whatever dtype each
has: sampled values are compared after rounding both to the coarser of the two dtypes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sea_bake.errors import WrongModelError
from sea_bake.io.store import finite
from sea_bake.model import samples
from sea_bake.model.anatomy import SEA_PREFIX, Family
from sea_bake.model.sites import text_config
from sea_bake.model.source import ModelSource, weights_on_the_hub

if TYPE_CHECKING:
    from sea_bake.model.checkpoint import Checkpoint

# What makes two checkpoints interchangeable for an edit; read through transformers, so both spellings of a key count.
_SHAPE = (
    "model_type",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "intermediate_size",
    "vocab_size",
)
# From coarse to fine. A sample taken in one and seen again in another agrees to the coarser one's rounding.
_RESOLUTION = {"bfloat16": 2.0**-8, "float16": 2.0**-11, "float32": 2.0**-24, "float64": 2.0**-53}


@dataclass(frozen=True)
class BaseModel:
    """The model an edit was fitted on.

    Attributes:
        name, revision: Hub id (or the folder's own name) and commit.
        config: the numbers of ``_SHAPE``.
        dtype: dtype of the weights that were sampled; the coarsest of several.
        samples: "<layer>.<tensor>" -> 16 evenly spaced values of it, for the output projections of every layer. In an
            edit that an older release wrote, of the edited layers.
        rest: the same of embeddings, norms, head and all else beside them (``samples.of_rest``); empty in such an edit.
        files: digests of its weights' files, where they came from the Hub (``source.weights_on_the_hub``).
    """

    name: str
    revision: str | None
    config: dict[str, Any]
    dtype: str
    samples: dict[str, list[float]] = field(repr=False, default_factory=dict)
    rest: dict[str, list[float]] = field(repr=False, default_factory=dict)
    files: dict[str, str] = field(repr=False, default_factory=dict)

    @property
    def model_type(self) -> str:
        return str(self.config["model_type"])

    @property
    def num_layers(self) -> int:
        return int(self.config["num_hidden_layers"])

    @property
    def hidden_size(self) -> int:
        return int(self.config["hidden_size"])

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> BaseModel:
        """Raises KeyError, TypeError or ValueError when a field is missing or of another type."""
        sampled = [
            {str(k): [finite(x) for x in v] for k, v in found.items()}
            for found in (data["samples"], data.get("rest") or {})
        ]
        config = {key: data["config"].get(key) for key in _SHAPE}
        for key in ("hidden_size", "num_hidden_layers"):
            if isinstance(config[key], bool) or not isinstance(config[key], int) or config[key] < 1:
                raise ValueError(f"base.config.{key}")
        revision = data.get("revision")
        if not isinstance(revision, str | None):
            raise TypeError("base.revision")
        files = {str(k): str(v) for k, v in (data.get("files") or {}).items()}
        return cls(str(data["name"]), revision, config, str(data["dtype"]), sampled[0], sampled[1], files)

    @classmethod
    def of(cls, model: Any, source: ModelSource | str) -> BaseModel:
        """Fingerprint of a living model.

        Raises:
            FamilyError: a family that ``anatomy`` does not know.
        """
        import torch

        from sea_bake.model.discovery import family_of
        from sea_bake.model.placing import weights
        from sea_bake.model.skeleton import decoder_of

        config = text_config(model)
        row = family_of(config)
        stack = getattr(decoder_of(model), row.layers)

        def tensor(layer: int, path: str) -> Any:
            found, path = stack[layer], path.removesuffix(".weight")
            for part in path.split("."):
                found = getattr(found, part, None)
            if isinstance(found, torch.nn.Module):
                found, path = getattr(found, "weight", None), f"{path}.weight"
            if not isinstance(found, torch.Tensor):
                return None
            return named.get(f"{inside}.{layer}.{path}") if found.is_meta else found.detach()

        source = source if isinstance(source, ModelSource) else ModelSource(source)
        revision = getattr(model.config, "_commit_hash", None) or source.revision
        inside = next((name for name, module in model.named_modules() if module is stack), row.layers)
        named = weights(model)
        files = weights_on_the_hub(source.path or _folder_of(model, revision))
        return cls._sampled(source.name, revision, config, row, tensor, named, named.get, inside, files)

    @classmethod
    def of_checkpoint(cls, source: ModelSource, text: Any, row: Family, checkpoint: Checkpoint, stem: str) -> BaseModel:
        """Fingerprint of a checkpoint on disk.

        Args:
            text: the configuration of its decoder, or its numbers alone.
            row: its family.
            stem: prefix of the decoder layers' tensor names, such as "model.layers".
        """

        def on_disk(layer: int, path: str) -> Any:
            return checkpoint.tensor(f"{stem}.{layer}.{path}")

        named = checkpoint.weight_map
        files = weights_on_the_hub(source.path)
        return cls._sampled(source.name, source.revision, text, row, on_disk, named, checkpoint.tensor, stem, files)

    @classmethod
    def _sampled(
        cls,
        name: str,
        revision: str | None,
        config: Any,
        row: Family,
        inside: Callable[[int, str], Any],
        names: Iterable[str],
        tensor: Callable[[str], Any],
        stack: str,
        files: dict[str, str],
    ) -> BaseModel:
        writers = samples.of_writers(row, config.num_hidden_layers, inside)
        rest = samples.of_rest(names, stack, writers, tensor)
        dtypes = {
            str(samples.form_of(one)).removeprefix("torch.")
            for one in (*writers.values(), *(one for one, _ in rest.values()))
        }
        return cls(
            name,
            revision,
            {key: getattr(config, key, None) for key in _SHAPE},
            max(dtypes, key=lambda dtype: _RESOLUTION.get(dtype, 1.0), default="float32"),
            {key: samples.values(one, samples.WRITER) for key, one in writers.items()},
            {key: samples.values(one, count) for key, (one, count) in rest.items()},
            files,
        )

    def check(self, other: BaseModel, layers: Iterable[int], *, what: str = "this model") -> None:
        """Raise unless ``other`` is the same model, as far as the samples show; and of one repository, file by file.

        Args:
            layers: those that are edited: what differs in them is named first.

        Raises:
            WrongModelError: the architectures or the sampled weights differ; the message says where.
        """
        for key in _SHAPE:
            ours, theirs = self.config[key], other.config[key]
            if key == "model_type":
                theirs = str(theirs).removeprefix(SEA_PREFIX)
            if ours != theirs:
                raise WrongModelError(
                    f"the edit was fitted on '{self.name}' with {key} = {ours}; {what} has {key} = {theirs}. "
                    f"An edit belongs to one model: {self._elsewhere(other) or 'fit again on this one.'}"
                )
        resolution = 2 * max(_RESOLUTION.get(d, 1.0) for d in (self.dtype, other.dtype))
        edited = {str(layer) for layer in layers}
        for key, ours, theirs in sorted(
            self._seen_in_both(other), key=lambda one: one[0].split(".", 1)[0] not in edited
        ):
            apart = [i for i, (a, b) in enumerate(zip(ours, theirs)) if abs(a - b) > resolution * max(abs(a), 1e-4)]
            if apart or len(ours) != len(theirs):
                layer, _, path = key.partition(".")
                place = f"{path} of layer {layer}" if layer.isdigit() else key
                first = apart[0] if len(ours) == len(theirs) else None
                cure = self._elsewhere(other) or "fit the edit on this model."
                values = "" if first is None else f": {ours[first]:.6g} there, {theirs[first]:.6g} here"
                raise WrongModelError(
                    f"{what} is built like '{self.name}', but its weights differ (first seen in {place}{values}): it "
                    f"is another model, a fine-tune or a quantised copy. {cure[:1].upper()}{cure[1:]}"
                )
        moved = sorted(file for file in self.files.keys() & other.files.keys() if self.files[file] != other.files[file])
        if moved:
            cure = self._elsewhere(other) or "fit the edit on this model."
            raise WrongModelError(
                f"{what} has changed on the Hub since the edit was fitted: {moved[0]} is another file, though none of "
                f"the values that were looked at differs. {cure[:1].upper()}{cure[1:]}"
            )

    def _seen_in_both(self, other: BaseModel) -> Iterator[tuple[str, list[float], list[float]]]:
        """Key, values here, values there. In a layer with quantised writers norms say nothing: some ways of quantising
        move factors from one to the other.
        """
        plain = {key.split(".", 1)[0] for key in self.samples.keys() & other.samples.keys()}
        for key, ours in self.samples.items():
            if key in other.samples:
                yield key, ours, other.samples[key]
        for key, ours in self.rest.items():
            layer = key.split(".", 1)[0]
            if key in other.rest and (layer in plain or not layer.isdigit()):
                yield key, ours, other.rest[key]

    def _elsewhere(self, other: BaseModel) -> str:
        """Where the right base is, if that is on the Hub and the other one is not said to be it; else ""."""
        if self.revision is None or (other.name, other.revision) == (self.name, self.revision):
            return ""
        commit = f"at its commit (--revision {self.revision})"
        return f"name the base that it was fitted on ('{self.name}'), {commit}, or fit again on this model."


def _folder_of(model: Any, revision: str | None) -> Path | None:
    """Where a living model's files lie, if it says so: the folder that it was loaded from, or the Hub's cache."""
    from huggingface_hub import try_to_load_from_cache

    name = str(getattr(model, "name_or_path", ""))
    if not name or Path(name).is_dir():
        return Path(name) if name else None
    try:
        found = try_to_load_from_cache(name, "config.json", revision=revision)
    except ValueError:  # a name that can be none on the Hub
        return None
    return Path(found).parent if isinstance(found, str) else None
