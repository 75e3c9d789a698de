"""Files as other tools write them, made here; and what each tool does with them, written from its source a second time.

Nothing of ``sea_bake`` is imported: each ``Tool`` holds its own reading of the formula, on the modules of a living
model, with torch's hooks. ``late`` moves it by layers: what a wrong count of layers would do.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

LAYERS = (1, 2)  # those that are moved, of 4


def stack(model: Any) -> nn.ModuleList:
    """The decoder layers, of a causal LM of transformers."""
    return model.transformer.h if hasattr(model, "transformer") else model.model.layers


def writer(model: Any, layer: int) -> nn.Module:
    """The attention's output projection."""
    attention = stack(model)[layer]
    return attention.attn.c_proj if hasattr(attention, "attn") else attention.self_attn.o_proj


def vectors(model: Any, count: int, seed: int = 0, scale: float = 1.0) -> torch.Tensor:
    """[count, d]"""
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(count, model.config.hidden_size, generator=generator)


def eraser(model: Any) -> Any:
    """Of concept-erasure itself, on random data in which a concept can be read."""
    from concept_erasure import LeaceEraser

    x = vectors(model, 200, seed=3)
    z = (torch.arange(200) % 2)[:, None].float()
    return LeaceEraser.fit(x + 3 * z * vectors(model, 1, seed=4) + 0.5, z)


@contextlib.contextmanager
def hooks(*pairs: tuple[nn.Module, Callable[[torch.Tensor], torch.Tensor]], inputs: bool = False) -> Iterator[None]:
    """Replace the output, or the input, of modules."""
    taken = []
    for module, act in pairs:

        def behind(_module: Any, _given: Any, output: Any, act: Any = act) -> Any:
            return (act(output[0]), *output[1:]) if isinstance(output, tuple) else act(output)

        def before(_module: Any, given: Any, act: Any = act) -> Any:
            return (act(given[0]), *given[1:])

        taken.append(module.register_forward_pre_hook(before) if inputs else module.register_forward_hook(behind))
    try:
        yield
    finally:
        for one in taken:
            one.remove()


@dataclass(frozen=True)
class Tool:
    """One format.

    Attributes:
        write: folder, model -> the files.
        acts: model, late -> a context in which the model answers as under the tool.
        options: of the import.
        site, layers: what is imported.
        alpha: the strength that it then has.
    """

    write: Callable[[Path, Any], list[Path]]
    acts: Callable[[Any, int], Any]
    options: dict[str, Any] = field(default_factory=dict)
    site: str = "block"
    layers: tuple[int, ...] = LAYERS
    alpha: float = 1.0


def saved(path: Path, value: Any) -> list[Path]:
    torch.save(value, path)
    return [path]


def behind(model: Any, late: int, act: Callable[[int, torch.Tensor], torch.Tensor], path: str = "") -> Any:
    """Act on the output of a layer, or of a module in it."""
    layers = stack(model)
    return hooks(*(
        (layers[i + late].get_submodule(path), lambda h, i=i: act(i, h)) for i in LAYERS
    ))  # fmt: skip


# ---------------------------------------------------------------------------------------------------- control vectors


def control_vector(path: Path, directions: dict[int, Any], **keys: Any) -> list[Path]:
    """As repeng's ``export_gguf`` and llama.cpp's generator write it."""
    import gguf

    made = gguf.GGUFWriter(str(path), "controlvector")
    for key, value in {"controlvector.model_hint": "llama", **keys}.items():
        add = {str: made.add_string, bool: made.add_bool, int: made.add_uint32, float: made.add_float32}[type(value)]
        add(key, value)
    made.add_uint32("controlvector.layer_count", len(directions))
    for layer, direction in directions.items():
        made.add_tensor(f"direction.{layer}", np.asarray(direction, dtype=np.float32))
    made.write_header_to_file()
    made.write_kv_data_to_file()
    made.write_tensors_to_file()
    made.close()
    return [path]


def write_control_vector(folder: Path, model: Any) -> list[Path]:
    found = {i: v for i, v in zip(LAYERS, vectors(model, 2))}
    return control_vector(folder / "happy.gguf", found, **{"controlvector.model_hint": model.config.model_type})


class Wrapped(nn.Module):
    """As repeng's ControlModule: a layer in a layer, whose output is moved."""

    def __init__(self, block: nn.Module, control: torch.Tensor) -> None:
        super().__init__()
        self.block, self.control = block, control

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("block"), name)

    def forward(self, *given: Any, **options: Any) -> Any:
        output = self.block(*given, **options)
        return (output[0] + self.control, *output[1:]) if isinstance(output, tuple) else output + self.control


@contextlib.contextmanager
def as_repeng(model: Any, late: int) -> Iterator[None]:
    layers, before = stack(model), list(stack(model))
    for i, v in zip(LAYERS, vectors(model, 2)):
        layers[i + late] = Wrapped(before[i + late], 1.5 * v)
    try:
        yield
    finally:
        for i, layer in enumerate(before):
            layers[i] = layer


def unit(model: Any, seed: int, rank: int = 1) -> torch.Tensor:
    return torch.linalg.qr(vectors(model, rank, seed).T).Q.T.contiguous()


GLP = {
    "dspark.mode": "project", "dspark.spec_version": 1, "dspark.alpha_default": 4.0, "dspark.rank": 1,
    "dspark.hook_point": "residual_stream_post_layer", "dspark.layer_ids_zero_based": "1,2",
}  # fmt: skip


def write_glp(folder: Path, model: Any) -> list[Path]:
    found = {i: unit(model, i)[0].numpy() for i in LAYERS}
    digest = hashlib.sha256(b"".join(v.tobytes() for v in found.values())).hexdigest()
    return control_vector(folder / "glp.gguf", found, **GLP, **{"dspark.content_sha256": digest})


def as_glp(model: Any, late: int) -> Any:
    def act(i: int, h: torch.Tensor) -> torch.Tensor:
        d = unit(model, i)[0]
        return h - 4.0 * (h @ d)[..., None] * d

    return behind(model, late, act)


# --------------------------------------------------------------------------------------------------- steering vectors


def write_caa(folder: Path, model: Any) -> list[Path]:
    for i, v in zip(LAYERS, vectors(model, 2)):
        torch.save(v, folder / f"vec_layer_{i}_Llama-2-7b-chat-hf.pt")
    return sorted(folder.iterdir())


def added(model: Any, late: int, *, strength: float = 1.0, path: str = "") -> Any:
    given = dict(zip(LAYERS, vectors(model, 2)))
    return behind(model, late, lambda i, h: h + strength * given[i], path)


def write_persona(folder: Path, model: Any) -> list[Path]:
    return saved(folder / "evil_response_avg_diff.pt", vectors(model, 5, seed=1))


def as_persona(model: Any, late: int) -> Any:
    """``vector = torch.load(path)[layer]``, and ``ActivationSteerer(layer_idx=layer - 1)`` hooks that block."""
    chosen, rows = 3, vectors(model, 5, seed=1)
    return hooks((stack(model)[chosen - 1 + late], lambda h: h + 2.0 * rows[chosen]))


def write_svec(folder: Path, model: Any) -> list[Path]:
    rows = vectors(model, 4, seed=2)
    found = {
        "model_type": model.config.model_type,
        "directions": {str(i): v.tolist() for i, v in enumerate(rows)},
        "explained_variances": {str(i): 0.5 for i in range(4)},
    }
    (folder / "refusal.svec").write_text(json.dumps(found))
    return [folder / "refusal.svec"]


def as_svec(model: Any, late: int) -> Any:
    """LeashLayer N: ``hidden_states[0] = hidden_states[0] + behavior_vector``, then ``self.layer(hidden_states)``."""
    rows = vectors(model, 4, seed=2)
    return hooks(*((stack(model)[n + late], lambda h, n=n: h + rows[n]) for n in (1, 2)), inputs=True)


def write_steering_vectors(folder: Path, model: Any) -> list[Path]:
    activations = dict(zip(LAYERS, vectors(model, 2)))
    return saved(folder / "plain.pt", {"layer_activations": activations, "layer_type": "mlp"})


# ------------------------------------------------------------------------------------------------ heads, LEACE and AcT

HEADS = [(1, 0), (1, 3), (2, 2)]


def heads_of(model: Any) -> tuple[int, int]:
    config = model.config
    return config.num_attention_heads, getattr(config, "head_dim", None) or (
        config.hidden_size // config.num_attention_heads
    )


def iti(model: Any) -> tuple[np.ndarray, np.ndarray]:
    """Activations [n, L, H D] and labels [n]."""
    H, D = heads_of(model)
    rng = np.random.default_rng(0)
    return rng.standard_normal((30, 4, H * D)).astype(np.float32), np.arange(30) % 2


def write_iti(folder: Path, model: Any) -> list[Path]:
    activations, labels = iti(model)
    np.save(folder / "llama_7B_tqa_mc2_head_wise.npy", activations)
    np.save(folder / "llama_7B_tqa_mc2_labels.npy", labels)
    np.save(folder / "heads.npy", np.array(HEADS))
    return sorted(folder.iterdir())


def as_iti(model: Any, late: int) -> Any:
    """Per head, in front of o_proj: alpha times the spread of true minus false, along it."""
    activations, labels = iti(model)
    H, D = heads_of(model)
    heads = activations.reshape(30, 4, H, D).astype(np.float64)
    moved: dict[int, np.ndarray] = {}
    for layer, head in HEADS:
        direction = heads[labels == 1, layer, head].mean(0) - heads[labels == 0, layer, head].mean(0)
        direction /= np.linalg.norm(direction)
        spread = np.std(heads[:, layer, head] @ direction)
        moved.setdefault(layer, np.zeros((H, D)))[head] = 15 * spread * direction
    return hooks(
        *(
            (writer(model, layer + late), lambda x, v=v: x + torch.from_numpy(v.reshape(-1)).float())
            for layer, v in moved.items()
        ),
        inputs=True,
    )


def write_leace(folder: Path, model: Any) -> list[Path]:
    one = eraser(model)
    return saved(folder / "plain.pt", {"proj_left": one.proj_left, "proj_right": one.proj_right, "bias": one.bias})


def as_leace(model: Any, late: int) -> Any:
    """The package's own object."""
    return hooks((stack(model)[2 + late].mlp, eraser(model)))


def linear(model: Any, i: int) -> tuple[torch.Tensor, torch.Tensor]:
    return 1 + 0.5 * vectors(model, 1, seed=10 + i), vectors(model, 1, seed=20 + i)


def write_act(folder: Path, model: Any) -> list[Path]:
    prefix = "transformer.h" if hasattr(model, "transformer") else "model.layers"
    for i in LAYERS:
        w, b = linear(model, i)
        state = {"net.w1": w, "net.b1": b, "quantiles_dict_src": {"q_all": [-b, b]}}
        torch.save(state, folder / f"{prefix}.{i}.mlp.statedict")
    return [folder]


def as_act(model: Any, late: int) -> Any:
    def act(i: int, h: torch.Tensor) -> torch.Tensor:
        w, b = linear(model, i)
        return h * w[0] + b[0]

    return behind(model, late, act, "mlp")


def moments(model: Any, i: int) -> dict[str, torch.Tensor]:
    mu1, mu2, std1, std2 = vectors(model, 4, seed=30 + i)
    std1, std2 = std1.abs() + 0.5, std2.abs() + 0.5
    std1[0] = std2[1] = 1e-5  # no spread: left alone
    return {"mu1": mu1, "mu2": mu2, "std1": std1, "std2": std2}


def write_gaussian(folder: Path, model: Any) -> list[Path]:
    prefix = "transformer.h" if hasattr(model, "transformer") else "model.layers"
    for i in LAYERS:
        state = {**moments(model, i), "quantiles_src": "q_all", "quantiles_dict_src": {}}
        torch.save(state, folder / f"{prefix}.{i}.statedict")
    return [folder]


def as_gaussian(model: Any, late: int, *, means: bool = False) -> Any:
    def act(i: int, h: torch.Tensor) -> torch.Tensor:
        m = moments(model, i)
        seen = (m["std1"] > 1e-4) & (m["std2"] > 1e-4)
        scale = torch.ones_like(m["mu1"]) if means else m["std2"] / m["std1"]
        return torch.where(seen, scale * (h - m["mu1"]) + m["mu2"], h)

    return behind(model, late, act)


TOOLS: dict[str, Tool] = {
    "control-vector": Tool(write_control_vector, as_repeng, {"alpha": 1.5}, alpha=1.5),
    "glp": Tool(write_glp, as_glp, alpha=4.0),
    "caa": Tool(write_caa, added),
    "persona": Tool(write_persona, as_persona, {"layers": "2", "alpha": 2.0}, layers=(2,), alpha=2.0),
    "svec": Tool(write_svec, as_svec, {"layers": "0,1"}, layers=(0, 1)),
    "steering-vectors": Tool(write_steering_vectors, lambda m, late: added(m, late, path="mlp"), site="mlp"),
    "iti": Tool(write_iti, as_iti, site="heads", alpha=15.0),
    "leace": Tool(write_leace, as_leace, {"layers": "2", "site": "mlp"}, site="mlp", layers=(2,)),
    "act": Tool(write_act, as_act, site="mlp"),
    "act-gaussian": Tool(write_gaussian, as_gaussian, {"format": "act-gaussian"}),
    "act-mean": Tool(write_gaussian, lambda m, late: as_gaussian(m, late, means=True), {"format": "act-mean"}),
}
