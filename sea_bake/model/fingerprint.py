"""Know a model again: what it is called, how it is built, and a sample of the weights beside the edit.

The same fingerprint is taken from a living model and from a checkpoint that is never loaded, in whatever dtype each
has: sampled values are compared after rounding both to the coarser of the two dtypes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from sea_bake.errors import WrongModelError
from sea_bake.io.store import finite
from sea_bake.model.anatomy import SEA_PREFIX, Family, Site
from sea_bake.model.checkpoint.reader import LazyTensor
from sea_bake.model.sites import text_config
from sea_bake.model.source import ModelSource

if TYPE_CHECKING:
    from torch import Tensor

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
_SAMPLES = 16
# From coarse to fine. A sample taken in one and seen again in another agrees to the coarser one's rounding.
_RESOLUTION = {"bfloat16": 2.0**-8, "float16": 2.0**-11, "float32": 2.0**-24, "float64": 2.0**-53}


@dataclass(frozen=True)
class BaseModel:
    """The model an edit was fitted on.

    Attributes:
        name, revision: Hub id (or the folder's own name) and commit.
        config: the numbers of ``_SHAPE``.
        dtype: dtype of the weights that were sampled.
        samples: "<layer>.<tensor>" -> 16 evenly spaced values of it, for the output projections of every layer.
    """

    name: str
    revision: str | None
    config: dict[str, Any]
    dtype: str
    samples: dict[str, list[float]] = field(repr=False, default_factory=dict)

    @property
    def model_type(self) -> str:
        return str(self.config["model_type"])

    @property
    def num_layers(self) -> int:
        return int(self.config["num_hidden_layers"])

    @property
    def hidden_size(self) -> int:
        return int(self.config["hidden_size"])

    def only(self, layers: Iterable[int]) -> BaseModel:
        """The same fingerprint with the samples of these layers alone."""
        wanted = {str(layer) for layer in layers}
        return replace(self, samples={k: v for k, v in self.samples.items() if k.split(".", 1)[0] in wanted})

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> BaseModel:
        """Raises KeyError, TypeError or ValueError when a field is missing or of another type."""
        samples = {str(k): [finite(x) for x in v] for k, v in data["samples"].items()}
        config = {key: data["config"].get(key) for key in _SHAPE}
        for key in ("hidden_size", "num_hidden_layers"):
            if isinstance(config[key], bool) or not isinstance(config[key], int) or config[key] < 1:
                raise ValueError(f"base.config.{key}")
        revision = data.get("revision")
        if not isinstance(revision, str | None):
            raise TypeError("base.revision")
        return cls(str(data["name"]), revision, config, str(data["dtype"]), samples)

    @classmethod
    def of(cls, model: Any, source: ModelSource | str) -> BaseModel:
        """Fingerprint of a living model.

        Raises:
            FamilyError: a family that ``anatomy`` does not know.
        """
        import torch

        from sea_bake.model.discovery import family_of
        from sea_bake.model.skeleton import decoder_of

        config = text_config(model)
        row = family_of(config)
        stack = getattr(decoder_of(model), row.layers)

        def tensor(layer: int, path: str) -> Tensor | None:
            found = stack[layer]
            for part in path.removesuffix(".weight").split("."):
                found = getattr(found, part, None)
            if isinstance(found, torch.nn.Module):
                found = getattr(found, "weight", None)
            return found.detach() if isinstance(found, torch.Tensor) else None

        source = source if isinstance(source, ModelSource) else ModelSource(source)
        revision = getattr(model.config, "_commit_hash", None) or source.revision
        return cls._sampled(source.name, revision, config, row, tensor)

    @classmethod
    def of_checkpoint(
        cls, source: ModelSource, text: Any, row: Family, tensor: Callable[[str], Any], stem: str
    ) -> BaseModel:
        """Fingerprint of a checkpoint on disk.

        Args:
            text: the configuration of its decoder, or its numbers alone.
            row: its family.
            tensor: on-disk tensor name -> the tensor or a lazy slice of it (None when there is none).
            stem: prefix of the decoder layers' tensor names, such as "model.layers".
        """

        def on_disk(layer: int, path: str) -> Any:
            return tensor(f"{stem}.{layer}.{path}")

        return cls._sampled(source.name, source.revision, text, row, on_disk)

    @classmethod
    def _sampled(
        cls, name: str, revision: str | None, config: Any, row: Family, tensor: Callable[[int, str], Any]
    ) -> BaseModel:
        samples: dict[str, list[float]] = {}
        dtype = "float32"
        for layer in range(config.num_hidden_layers):
            for site in (Site.ATTN, Site.MLP):
                # The first expert's writer: alone on disk, the first of the fused tensor in memory.
                experts = [] if site is Site.ATTN else [row.fused, row.experts and row.experts.format(0)]
                written = {f"{place.writer}.weight": place.writer for place in row.places(site)}
                written |= dict.fromkeys(filter(None, experts), row.writer(site))
                path, found = next(((p, t) for p in written if (t := tensor(layer, p)) is not None), ("", None))
                if found is None or found.dim() not in (2, 3) or not found.is_floating_point():
                    continue  # a quantised weight has no comparable values
                form = found.form if isinstance(found, LazyTensor) else found.dtype
                if form.itemsize < 2:
                    continue  # neither has an FP8 one, which some devices dequantise on loading
                if not isinstance(found, LazyTensor) and found.device.type == "meta":
                    continue  # neither has an offloaded one
                dtype = str(form).removeprefix("torch.")
                samples[f"{layer}.{written[path]}"] = _sample(found)
        return cls(name, revision, {key: getattr(config, key, None) for key in _SHAPE}, dtype, samples)

    def check(self, other: BaseModel, layers: Iterable[int], *, what: str = "this model") -> None:
        """Raise unless ``other`` is the same model, as far as the edited layers show.

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
        wanted = {str(layer) for layer in layers}
        for key, ours in self.samples.items():
            theirs = other.samples.get(key)
            if key.split(".", 1)[0] not in wanted or theirs is None:
                continue
            apart = [i for i, (a, b) in enumerate(zip(ours, theirs)) if abs(a - b) > resolution * max(abs(a), 1e-4)]
            if apart or len(ours) != len(theirs):
                layer, path = key.split(".", 1)
                first = apart[0] if len(ours) == len(theirs) else None
                cure = self._elsewhere(other) or "fit the edit on this model."
                values = "" if first is None else f": {ours[first]:.6g} there, {theirs[first]:.6g} here"
                raise WrongModelError(
                    f"{what} is built like '{self.name}', but its weights differ (first seen in {path} of layer "
                    f"{layer}{values}): it is another model, a fine-tune or a quantised copy. "
                    f"{cure[:1].upper()}{cure[1:]}"
                )

    def _elsewhere(self, other: BaseModel) -> str:
        """Where the right base is, if that is on the Hub and the other one is not said to be it; else ""."""
        if self.revision is None or (other.name, other.revision) == (self.name, self.revision):
            return ""
        commit = f"at its commit (--revision {self.revision})"
        return f"name the base that it was fitted on ('{self.name}'), {commit}, or fit again on this model."


def _sample(weight: Any) -> list[float]:
    """16 values along the diagonal of a [rows, columns] matrix (of the first one of a stack); readable from a lazy
    tensor without decoding it all.
    """
    if isinstance(weight, LazyTensor):
        return [weight.element(place) for place in sample_places(weight.shape)]
    return [float(weight[place]) for place in sample_places(weight.shape)]


def sample_places(shape: Sequence[int]) -> list[tuple[int, ...]]:
    """Where the samples of a weight [..., rows, columns] are taken, in their order: one full index each."""
    *stack, rows, columns = shape
    first = (0,) * len(stack)
    last = _SAMPLES - 1
    return [(*first, i * (rows - 1) // last, i * (columns - 1) // last) for i in range(_SAMPLES)]
