"""Every closed-form map through every door that is exact for it, against dense float64 matrices after the papers.

The oracle shares no code with the package: a plain hook on a module that is named here, and ``h M.T + b`` in float64.
What folds where is written down here too, from the models' own classes, and not taken from the package.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import families
import ggufs
import pytest
import tiny
import torch
from conftest import Workshop, load
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor

from sea_bake import Edit, Site, bake, export_gguf, export_onnx, verify
from sea_bake.baking import plan, unbake
from sea_bake.edit import live
from sea_bake.errors import CheckpointError, EditError, NotExactError, SettingError, WrongModelError
from sea_bake.exporting.gguf.header import GgufFile
from sea_bake.methods.affine import AffineMap
from sea_bake.model.checkpoint import Checkpoint
from sea_bake.model.fingerprint import BaseModel
from sea_bake.model.loading import load_model

LAYERS = (1, 3)
HEADS = {576: 9}  # width of all heads -> how many there are: SmolLM2; the tiny models have four
IDS = torch.randint(7, families.VOCAB, (3, 12), generator=torch.Generator().manual_seed(0))
EQUAL = 1e-5  # as in ``test_folds``: measured 2e-7 to 2e-6 of the largest logit
VISIBLE = 100 * EQUAL

# Where the four sites lie, and the tensors that write them: read off transformers' classes.
LLAMA = {
    "mlp": ("model.layers.{}.mlp", "model.layers.{}.mlp.down_proj"),
    "attn": ("model.layers.{}.self_attn", "model.layers.{}.self_attn.o_proj"),
    "block": ("model.layers.{}", "model.layers.{}.mlp.down_proj"),
    "heads": ("model.layers.{}.self_attn.o_proj", "model.layers.{}.self_attn.o_proj"),
}
GPT2 = {
    "mlp": ("transformer.h.{}.mlp", "transformer.h.{}.mlp.c_proj"),
    "attn": ("transformer.h.{}.attn", "transformer.h.{}.attn.c_proj"),
    "block": ("transformer.h.{}", "transformer.h.{}.mlp.c_proj"),
    "heads": ("transformer.h.{}.attn.c_proj", "transformer.h.{}.attn.c_proj"),
}
# The experts' own writers are called so on disk.
MIXTRAL = LLAMA | {"mlp": ("model.layers.{}.mlp", "model.layers.{}.block_sparse_moe.experts.")}
PLACES = {"llama": LLAMA, "qwen3": LLAMA, "gpt2": GPT2, "gemma3_text": LLAMA, "mixtral": MIXTRAL}
# Sites at which a bias holds a constant: because it is there (GPT-2), or because a key of the configuration grants it.
HOLDS = {
    "llama": {"mlp": "mlp_bias", "block": "mlp_bias", "attn": "attention_bias", "heads": "attention_bias"},
    "qwen3": {"attn": "attention_bias", "heads": "attention_bias"},
    "gpt2": {"mlp": "", "block": "", "attn": "", "heads": ""},
    "gemma3_text": {"attn": "attention_bias", "heads": "attention_bias"},
    "mixtral": {},
}


@dataclass(frozen=True)
class Case:
    """One method at one site: its edit's map, and the same by the paper's formula, dense.

    Attributes:
        site: where.
        dense: parameters -> (M, b), float64.
        thin: parameters -> the same map as a file holds it.
    """

    site: str
    dense: Callable[[dict[str, Tensor]], tuple[Tensor, Tensor]]
    thin: Callable[[dict[str, Tensor]], dict[str, Tensor]]


def parameters(d: int, seed: int) -> dict[str, Tensor]:
    """What the papers' formulas are made of, for one layer, in float64."""
    drawn = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=drawn).double()

    basis = torch.linalg.qr(normal(d, 6))[0].T
    count = HEADS.get(d, 4)
    heads = torch.zeros(count, d // count).double()
    heads[[0, 3]] = 1.0  # the two that a probe chose
    return {
        "v": normal(d), "r": basis[:1], "up": basis[1:4], "un": basis[4:], "mu": normal(d),
        "left": 0.4 * normal(d, 2), "right": 0.4 * normal(2, d), "w": 1 + 0.2 * normal(d), "b": 0.5 * normal(d),
        "theta": heads.reshape(-1) * normal(d), "sigma": torch.tensor(1.7).double(),
    }  # fmt: skip


def eye(p: dict[str, Tensor]) -> Tensor:
    return torch.eye(len(p["v"]), dtype=torch.float64)


def zero(p: dict[str, Tensor]) -> Tensor:
    return torch.zeros(len(p["v"]), dtype=torch.float64)


CASES: dict[str, Case] = {
    # y = P+ h + P- h (Qiu et al. 2024)
    "linear SEA": Case(
        "mlp",
        lambda p: (p["up"].T @ p["up"] + eye(p) - p["un"].T @ p["un"], zero(p)),
        lambda p: {"A": torch.cat([p["up"], p["un"]]), "B": torch.cat([p["up"], -p["un"]]).T},
    ),
    # h + v (Rimsky et al. 2024; Zou et al. 2023)
    "mean difference": Case("block", lambda p: (eye(p), p["v"]), lambda p: {"constant": p["v"]}),
    # x + sigma theta in chosen heads (Li et al. 2023)
    "ITI": Case("heads", lambda p: (eye(p), p["sigma"] * p["theta"]), lambda p: {"constant": p["sigma"] * p["theta"]}),
    # h - r r^T h, at both writers (Arditi et al. 2024)
    "ablation of attention": Case(
        "attn", lambda p: (eye(p) - p["r"].T @ p["r"], zero(p)), lambda p: {"A": p["r"], "B": -p["r"].T}
    ),
    # x - P_left P_right (x - mu) (Belrose et al. 2023)
    "LEACE": Case(
        "attn",
        lambda p: (eye(p) - p["left"] @ p["right"], p["left"] @ p["right"] @ p["mu"]),
        lambda p: {"A": p["right"], "B": -p["left"], "constant": p["left"] @ (p["right"] @ p["mu"])},
    ),
    "Householder": Case(
        "mlp", lambda p: (eye(p) - 2 * p["r"].T @ p["r"], zero(p)), lambda p: {"A": p["r"], "B": -2 * p["r"].T}
    ),
    # w ⊙ x + b (Rodriguez et al. 2025)
    "Linear-AcT": Case("mlp", lambda p: (torch.diag(p["w"]), p["b"]), lambda p: {"scale": p["w"], "constant": p["b"]}),
    "IA3": Case("attn", lambda p: (torch.diag(p["w"]), zero(p)), lambda p: {"scale": p["w"]}),
    "LEACE of heads": Case(
        "heads",
        lambda p: (eye(p) - p["left"] @ p["right"], p["left"] @ p["right"] @ p["mu"]),
        lambda p: {"A": p["right"], "B": -p["left"], "constant": p["left"] @ (p["right"] @ p["mu"])},
    ),
    "rank one at the stream": Case(
        "block", lambda p: (eye(p) - p["r"].T @ p["r"], zero(p)), lambda p: {"A": p["r"], "B": -p["r"].T}
    ),
}


def folds(family: str, case: Case) -> bool:
    """By what is known of the family's class."""
    constant = "constant" in case.thin(parameters(48, 0))
    if case.site == "block" and len(case.thin(parameters(48, 0))) != 1:
        return False
    return not constant or case.site in HOLDS[family]


def adapts(family: str, case: Case) -> bool:
    """Of low rank, and no bias behind it that changes too."""
    parts = set(case.thin(parameters(48, 0)))
    return case.site != "block" and parts == {"A", "B"} and (family != "gpt2" or case.site == "heads")


# --------------------------------------------------------------------------------------------- the two sides


def places(model: Any, family: str, site: str, layers: Sequence[int] = LAYERS) -> dict[int, Any]:
    """Layer -> the module of a site, by its name."""
    return {layer: model.get_submodule(PLACES[family][site][0].format(layer)) for layer in layers}


def width(model: Any, family: str, site: str) -> int:
    config = model.config
    if site != "heads" or family == "gpt2":
        return config.hidden_size
    return config.num_attention_heads * (getattr(config, "head_dim", None) or config.hidden_size // 4)


def edit_of(model: Any, family: str, case: Case, alpha: float, seed: int = 0, layers: Sequence[int] = LAYERS) -> Edit:
    d = width(model, family, case.site)
    maps = {
        layer: AffineMap(**{name: t.float().contiguous() for name, t in case.thin(parameters(d, seed + layer)).items()})
        for layer in layers
    }
    return Edit(maps, Site(case.site), BaseModel.of(model, family), "sum", alpha=alpha)


@contextlib.contextmanager
def by_the_paper(
    model: Any, family: str, case: Case, alpha: float, layers: Sequence[int] = LAYERS, seed: int = 0
) -> Iterator[None]:
    """h + alpha (M h + b - h) at each layer, by dense float64 matrices."""
    handles = []
    for layer, module in places(model, family, case.site, layers).items():
        M, b = case.dense(parameters(width(model, family, case.site), seed + layer))

        def mapped(h: Tensor, M: Tensor = M, b: Tensor = b) -> Tensor:
            x = h.double()
            return (x + alpha * (x @ M.T + b - x)).to(h.dtype)

        def behind(_: Any, __: Any, out: Any, mapped: Any = mapped) -> Any:
            return (mapped(out[0]), *out[1:]) if isinstance(out, tuple) else mapped(out)

        def before(_: Any, given: Any, mapped: Any = mapped) -> Any:
            return (mapped(given[0]), *given[1:])

        handles.append(
            module.register_forward_pre_hook(before) if case.site == "heads" else module.register_forward_hook(behind)
        )
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.inference_mode()
def logits(model: Any, ids: Tensor = IDS) -> Tensor:
    return model(input_ids=ids, use_cache=False).logits


def difference(a: Tensor, b: Tensor) -> float:
    """max |a - b| / max |b|; infinite when anything is NaN."""
    value = float((a - b).abs().max() / b.abs().max())
    return value if value == value else float("inf")


def reloaded(folder: Path, how: str, model: Any) -> Any:
    if how == "adapter":
        return PeftModel.from_pretrained(copy.deepcopy(model), folder)
    return load(folder)


# --------------------------------------------------------------------------------------------- one equality


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("family", PLACES)
def test_every_map_through_every_exact_door(workshop: Workshop, tmp_path: Path, family: str, name: str) -> None:
    """live = baked = reloaded, != base; refused where it is not exact; and one layer left out is noticed."""
    case, alpha, model, base = CASES[name], 0.7, workshop.model(family), workshop.base(family)
    edit, before = edit_of(model, family, case, alpha), logits(model)
    with by_the_paper(model, family, case, alpha):
        expected = logits(model)
    with by_the_paper(model, family, case, alpha, LAYERS[:1]):
        control = logits(model)
    with edit.live(model):
        assert difference(logits(model), expected) < EQUAL
    assert difference(before, expected) > VISIBLE
    exact = {"insert": True, "fold": folds(family, case), "adapter": adapts(family, case)}
    row = plan(base, [edit]).rows[0]
    assert {"fold": row["fold"], "adapter": row["adapter"]} == {k: exact[k] for k in ("fold", "adapter")}
    for how, is_exact in exact.items():
        if not is_exact:
            with pytest.raises(NotExactError, match="--how insert"):
                bake(base, edit, tmp_path / how, how=how)
            assert not (tmp_path / how).exists()
            continue
        record = bake(base, edit, tmp_path / how, how=how)
        found = logits(reloaded(tmp_path / how, how, model))
        assert difference(found, expected) < EQUAL, how
        assert difference(found, control) > 10 * EQUAL, how
        if how == "fold":
            assert changed(base, tmp_path / how) == set(record.changed)
            stems = {PLACES[family][case.site][1].format(layer) for layer in LAYERS}
            assert {next(s for s in stems if n.startswith(s)) for n in record.changed} == stems
            key = HOLDS[family].get(case.site) if "constant" in edit.extra else ""
            assert record.coverage.get("granted", {}).get("keys", []) == ([key] if key else [])
            config, theirs = (json.loads((f / "config.json").read_text()) for f in (tmp_path / how, base))
            assert config == theirs | ({key: True} if key else {})


def changed(base: Path, folder: Path) -> set[str]:
    """Tensors that are not the base's: new ones where they are not zero."""
    one, other = Checkpoint.open(base), Checkpoint.open(folder)
    assert one.weight_map.keys() <= other.weight_map.keys()
    found = set()
    for name in other.weight_map:
        ours, theirs = other.tensor(name).read(), one.tensor(name)
        same = torch.equal(ours, theirs.read() if theirs is not None else torch.zeros_like(ours))
        found |= set() if same else {name}
    return found


@pytest.mark.slow
def test_edits_at_every_site_of_a_layer_in_any_order(workshop: Workshop, tmp_path: Path) -> None:
    """Seven at once, two of them at one module each: what comes first inside the layer acts first."""
    model, base = workshop.model("llama"), workshop.base("llama")
    names = ["ITI", "LEACE of heads", "LEACE", "Linear-AcT", "linear SEA", "mean difference", "mean difference"]
    edits = [edit_of(model, "llama", CASES[name], 0.6, 10 * i) for i, name in enumerate(names)]
    before, seen = logits(model), []
    for order in ([0, 1, 2, 3, 4, 5, 6], [6, 4, 3, 5, 2, 1, 0]):
        with contextlib.ExitStack() as stack:
            for i in order:
                stack.enter_context(by_the_paper(model, "llama", CASES[names[i]], 0.6, seed=10 * i))
            expected = logits(model)
        seen.append(expected)
        for how in ("fold", "insert"):
            folder = tmp_path / f"{how}-{order[0]}"
            bake(base, [edits[i] for i in order], folder, how=how)
            assert difference(logits(load(folder)), expected) < EQUAL, (how, order)
        assert difference(before, expected) > VISIBLE
    assert difference(*seen) > 10 * EQUAL  # at one module the order counts


def test_a_constant_behind_an_l2_merge_does_not_fold(workshop: Workshop, tmp_path: Path) -> None:
    """Each folds by itself in Gemma 3; the norm behind would divide the length that the constant was added to."""
    family = "gemma3_text"
    model, base, l2 = workshop.model(family), workshop.base(family), workshop.edit(family, "attn", "l2", "identity")
    constant = edit_of(model, family, CASES["LEACE"], 1.0)
    for edit in (l2, constant):
        assert plan(base, [edit]).how == "fold"
    assert plan(base, [constant, l2]).how == "fold"
    assert plan(base, [l2, constant]).how == "insert"
    with pytest.raises(NotExactError, match="l2 merge has rescaled"):
        bake(base, [l2, constant], tmp_path / "no", how="fold")
    bake(base, [constant, l2], tmp_path / "yes", how="fold")
    with live([constant, l2], model):
        expected = logits(model)
    assert difference(logits(load(tmp_path / "yes")), expected) < 1e-4  # but for the epsilon of the norm


# --------------------------------------------------------------------------------------------- granted biases


def test_a_granted_bias_leaves_the_base_as_it_is(workshop: Workshop, tmp_path: Path) -> None:
    """The base's shards are linked, the new biases are zero but where they are needed, and the base comes back."""
    base, model = workshop.base("llama", shards=True), workshop.model("llama")
    edit = edit_of(model, "llama", CASES["mean difference"], 0.7)
    before = tiny.snapshot(base)
    record = bake(base, edit, tmp_path / "fold", how="fold")
    granted = record.coverage["granted"]["tensors"]
    parts = ("gate_proj", "up_proj", "down_proj")
    assert granted == sorted(f"model.layers.{i}.mlp.{part}.bias" for i in range(4) for part in parts)
    assert set(record.changed) == {f"model.layers.{i}.mlp.down_proj.bias" for i in LAYERS}
    for shard in base.glob("*.safetensors"):
        assert (tmp_path / "fold" / shard.name).samefile(shard)
    assert tiny.snapshot(base) == before
    restored = unbake(tmp_path / "fold", tmp_path / "back", base=base)
    assert {p.name: tiny.sha256(p) for p in (tmp_path / "back").iterdir()} == {
        p.name: tiny.sha256(p) for p in base.iterdir()
    }
    assert "none differs from the artefact's, and the 12 more" in restored.proof
    file = tmp_path / "fold" / "model-biases.safetensors"  # control: a bias that the fold does not list is another
    spoilt = load_file(file)
    spoilt["model.layers.0.mlp.up_proj.bias"] += 1
    save_file(spoilt, file, {"format": "pt"})
    with pytest.raises(WrongModelError, match=r"layers\.0\.mlp\.up_proj\.bias differs"):
        unbake(tmp_path / "fold", tmp_path / "no", base=base)


def test_the_plan_names_what_holds_a_constant(workshop: Workshop) -> None:
    for family, holds in HOLDS.items():
        rows = {row["site"]: row for row in plan(workshop.base(family)).constants}
        assert {site for site, row in rows.items() if row["fold"]} == set(holds), family
        for site, key in holds.items():
            assert (key or "bias") in rows[site]["why"]
    assert json.loads(tiny.run("plan", workshop.base("qwen2"), "--json").out)["architecture"] == "Qwen2ForCausalLM"
    out = tiny.run("plan", workshop.base("qwen2")).out
    assert "--as llama" in out
    assert "a constant folds" in out


def test_an_edit_of_heads_has_their_width(tmp_path: Path) -> None:
    """The heads of this model are 48 wide, and its stream 32: either is an axis of the writer."""
    base = tiny.write_llama(tmp_path / "base", head_dim=12)
    model = BaseModel.of(load_model(base), "base")
    for wide, how in itertools.product((32, 48), ("insert", "fold", "adapter")):
        maps = {1: AffineMap(A=torch.randn(2, wide), B=torch.randn(wide, 2))}
        edit = Edit(maps, Site.HEADS, model, "sum")
        if wide == 48:
            bake(base, edit, tmp_path / how, how=how)
            continue
        with pytest.raises(WrongModelError, match=r"32 wide in layer 1, and the heads activation of 'base' 48"):
            bake(base, edit, tmp_path / f"no-{how}", how=how)
        assert not (tmp_path / f"no-{how}").exists()
    with pytest.raises(WrongModelError, match=r"48 wide in layer 1, and the mlp activation of 'base' 32"):
        bake(base, Edit({1: AffineMap(constant=torch.ones(48))}, Site.MLP, model, "sum"), tmp_path / "no")


def test_a_gate_is_inserted_only(workshop: Workshop, tmp_path: Path) -> None:
    model, base = workshop.model("llama"), workshop.base("llama")
    p = {layer: parameters(48, layer) for layer in LAYERS}
    maps = {
        layer: AffineMap(A=p[layer]["right"].float(), B=p[layer]["left"].float(), gate=torch.tensor([0.3, -0.2]))
        for layer in LAYERS
    }
    edit = Edit(maps, Site.MLP, BaseModel.of(model, "llama"), "sum")
    for how in ("fold", "adapter"):
        with pytest.raises(NotExactError, match=r"relu.*--how insert"):
            bake(base, edit, tmp_path / "no", how=how)
    bake(base, edit, tmp_path / "gate")
    hooks = []
    for layer, module in places(model, "llama", "mlp").items():
        c, A, B = torch.tensor([0.3, -0.2]).double(), p[layer]["right"], p[layer]["left"]
        hooks.append(
            module.register_forward_hook(
                lambda _, __, h, A=A, B=B, c=c: (h.double() + torch.relu(h.double() @ A.T + c) @ B.T).float()
            )
        )
    expected = logits(model)
    for hook in hooks:
        hook.remove()
    assert difference(logits(load(tmp_path / "gate")), expected) < EQUAL
    assert difference(logits(model), expected) > VISIBLE


# --------------------------------------------------------------------------------------------- as a Llama


@pytest.mark.parametrize("name", ["mean difference", "Linear-AcT", "ITI", "Householder"])
def test_qwen2_as_the_llama_that_it_is(workshop: Workshop, tmp_path: Path, name: str) -> None:
    PLACES.setdefault("qwen2", LLAMA)
    case, base, model = CASES[name], workshop.base("qwen2"), workshop.model("qwen2")
    edit = edit_of(model, "qwen2", case, 0.7)
    with by_the_paper(model, "qwen2", case, 0.7):
        expected = logits(model)
    record = bake(base, edit, tmp_path / "llama", architecture="llama")
    assert (record.how, record.details["rewritten"]) == ("fold", {"from": "qwen2", "as": "llama"})
    found = load(tmp_path / "llama")
    assert type(found).__name__ == "LlamaForCausalLM"
    assert difference(logits(found), expected) < EQUAL
    assert difference(logits(model), expected) > VISIBLE
    shown = tiny.run("inspect", tmp_path / "llama").out
    assert "written as the architecture llama" in shown
    assert "biases that the base lacks, granted by attention_bias" in shown
    unbake(tmp_path / "llama", tmp_path / "back", base=base)
    assert (tmp_path / "back" / "config.json").read_bytes() == (base / "config.json").read_bytes()


def test_a_way_out_is_named_where_there_is_one(workshop: Workshop, tmp_path: Path) -> None:
    """``--as llama`` to a Qwen2 and to a Mistral that looks back at everything; not to a window, nor for an adapter."""
    wide = tiny.changeable(workshop.base("mistral"), tmp_path / "wide")
    tiny.patch_json(wide / "config.json", sliding_window=None)
    bases = {"qwen2": workshop.base("qwen2"), "mistral": wide}
    for family, base in (*bases.items(), ("mistral", workshop.base("mistral"))):
        PLACES.setdefault(family, LLAMA)
        edit = edit_of(workshop.model(family), family, CASES["LEACE"], 1.0)
        folds = base in bases.values()
        assert ("--as llama" in plan(base, [edit]).rows[0]["why"]) == folds
        assert any("--as llama" in row["why"] for row in plan(base).constants) == folds
        with pytest.raises(NotExactError) as refused:
            bake(base, edit, tmp_path / "no", how="fold")
        assert ("--how fold --as llama" in str(refused.value)) == folds
        if folds:
            bake(base, edit, tmp_path / family, how="fold", architecture="llama")
        with pytest.raises(NotExactError) as refused:
            bake(base, edit, tmp_path / "no", how="adapter")
        assert "--as" not in str(refused.value)


def test_what_is_no_llama_is_refused(workshop: Workshop, tmp_path: Path) -> None:
    for family, words in (
        ("mistral", "sliding_window.*--how insert"),
        ("qwen3", "no Llama by another name"),
        ("llama", "a Llama already: drop --as"),
    ):
        PLACES.setdefault(family, LLAMA)
        edit = edit_of(workshop.model(family), family, CASES["Householder"], 1.0)
        with pytest.raises(NotExactError, match=words):
            bake(workshop.base(family), edit, tmp_path / "no", architecture="llama")
    with pytest.raises(SettingError, match="unknown architecture"):
        bake(workshop.base("qwen2"), edit, tmp_path / "no", architecture="gpt")
    with pytest.raises(SettingError, match="--how fold"):
        bake(workshop.base("qwen2"), edit, tmp_path / "no", architecture="llama", how="insert")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_verify_proves_granted_biases_and_a_rewritten_base(workshop: Workshop, tmp_path: Path) -> None:
    PLACES.setdefault("qwen2", LLAMA)
    for family, how in (("llama", {}), ("qwen2", {"architecture": "llama"})):
        base, model = workshop.base(family), workshop.model(family)
        edit = edit_of(model, family, CASES["mean difference"], 0.7)
        folder = bake(base, edit, tmp_path / family, **how).output
        report = verify(folder, base=base, max_new_tokens=4)
        assert report.passed, report.failures
        file = folder / "model-biases.safetensors"
        tensors = load_file(file)  # control: the constant of one layer is lost
        save_file({n: t * ("layers.3." not in n) for n, t in tensors.items()}, file, {"format": "pt"})
        assert not verify(folder, base=base, max_new_tokens=4).passed


@pytest.mark.parametrize(("family", "words"), [("llama", "vLLM and llama.cpp read"), ("qwen3", "other runtimes may")])
def test_the_card_says_who_reads_granted_biases(workshop: Workshop, tmp_path: Path, family: str, words: str) -> None:
    from sea_bake.artefact import Artefact
    from sea_bake.publishing.card import render
    from sea_bake.publishing.licence import Licence

    edit = edit_of(workshop.model(family), family, CASES["LEACE"], 0.7)
    folder = bake(workshop.base(family), edit, tmp_path / "fold").output
    page = render(Artefact.open(folder), "me/it", licence=Licence("mit", "given"), base_card={})
    assert words in page
    assert "`attention_bias`" in page
    plain = edit_of(workshop.model(family), family, CASES["Householder"], 0.7)  # control
    folder = bake(workshop.base(family), plain, tmp_path / "plain").output
    assert "biases" not in render(Artefact.open(folder), "me/it", licence=Licence("mit", "given"), base_card={})


@pytest.mark.slow
@pytest.mark.parametrize("how", ["insert", "fold"])
def test_onnx_has_them_all(tmp_path: Path, how: str) -> None:
    """The heads' own node stands before its linear, and a granted bias behind one: traced, 8 bits, and verified."""
    base = VERSION_1 / "base"
    model, names = load(base), ["ITI", "LEACE", "mean difference"]
    edits = [edit_of(model, "llama", CASES[n], 0.6, 10 * i, layers=(0, 1)) for i, n in enumerate(names)]
    bake(base, edits, tmp_path / "art", how=how)
    record = export_onnx(tmp_path / "art", tmp_path / "onnx", quantize=["int8"], strength=how == "insert")
    assert record.error < EQUAL
    assert bool(record.sea_nodes) == (how == "insert")
    report = verify(tmp_path / "onnx", base=base, max_new_tokens=4)
    assert report.passed, report.failures


@pytest.mark.slow
@pytest.mark.parametrize("gated", [False, True], ids=["plain", "gated"])
def test_onnx_has_heads_alone(tmp_path: Path, gated: bool) -> None:
    """No other edit leaves a trace; all nodes in front of the linear are the edit's, and stay out of the 8 bits."""
    base, p = VERSION_1 / "base", parameters(32, 0)
    gate = {"gate": torch.tensor([0.3, -0.2])} if gated else {}
    maps = {i: AffineMap(A=p["right"].float(), B=p["left"].float(), **gate) for i in (0, 1)}
    bake(base, Edit(maps, Site.HEADS, BaseModel.of(load(base), "base"), "sum"), tmp_path / "art", how="insert")
    record = export_onnx(tmp_path / "art", tmp_path / "onnx", quantize=["int8"])
    assert record.error < EQUAL
    stems = {name.rpartition("/")[0] for name in record.sea_nodes}
    assert stems == {f"/model/layers.{i}/sea_in.self_attn.o_proj.0" for i in (0, 1)}
    assert len(record.sea_nodes) >= 2 * (3 + gated)
    report = verify(tmp_path / "onnx", base=base, max_new_tokens=4)  # of the 8 bits, beside the nodes led past
    assert report.passed, report.failures


# --------------------------------------------------------------------------------------------- real weights


@pytest.mark.slow
@pytest.mark.smollm2
def test_a_control_vector_folds_into_smollm2(smollm2: Path, tmp_path: Path) -> None:
    """20 of 30 layers, at the residual stream: plain Llama, biases granted, no custom code."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32).eval()
    ids = AutoTokenizer.from_pretrained(smollm2)("Why is the sky so blue?", return_tensors="pt").input_ids
    layers = range(10, 30)
    vectors = {i: torch.randn(576, generator=torch.Generator().manual_seed(i)) * 0.3 for i in layers}
    base = BaseModel.of(model, smollm2.name)
    edit = Edit({i: AffineMap(constant=v) for i, v in vectors.items()}, Site.BLOCK, base, "sum", alpha=0.8)
    before = logits(model, ids)
    hooks = [
        model.get_submodule(f"model.layers.{i}").register_forward_hook(
            lambda _, __, h, v=v: (h.double() + 0.8 * v.double()).to(h.dtype)
        )
        for i, v in vectors.items()
    ]
    expected = logits(model, ids)
    for hook in hooks:
        hook.remove()
    record = bake(smollm2, edit, tmp_path / "fold")
    assert record.how == "fold"
    assert set(record.changed) == {f"model.layers.{i}.mlp.down_proj.bias" for i in layers}
    found, info = AutoModelForCausalLM.from_pretrained(
        tmp_path / "fold", dtype=torch.float32, trust_remote_code=False, output_loading_info=True
    )
    assert not any(info.values())
    assert type(found).__name__ == "LlamaForCausalLM"
    assert difference(logits(found.eval(), ids), expected) < EQUAL
    assert difference(before, expected) > VISIBLE


# --------------------------------------------------------------------------------------------- GGUF


def gguf_case(folder: Path) -> tuple[Path, Any, list[Edit]]:
    """A tiny Llama as GGUF without a bias, the model that transformers makes of it, and edits at all four sites."""
    path = ggufs.llama(folder / "tiny.gguf")
    model = load_model(path, dtype="float32")
    names = ["ITI", "LEACE", "Linear-AcT", "mean difference"]
    return path, model, [edit_of(model, "llama", CASES[name], 0.6, 10 * i) for i, name in enumerate(names)]


def test_a_gguf_gets_the_biases_that_it_lacks(tmp_path: Path) -> None:
    """Tensors of its own, behind all others; what was there stays, and what was not edited stays byte for byte."""
    path, _, edits = gguf_case(tmp_path)
    record = export_gguf(edits, tmp_path / "edited.gguf", base=path)
    before, after = GgufFile.open(path), GgufFile.open(tmp_path / "edited.gguf")
    new = {f"blk.{i}.{part}.bias" for i in LAYERS for part in ("attn_output", "ffn_down")}
    weights = {name.replace("bias", "weight") for name in new}
    assert after.tensors.keys() - before.tensors.keys() == new
    assert after.keys == before.keys
    assert set(record.changed) == new | weights
    for name, tensor in before.tensors.items():
        ours, count = after.tensors[name], 1 if len(tensor.shape) == 1 else tensor.shape[0]
        same = bool((before.rows(tensor, 0, count) == after.rows(ours, 0, count)).all())
        assert same == (name not in weights), name
    assert all(after.rows(after.tensors[name], 0, 1).any() for name in new)
    assert all(after.tensors[name].start % after.alignment == 0 for name in new)


@pytest.mark.slow
def test_llama_cpp_adds_the_new_biases(tmp_path: Path) -> None:
    """Rewritten, and run by llama.cpp, it answers like the fold of the same GGUF in transformers."""
    from test_gguf import llama_cpp

    path, model, edits = gguf_case(tmp_path)
    export_gguf(edits, tmp_path / "edited.gguf", base=path)
    bake(path, edits, tmp_path / "fold", how="fold")
    folded = load(tmp_path / "fold")
    for ids in ([1, 5, 9, 33], [1, 77, 120, 40, 8]):
        (found,), (plain,) = llama_cpp(tmp_path / "edited.gguf", [ids]), llama_cpp(path, [ids])
        with live(edits, model):
            expected = logits(model, torch.tensor([ids]))[0, -1].log_softmax(-1)
        assert difference(logits(folded, torch.tensor([ids]))[0, -1].log_softmax(-1), expected) < 10 * EQUAL
        assert max(abs(float(expected[token]) - value) for token, value in found.first.items()) < 1e-3
        assert max(abs(float(expected[token]) - value) for token, value in plain.first.items()) > 1e-2  # control


# --------------------------------------------------------------------------------------------- files of version 1

VERSION_1 = Path(__file__).parent / "files" / "version_1"


def test_files_of_version_1_are_what_they_were(tmp_path: Path) -> None:
    """Edits, and an artefact with its own code inside, made before there were affine maps."""
    base = VERSION_1 / "base"
    edits = [Edit.load(VERSION_1 / f"{name}.safetensors") for name in ("l2", "phi")]
    assert [(e.merge, e.feature, e.site.value, e.method) for e in edits] == [
        ("l2", "identity", "mlp", "sea"),
        (edits[1].merge, edits[1].feature, "attn", "sea"),
    ]
    assert edits[1].feature != "identity"
    assert all(e.projectors and not e.extra for e in edits)
    model = load(base)
    with live(edits, model):
        expected = logits(model)
    assert difference(logits(load(VERSION_1 / "inserted")), expected) < EQUAL  # by the code that it carries
    assert difference(logits(model), expected) > VISIBLE
    bake(base, edits, tmp_path / "again", how="insert")
    assert difference(logits(load(tmp_path / "again")), expected) < EQUAL
    edits[0].save(tmp_path / "saved.safetensors")
    with Edit.load(tmp_path / "saved.safetensors").live(model):
        again = logits(model)
    with edits[0].live(model):
        assert torch.equal(logits(model), again)
    unbake(VERSION_1 / "inserted", tmp_path / "base", base=base)
    assert {p.name: tiny.sha256(p) for p in (tmp_path / "base").iterdir()} == {
        p.name: tiny.sha256(p) for p in base.iterdir()
    }
    broken = tmp_path / "broken.safetensors"
    data = bytearray((VERSION_1 / "l2.safetensors").read_bytes())
    broken.write_bytes(re.sub(rb'version\\": ?1', lambda m: m[0][:-1] + b"9", bytes(data)))
    with pytest.raises(EditError):
        Edit.load(broken)


@pytest.mark.slow
def test_an_artefact_of_version_1_is_verified(tmp_path: Path) -> None:
    folder = tiny.changeable(VERSION_1 / "inserted", tmp_path / "inserted")
    report = verify(folder, base=VERSION_1 / "base", max_new_tokens=4)
    assert report.passed, report.failures
    with open(folder / "modeling_sea.py", "a") as code:  # control: it is run for it is known, to the byte
        code.write("\n")
    with pytest.raises(CheckpointError, match="is not run"):
        verify(folder, base=VERSION_1 / "base", max_new_tokens=4)
