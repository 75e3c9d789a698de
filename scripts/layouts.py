"""Checkpoints as large as people have them, that take no room: real names, shapes and shards, and holes for numbers.

Only what is edited, and measured for it, holds numbers. Of ``bench_bake --layout``.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bench_common as common

SHARD = 2 << 30
ACTS = ("plan", "insert", "fold")
Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Layout:
    """A model's layout.

    Attributes:
        config: its config.json, at the real size.
        tiny: what is other in a smoke run.
        edits: (site, layers) that are edited.
    """

    config: dict[str, Any]
    tiny: dict[str, Any]
    edits: tuple[tuple[str, tuple[int, ...]], ...]


_COMMON = {"torch_dtype": "bfloat16", "rms_norm_eps": 1e-6, "tie_word_embeddings": False}
_TINY = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2}
_TINY |= {"num_hidden_layers": 5, "vocab_size": 128}
LAYOUTS = {
    "deepseek-v3": Layout(
        _COMMON
        | {
            "architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3", "hidden_size": 7168,
            "intermediate_size": 18432, "moe_intermediate_size": 2048, "num_hidden_layers": 61,
            "num_attention_heads": 128, "num_key_value_heads": 128, "n_routed_experts": 256, "n_shared_experts": 1,
            "num_experts_per_tok": 8, "n_group": 8, "topk_group": 4, "first_k_dense_replace": 3, "q_lora_rank": 1536,
            "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128,
            "vocab_size": 129280, "max_position_embeddings": 163840,
        },
        _TINY
        | {
            "moe_intermediate_size": 32, "num_key_value_heads": 4, "n_routed_experts": 16, "q_lora_rank": 24,
            "kv_lora_rank": 16, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 16,
        },
        (("mlp", (0,)), ("attn", (0, 3))),
    ),
    "qwen3-30b-a3b": Layout(
        _COMMON
        | {
            "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "hidden_size": 2048,
            "intermediate_size": 6144, "moe_intermediate_size": 768, "num_hidden_layers": 48,
            "num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 128, "num_experts": 128,
            "num_experts_per_tok": 8, "norm_topk_prob": True, "decoder_sparse_step": 1, "mlp_only_layers": [],
            "vocab_size": 151936, "max_position_embeddings": 40960, "rope_theta": 1e6,
        },
        _TINY | {"moe_intermediate_size": 32, "head_dim": 16, "num_experts": 16},
        (("mlp", (1, 2)), ("attn", (2, 3))),
    ),
    "llama-70b": Layout(
        _COMMON
        | {
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 8192,
            "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64, "num_key_value_heads": 8,
            "vocab_size": 128256, "max_position_embeddings": 8192, "rope_theta": 5e5,
        },
        _TINY,
        (("mlp", (1, 2)), ("attn", (2, 3))),
    ),
}  # fmt: skip
PAGE = common.Page(
    "README.md",
    {
        "layout": ("layout",),
        "the call": ("the call",),
        "of the processor": ("of the processor",),
        "peak memory": ("peak memory",),
        "above the libraries": ("above the libraries",),
        "tensors read": ("tensors read",),
        "written": ("written",),
    },
    {f"{name}: {act}": (f"{name}: {act}",) for name in LAYOUTS for act in ACTS},
)


def layer_shapes(config: dict[str, Any], layer: int) -> Shapes:
    """Names and shapes of one decoder layer's tensors on disk."""
    d, heads = config["hidden_size"], config["num_attention_heads"]
    found: Shapes = {"input_layernorm.weight": (d,), "post_attention_layernorm.weight": (d,)}

    def linear(name: str, out: int, given: int) -> None:
        found[f"{name}.weight"] = (out, given)

    def mlp(name: str, width: int) -> None:
        linear(f"{name}.gate_proj", width, d)
        linear(f"{name}.up_proj", width, d)
        linear(f"{name}.down_proj", d, width)

    if "kv_lora_rank" in config:
        low, kv = config["q_lora_rank"], config["kv_lora_rank"]
        nope, rope, v = config["qk_nope_head_dim"], config["qk_rope_head_dim"], config["v_head_dim"]
        linear("self_attn.q_a_proj", low, d)
        linear("self_attn.q_b_proj", heads * (nope + rope), low)
        linear("self_attn.kv_a_proj_with_mqa", kv + rope, d)
        linear("self_attn.kv_b_proj", heads * (nope + v), kv)
        linear("self_attn.o_proj", d, heads * v)
        found |= {"self_attn.q_a_layernorm.weight": (low,), "self_attn.kv_a_layernorm.weight": (kv,)}
    else:
        size = config.get("head_dim", d // heads)
        for name, count in (("q", heads), ("k", config["num_key_value_heads"]), ("v", config["num_key_value_heads"])):
            linear(f"self_attn.{name}_proj", count * size, d)
        linear("self_attn.o_proj", d, heads * size)
        if "num_experts" in config:
            found |= {"self_attn.q_norm.weight": (size,), "self_attn.k_norm.weight": (size,)}
    experts = config.get("n_routed_experts") or config.get("num_experts")
    if not experts or layer < config.get("first_k_dense_replace", 0):
        mlp("mlp", config["intermediate_size"])
        return found
    linear("mlp.gate", experts, d)
    if "n_routed_experts" in config:
        found["mlp.gate.e_score_correction_bias"] = (experts,)
        mlp("mlp.shared_experts", config["moe_intermediate_size"] * config["n_shared_experts"])
    for expert in range(experts):
        mlp(f"mlp.experts.{expert}", config["moe_intermediate_size"])
    return found


def _size(shape: tuple[int, ...]) -> int:
    size = 2
    for length in shape:
        size *= length
    return size


def make(folder: Path, name: str, *, tiny: bool) -> dict[str, int]:
    """The checkpoint of a layout.

    Returns:
        Bytes of its weights, and of the largest layer that is folded.
    """
    import torch

    layout = LAYOUTS[name]
    config = layout.config | (layout.tiny if tiny else {})
    d, vocabulary = config["hidden_size"], config["vocab_size"]
    layers = {i: layer_shapes(config, i) for i in range(config["num_hidden_layers"])}
    shapes: Shapes = {"model.embed_tokens.weight": (vocabulary, d)}
    for i, parts in layers.items():
        shapes |= {f"model.layers.{i}.{part}": shape for part, shape in parts.items()}
    shapes |= {"model.norm.weight": (d,), "lm_head.weight": (vocabulary, d)}
    folded = {layer: site == "mlp" for site, those in reversed(layout.edits) for layer in those}
    noise = (torch.randn((1 << 20) + 7, generator=torch.Generator().manual_seed(0)) * 0.02).bfloat16()
    tile = noise.view(torch.uint8).numpy().tobytes()

    def has_numbers(tensor: str) -> bool:
        layer = tensor.removeprefix("model.layers.").partition(".")[0]
        return layer.isdigit() and int(layer) in folded and (folded[int(layer)] or ".experts." not in tensor)

    shards: list[list[str]] = [[]]
    room = 0
    for tensor, shape in shapes.items():
        if shards[-1] and room + _size(shape) > SHARD:
            shards.append([])
            room = 0
        shards[-1].append(tensor)
        room += _size(shape)
    folder.mkdir(parents=True)
    weight_map = {}
    for i, names in enumerate(shards):
        file = f"model-{i + 1:05}-of-{len(shards):05}.safetensors"
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        at = 0
        for tensor in names:
            size = _size(shapes[tensor])
            header[tensor] = {"dtype": "BF16", "shape": shapes[tensor], "data_offsets": [at, at + size]}
            at += size
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with open(folder / file, "wb") as out:
            out.write(len(text).to_bytes(8, "little") + text)
            start = out.tell()
            out.truncate(start + at)
            for tensor in filter(has_numbers, names):
                first, end = header[tensor]["data_offsets"]
                out.seek(start + first)
                for left in range(end - first, 0, -len(tile)):
                    out.write(tile[:left])
        weight_map |= dict.fromkeys(names, file)
    total = sum(map(_size, shapes.values()))
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), "utf-8")
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    return {"bytes": total, "layer_bytes": max(sum(map(_size, layers[layer].values())) for layer in folded)}


@contextlib.contextmanager
def _reads() -> Iterator[set[tuple[str, int]]]:
    """Which tensors are read meanwhile, by file and place."""
    from sea_bake.model.checkpoint.reader import LazyTensor

    read, found = LazyTensor.read, set()

    def noted(self: Any) -> Any:
        found.add((str(self.path), self.offset))
        return read(self)

    LazyTensor.read = noted  # type: ignore[method-assign]
    try:
        yield found
    finally:
        LazyTensor.read = read  # type: ignore[method-assign]


def child(task: dict[str, Any]) -> dict[str, Any]:
    """One act on a layout: with the libraries imported before it is measured."""
    import transformers

    import sea_bake
    from sea_bake.edit import Edit

    base, output = Path(task["base"]), Path(task["output"])
    architecture = LAYOUTS[task["layout"]].config["architectures"][0]
    _ = transformers.AutoConfig, getattr(transformers, architecture), sea_bake.bake
    edits = [Edit.load(file) for file in task["edits"]]
    before = common.resident_memory()
    start, cpu = time.perf_counter(), time.process_time()
    with _reads() as read:
        if task["act"] == "plan":
            from sea_bake.baking import plan

            plan(base)
        else:
            sea_bake.bake(base, edits, output, how=task["act"])
    took = {"call_s": time.perf_counter() - start, "cpu_s": time.process_time() - cpu}
    stats = [file.stat() for file in output.rglob("*") if file.is_file()] if output.exists() else []
    written = sum(s.st_size for s in stats if s.st_nlink == 1)
    peak = common.peak_memory()
    return took | {"peak_memory": peak, "own_memory": peak - before, "read": len(read), "written": written}


def measure(script: str, names: list[str], scratch: Path, args: Any) -> None:
    """Every act on each of some layouts, one process each; then the table."""
    found: dict[str, dict[str, Any]] = {}
    for name in names:
        base = scratch / name
        task = {"way": "layout", "layout": name, "base": str(base), "tiny": args.smoke, "output": str(scratch / "out")}
        found[name] = common.in_child(script, {**task, "act": "make"})
        common.say(f"{name}: {common.size_text(found[name]['bytes'])}", quiet=args.json)
        for act in ACTS:
            found[name][act] = one = common.in_child(script, {**task, "act": act, "edits": found[name]["edits"]})
            common.say(f"    {act}: {one['call_s']:.2f} s", quiet=args.json)
            shutil.rmtree(scratch / "out", ignore_errors=True)
        shutil.rmtree(base)
    rows = []
    for name, one in found.items():
        for act in ACTS:
            own = one[act]["own_memory"]
            share = f" ({own / one['layer_bytes']:.1f} layers)" if act == "fold" else ""
            rows.append(
                [
                    f"{name}: {act}",
                    f"{one[act]['call_s']:.2f} s",
                    f"{one[act]['cpu_s']:.2f} s",
                    common.size_text(one[act]["peak_memory"]),
                    common.size_text(own) + share,
                    str(one[act]["read"]),
                    common.size_text(one[act]["written"]),
                ]
            )
    sizes = ", ".join(f"{name} {common.size_text(one['bytes'])}" for name, one in found.items())
    made = common.Table(f"Bake of {sizes}", list(PAGE.columns), rows)
    result = {"benchmark": "layouts", "layouts": found, "machine": common.machine()}
    notes = ["above the libraries: the most that was resident, less what was after their import; a layer: the largest"]
    common.tell(result, [made], [*notes, "that is folded"], PAGE, args)
