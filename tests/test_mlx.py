"""``export mlx``: what mlx-lm's documented formula makes of the exported tensors is the fold's change, to rounding.

mlx-lm itself reads them in ``scripts/check_mlx``, in an environment of its own.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import families
import numpy as np
import pytest
import tiny
from conftest import Workshop
from safetensors.numpy import load_file, save_file

from sea_bake import bake, export_mlx
from sea_bake.errors import FamilyError
from sea_bake.exporting.mlx import MODEL_TYPES

Baked = Callable[..., Path]


@pytest.fixture(scope="module")
def baked(workshop: Workshop) -> Baked:
    """What ``bake`` writes of a tiny model's linear edit."""

    def make(how: str, model_type: str = "llama", site: str = "mlp") -> Path:
        name = f"mlx-{how}-{model_type}-{site}"
        edit = workshop.edit(model_type, site, "l2" if how == "insert" else "sum")
        return workshop.once(
            name, lambda: bake(workshop.base(model_type), edit, workshop.folder / name, how=how).output
        )

    return make


def weights(folder: Path) -> dict[str, np.ndarray]:
    return {name: tensor for file in folder.glob("model*.safetensors") for name, tensor in load_file(file).items()}


@pytest.mark.parametrize("model_type", [*(pytest.param(n, marks=pytest.mark.slow) for n in MODEL_TYPES[1:]), "llama"])
def test_the_adapter_is_the_fold(model_type: str, baked: Baked, workshop: Workshop, tmp_path: Path) -> None:
    """y + scale (x a) b, in float64, against x (W' - W)ᵀ of the fold: for every tensor that the fold changed."""
    site = "attn" if model_type in ("mixtral", "qwen2_moe", "qwen3_moe") else "mlp"
    report = export_mlx(baked("adapter", model_type, site), tmp_path / "mlx")
    tensors = load_file(tmp_path / "mlx" / "adapters.safetensors")
    config = json.loads((tmp_path / "mlx" / "adapter_config.json").read_text("utf-8"))
    parameters = config["lora_parameters"]
    assert config["fine_tune_type"] == "lora"
    assert parameters["dropout"] == 0.0
    before, after = weights(workshop.base(model_type)), weights(baked("fold", model_type, site))
    changed = {name.removesuffix(".weight") for name in after if not np.array_equal(after[name], before[name])}
    assert changed == set(report.modules) == {name.rpartition(".")[0] for name in tensors}
    assert len(changed) == len(Workshop.LAYERS)
    # Only modules of the last num_layers layers whose names there are among the keys get LoRA parameters in mlx-lm.
    last = range(families.CONFIGS[model_type]().num_hidden_layers)[-config["num_layers"] :]
    allowed = {f"model.layers.{layer}.{key}" for layer in last for key in parameters["keys"]}
    assert changed <= allowed
    assert config["num_layers"] == report.num_layers == 3  # of 4, since layers 1 and 3 are edited
    for name in sorted(changed):
        W, new = (side[f"{name}.weight"].astype(np.float64) for side in (before, after))
        a, b = (tensors[f"{name}.lora_{part}"].astype(np.float64) for part in "ab")
        assert a.shape == (W.shape[1], parameters["rank"])
        assert b.shape == (parameters["rank"], W.shape[0])
        x = np.random.default_rng(0).standard_normal((16, W.shape[1]))
        ours, wanted = parameters["scale"] * (x @ a) @ b, x @ (new - W).T
        # Two factors and a weight, each rounded once to 24 bits, in sums of at most 96 terms.
        bound = 96 * 2.0**-24 * (np.abs(x) @ np.abs(W).T).max()
        assert np.abs(ours - wanted).max() < bound
        assert np.abs(wanted).max() > 1e3 * bound  # the controls: the edit is seen, and another scale would be
        assert np.abs(20.0 / parameters["scale"] * ours - wanted).max() > 1e3 * bound  # mlx-lm's own default


def test_the_folder_is_whole_and_says_what_it_is(baked: Baked, tmp_path: Path) -> None:
    ran = tiny.run("export", "mlx", baked("adapter"), "-o", tmp_path / "mlx", "--json")
    assert ran.code == 0, ran.err
    told = json.loads(ran.out)
    assert tiny.listing(tmp_path / "mlx") == {"adapters.safetensors", "adapter_config.json", "sea"}
    assert told["format"] == "mlx"
    assert told["rank"] == json.loads((baked("adapter") / "adapter_config.json").read_text("utf-8"))["r"]
    again = tiny.run("export", "mlx", baked("adapter"), "-o", tmp_path / "mlx", "--overwrite")
    assert again.code == 0, again.err
    assert "LoRA of rank" in again.out  # no next step: nothing here runs mlx-lm
    tiny.refused(tiny.run("verify", tmp_path / "mlx"), "CheckpointError", "is an export to 'mlx'", "made from")


def spoil(adapter: Path, target: Path, **changes: object) -> Path:
    """An adapter whose configuration says something else."""
    made = tiny.changeable(adapter, target)
    tiny.patch_json(made / "adapter_config.json", **changes)
    return made


def test_what_is_not_exported(baked: Baked, workshop: Workshop, tmp_path: Path) -> None:
    """At the door: exit code 2, one paragraph with a cure, nothing written."""
    adapter = baked("adapter")
    dora = spoil(adapter, tmp_path / "dora", use_dora=True)
    scaled = spoil(adapter, tmp_path / "scaled", lora_alpha=1)
    cut = tiny.changeable(adapter, tmp_path / "cut")
    (cut / "adapter_model.safetensors").write_bytes((adapter / "adapter_model.safetensors").read_bytes()[:100])
    lame, odd, infinite = (tiny.changeable(adapter, tmp_path / name) for name in ("lame", "odd", "infinite"))
    tensors = load_file(adapter / "adapter_model.safetensors")
    first = next(iter(tensors))
    save_file({name: t for name, t in tensors.items() if name != first}, lame / "adapter_model.safetensors")
    save_file(tensors | {"a.b": tensors[first]}, odd / "adapter_model.safetensors")
    save_file(tensors | {first: np.full_like(tensors[first], np.inf)}, infinite / "adapter_model.safetensors")
    far = spoil(adapter, tmp_path / "far", layers_to_transform=[1, 7])
    moved = {name.replace(".layers.3.", ".layers.7."): tensor for name, tensor in tensors.items()}
    save_file(moved, far / "adapter_model.safetensors")
    half, renamed = (tiny.changeable(adapter, tmp_path / name) for name in ("half", "renamed"))
    save_file({name: t for name, t in tensors.items() if ".layers.3." in name}, half / "adapter_model.safetensors")
    evil = {name.replace("down_proj", "evil"): tensor for name, tensor in tensors.items()}
    save_file(evil, renamed / "adapter_model.safetensors")
    others = {
        key: spoil(adapter, tmp_path / key, **{key: value})
        for key, value in (
            ("layers_to_transform", [3]), ("target_modules", ["up_proj"]), ("exclude_modules", ["down_proj"]),
            ("layer_replication", [[0, 4], [2, 4]]), ("trainable_token_indices", [1]), ("bias", "all"),
        )
    }  # fmt: skip
    with tiny.nothing_happens(tmp_path, adapter):
        for given, words in (
            *((others[key], ("other modules",)) for key in ("layers_to_transform", "target_modules")),
            *((others[key], (key, "--how adapter")) for key in [*others][2:]),
            (half, ("other modules",)),
            (renamed, ("other modules",)),
            (baked("insert"), ("inserted layers", "--how fold", "--how adapter")),
            (baked("fold"), ("needs no export", "mlx_lm.load")),
            (workshop.base("llama"), ("is not an artefact",)),
            (tmp_path / "nowhere", ("is not an artefact",)),
            (baked("adapter", "mixtral"), ("fused experts", "--how fold")),
            (dora, ("use_dora", "--how adapter")),
            (scaled, ("lora_alpha", "--how adapter")),
            (cut, ("truncated",)),
            (lame, ("is not whole",)),
            (odd, ("a.b",)),
            (infinite, ("not finite",)),
            (far, ("model.layers.7.", "--how fold")),
        ):
            ran = tiny.run("export", "mlx", given, "-o", tmp_path / "out")
            tiny.refused(ran, "CheckpointError", *words)
        tiny.refused(tiny.run("export", "mlx", adapter, "-o", adapter / "out"), "OutputError", "lies inside")
        (tmp_path / "cut").touch()
        tiny.refused(tiny.run("export", "mlx", adapter, "-o", tmp_path / "cut"), "OutputError", "exists")


@pytest.mark.slow
def test_a_family_that_mlx_lm_does_not_have(baked: Baked, tmp_path: Path) -> None:
    with pytest.raises(FamilyError, match=r"does not have cwm.*Where mlx-lm runs the base itself"):
        export_mlx(baked("adapter", "cwm"), tmp_path / "out")
    assert tiny.listing(tmp_path) == set()
