"""A PEFT LoRA on its base, as what it does to each tensor: W + scaling · B A, in float64, rounded once.

PEFT itself says which modules are meant and how strongly: its layers go into a skeleton of the base without memory.
The same changes are made to a living model (``merge_into``) and to a checkpoint on disk (``checkpoint.merging``).
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sea_bake.errors import CheckpointError
from sea_bake.io.files import read_json
from sea_bake.model.source import ADAPTER_CONFIG, ModelSource

WEIGHTS = "adapter_model.safetensors"
CURE = (
    "Merge it yourself (PeftModel.from_pretrained(base, adapter).merge_and_unload(), then save_pretrained) and give "
    "the merged model."
)
# What changes nothing about the merged weights, or is read by PEFT below. Whatever else is set is refused by its name.
_KNOWN = {
    "alpha_pattern", "auto_mapping", "base_model_name_or_path", "corda_config", "ensure_weight_tying", "eva_config",
    "exclude_modules", "fan_in_fan_out", "inference_mode", "init_lora_weights", "layers_pattern", "layers_to_transform",
    "loftq_config", "lora_alpha", "lora_bias", "lora_dropout", "lora_ga_config", "megatron_core", "modules_to_save",
    "peft_type", "peft_version", "qalora_group_size", "r", "rank_pattern", "revision", "runtime_config",
    "target_modules", "task_type", "use_rslora",
}  # fmt: skip
_PLAIN_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")  # of A and B alone; others change the base as well
_BLOCK = 1 << 22  # elements in float64 at a time: 32 MiB


@dataclass(frozen=True)
class Change:
    """What an adapter does to one tensor of its base.

    Attributes:
        file: the adapter's weights.
        keys: (A, B) whose product is added; (b,) added to a bias, or put in the tensor's place.
        scaling: factor of what is added; None where ``keys`` replace the tensor.
        input_first: the tensor is [in, out] (GPT-2's Conv1D).
        shape: of the tensor.
    """

    file: Path
    keys: tuple[str, ...]
    scaling: float | None
    input_first: bool
    shape: tuple[int, ...]

    def __call__(self, weight: Tensor) -> Tensor:
        """The changed tensor, in the dtype and on the device of the old one.

        Raises:
            CheckpointError: a value that this dtype cannot hold.
        """
        new = torch.empty_like(weight)
        rows = [part.to(weight.device) for part in self.parts()]
        step = max(1, _BLOCK // max(1, weight[0].numel()))
        for i in range(0, len(weight), step):
            piece = slice(i, i + step)
            added = rows[0][piece] @ rows[1] if len(rows) == 2 else rows[0][piece]
            new[piece] = added if self.scaling is None else weight[piece].double() + self.scaling * added
        if not bool(torch.isfinite(new).all()):
            raise CheckpointError(f"{self.file}: {self.keys[0]} takes the merged weight out of {weight.dtype}")
        return new

    def element(self, value: Tensor, place: tuple[int, ...]) -> Tensor:
        """One element of the changed tensor, from the old one's."""
        parts = self.parts()
        added = parts[0][place[0]] @ parts[1][:, place[1]] if len(parts) == 2 else parts[0][place]
        return (added if self.scaling is None else value.double() + self.scaling * added).to(value.dtype)

    def dtype(self) -> torch.dtype:
        """The coarsest of its factors."""
        with safe_open(str(self.file), framework="pt") as file:
            kinds = [file.get_tensor(key).dtype for key in self.keys]
        return max(kinds, key=lambda kind: torch.finfo(kind).eps)

    def parts(self) -> list[Tensor]:
        """Left and right factor, or the one tensor; float64."""
        with safe_open(str(self.file), framework="pt") as file:
            found = [file.get_tensor(key).double() for key in self.keys]
        if len(found) == 1:
            return found
        A, B = found
        return [A.T, B.T] if self.input_first else [B, A]


def changes(source: ModelSource, model_class: Any, config: Any) -> dict[str, Change]:
    """Tensor name in a living model -> what the adapter does to it; every tensor of the adapter counts.

    Args:
        source: the adapter.
        model_class, config: of its base.

    Raises:
        CheckpointError: no plain LoRA, a damaged one, or one of another base; the message names what is in the way.
    """
    folder = source.folder()
    settings = _settings(folder)
    shapes = _shapes(folder)
    with torch.device("meta"):
        skeleton = model_class(config)
    shared = {*skeleton.all_tied_weights_keys, *skeleton.all_tied_weights_keys.values()}
    sizes = {name: tuple(p.shape) for name, p in skeleton.named_parameters(remove_duplicate=False)}
    layers = _inject(folder, settings, skeleton)
    found: dict[str, Change] = {}
    taken: set[str] = set()

    def add(name: str, parts: Mapping[str, tuple[int, ...]], scaling: float | None, input_first: bool) -> None:
        keys = tuple(f"base_model.model.{part}" for part in parts)
        for key, shape in zip(keys, parts.values()):
            if shapes.get(key) != shape:
                raise CheckpointError(
                    f"{folder / WEIGHTS}: {key} should have the shape {shape} for this base and has {shapes.get(key)}: "
                    "it is damaged, or an adapter of another model"
                    if key in shapes
                    else f"{folder / WEIGHTS} lacks {key}, which its configuration asks for: it is not complete"
                )
        if name in shared:
            raise CheckpointError(
                f"the adapter {folder} changes {name}, which the base shares between input and output: {CURE}"
            )
        taken.update(keys)
        found[name] = Change(folder / WEIGHTS, keys, scaling, input_first, sizes[name])

    for path, layer in layers.items():
        if f"{path}.weight" not in sizes:
            raise CheckpointError(f"the adapter {folder} belongs to another base, which has a {path}")
        scaling, rank, turned = layer.scaling["default"], layer.r["default"], bool(layer.fan_in_fan_out)
        width, height = sizes[f"{path}.weight"][:: 1 if turned else -1]
        parts = {f"{path}.lora_A.weight": (rank, width), f"{path}.lora_B.weight": (height, rank)}
        add(f"{path}.weight", parts, scaling, turned)
        if layer.lora_bias["default"]:
            if f"{path}.bias" not in sizes:
                raise CheckpointError(f"the adapter {folder} has a bias for {path}, which has none in the base")
            add(f"{path}.bias", {f"{path}.lora_B.bias": (height,)}, scaling, False)
    saved = tuple(settings.get("modules_to_save") or ())
    for name, shape in sizes.items():
        parents = [name.rsplit(".", i)[0] for i in range(1, name.count(".") + 1)]
        if saved and any(parent.endswith(saved) for parent in parents):
            add(name, {name: shape}, None, False)
    left = sorted(set(shapes) - taken)
    if left:
        raise CheckpointError(
            f"{folder / WEIGHTS} holds {left[0]} (and {len(left) - 1} more), for which this base has no place: it "
            f"is an adapter of another model, or more than a plain LoRA. {CURE}"
        )
    if not found:
        raise CheckpointError(f"{folder / WEIGHTS} holds nothing: the adapter changes no tensor")
    return found


def merge_into(model: Any, source: ModelSource) -> None:
    """Merge an adapter into its living base, tensor by tensor.

    Raises:
        CheckpointError: see :func:`changes`; or a weight that is quantised, or not in memory.
    """
    for name, change in changes(source, type(model), model.config).items():
        parameter = model.get_parameter(name)
        check_plain(parameter, name, change, source)
        with torch.no_grad():
            parameter.copy_(change(parameter))


def check_plain(tensor: Any, name: str, change: Change, source: ModelSource) -> None:
    """Raise CheckpointError unless a tensor of the base can take a change."""
    if not tensor.dtype.is_floating_point or tensor.dtype.itemsize < 2 or tuple(tensor.shape) != change.shape:
        raise CheckpointError(
            f"{name} in the base of the adapter '{source.name}' is {tuple(tensor.shape)} {tensor.dtype}, not a plain "
            f"{change.shape} weight: an adapter is merged into unquantised weights. Name the unquantised base in "
            f"base_model_name_or_path of its {ADAPTER_CONFIG}."
        )
    if tensor.device.type == "meta":
        raise CheckpointError(f"{name} is not in memory, so no adapter can be merged into it: use --device cpu")


def _settings(folder: Path) -> dict[str, Any]:
    """adapter_config.json of a plain LoRA."""
    path = folder / ADAPTER_CONFIG
    settings = read_json(path)
    kind = settings.get("peft_type")
    if kind != "LORA":
        raise CheckpointError(f"{path} is a {kind} adapter, and only LoRA is merged here. {CURE}")
    strange = [key for key, value in settings.items() if key not in _KNOWN and value]
    start = settings.get("init_lora_weights", True)
    if start not in _PLAIN_STARTS:
        strange.append(f"init_lora_weights={start}")
    if settings.get("bias", "none") == "none":
        strange = [key for key in strange if key != "bias"]
    if strange:
        raise CheckpointError(f"{path} is more than a plain LoRA ({', '.join(sorted(strange))}). {CURE}")
    return settings


def _shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    path = folder / WEIGHTS
    if not path.is_file():
        pickles = sorted(p.name for p in folder.glob("adapter_model*"))
        found = f"holds {pickles[0]}, and pickles are never loaded here" if pickles else "has no weights"
        raise CheckpointError(f"the adapter {folder} {found}: it needs {WEIGHTS}, as PEFT's save_pretrained writes it")
    try:
        with safe_open(str(path), framework="pt") as file:
            return {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} cannot be read: it is truncated, damaged or no safetensors file ({error})"
        ) from error


def _inject(folder: Path, settings: dict[str, Any], skeleton: Any) -> dict[str, Any]:
    """Module path -> PEFT's LoRA layer for it, without memory."""
    from peft import LoraConfig, inject_adapter_in_model
    from peft.tuners.lora import Linear, LoraLayer

    try:
        with warnings.catch_warnings(), torch.device("meta"):
            warnings.simplefilter("ignore")
            config = LoraConfig(**{k: v for k, v in settings.items() if k in _KNOWN - {"peft_type"}} | {"bias": "none"})
            inject_adapter_in_model(config, skeleton, low_cpu_mem_usage=True)
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise CheckpointError(f"PEFT cannot load the adapter {folder} onto this base: {reason}") from error
    layers = {name: module for name, module in skeleton.named_modules() if isinstance(module, LoraLayer)}
    for name, layer in layers.items():
        if type(layer) is not Linear:
            raise CheckpointError(
                f"the adapter {folder} changes {name}, a {type(layer.get_base_layer()).__name__}: only linears are "
                f"merged here. {CURE}"
            )
    return layers
