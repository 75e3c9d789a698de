"""Adapter: the fold written as a PEFT LoRA, for servers that swap adapters per request.

W' - W = B A W with the thin factors, so lora_B = B and lora_A = A W (of the heads, W B A: lora_B = W B and lora_A = A):
no SVD. One rank for all layers, zero-padded, with lora_alpha == r and no patterns: the only form that PEFT, vLLM,
SGLang, OpenVINO and llama.cpp all read alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from sea_bake.artefact.output import staged
from sea_bake.artefact.record import BakeRecord
from sea_bake.baking.linear import Change, changes
from sea_bake.baking.open_base import OpenBase
from sea_bake.baking.planning import refuse_adapter
from sea_bake.baking.shift_test import measure
from sea_bake.baking.writers import Writer, find_writers
from sea_bake.edit import Edit
from sea_bake.errors import NotExactError, reason_of
from sea_bake.io import progress
from sea_bake.io.files import write_json
from sea_bake.io.staging import need_space
from sea_bake.model.lora import WEIGHTS
from sea_bake.model.skeleton import decoder_of
from sea_bake.model.source import ADAPTER_CONFIG

_VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # what --max-lora-rank accepts
_NO_VLLM = "none: vLLM takes ranks of up to 512"


def adapter(
    base: OpenBase, edits: Sequence[Edit], target: Path, *, why: str, overwrite: bool = False, copy: bool = False
) -> BakeRecord:
    """Write the edits as one LoRA adapter of the base; see :func:`sea_bake.baking.bake`.

    Raises:
        NotExactError: an edit that no low-rank update carries exactly.
    """
    refuse_adapter(base, edits)
    writers = [writer for writer in find_writers(base, edits) if not writer.is_bias]  # which heads leave alone
    measured, by_writer = measure(base, edits), changes(edits)
    rank = max(1, *(change.rank for change in by_writer.values()))
    vllm = next((f"--enable-lora --max-lora-rank {r}" for r in _VLLM_RANKS if r >= rank), _NO_VLLM)
    details = {"measured": measured, "rank": rank, "flags": {"vLLM": vllm}}
    names = _Names(base)
    with progress.bar("adapter", len(writers), "tensor") as advance:
        for writer in writers:
            tensor = base.checkpoint.tensor(writer.name)
            assert tensor is not None
            weight = tensor.read()
            weight = weight if writer.axis == -2 else weight.transpose(-1, -2)
            names.add(writer, factors(weight, by_writer[writer.site, writer.layer], rank))
            advance(1)
    tensors, targets = names.finish(rank)
    need_space(target.parent, 2 * sum(t.numel() * t.element_size() for t in tensors.values()) + (8 << 20))
    config = {
        "peft_type": "LORA",
        "task_type": "SEQ_2_SEQ_LM" if base.config.is_encoder_decoder else "CAUSAL_LM",
        "base_model_name_or_path": base.source.name,
        "revision": base.source.revision,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        **targets,
    }
    names.check(config, tensors)
    with staged(target, overwrite=overwrite) as stage:
        save_file(tensors, str(stage / WEIGHTS), metadata={"format": "pt"})
        write_json(stage / ADAPTER_CONFIG, config)
        return base.record(edits, target, how="adapter", why=why, details=details).write(stage, edits)


def factors(weight: Tensor, change: Change, rank: int) -> tuple[Tensor, Tensor]:
    """lora_A [..., rank, in] and lora_B [d, rank] in float32, for a weight [..., d, in] (of heads: [d, in])."""
    A = torch.zeros(*weight.shape[:-2], rank, weight.shape[-1])
    B = torch.zeros(weight.shape[-2], rank)
    for i, matrix in enumerate(weight.reshape(-1, *weight.shape[-2:])):
        own, shared = change.factors(matrix.double())
        A.view(-1, rank, weight.shape[-1])[i, : change.rank] = own.float()
        B[:, : change.rank] = shared.float()
    return A, B


class _Names:
    """Where PEFT finds each writer: names in memory, which may be others than on disk."""

    def __init__(self, base: OpenBase) -> None:
        self.base = base
        self.model = _skeleton(base)
        decoder = decoder_of(self.model)
        self.path = next(name for name, module in self.model.named_modules() if module is decoder)
        self.parts: dict[str, tuple[Tensor, Tensor]] = {}
        self.experts: dict[str, dict[int, tuple[Tensor, Tensor]]] = {}
        self.stacks: dict[str, tuple[Tensor, Tensor]] = {}

    def add(self, writer: Writer, factors: tuple[Tensor, Tensor]) -> None:
        base, row = self.base, self.base.row
        layer = f"{self.path}.{row.layers}.{writer.layer}"
        part = writer.name.removeprefix(f"{base.stem}.{writer.layer}.")
        if part == row.fused:
            self.stacks[f"{layer}.{part}"] = factors
        elif (
            row.experts
            and row.fused
            and part not in (row.shared, f"{base.place(writer.site, writer.layer).writer}.weight")
        ):
            before, braces, after = row.experts.partition("{}")
            if not braces:
                self.stacks[f"{layer}.{row.fused}"] = factors
            elif part.startswith(before) and part.endswith(after):
                number = int(part.removeprefix(before).removesuffix(after))
                self.experts.setdefault(f"{layer}.{row.fused}", {})[number] = factors
        else:
            self.parts[f"{layer}.{part.removesuffix('.weight')}"] = factors

    def finish(self, rank: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The adapter's tensors, and the lines of its configuration that say what they belong to."""
        tensors: dict[str, Tensor] = {}
        for name, (A, B) in self.parts.items():
            tensors[f"base_model.model.{name}.lora_A.weight"] = A.contiguous()
            tensors[f"base_model.model.{name}.lora_B.weight"] = B.contiguous()
        for name, experts in self.experts.items():
            A = torch.stack([experts[i][0] for i in range(len(experts))])
            self.stacks[name] = A, experts[0][1]
        for name, (A, B) in self.stacks.items():
            # PEFT's own layouts differ: A is expert-major (row e * r + i), B is rank-major (column i * E + e).
            path = f"base_model.model.{name.rpartition('.')[0]}"
            count = len(A)
            if self._is_turned(name, len(B)):
                A, B = B.T.expand(count, -1, -1), A
                tensors[f"{path}.lora_A.weight"] = A.reshape(count * rank, -1).contiguous()
                tensors[f"{path}.lora_B.weight"] = B.permute(2, 1, 0).reshape(B.shape[2], -1).contiguous()
                continue
            tensors[f"{path}.lora_A.weight"] = A.reshape(count * rank, -1).contiguous()
            tensors[f"{path}.lora_B.weight"] = B[:, :, None].expand(-1, -1, count).reshape(len(B), -1).contiguous()
        if not self.stacks:
            return tensors, self._modules()
        # Weights beside the experts are named as parameters too: PEFT takes a *module* called like the experts' writer
        # for the experts themselves, in the families that it converts from transformers 4.
        return tensors, {
            "target_modules": [],
            "target_parameters": sorted([*self.stacks, *(f"{name}.weight" for name in self.parts)]),
        }

    def _is_turned(self, name: str, width: int) -> bool:
        """Whether the experts are [ff, d] in memory, in a module that does not tell PEFT so (Llama 4)."""
        rows, columns = self.model.get_parameter(name).shape[-2:]
        turned = columns == width if rows != columns else self.base.row.fused in self.base.row.input_first
        return turned and not getattr(self.model.get_submodule(name.rpartition(".")[0]), "is_transposed", False)

    def check(self, config: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        """Let PEFT itself look for its targets: a name that it reads otherwise would give the unedited base.

        Raises:
            NotExactError: PEFT makes other tensors of this configuration than ours.
        """
        from peft import LoraConfig, get_peft_model

        skipped = ("peft_type", "task_type", "base_model_name_or_path", "revision")
        options = {key: value for key, value in config.items() if key not in skipped}
        try:
            model = get_peft_model(self.model, LoraConfig(**options), low_cpu_mem_usage=True)
        except Exception as error:
            reason = reason_of(error)
            raise NotExactError(
                f"PEFT takes no adapter of {self.base.row.model_type} for this site: {reason} Bake with --how fold."
            ) from error
        theirs = {n.replace(".default", ""): tuple(p.shape) for n, p in model.named_parameters() if ".lora_" in n}
        ours = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        if theirs != ours:
            odd = sorted({*theirs.items()} ^ {*ours.items()})[0]
            raise NotExactError(
                f"PEFT does not find the targets of an adapter for {self.base.row.model_type} as meant ({odd[0]}; "
                f"{len(theirs)} tensors for {len(ours)}). Bake with --how fold."
            )

    def _modules(self) -> dict[str, Any]:
        """Short names and layer numbers, as all servers read, where they say exactly what is meant; else full names."""
        from peft import LoraConfig
        from peft.tuners.tuners_utils import check_target_module_exists

        wanted = set(self.parts)
        places = [name.removeprefix(f"{self.path}.{self.base.row.layers}.").split(".", 1) for name in wanted]
        suffixes, layers = {suffix for _, suffix in places}, sorted({int(layer) for layer, _ in places})
        modules = [name for name, _ in self.model.named_modules()]
        for short in ({s.rpartition(".")[2] for s in suffixes}, suffixes):
            lines = {"target_modules": sorted(short), "layers_to_transform": layers}
            config = LoraConfig(**lines)
            if {name for name in modules if check_target_module_exists(config, name)} == wanted:
                return lines
        return {"target_modules": sorted(wanted)}


def _skeleton(base: OpenBase) -> Any:
    """The base's modules without memory: for their names alone."""
    import transformers

    cls = getattr(transformers, base.architecture, None)
    if cls is None:
        raise NotExactError(f"transformers does not export {base.architecture}, so an adapter cannot name its parts")
    with torch.device("meta"):
        return cls(base.config)
