"""One equality through every door: hooks on the living base = inserted, saved and reloaded; and neither is the base.

For every family x site x merge x feature function, on tiny random models, and for SmolLM2; with plain batches, the KV
cache, left padding and greedy generation, in float32 and bfloat16. The hooks in turn are held against the dense float64
``oracle``. Every proof has a control: a damaged artefact that the same comparison must reject.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import families
import oracle
import pytest
import torch
from conftest import Workshop, load
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModel

from sea_bake import Edit, bake, collect, fit
from sea_bake.anatomy import FAMILIES, Site
from sea_bake.baking.insert import SEA_SHARD
from sea_bake.demonstrations import builtin
from sea_bake.fitting import DEFAULT_K
from sea_bake.loading import load_tokenizer
from sea_bake.sites import hooked, site_modules

SITES = [site.value for site in Site]
every_family = pytest.mark.parametrize("family", families.CONFIGS)
every_site = pytest.mark.parametrize("site", SITES)
every_merge = pytest.mark.parametrize("merge", oracle.MERGES)
every_feature = pytest.mark.parametrize("feature", oracle.FEATURES)


@dataclass(frozen=True)
class Prompts:
    """Token ids for every door.

    Attributes:
        ids: [B, T], prompts of one length.
        lengths: how many last tokens of each are real in the left-padded batch; the others are padded away.
        prefill: how many tokens go in at once, before the others go in one by one through the KV cache.
        new: how many tokens are generated.
    """

    ids: Tensor
    lengths: tuple[int, ...]
    prefill: int
    new: int

    def padded(self) -> tuple[Tensor, Tensor]:
        """Left-padded ids and their mask."""
        width = self.ids.shape[1]
        mask = torch.stack([(torch.arange(width) >= width - n).long() for n in self.lengths])
        return self.ids * mask, mask


# Ids 0 to 6 are special; 12 tokens are more than the sliding windows (8) of the tiny Mistral and Gemma.
IDS = torch.randint(7, families.VOCAB, (3, 12), generator=torch.Generator().manual_seed(0))
TINY = Prompts(IDS, lengths=(12, 9, 5), prefill=8, new=8)


@torch.inference_mode()
def answers(model: Any, prompts: Prompts = TINY, *, generate: bool = True) -> dict[str, Tensor]:
    """What a model says to the same tokens by different ways.

    Returns:
        "batch": logits of one pass without cache; "cached": the same tokens through the KV cache; "padded": logits at
        the real positions of the left-padded batch; "greedy" and "greedy_logits": tokens generated from that batch with
        the cache, and the logits each was chosen from.
    """
    ids = prompts.ids
    found = {"batch": model(input_ids=ids, use_cache=False).logits}
    step = model(input_ids=ids[:, : prompts.prefill], use_cache=True)
    pieces = [step.logits]
    for i in range(prompts.prefill, ids.shape[1]):
        step = model(input_ids=ids[:, i : i + 1], past_key_values=step.past_key_values, use_cache=True)
        pieces.append(step.logits)
    found["cached"] = torch.cat(pieces, dim=1)
    short, mask = prompts.padded()
    positions = (mask.cumsum(-1) - 1).clamp_min(0)
    logits = model(input_ids=short, attention_mask=mask, position_ids=positions, use_cache=False).logits
    found["padded"] = logits[mask.bool()]
    if generate:
        out = model.generate(
            input_ids=short,
            attention_mask=mask,
            max_new_tokens=prompts.new,
            min_new_tokens=prompts.new,
            do_sample=False,
            use_cache=True,
            pad_token_id=0,
            output_logits=True,
            return_dict_in_generate=True,
        )
        found |= {"greedy": out.sequences[:, ids.shape[1] :], "greedy_logits": torch.stack(out.logits, dim=1)}
    return found


def gap(a: Tensor, b: Tensor) -> float:
    """max |a - b|; infinite when anything is NaN, so that no comparison passes by accident."""
    value = float((a.double() - b.double()).abs().max())
    return value if value == value else float("inf")


def limit(reference: dict[str, Tensor]) -> float:
    """Largest |Δlogit| between hooks and artefact.

    They do the same operations on the same numbers, and here they agree to the last bit. The room is for kernels that
    depend on where a tensor lies in memory: 1e-4 in float32 (some roundings, enlarged by φ⁻¹), one rounding (2^-8) of
    the largest logit in bfloat16.
    """
    logits = reference["batch"]
    return 1e-4 if logits.dtype == torch.float32 else 2.0**-8 * float(logits.float().abs().max())


def assert_same(reference: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert reference.keys() == other.keys()
    for key, expected in reference.items():
        assert expected.dtype == other[key].dtype
        if key == "greedy":
            assert torch.equal(expected, other[key]), f"{key} tokens differ"
        else:
            assert gap(expected, other[key]) <= limit(reference), f"{key} logits differ"


def assert_visible(base: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    """The edit moves logits by far more than the comparison lets pass: 100 times in float32, 2 times in bfloat16."""
    times = 100 if base["batch"].dtype == torch.float32 else 2
    for key in base.keys() - {"greedy", "greedy_logits"}:  # after a first different token these go their own ways
        assert times * limit(base) < gap(base[key], other[key]) < float("inf"), f"{key}: the edit is not seen"


def live_answers(edit: Edit, model: Any, *arguments: Any, **options: Any) -> dict[str, Tensor]:
    with edit.live(model):
        return answers(model, *arguments, **options)


def sea_dtypes(model: Any) -> set[torch.dtype]:
    return {p.dtype for name, p in model.named_parameters() if ".sea." in name}


def in_float64(model: Any) -> Any:
    model = model.double()
    model.config._experts_implementation = "eager"  # Mixtral's grouped product has no float64 kernel
    return model


def test_every_known_family_has_a_tiny_model():
    assert set(families.CONFIGS) == set(FAMILIES)


# ---------------------------------------------------------------------------------------------- the equality


@every_feature
@every_merge
@every_site
@every_family
def test_live_is_inserted_and_reloaded(workshop: Workshop, family: str, site: str, merge: str, feature: str):
    edit = workshop.edit(family, site, merge, feature)
    artefact = workshop.artefact(family, site, merge, feature)
    for dtype in (torch.float32, torch.bfloat16):
        base = workshop.model(family, dtype)
        before = workshop.once(("answers", family, dtype), lambda base=base: answers(base))
        live = live_answers(edit, base)
        assert_visible(before, live)
        reloaded = load(artefact, dtype)
        assert reloaded.dtype == dtype
        assert sea_dtypes(reloaded) == {torch.float32}
        assert_same(live, answers(reloaded))


@every_feature
@every_merge
@every_site
@every_family
def test_cache_and_padding_change_nothing(workshop: Workshop, family: str, site: str, merge: str, feature: str):
    """In float64, where only rounding is left: 1e-16, enlarged by φ⁻¹ in two layers, 5e3 each (measured: < 3e-13).

    In float32 the same comparison differs by up to 1e-3 for tanh and elu, and where a tie in Mixtral's router tips over
    by more, in the hooks as in the artefact: that is the price of an inverse that steep, not of baking.
    """
    reloaded = in_float64(load(workshop.artefact(family, site, merge, feature)))
    found = answers(reloaded, generate=False)
    assert found["batch"].dtype == torch.float64
    assert gap(found["batch"], found["cached"]) < 1e-7
    with torch.inference_mode():
        alone = [reloaded(row[None, -n:], use_cache=False).logits[0] for row, n in zip(IDS, TINY.lengths)]
    assert gap(torch.cat(alone), found["padded"]) < 1e-7


@every_family
def test_the_released_codes_norm_would_depend_on_cache_and_padding(workshop: Workshop, family: str):
    """Control of the test above: the same model with the all-token norm of the released research code."""
    reloaded = in_float64(load(workshop.artefact(family, "block", "l2", "identity")))

    def released(module: Any, h: Tensor) -> Tensor:
        y = module.project(h)
        tokens = tuple(range(h.dim() - 1))
        return y * torch.linalg.vector_norm(h, dim=tokens) / torch.linalg.vector_norm(y, dim=tokens)

    layers = [m for m in reloaded.modules() if type(m).__name__ == "SEALayer"]
    assert len(layers) == len(Workshop.LAYERS)
    for layer in layers:
        layer.forward = released.__get__(layer)
    found = answers(reloaded, generate=False)
    assert gap(found["batch"], found["cached"]) > 1e-2
    with torch.inference_mode():
        alone = [reloaded(row[None, -n:], use_cache=False).logits[0] for row, n in zip(IDS, TINY.lengths)]
    assert gap(torch.cat(alone), found["padded"]) > 1e-2


@every_feature
@every_merge
@every_site
@every_family
def test_live_is_the_oracle(workshop: Workshop, family: str, site: str, merge: str, feature: str):
    """From the same activations: dense float64 projections, applied to what the hooks really saw in the model."""
    edit, base = workshop.edit(family, site, merge, feature), workshop.model(family)
    saved = workshop.activations(family, site)
    modules = site_modules(base, Site(site), edit.layers)
    before: dict[int, Tensor] = {}
    after: dict[int, Tensor] = {}
    with (
        edit.live(base),
        hooked(modules, lambda layer, h: before.update({layer: h.clone()}), first=True),
        hooked(modules, lambda layer, h: after.update({layer: h.clone()})),
        torch.inference_mode(),
    ):
        base(input_ids=IDS)
    for layer in edit.layers:
        row = saved.layers.index(layer)
        H = [role[row].double().numpy() for role in (saved.neutral, saved.positive, saved.negative)]
        P = oracle.projections(*H, Workshop.K, Workshop.K, feature=feature)
        assert edit.ranks[layer] == P.ranks
        h = before[layer].double().numpy()
        expected = oracle.edit(h, P.positive, P.negative, merge, feature)
        # float32 factors and products; how much φ⁻¹ enlarges their rounding is said at oracle.AMPLIFICATION.
        room = oracle.tolerance(feature, 2.0**-24, abs(expected).max())
        assert abs(after[layer].double().numpy() - expected).max() < room, f"layer {layer}"
        assert abs(h - expected).max() > 2 * room  # control: no edit at all would not pass


@every_family
def test_a_sharded_checkpoint_gives_the_same_answers(workshop: Workshop, tmp_path: Path, family: str):
    edit = workshop.edit(family, "mlp", "sum", "identity")
    base = workshop.base(family, shards=True, chat=True)
    assert len(list(base.glob("model-*.safetensors"))) > 2
    report = bake(base, edit, tmp_path / "sharded")
    assert report.bytes_written < report.bytes_linked + 400_000  # the SEA shard, the edit, code, tokenizer
    live = live_answers(edit, workshop.model(family))
    assert_same(live, answers(load(tmp_path / "sharded")))


# ---------------------------------------------------------------------------------------------- controls


def damaged(artefact: Path, folder: Path, change: Any) -> Path:
    """A copy of an artefact whose SEA tensors went through ``change(name, tensor)``."""
    shutil.copytree(artefact, folder)
    path = folder / SEA_SHARD
    tensors = {name: change(name, tensor).contiguous() for name, tensor in load_file(path).items()}
    path.unlink()
    save_file(tensors, path, metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize(
    "damage",
    [
        lambda name, t: torch.zeros_like(t) if f".{Workshop.LAYERS[-1]}." in name else t,
        lambda name, t: -t if name.endswith("sea.0.A") else t,
        lambda name, t: t * 1.02 if name.endswith("sea.0.B") else t,
    ],
    ids=["one layer zero", "sign of A", "2 percent too strong"],
)
@every_site
@every_family
def test_a_damaged_artefact_is_told_from_the_edit(
    workshop: Workshop, tmp_path: Path, family: str, site: str, damage: Any
):
    setting = (site, "sum", "identity")
    live = live_answers(workshop.edit(family, *setting), workshop.model(family), generate=False)
    untouched = damaged(workshop.artefact(family, *setting), tmp_path / "untouched", lambda name, t: t)
    assert_same(live, answers(load(untouched), generate=False))
    broken = damaged(workshop.artefact(family, *setting), tmp_path / "broken", damage)
    with pytest.raises(AssertionError, match="logits differ"):
        assert_same(live, answers(load(broken), generate=False))


@pytest.mark.parametrize("feature", ["identity", "tanh"])
@every_family
def test_alpha_zero_is_the_base_to_the_bit(workshop: Workshop, tmp_path: Path, family: str, feature: str):
    """Control of ``assert_visible``: an artefact that is the base must not pass for an edit."""
    edit = replace(workshop.edit(family, "block", "average", feature), alpha=0.0)
    bake(workshop.base(family), edit, tmp_path / "zero")
    for dtype in (torch.float32, torch.bfloat16):
        before = answers(workshop.model(family, dtype), generate=False)
        after = answers(load(tmp_path / "zero", dtype), generate=False)
        assert all(torch.equal(before[key], after[key]) for key in before)
        with pytest.raises(AssertionError, match="the edit is not seen"):
            assert_visible(before, after)


@pytest.mark.parametrize("parts", ["positive", "negative"])
@pytest.mark.parametrize("alpha", [1.0, 0.4, -0.5])
def test_parts_and_alpha_travel_with_the_artefact(workshop: Workshop, tmp_path: Path, parts: str, alpha: float):
    edit = workshop.edit("llama", "mlp", "l2", "tanh").with_settings(parts=parts, alpha=alpha)
    bake(workshop.base("llama"), edit, tmp_path / "art")
    live = live_answers(edit, workshop.model("llama"))
    assert_same(live, answers(load(tmp_path / "art")))
    others = {"positive": "negative", "negative": "positive"}
    for other in (edit.with_settings(parts=others[parts]), edit.with_settings(alpha=alpha / 2)):
        with pytest.raises(AssertionError):
            assert_same(live_answers(other, workshop.model("llama")), live)


# ---------------------------------------------------------------------------------------------- what is on disk


def raw(folder: Path) -> dict[str, tuple[torch.dtype, bytes]]:
    """Tensor name -> dtype and bytes, of all shards that the index (or the only file) names."""
    index = folder / "model.safetensors.index.json"
    files = set(json.loads(index.read_text())["weight_map"].values()) if index.exists() else {"model.safetensors"}
    found = {}
    for file in files:
        with safe_open(folder / file, "pt") as shard:
            for name in shard.keys():  # noqa: SIM118 (not a dict)
                tensor = shard.get_tensor(name)
                found[name] = (tensor.dtype, tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found


@pytest.mark.parametrize(
    "how", [{}, {"shards": True}, {"dtype": torch.bfloat16}], ids=["single", "sharded", "bfloat16"]
)
@every_site
@every_family
def test_every_name_and_every_bit_of_the_base_is_kept(
    workshop: Workshop, tmp_path: Path, family: str, site: str, how: dict[str, Any]
):
    base, edit = workshop.base(family, **how), workshop.edit(family, site)
    bake(base, edit, tmp_path / "art")
    before, after = raw(base), raw(tmp_path / "art")
    sea = after.keys() - before.keys()
    assert before.keys() <= after.keys()
    assert {name.rsplit(".", 3)[1] for name in sea} == {"sea"}
    assert len(sea) == 2 * len(Workshop.LAYERS)
    assert all(after[name] == before[name] for name in before)
    assert {after[name][0] for name in sea} == {torch.float32}
    reloaded = load(tmp_path / "art")
    names = set(reloaded.state_dict())
    assert names - set(workshop.model(family).state_dict()) == sea  # the same in memory: nothing is renamed
    assert set(workshop.model(family).state_dict()) <= names


@every_family
def test_auto_model_loads_the_edit_too(workshop: Workshop, family: str):
    """The backbone alone carries the edit: embedders, and runtimes that bring their own head, take this door."""
    for site in SITES:
        artefact = workshop.artefact(family, site, "l2", "identity")
        backbone, info = AutoModel.from_pretrained(artefact, trust_remote_code=True, output_loading_info=True)
        assert not info["missing_keys"]
        assert not info["mismatched_keys"]
        assert {name.split(".")[0] for name in info["unexpected_keys"]} <= {"lm_head"}  # it has none
        backbone.eval()
        base = workshop.model(family)
        with torch.inference_mode():
            found = backbone(IDS).last_hidden_state
            causal = load(artefact).get_decoder()(IDS).last_hidden_state
            with workshop.edit(family, site, "l2", "identity").live(base):
                live = base.get_decoder()(IDS).last_hidden_state
            plain = base.get_decoder()(IDS).last_hidden_state
        assert gap(found, causal) <= 1e-5  # as in ``limit``: 0 here; hidden states are a tenth of the logits
        assert gap(found, live) <= 1e-5
        assert gap(found, plain) > 1e-2


def without(artefact: Path, folder: Path, lost: Any) -> Path:
    """A copy of an artefact that lacks the SEA tensors for which ``lost(name)``."""
    shutil.copytree(artefact, folder)
    tensors = {name: t for name, t in load_file(folder / SEA_SHARD).items() if not lost(name)}
    (folder / SEA_SHARD).unlink()
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    kept = {name: file for name, file in index["weight_map"].items() if file != SEA_SHARD or name in tensors}
    path.write_text(json.dumps(index | {"weight_map": kept}))
    if tensors:
        save_file(tensors, folder / SEA_SHARD, metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize(
    "lost", [lambda name: True, lambda name: name.endswith("3.sea.0.B") or "3.mlp.sea.0.B" in name], ids=["all", "one"]
)
@pytest.mark.parametrize("site", ["mlp", "block"])
@every_family
def test_a_lost_edit_gives_nan_never_the_base(workshop: Workshop, tmp_path: Path, family: str, site: str, lost: Any):
    from transformers import AutoModelForCausalLM

    artefact = workshop.artefact(family, site, "l2", "identity")
    folder = without(artefact, tmp_path / "lost", lost)
    with pytest.raises(AssertionError, match="missing_keys"):
        load(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()
    with torch.inference_mode():
        assert torch.isnan(model(IDS).logits).all()
    with torch.inference_mode():
        assert torch.isfinite(load(artefact)(IDS).logits).all()  # control: it is the loss that does it


# ---------------------------------------------------------------------------------------------- a real model


TEXTS = (
    "Why is the sky so blue when the sun",
    "Do goldfish forget everything after a few seconds",
)


class Real:
    """SmolLM2 and its activations at each site: loaded once, 16 demonstrations, prompt-only neutral texts."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.models = {dtype: load(folder, dtype) for dtype in (torch.float32, torch.bfloat16)}
        self.tokenizer = load_tokenizer(folder)
        ids = torch.tensor([self.tokenizer(text)["input_ids"][:8] for text in TEXTS])
        self.prompts = Prompts(ids, lengths=(8, 5), prefill=6, new=4)
        self.before = {dtype: answers(model, self.prompts) for dtype, model in self.models.items()}
        self._activations: dict[str, Any] = {}

    def activations(self, site: str) -> Any:
        if site not in self._activations:
            self._activations[site] = collect(
                self.models[torch.float32],
                self.tokenizer,
                builtin()[:16],
                source=self.folder.name,
                site=site,
                neutral="prompt",
            )
        return self._activations[site]

    def edit(self, site: str, merge: str, feature: str) -> Edit:
        return fit(None, activations=self.activations(site), merge=merge, feature=feature)


@pytest.fixture(scope="module")
def real(smollm2: Path) -> Real:
    return Real(smollm2)


@pytest.mark.smollm2
@every_feature
@every_merge
@every_site
def test_live_is_inserted_and_reloaded_on_smollm2(real: Real, tmp_path: Path, site: str, merge: str, feature: str):
    """20 of 30 layers edited."""
    edit = real.edit(site, merge, feature)
    bake(real.folder, edit, tmp_path / "art")
    for dtype in (torch.float32, torch.bfloat16):
        live = live_answers(edit, real.models[dtype], real.prompts)
        assert_visible(real.before[dtype], live)
        reloaded = load(tmp_path / "art", dtype)
        assert sea_dtypes(reloaded) == {torch.float32}
        assert_same(live, answers(reloaded, real.prompts))


@pytest.mark.smollm2
@every_feature
@every_site
def test_live_is_the_oracle_on_smollm2(real: Real, site: str, feature: str):
    """Real activations: single features of a block's output are hundreds of times larger than the others."""
    edit, saved = real.edit(site, "l2", feature), real.activations(site)
    for layer in (edit.layers[0], edit.layers[-1]):
        row = saved.layers.index(layer)
        H = [role[row].double().numpy() for role in (saved.neutral, saved.positive, saved.negative)]
        P = oracle.projections(*H, DEFAULT_K, DEFAULT_K, feature=feature)
        assert edit.ranks[layer] == P.ranks
        expected = oracle.edit(H[1], P.positive, P.negative, "l2", feature)
        found = edit.layer(layer)(saved.positive[row]).double().numpy()
        # Per vector, relative to its largest entry: float32 rounding, enlarged by φ⁻¹ (oracle.AMPLIFICATION).
        limits = oracle.tolerance(feature, 2.0**-24) * abs(expected).max(axis=-1, keepdims=True)
        assert (abs(found - expected) < limits).all()
        assert not (abs(H[1] - expected) < limits).all()  # control: the unedited vectors are told from the edited ones
