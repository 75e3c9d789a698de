"""An edit worth shipping: its strength is found for a KL, its gain is told from damage, and noise is told as noise."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch

from sea_bake import Edit, fit
from sea_bake.demonstrations import Demonstration, builtin
from sea_bake.demonstrations.holding import FEWEST, hold_back
from sea_bake.edit.measured import CLAIM, Controls, Estimate, Measured
from sea_bake.errors import DemonstrationError, EditError, EvaluationError, SettingError
from sea_bake.evaluation import controls as drawing
from sea_bake.evaluation.controls import Draw, compared, constants, kinds_of, turned
from sea_bake.evaluation.elsewhere import best, elsewhere
from sea_bake.evaluation.neutral import TEXTS
from sea_bake.evaluation.strength import CLOSE, UnreachedError, check_budget, find
from sea_bake.evaluation.worth import Bench
from sea_bake.io.cache import VARIABLE
from sea_bake.methods.affine import AffineMap
from sea_bake.methods.sea import Projector
from sea_bake.model.anatomy import Site
from sea_bake.model.fingerprint import BaseModel
from sea_bake.model.loading import load_model, load_tokenizer
from sea_bake.pages.edits import measured, worth


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache" / "controls"


# --------------------------------------------------------------------------------------------------------- the strength

CURVES: dict[str, Callable[[float], float]] = {
    "square": lambda a: 0.13 * a * a,
    "saturating": lambda a: 3 * math.tanh(a * a / 20),
    "steep": lambda a: 1e-4 * a * a + 1e-3 * a**4,
    "faint": lambda a: 1e-9 * a * a,
    "strong": lambda a: 50 * a * a,
    "linear": lambda a: 0.01 * a,
}


@pytest.mark.parametrize("name", CURVES)
@pytest.mark.parametrize("budget", [0.01, 0.1, 1.0])
def test_a_few_evaluations_reach_the_budget(name: str, budget: float) -> None:
    found = find(CURVES[name], budget)
    assert abs(CURVES[name](found.alpha) - budget) <= CLOSE * budget
    assert found.kl == CURVES[name](found.alpha)
    assert found.evaluations <= 8
    assert float(f"{found.alpha:.4g}") == found.alpha  # what is said is what was measured


def test_a_budget_that_no_strength_reaches() -> None:
    with pytest.raises(UnreachedError, match=r"the largest seen is 0.03"):
        find(lambda a: 0.03 * math.tanh(a * a), 0.1)
    with pytest.raises(UnreachedError, match=r"the largest seen is 0,"):
        find(lambda a: 0.0, 0.1)
    with pytest.raises(UnreachedError, match=r"jumps over 0.1 .* 1\.9.* and 2"):
        find(lambda a: 0.01 if a < 2 else 1.0, 0.1)
    with pytest.raises(SettingError, match="must not be 0"):
        find(lambda a: a * a, 0.0)


def test_a_strength_below_0_is_found_on_its_side() -> None:
    tried: list[float] = []
    found = find(lambda a: tried.append(a) or 0.1 * a * a if a < 0 else 1.0 / a, 0.3, start=-1.0)
    assert found.alpha == pytest.approx(-(3**0.5), rel=CLOSE)
    assert max(tried) < 0


def test_nan_far_away_is_too_far_and_nan_at_once_is_an_error() -> None:
    def kl(alpha: float) -> float:
        if alpha > limit:
            raise EvaluationError("NaN logits")
        return 0.02 * alpha * alpha

    limit = 3.0
    assert find(kl, 0.1).alpha == pytest.approx(5**0.5, rel=CLOSE)
    limit = 0.5
    with pytest.raises(EvaluationError, match="NaN"):
        find(kl, 0.1)


@pytest.mark.parametrize("budget", [0, -0.1, math.nan, math.inf, True, 1e-9])
def test_what_is_no_budget(budget: Any) -> None:
    with pytest.raises(SettingError, match="is no KL"):
        check_budget(budget)


# ------------------------------------------------------------------------------------------------------------ held back


def triples(questions: int, each: int = 1) -> list[Demonstration]:
    return [Demonstration(f"Question {i}?", f"Yes {j}.", f"No {j}.") for i in range(questions) for j in range(each)]


def test_a_fifth_is_held_back_by_question() -> None:
    given = [Demonstration(d.prompt.upper() if i % 2 else f" {d.prompt} ", d.positive, d.negative)
             for i, d in enumerate(triples(40, 3))]  # fmt: skip
    parts = hold_back(given)
    assert len(parts.held_back) == 24
    assert len(parts.fit) == 96
    asked = [{" ".join(d.prompt.split()).lower() for d in part} for part in (parts.fit, parts.held_back)]
    assert not asked[0] & asked[1]
    assert [d for d in given if d in parts.fit] == list(parts.fit)
    assert hold_back(given) == parts
    assert hold_back(given, seed=1).held_back != parts.held_back
    rows = {i % 5 for i in range(len(given))}  # the control: drawn by row, a question lies on both sides
    by_row = [[d for i, d in enumerate(given) if (i % 5 == 0) == kept] for kept in (False, True)]
    assert rows
    assert {" ".join(d.prompt.split()).lower() for d in by_row[0]} & {
        " ".join(d.prompt.split()).lower() for d in by_row[1]
    }


def test_too_few_to_hold_any_back() -> None:
    assert hold_back(triples(45)).held_back == []
    assert "45 demonstrations are too few" in hold_back(triples(45)).why
    assert "200 demonstrations have one prompt" in hold_back(triples(1, 200)).why
    assert "a share of 0.1 of 50 demonstrations is 5" in hold_back(triples(50), 0.1).why
    assert "no whole prompts could be held back of the 60" in hold_back(triples(4, 15)).why
    assert len(hold_back(triples(50)).held_back) == FEWEST
    assert hold_back(triples(100), 0).held_back == []
    assert getattr(hold_back(builtin()).fit, "origin", None) == builtin().origin
    for share in (-0.1, 0.95, True, "0.2", math.nan):
        with pytest.raises(DemonstrationError, match="is no share"):
            hold_back(triples(9), share)  # type: ignore[arg-type]


@pytest.mark.parametrize("sizes", [(50, 10), (50, 5, 5), (40, 5, 5, 5), (40, 5, 10, 5), (50, 10, 10, 10)])
def test_holding_back_leaves_three_prompts_to_fit_on(sizes: Sequence[int]) -> None:
    given = [Demonstration(f"Question {i}?", f"Yes {j}.", "No.") for i, size in enumerate(sizes) for j in range(size)]
    for seed in range(5):
        parts = hold_back(given, seed=seed)
        assert len({one.prompt for one in parts.fit}) >= min(3, len(sizes))
        assert bool(parts.held_back) == (10 in sizes and len(sizes) == 4)  # the control: there one can be spared
        assert bool(parts.why) != bool(parts.held_back)


# --------------------------------------------------------------------------------------------------------- random edits


def base() -> BaseModel:
    return BaseModel.of(load_model(tiny.single()), "tiny")


def projectors(ranks: tuple[int, int] = (5, 4)) -> dict[int, Projector]:
    made = torch.Generator().manual_seed(1)
    spectrum = torch.ones(8, dtype=torch.float64)

    def rows(k: int) -> torch.Tensor:
        return torch.linalg.qr(torch.randn(tiny.HIDDEN, k, generator=made))[0].T.contiguous()

    return {layer: Projector(rows(ranks[0]), rows(ranks[1]), spectrum, spectrum) for layer in (1, 2)}


@pytest.mark.parametrize("ranks", [(5, 4), (tiny.HIDDEN, 7), (0, 3)])
def test_a_turned_edit_has_everything_but_its_directions(ranks: tuple[int, int]) -> None:
    edit = Edit(projectors(ranks), Site.ATTN, base(), merge="sum", alpha=0.7)
    other = turned(edit, 0)
    assert other.ranks == edit.ranks
    assert (other.alpha, other.merge, other.site) == (0.7, "sum", Site.ATTN)
    for layer, old in edit.projectors.items():
        new = other.projectors[layer]
        for rows in (new.positive, new.negative):
            assert torch.allclose(rows @ rows.T, torch.eye(len(rows)), atol=1e-5)
        assert torch.allclose(new.positive @ new.negative.T, old.positive @ old.negative.T, atol=1e-5)
        if ranks[1]:
            assert not torch.allclose(new.negative, old.negative, atol=0.05)
    assert not torch.equal(turned(edit, 1).projectors[1].negative, other.projectors[1].negative)
    assert torch.equal(turned(edit, 0).projectors[1].negative, other.projectors[1].negative)
    assert not torch.allclose(other.projectors[1].negative, other.projectors[2].negative)


def test_a_turned_affine_map() -> None:
    made = torch.Generator().manual_seed(2)
    d = tiny.HIDDEN
    r = torch.nn.functional.normalize(torch.randn(d, generator=made), dim=0)
    ablation = AffineMap(A=r[None], B=-r[:, None])
    new = turned(Edit({0: ablation, 3: ablation}, Site.ATTN, base(), merge="sum"), 0)
    assert torch.equal(new.maps[0].A, new.maps[3].A)  # type: ignore[union-attr]  (one direction in all layers stays one)
    assert torch.allclose(new.maps[0].A[0], -new.maps[0].B[:, 0], atol=1e-6)  # type: ignore[union-attr]
    one = AffineMap(constant=torch.randn(d, generator=made) * 3)
    edit = Edit({0: one}, Site.BLOCK, base(), merge="sum")
    assert kinds_of(edit) == ("constants",)
    assert float(turned(edit, 4).maps[0].constant.norm()) == pytest.approx(float(one.constant.norm()), rel=1e-5)  # type: ignore[union-attr]
    scaled = AffineMap(scale=torch.rand(d, generator=made), constant=torch.randn(d, generator=made))
    act = turned(Edit({0: scaled}, Site.ATTN, base(), merge="sum"), 0).maps[0]
    pairs = [sorted(zip(m.scale.tolist(), m.constant.tolist())) for m in (scaled, act)]  # type: ignore[union-attr]
    assert pairs[0] == pairs[1]
    assert not torch.equal(act.scale, scaled.scale)


def test_constants_have_the_length_that_is_asked_for() -> None:
    edit = Edit(projectors(), Site.ATTN, base(), merge="sum")
    made = constants(edit, {1: 2.0, 2: 0.5}, 7)
    lengths = {layer: float(one.constant.norm()) for layer, one in made.maps.items()}  # type: ignore[union-attr]
    assert lengths == pytest.approx({1: 2.0, 2: 0.5}, rel=1e-5)
    assert made.is_constant


def drawn(rng: Any, draws: int, items: int, spread: float) -> list[Draw | None]:
    """Draws whose means differ by a spread of their own, beside the noise of items."""
    return [Draw(1.0, 0.1, tuple(rng.normal(0, spread) + rng.normal(0, 0.1, items))) for _ in range(draws)]


@pytest.mark.slow
def test_a_planted_gain_stands_above_and_noise_does_not() -> None:
    rng = np.random.default_rng(0)
    others = drawn(rng, CLAIM, 40, 0.03)
    planted = compared("subspaces", list(rng.normal(0.3, 0.1, 40)), others)
    assert planted is not None
    assert planted.below == CLAIM
    assert planted.difference.low > 0
    assert planted.above
    told = 0
    for seed in range(200):  # an edit that is one more draw
        rng = np.random.default_rng(seed)
        (one,) = drawn(rng, 1, 40, 0.03)
        found = compared("subspaces", one.gains if one else (), drawn(rng, CLAIM, 40, 0.03))
        assert found is not None
        told += found.above
    assert told <= 200 * 0.16  # 2 of 21 places, and chance
    assert compared("subspaces", [0.1], [None, None]) is None


@pytest.mark.slow
def test_the_interval_of_the_mean_counts_draws_and_items() -> None:
    """Of many worlds, 95 % of intervals hold the true mean; with the errors of items alone far fewer do."""
    both = items_alone = 0
    for seed in range(150):
        rng = np.random.default_rng(seed)
        others = drawn(rng, CLAIM, 40, 0.05)
        found = compared("constants", [0.0] * 40, others)
        assert found is not None
        both += found.mean.low <= 0 <= found.mean.high
        table = np.array([one.gains for one in others if one])
        half = 1.96 * table.mean(0).std(ddof=1) / 40**0.5
        items_alone += abs(table.mean()) <= half
    assert both >= 150 * 0.88
    assert items_alone <= 150 * 0.6  # the control


# ------------------------------------------------------------------------------------------------------ what is written

GAIN = Estimate(0.06, 0.04, 0.08)
ABOVE = Controls("subspaces", CLAIM, CLAIM, Estimate(0.0, -0.01, 0.01), Estimate(0.06, 0.03, 0.09))
KNOWN = Measured(Estimate(0.1, 0.09, 0.11), 0.1, 30, GAIN, -0.1, 32, "ab" * 32, [ABOVE], asked=CLAIM)


@pytest.mark.parametrize(
    ("change", "shown", "beyond", "words"),
    [
        ({}, True, True, "a gain beyond damage"),
        ({"controls": [replace(ABOVE, below=19)]}, True, True, "a gain beyond damage"),
        ({"controls": [replace(ABOVE, below=18)]}, False, False, "no gain shown"),
        ({"controls": [ABOVE, replace(ABOVE, kind="constants", below=3)]}, False, False, "no gain shown"),
        ({"controls": [replace(ABOVE, draws=2, below=2)]}, True, False, "would do the same is open"),
        ({"controls": [replace(ABOVE, draws=2, below=1)]}, False, False, "no gain shown"),
        ({"controls": []}, True, False, "would do the same is open"),
        ({"gain": Estimate(0.06, -0.01, 0.13)}, False, False, "no gain shown"),
        ({"gain": Estimate(-0.06, -0.11, -0.01)}, False, False, ": a loss"),
        ({"missing": {"constants": 5}}, True, False, "would do the same is open"),  # a kind that no draw is of
        ({"asked": 0}, True, False, "would do the same is open"),  # an older record, which does not say of which kinds
        ({"asked": 0, "controls": [ABOVE, replace(ABOVE, kind="constants")]}, True, True, "a gain beyond damage"),
        ({"controls": [replace(ABOVE, draws=19, below=19)]}, True, False, "would do the same is open"),
        ({"gain": None, "base": None, "why": "8 demonstrations are too few"}, False, False, "gain: not measured (8"),
    ],
)
def test_what_is_said(change: dict[str, Any], shown: bool, beyond: bool, words: str) -> None:
    found = replace(KNOWN, **change)
    assert (found.shown, found.beyond_damage) == (shown, beyond)
    edit = Edit(projectors(), Site.ATTN, base(), merge="sum", measured=found)
    lines = measured(edit)
    assert len(lines) == 3
    assert words in lines[0]
    assert "KL 0.1000 [0.0900, 0.1100] nats per token of 30 neutral texts" in lines[1]
    few = bool(found.missing) or any(one.draws < CLAIM for one in found.controls)
    assert ("fewer allow no claim" in lines[2]) == few
    assert "--controls 20" not in lines[2]  # which is what was asked for
    assert ("none of 5 random constant vectors reached it" in lines[2]) == bool(found.missing)
    assert worth([edit]) == lines
    assert worth([replace(edit, measured=None)]) == []


def test_too_few_random_edits_name_how_many_are_enough() -> None:
    few = replace(KNOWN, asked=1, controls=[replace(ABOVE, draws=1, below=1)])
    edit = Edit(projectors(), Site.ATTN, base(), merge="sum", measured=few)
    assert measured(edit)[2].endswith("so few allow no claim (--controls 20)")
    older = replace(edit, measured=replace(few, asked=0))
    assert measured(older)[2] == measured(edit)[2]


@pytest.mark.parametrize(
    ("kl", "said"),
    [
        (Estimate(0.1032, 0.09581, 0.11049), "KL 0.1032 [0.0958, 0.1105] nats"),
        (Estimate(0.01157, 0.0087, 0.0152), "KL 0.0116 [0.0087, 0.0152] nats"),
        (Estimate(1.0234e-6, 0.98e-6, 1.07e-6), "KL 1.02e-06 [9.80e-07, 1.07e-06] nats"),
        (Estimate(0.0, 0.0, 0.0), "KL 0 [0, 0] nats"),
    ],
)
def test_a_small_kl_has_three_significant_digits(kl: Estimate, said: str) -> None:
    edit = Edit(projectors(), Site.ATTN, base(), merge="sum", measured=replace(KNOWN, kl=kl))
    assert said in measured(edit)[1]


def test_it_lies_in_the_file_and_older_files_are_read(tmp_path: Path) -> None:
    edit = Edit(projectors(), Site.ATTN, base(), merge="sum", measured=KNOWN)
    assert Edit.load(edit.save(tmp_path / "edit")).measured == KNOWN
    assert edit.describe()["measured"]["gain"] == {"value": 0.06, "low": 0.04, "high": 0.08}
    assert edit.with_settings(alpha=0.5).measured is None  # it was measured at another strength
    old = Path(__file__).parent / "files" / "version_1" / "l2.safetensors"
    assert Edit.load(old).measured is None


@pytest.mark.parametrize(
    "change",
    [
        {"kl": 3},
        {"gain": {"value": "much", "low": 0, "high": 1}},
        {"kl": {"value": -1.0, "low": 0, "high": 1}},
        {"gain": {"value": 1e30, "low": 0, "high": 1}},
        {"held_back": -1},
        {"controls": [{"kind": "none"}]},
        {"controls": [{**KNOWN.to_json()["controls"][0], "where": "block\n# Verified"}]},
        {"controls": [{**KNOWN.to_json()["controls"][0], "where": "block" * 999}]},
        {"controls": [{**KNOWN.to_json()["controls"][0], "below": 21}]},
        {"controls": [{**KNOWN.to_json()["controls"][0], "kind": "friendly"}]},
        {"why": 3},
        {"asked": -1},
        {"missing": {"friendly": 5}},
        {"missing": {"constants": 0}},
    ],
)
def test_garbage_in_the_file_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    edit = Edit(projectors(), Site.ATTN, base(), merge="sum", measured=KNOWN)
    with pytest.raises(ValueError, match=r"\w"):
        Measured.from_json(KNOWN.to_json() | change)

    class Bent(Measured):
        def to_json(self) -> dict[str, Any]:
            return KNOWN.to_json() | change

    saved = replace(edit, measured=Bent()).save(tmp_path / "edit")
    with pytest.raises(EditError, match="garbles"):
        Edit.load(saved)


# ------------------------------------------------------------------------------------------------------ on a tiny model


@pytest.fixture(scope="module")
def living() -> Iterator[tuple[Any, Any]]:
    return load_model(tiny.single()), load_tokenizer(tiny.single())


def divergence(model: Any, tokenizer: Any, edit: Edit, texts: Sequence[str] = TEXTS) -> float:
    """KL(base || edited) per token, in float64, with nothing of ours but the hooks."""
    total = count = 0.0
    for text in texts:
        ids = torch.tensor([tokenizer(text)["input_ids"][:256]])
        with torch.inference_mode():
            p = model(input_ids=ids).logits[0, :-1].double().log_softmax(-1)
            with edit.live(model):
                q = model(input_ids=ids).logits[0, :-1].double().log_softmax(-1)
        total += float((p.exp() * (p - q)).sum())
        count += len(p)
    return total / count


SETTINGS: dict[str, Any] = {"neutral": "prompt", "layers": [1, 2]}


@pytest.mark.slow
def test_a_fit_costs_its_budget(living: tuple[Any, Any]) -> None:
    model, tokenizer = living
    told: dict[str, Any] = {"tokenizer": tokenizer, "source": "tiny", **SETTINGS}
    for budget in (0.02, 0.1):
        edit = fit(model, builtin()[:12], budget=budget, **told)
        assert divergence(model, tokenizer, edit) == pytest.approx(budget, rel=0.1)
        assert edit.measured is not None
        assert edit.measured.kl is not None
        assert edit.measured.budget == budget
        assert edit.measured.kl.value == pytest.approx(divergence(model, tokenizer, edit), rel=1e-3)
        assert edit.measured.gain is None
        assert "12 demonstrations are too few" in edit.measured.why
    fixed = fit(model, builtin()[:12], alpha=0.3, **told)
    assert fixed.alpha == 0.3
    assert fixed.measured is not None
    assert fixed.measured.budget is None
    assert divergence(model, tokenizer, fixed) != pytest.approx(0.1, rel=0.1)  # the control
    assert fit(model, builtin()[:12], budget=None, measure=False, **told).alpha == 0.77
    with pytest.raises(UnreachedError, match="the largest seen is"):
        fit(model, builtin()[:12], budget=90.0, **told)


@pytest.mark.slow
@pytest.mark.parametrize("measure", [True, False])
def test_a_default_that_no_strength_reaches_loses_no_fit(
    living: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch, measure: bool
) -> None:
    model, tokenizer = living
    monkeypatch.setattr("sea_bake.fitting.DEFAULT_BUDGET", 90.0)
    told: dict[str, Any] = {"tokenizer": tokenizer, "source": "tiny", "measure": measure, "controls": 0, **SETTINGS}
    edit = fit(model, builtin()[:12], budget=90.0, **told)
    found = edit.measured
    assert found is not None
    assert (edit.alpha, found.budget, found.missed) == (0.77, None, 90.0)
    assert found.kl is not None
    assert found.kl.value == pytest.approx(divergence(model, tokenizer, edit), rel=1e-3)
    assert "(strength 0.77, the method's own: none reaches the budget of 90)" in measured(edit)[1]


def planted(model: Any, tokenizer: Any, count: int) -> tuple[list[Demonstration], Edit]:
    """Demonstrations whose good answers are made of one token and whose bad ones of another; and the constant that
    moves from the one to the other."""
    good, bad = (tokenizer(text, add_special_tokens=False)["input_ids"][0] for text in ("a", "z"))
    asked = [Demonstration(f"Number {i}?", "a" * (2 + i % 3), "z" * (2 + i % 3)) for i in range(count)]
    head = model.get_output_embeddings().weight.detach().float()
    last = model.config.num_hidden_layers - 1
    vector = head[good] - head[bad]
    return asked, Edit({last: AffineMap(constant=vector)}, Site.BLOCK, BaseModel.of(model, "tiny"), merge="sum")


@pytest.mark.slow
def test_a_planted_gain_is_found_and_noise_is_not(living: tuple[Any, Any], cache: Path) -> None:
    model, tokenizer = living
    asked, edit = planted(model, tokenizer, 24)
    bench = Bench(model, tokenizer, asked)
    edit = bench.strength(edit, 0.1)
    found = bench.measured(edit, controls=CLAIM, budget=0.1)
    assert found.beyond_damage
    assert found.gain is not None
    assert found.gain.low > 0
    assert found.held_back == 24
    assert [(one.kind, one.draws) for one in found.controls] == [("constants", CLAIM), ("elsewhere", CLAIM)]
    last = model.config.num_hidden_layers - 1
    assert found.controls[1].where in (f"attn, layers 1-{last}", f"mlp, layers 1-{last}")
    assert (
        f"{CLAIM} random constant vectors at another site ({found.controls[1].where})"
        in measured(replace(edit, measured=found))[2]
    )
    noise = bench.strength(turned(edit, 12345), 0.1)
    dull = bench.measured(noise, controls=CLAIM, budget=0.1)
    assert not dull.beyond_damage
    assert not dull.shown
    assert measured(replace(noise, measured=dull))[0].endswith(": a loss")
    # Turned edits are each edit's own. Those elsewhere are the model's, but for a KL that is another in three digits.
    drawn = len(list(cache.glob("*.json"))) - 2 * CLAIM
    assert drawn in (CLAIM + 3, 2 * (CLAIM + 3))


def test_a_draw_that_does_not_reach_the_kl_is_replaced(
    living: tuple[Any, Any], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = living
    _, edit = planted(model, tokenizer, 12)
    steps: list[int] = []
    cases: list[tuple[Sequence[int], int, int, int]] = [
        ((), 3, 3, 3), ((1,), 3, 3, 4), (range(99), 20, 0, 5), (range(4, 99), 20, 4, 43)
    ]  # fmt: skip
    for lost, count, found, tries in cases:
        made = [Draw(0.2, 0.1, () if seed in lost else (0.0, 1.0)) for seed in range(99)]
        one = drawing.Drawing(replace(edit, alpha=0.2), 0.1, lambda e: 0.0, lambda e: [0.0, 1.0], dict, "", None)
        monkeypatch.setattr(one, "_drawn", lambda kind, seed, start, made=made: made[seed])
        steps.clear()
        draws = one.draws("constants", count, steps.append)
        assert (sum(d is not None for d in draws), len(draws)) == (found, tries)
        assert sum(steps) == count


def test_the_best_other_site_is_the_one_whose_draws_gain_most(
    living: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = living
    _, edit = planted(model, tokenizer, 12)  # at the residual stream
    there = elsewhere(model, edit)
    assert [(one.site, where.partition(",")[0]) for one, where in there] == [(Site.ATTN, "attn"), (Site.MLP, "mlp")]
    assert [one.site for one, _ in elsewhere(model, replace(edit, site=Site.HEADS))] == [Site.MLP, Site.BLOCK]
    assert all(one.changes_nothing for one, _ in there)  # its draws alone add something
    with monkeypatch.context() as patched:  # of a model whose layers differ, those that have the site
        patched.setattr("sea_bake.evaluation.elsewhere.layers_with", lambda model, site: (0, 1, 3))
        assert [(one.layers, where) for one, where in elsewhere(model, replace(edit, site=Site.ATTN))] == [
            ((1, 3), "mlp, layers 1, 3"), ((1,), "block, layer 1")
        ]  # fmt: skip
    gains = {Site.ATTN: (0.1, 0.2), Site.MLP: (0.3, 0.1)}

    def made(self: drawing.Drawing, kind: str, seed: int, start: float) -> Draw:
        assert kind == "elsewhere"
        return Draw(0.1, 0.1, gains[self.edit.site])

    monkeypatch.setattr(drawing.Drawing, "_drawn", made)

    def tried() -> list[drawing.Drawing]:
        return [drawing.Drawing(one, 0.1, lambda e: 0.0, lambda e: [], dict, "", None, where) for one, where in there]

    assert best("elsewhere", tried()).edit.site is Site.MLP
    assert best("elsewhere", tried()[:1]).edit.site is Site.ATTN
    gains[Site.MLP] = ()  # no strength reaches the KL there
    assert best("elsewhere", tried()).edit.site is Site.ATTN


def test_a_claim_needs_the_other_site_too() -> None:
    other = replace(ABOVE, kind="elsewhere", where="attn, layers 10-29")
    found = replace(KNOWN, asked=CLAIM, controls=[ABOVE, other])
    assert found.beyond_damage
    assert not replace(found, controls=[ABOVE, replace(other, below=18)]).shown
    assert not replace(found, controls=[ABOVE, replace(other, draws=19, below=19)]).beyond_damage
    assert not replace(found, controls=[ABOVE], missing={"elsewhere": 5}).beyond_damage
    assert Measured.from_json(json.loads(json.dumps(found.to_json()))) == found


def test_a_kind_that_cannot_be_drawn_allows_no_claim(
    living: tuple[Any, Any], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Directional maps turned at random reach no KL here, constants do: half of what is claimed would be missing."""
    model, tokenizer = living
    asked, _ = planted(model, tokenizer, 12)
    edit = Edit(projectors(), Site.ATTN, BaseModel.of(model, "tiny"), merge="sum", alpha=0.5)
    bench = Bench(model, tokenizer, asked, texts=TEXTS[:4])
    own = drawing.find

    def lost(kl: Any, *more: Any, **options: Any) -> Any:
        if options["start"] == edit.alpha:
            raise UnreachedError("no strength", 0.0)
        return own(kl, *more, **options)

    monkeypatch.setattr(drawing, "find", lost)
    found = bench.measured(edit, controls=2)
    assert found.missing == {"subspaces": 5}
    assert [(one.kind, one.draws) for one in found.controls] == [("constants", 2)]
    assert found.asked == 2
    assert Measured.from_json(json.loads(json.dumps(found.to_json()))) == found
    assert "none of 5 random subspaces of the same ranks reached it" in measured(replace(edit, measured=found))[2]
    assert bench.measured(edit, controls=0).asked == 0


def test_random_edits_of_a_strength_below_0_lie_below_it(living: tuple[Any, Any], cache: Path) -> None:
    model, tokenizer = living
    asked, _ = planted(model, tokenizer, 12)
    edit = Edit(projectors(), Site.ATTN, BaseModel.of(model, "tiny"), merge="sum", alpha=-0.5)
    found = Bench(model, tokenizer, asked, texts=TEXTS[:4]).measured(edit, controls=1)
    assert {one.kind: one.draws for one in found.controls} == {"subspaces": 1, "constants": 1}
    strengths = sorted(json.loads(path.read_text())["alpha"] for path in cache.glob("*.json"))
    assert strengths[0] < 0 < strengths[1]  # the subspaces' is the edit's turned round, and a constant has no side


def test_what_changes_nothing_has_no_random_edits(living: tuple[Any, Any], cache: Path) -> None:
    model, tokenizer = living
    asked, edit = planted(model, tokenizer, 12)
    bench = Bench(model, tokenizer, asked, texts=TEXTS[:4])
    none = bench.measured(replace(edit, alpha=0.0), controls=1)
    assert none == Measured(why="it changes nothing: this is the base model")
    faint = replace(edit, alpha=1e-9)
    found = bench.measured(faint, controls=1)
    assert found.gain is not None
    assert (found.controls, found.missing, found.asked) == ([], {}, 1)
    assert "there are no random edits of that KL" in measured(replace(faint, measured=found))[2]
    assert not list(cache.glob("*.json"))


def said_of(name: str, rows: list[dict[str, str]], *more: object, base: Path | None = None) -> tiny.Ran:
    path = tiny.root() / f"worth-{name}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    words = ("-d", path, "--neutral", "prompt", "--layers", "1-2", "-o", tiny.root() / f"worth-{name}", "--overwrite")
    return tiny.run("fit", base or tiny.single(), *words, *more)


def rows_of(prompts: Sequence[str]) -> list[dict[str, str]]:
    return [{"prompt": prompt, "positive": f"Yes, {i}.", "negative": f"No, {i}!"} for i, prompt in enumerate(prompts)]


def test_a_fit_that_changes_nothing_is_refused() -> None:
    one, two = rows_of(["Is it?"] * 12), rows_of(["Is it?"] * 10 + ["Was it?"] * 2)
    for more in (["--no-centre"], []):
        ran = said_of("one", one, *more)
        tiny.refused(ran, "ActivationError", "would change nothing", "--method mean-difference")
        assert "pass --no-centre" not in ran.message  # which leads here again
    ran = said_of("two", two, "--held-back", 0)
    tiny.refused(ran, "ActivationError", "keeps the very directions that it drops", "three different prompts")
    tiny.refused(said_of("pair", rows_of(["Is it?", "Was it?"])), "ActivationError", "sea needs at least 3")
    wide = said_of("wide", rows_of([f"Is it {i}?" for i in range(8)]), "-K", 1.0)
    tiny.refused(wide, "ActivationError", "keeps the very directions", "a smaller K")
    for data, more in ((one, ("--method", "mean-difference")), (two, ("--no-centre", "-K", 1))):  # the cures
        ran = said_of("cured", data, *more, "--no-measure", "--alpha", 1)
        assert ran.code == 0, ran.err


def test_a_model_that_no_edit_changes_is_said(tmp_path: Path) -> None:
    model = tiny.new_llama(3)
    model.lm_head.weight.data.zero_()
    model.save_pretrained(tmp_path / "dead")
    tiny.tokenizer().save_pretrained(tmp_path / "dead")
    rows = rows_of([f"Is it {i}?" for i in range(60)])
    tiny.refused(said_of("dead", rows, base=tmp_path / "dead"), "EvaluationError", "at no strength", "--site")
    ran = said_of("dead", rows, "--alpha", -1, base=tmp_path / "dead")
    assert ran.code == 0, ran.err
    assert "random edits of the same KL: none were drawn (KL 0: there are no random edits of that KL)" in ran.out
    assert "there is nothing to bake" in ran.out
    assert "Next" not in ran.out


def test_strength_0_is_the_base_and_is_said(tmp_path: Path) -> None:
    ran = said_of("zero", rows_of([f"Is it {i}?" for i in range(60)]), "--alpha", 0)
    assert ran.code == 0, ran.err
    assert "gain: not measured (it changes nothing: this is the base model)" in ran.out
    assert "At strength 0 it is the base model: there is nothing to bake" in ran.out
    assert "Next" not in ran.out


def test_controls_that_nothing_would_measure_are_refused() -> None:
    rows = rows_of([f"Is it {i}?" for i in range(8)])
    tiny.refused(said_of("mute", rows, "--no-measure", "--controls", 20), "SettingError", "--no-measure", "drop one of")


@pytest.mark.slow
def test_draws_are_kept_and_used_again(living: tuple[Any, Any], cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = living
    asked, edit = planted(model, tokenizer, 12)
    edit = replace(edit, alpha=0.2)
    first = Bench(model, tokenizer, asked).measured(edit, controls=2)
    files = sorted(cache.glob("*.json"))
    assert len(files) == 2
    calls: list[int] = []
    monkeypatch.setattr(drawing, "find", lambda *a, **k: calls.append(1) or find(*a, **k))
    assert Bench(model, tokenizer, asked).measured(edit, controls=2) == first
    assert not calls
    files[0].write_text("{")
    assert Bench(model, tokenizer, asked).measured(edit, controls=2) == first
    assert len(calls) == 1
    assert json.loads(files[0].read_text())["gains"]
    Bench(model, tokenizer, asked[1:]).measured(edit, controls=2)
    assert len(calls) == 3  # the control: other demonstrations are measured again
    monkeypatch.setenv(VARIABLE, "")
    Bench(model, tokenizer, asked).measured(edit, controls=2)
    assert len(calls) == 5
    assert len(list(cache.glob("*.json"))) == 4
    monkeypatch.setenv(VARIABLE, "/proc/no/such")
    assert Bench(model, tokenizer, asked).measured(edit, controls=2) == first  # a home that cannot be written to


@pytest.mark.slow
def test_the_command_line_says_three_lines(tmp_path: Path) -> None:
    data = ("-d", tiny.demonstrations_file(60), "--neutral", "prompt", "--layers", "1-2")
    ran = tiny.run("fit", tiny.single(), *data, "-o", tmp_path / "edit")
    assert ran.code == 0, ran.err
    lines = [line for line in ran.out.splitlines() if line.startswith(("gain:", "cost:", "random edits"))]
    assert len(lines) == 3
    assert "12 demonstrations held back" in lines[0]
    assert "budget 0.1" in lines[1]
    edit = Edit.load(tmp_path / "edit")
    assert measured(edit) == lines
    assert edit.recipe["held_back"] == 0.2
    assert edit.recipe["demonstrations"] == 48
    told = tiny.run("inspect", tmp_path / "edit")
    assert all(line in told.out for line in lines)
    fewer = tiny.run("fit", tiny.single(), *data, "-o", tmp_path / "all", "--held-back", 0, "--alpha", 0.5)
    assert "gain: not measured (no demonstrations were held back)" in fewer.out
    assert "(strength 0.5)" in fewer.out
    assert Edit.load(tmp_path / "all").recipe["demonstrations"] == 60
    none = tiny.run("fit", tiny.single(), *data, "-o", tmp_path / "none", "--no-measure", "--alpha", 0.5)
    assert none.code == 0
    assert "nothing was measured" in none.out
    assert Edit.load(tmp_path / "none").measured is None
    both = tiny.run("fit", tiny.single(), *data, "-o", tmp_path / "both", "--alpha", 0.5, "--budget", 0.1)
    tiny.refused(both, "SettingError", "--alpha fixes the strength", "give one of them")
    far = tiny.run("fit", tiny.single(), *data, "-o", tmp_path / "far", "--budget", 90)
    tiny.refused(far, "UnreachedError", "the largest seen is", "--alpha")
    assert not (tmp_path / "both").exists()
    assert not (tmp_path / "far").exists()


# ------------------------------------------------------------------------------------------------------ on real weights


@pytest.mark.slow
@pytest.mark.smollm2
def test_smollm2_costs_its_budget_and_says_what_it_gains(
    short_smollm2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On ten of the neutral texts."""
    from sea_bake import bake
    from sea_bake.artefact import Artefact
    from sea_bake.publishing.card import render
    from sea_bake.publishing.licence import Licence
    from sea_bake.reporting import report

    monkeypatch.setitem(Bench.__init__.__kwdefaults__, "texts", TEXTS[:10])
    edit = fit(short_smollm2, builtin()[:50], neutral="prompt")
    model, tokenizer = load_model(short_smollm2), load_tokenizer(short_smollm2)
    assert divergence(model, tokenizer, edit, TEXTS[:10]) == pytest.approx(0.1, rel=0.1)
    found = edit.measured
    assert found is not None
    assert found.held_back == 10
    assert found.gain is not None
    assert {one.kind for one in found.controls} == {"subspaces", "constants"}
    baked = bake(short_smollm2, edit, tmp_path / "artefact")
    assert baked.measured == {"sea/edit-0.safetensors": found}
    artefact = Artefact.open(tmp_path / "artefact")
    assert artefact.bake is not None
    assert artefact.bake.measured == baked.measured
    assert artefact.edits[0].measured == found
    card = render(artefact, "me/it", licence=Licence("apache-2.0", "the base's card"), base_card={})
    page = report(tmp_path / "artefact", output=tmp_path / "report").html
    for line in measured(edit):
        start = line.split(" [")[0]
        assert start.split(":")[1].strip()[:20] in card
        assert start in page


def test_answers_are_scored_alike_where_caches_cannot_be_shared(
    living: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from sea_bake.evaluation import preference, running

    session = running.Session(*living, 4, print)
    shared = preference.records(session, builtin()[:6])
    monkeypatch.setattr(running, "can_share", lambda model: False)
    alone = preference.records(session, builtin()[:6])
    values = [[record["values"]["margin"] for record in found] for found in (shared, alone)]
    assert values[0] == pytest.approx(values[1], abs=1e-5)
    assert values[0] != pytest.approx(values[1][::-1], abs=1e-5)  # the control


@pytest.mark.parametrize("neutral", ["prompt", "generate"])
def test_neutral_texts_end_before_a_token_that_the_embedding_lacks(tmp_path: Path, neutral: str) -> None:
    """The tokenizer was given tokens, the model was not; the demonstrations hold none of them."""
    base = tiny.changeable(tiny.single(), tmp_path / "base")
    tokenizer = load_tokenizer(base)
    tokenizer.add_tokens([" the", " of"])
    tokenizer.save_pretrained(base)
    rows = [Demonstration(f"Is {i} big?", f"It is {i}.", f"No, {i}!") for i in range(100)]
    options: dict[str, Any] = {"neutral": neutral, "max_new_tokens": 4, "alpha": 1.0, "layers": "1,3", "K": 4}
    edit = fit(base, rows, site="attn", controls=0, **options)
    assert edit.measured is not None
    assert edit.measured.kl is not None
    assert edit.measured.gain is not None
    known = Bench(load_model(base), tokenizer).neutral.ids
    assert max(map(max, known)) < tiny.VOCAB <= len(tokenizer)
    with pytest.raises(EvaluationError, match=f"has {tiny.VOCAB} rows.*use the tokenizer that belongs"):
        _ = Bench(load_model(base), tokenizer, texts=[" the cat", " the dog", "Whales"]).neutral


def test_a_demonstration_held_back_with_a_token_that_the_embedding_lacks_is_said(tmp_path: Path) -> None:
    base = tiny.changeable(tiny.single(), tmp_path / "base")
    tokenizer = load_tokenizer(base)
    tokenizer.add_tokens(["<|beyond|>"])
    rows = [Demonstration(f"Is {i} big?", f"It is {i}.", f"No, {i}!") for i in range(100)]
    bench = Bench(load_model(base), tokenizer, [*rows[:30], replace(rows[40], positive="It is <|beyond|>.")])
    edit = fit(base, rows[50:], layers="1,3", K=4, neutral="prompt", budget=None, measure=False, site="attn")
    found = bench.measured(edit, controls=0)
    assert found.gain is None
    assert f"holds the token '<|beyond|>' (id {tiny.VOCAB})" in found.why
