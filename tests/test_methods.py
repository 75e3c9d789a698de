"""The methods of ``fit``: each against a dense second reading of its paper (``rivals``), what its theory promises, and
what none of them takes.
"""

from __future__ import annotations

import ast
import functools
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import families
import numpy as np
import pytest
import rivals
import tiny
import torch
import yaml
from conftest import Workshop
from test_oracle import activations, dense, tensors

from sea_bake import Activations, Edit, bake, fit
from sea_bake.activations import collect, collect_sites
from sea_bake.demonstrations import Demonstration
from sea_bake.errors import ActivationError, MissingExtraError, SettingError
from sea_bake.methods import ablation, act, contrastive, iti, leace, mean_difference, pca, sea
from sea_bake.methods.affine import AffineMap
from sea_bake.methods.collected import Collected
from sea_bake.methods.sea import Projector
from sea_bake.methods.table import METHODS, SETTINGS, resolved
from sea_bake.model.anatomy import Site
from sea_bake.model.loading import load_model, load_tokenizer
from sea_bake.modeling_sea import SEALayer

SHAPES = [9, 24, 60]  # n below, at and above d = 24
EXACT = 1e-9  # float64, two factorisations of the same numbers; scaled by the answer


def applied(one: AffineMap, h: np.ndarray, alpha: float = 1.0) -> np.ndarray:
    """By the very layer that a checkpoint carries, in float64."""
    layer = SEALayer(one.dim, one.ranks, merge="sum", alpha=alpha, extra=one.extra).double()
    layer.load_state_dict(one.parts)
    return layer(torch.from_numpy(h)).detach().numpy()


def probes(d: int = 24) -> np.ndarray:
    return np.random.default_rng(7).normal(size=(11, d)) * 3


def apart(found: np.ndarray, expected: np.ndarray) -> float:
    """Relative to the size of what is expected."""
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def test_the_rivals_share_no_code_with_the_package() -> None:
    tree = ast.parse(Path(rivals.__file__).read_text("utf-8"))
    imported = {a.name for node in ast.walk(tree) if isinstance(node, ast.Import) for a in node.names}
    imported |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert imported == {"__future__", "dataclasses", "numpy", "numpy.typing"}


# ---------------------------------------------------------------------------------------------- against the papers


CASES = {
    "mean-difference": (mean_difference.shift, rivals.mean_difference, {}),
    "pca, centred": (pca.shift, rivals.pca, {"centre": True}),
    "pca, plain": (pca.shift, rivals.pca, {"centre": False}),
    "leace": (leace.eraser, rivals.leace, {}),
    "act": (act.transport, rivals.act, {}),
}


@pytest.mark.parametrize("n", SHAPES)
@pytest.mark.parametrize("name", CASES)
def test_a_map_is_the_dense_one(name: str, n: int) -> None:
    ours, theirs, settings = CASES[name]
    data = activations(n)
    h = probes()
    expected = theirs(*data, **settings)(h)
    assert apart(applied(ours(*tensors(data), **settings), h), expected) < EXACT
    H, H_pos, H_neg = data
    swapped = applied(ours(*tensors((H, H_neg, H_pos)), **settings), h)
    # The control: H+ for H-. What LEACE erases has no sign; it would see other rows.
    others = applied(ours(*tensors((H, H_pos[::-1].copy() + H, H_neg)), **settings), h) if name == "leace" else swapped
    assert apart(others, expected) > 1e-3
    halfway = applied(ours(*tensors(data), **settings), h, alpha=0.5)
    assert np.allclose(halfway, (h + expected) / 2)


def test_pca_knows_both_readings_and_identical_differences() -> None:
    data = activations(9)
    h = probes()
    maps = [applied(pca.shift(*tensors(data), centre=centre), h) for centre in (True, False)]
    assert apart(*maps) > 1e-3
    v = np.arange(24.0)
    same = pca.shift(*tensors((data[0], data[1] + v, data[1])), centre=True)
    assert same.constant is not None
    assert np.allclose(same.constant.numpy(), v)  # their own direction, at their own length


def test_pca_is_as_long_as_a_typical_difference_wherever_the_mean_goes() -> None:
    """What varies most is at a right angle to the mean difference: repeng adds it all the same, and so do we."""
    rng = np.random.default_rng(0)
    H, D = rng.normal(size=(40, 24)), 0.1 * rng.normal(size=(40, 24))
    D[:, 3] += np.where(np.arange(40) < 25, 1.0, -25 / 15) * 4  # no mean, and most pairs above 0
    D[:, 7] += 1.0
    for sign in (1, -1):
        v = pca.shift(*tensors((H, H + sign * D, H))).constant
        assert v is not None
        assert float(v[3]) == pytest.approx(sign * np.sqrt(np.mean(D[:, 3] ** 2)), rel=0.02)
        assert float(torch.linalg.vector_norm(v)) == pytest.approx(abs(float(v[3])), rel=0.02)
    assert abs(D.mean(0)[3]) < 0.1  # the control: the mean's component along it is next to nothing


@pytest.mark.parametrize("n", [12, 60])
def test_iti_is_the_dense_one(n: int) -> None:
    data = activations(n)
    H, H_pos, H_neg = data
    H_pos = H_pos.copy()
    H_pos[:, 8:12] += 4.0  # a head that knows
    roles = tensors((H, H_pos, H_neg))
    expected, best, accuracy = rivals.iti(H, H_pos, H_neg, heads=6, keep=2)
    maps, facts = iti.fit(Collected({3: roles}, (3,), 8, 6), heads=2)
    h = probes()
    assert apart(applied(maps[3], h), expected(h)) < EXACT
    assert facts == {"chosen_heads": {"3": {str(i): accuracy[i] for i in best}}}
    assert 2 in best
    assert accuracy[2] > 0.8
    more, _ = iti.fit(Collected({3: roles}, (3,), 8, 6), heads=3)  # the controls
    assert apart(applied(more[3], h), expected(h)) > 1e-3
    other, _ = iti.fit(Collected({3: roles}, (3,), 8, 4), heads=2)
    assert apart(applied(other[3], h), expected(h)) > 1e-3


def test_iti_chooses_among_all_edited_layers() -> None:
    rng = np.random.default_rng(0)
    quiet, loud = (tuple(rng.normal(size=(20, 24)) for _ in range(3)) for _ in range(2))
    loud[1][:, :4] += 5.0
    layers = {0: tensors(quiet), 1: tensors(loud)}
    maps, facts = iti.fit(Collected(layers, (0, 1), 2, 6), heads=1)
    assert list(maps) == [1]
    assert list(facts["chosen_heads"]["1"]) == ["0"]
    share, _ = iti.fit(Collected(layers, (0, 1), 2, 6), heads=0.25)
    assert sum(int((one.constant.reshape(6, 4) != 0).any(1).sum()) for one in share.values()) == 3
    with pytest.raises(SettingError, match="have 12 attention heads"):
        iti.fit(Collected(layers, (0, 1), 2, 6), heads=13)
    with pytest.raises(ActivationError, match="do not come from 5 attention heads"):
        iti.fit(Collected(layers, (0,), 2, 5), heads=1)


def test_ablation_is_the_dense_one() -> None:
    blocks = {layer: activations(9, layer) for layer in range(5)}
    blocks[2][1][:] += 2.0
    blocks[4][1][:] += 50.0  # furthest apart, and too late
    expected, layer = rivals.ablation(blocks, depth=5)
    collected = Collected({i: tensors(roles) for i, roles in blocks.items()}, (0, 3), 5)
    maps, facts = ablation.fit(collected)
    h = probes()
    assert facts == {"direction": layer}
    assert layer == 2
    assert list(maps) == [0, 3]
    for one in maps.values():
        assert apart(applied(one, h), expected(h)) < EXACT
        assert np.allclose(applied(one, applied(one, h)), expected(h))  # what is out is out
        reflected = applied(one, h, alpha=2)  # Householder: lengths stay, and twice is never
        assert np.allclose(np.linalg.norm(reflected, axis=1), np.linalg.norm(h, axis=1))
        assert np.allclose(applied(one, reflected, alpha=2), h)
        assert not np.allclose(np.linalg.norm(applied(one, h, alpha=1.5), axis=1), np.linalg.norm(h, axis=1))
    other, _ = ablation.fit(collected, direction=1)
    assert apart(applied(other[0], h), expected(h)) > 1e-3  # the control
    with pytest.raises(SettingError, match="no activations of that layer"):
        ablation.fit(collected, direction=7)
    with pytest.raises(ActivationError, match="the same mean"):
        ablation.fit(Collected({0: tensors((blocks[0][0],) * 3)}, (0,), 5))


@pytest.mark.parametrize("centre", [True, False])
@pytest.mark.parametrize("n", SHAPES)
def test_contrastive_is_the_dense_one(n: int, centre: bool) -> None:
    data = activations(n)
    found = contrastive.projector(*tensors(data), K_positive=3, K_negative=2, ridge=0.1, centre=centre)
    P_pos, P_neg, logs = rivals.contrastive(*data, k_pos=3, k_neg=2, ridge=0.1, centre=centre)
    assert found.ranks == (3, 2)
    assert np.abs(dense(found.positive) - P_pos).max() < 1e-7
    assert np.abs(np.eye(24) - dense(found.negative) - P_neg).max() < 1e-7
    assert np.allclose(found.positive_spectrum[:3], logs[::-1][:3])
    assert np.allclose(found.negative_spectrum[:2], -logs[:2])
    other = contrastive.projector(*tensors(data), K_positive=3, K_negative=2, ridge=10.0, centre=centre)
    assert np.abs(dense(other.positive) - P_pos).max() > 1e-3  # the control


def test_contrastive_leaves_out_what_both_share() -> None:
    """One direction that both roles vary along, and one each of their own: SEA keeps the first, this its own."""
    rng = np.random.default_rng(0)
    n, d = 40, 60
    shared, plus, minus = (rng.normal(size=(n, 1)) for _ in range(3))
    noise = [0.01 * rng.normal(size=(n, d)) for _ in range(3)]
    e = np.eye(d)
    H = 5 * shared * e[0] + plus * e[1] + minus * e[2] + noise[0]
    H_pos = 5 * shared * e[0] + plus * e[1] + noise[1]
    H_neg = 5 * shared * e[0] + minus * e[2] + noise[2]
    roles = tensors((H, H_pos, H_neg))
    own = contrastive.projector(*roles, K_positive=1, K_negative=1, ridge=0.01)
    assert abs(float(own.positive[0, 1])) > 0.95
    assert abs(float(own.negative[0, 2])) > 0.95
    theirs = sea.projector(*roles, K_positive=1, K_negative=1, centre=True)
    assert abs(float(theirs.positive[0, 0])) > 0.95
    assert abs(float(theirs.negative[0, 0])) > 0.95


# ---------------------------------------------------------------------------------------------- what theory promises


def test_what_the_maps_do_to_means_and_spreads() -> None:
    H, H_pos, H_neg = activations(30)
    roles = tensors((H, H_pos, H_neg))
    moved = applied(mean_difference.shift(*roles), H_neg)
    assert np.allclose(moved.mean(0), H_pos.mean(0))
    assert np.allclose(moved - moved.mean(0), H_neg - H_neg.mean(0))
    carried = applied(act.transport(*roles), H_neg)
    assert np.allclose(carried.mean(0), H_pos.mean(0))
    pairs = [np.corrcoef(np.sort(a), np.sort(b))[0, 1] for a, b in zip(H_pos.T, H_neg.T)]
    assert np.allclose(carried.std(0), H_pos.std(0) * pairs)  # of a least-squares line
    assert not np.allclose(moved.std(0), H_pos.std(0), rtol=1e-2)  # the control: a mean alone carries no spread
    r = pca.shift(*roles, centre=True).constant
    assert r is not None
    assert float((torch.from_numpy(H_pos - H_neg) @ r > 0).double().mean()) > 0.5  # towards the positive of most pairs


def test_a_unit_that_does_not_vary_is_shifted_and_not_scaled() -> None:
    H, H_pos, H_neg = activations(12)
    H_neg[:, 3] = 2.0
    one = act.transport(*tensors((H, H_pos, H_neg)))
    assert one.scale is not None
    assert one.constant is not None
    assert float(one.scale[3]) == 1.0
    assert float(one.constant[3]) == pytest.approx(H_pos[:, 3].mean() - 2.0)


@pytest.mark.parametrize("n", [9, 60])
def test_leace_is_the_packages_own(n: int) -> None:
    from concept_erasure import LeaceEraser

    data = activations(n)
    X = torch.cat(tensors(data)[1:])
    z = torch.cat([torch.ones(n), torch.zeros(n)])
    package = LeaceEraser.fit(X, z)
    h = torch.from_numpy(probes())
    assert apart(applied(leace.eraser(*tensors(data)), h.numpy()), package(h).numpy()) < EXACT
    unshrunk = LeaceEraser.fit(X, z, shrinkage=False)
    assert apart(applied(leace.eraser(*tensors(data)), h.numpy()), unshrunk(h).numpy()) > 1e-3  # the control


@pytest.mark.parametrize("n", [9, 60])
def test_leace_leaves_no_covariance_with_the_label(n: int) -> None:
    H, H_pos, H_neg = activations(n)
    one = leace.eraser(*tensors((H, H_pos, H_neg)))
    gap, before = (applied(one, H_pos).mean(0) - applied(one, H_neg).mean(0)), H_pos.mean(0) - H_neg.mean(0)
    assert one.ranks == (1, 0)
    assert np.abs(gap).max() < 1e-10 * np.abs(before).max()
    X = np.concatenate([H_pos, H_neg])
    assert np.allclose(applied(one, X).mean(0), X.mean(0))  # nothing else is shifted
    # The control: the mean difference, projected out, leaves the label in what varies with it.
    r = before / np.linalg.norm(before)
    assert np.linalg.norm(applied(one, X) - X) < np.linalg.norm(X - X.mean(0)) * 2
    shifted = X - 0.5 * np.outer((X - X.mean(0)) @ r, r)
    assert np.abs(shifted[:n].mean(0) - shifted[n:].mean(0)).max() > 0.1 * np.abs(before).max()


def test_nothing_dense_is_formed() -> None:
    """n = 6, d = 50,000 in 500 heads: a d x d matrix would take 20 GB."""
    rng = np.random.default_rng(0)
    roles = tensors(tuple(rng.normal(size=(12, 50_000)) for _ in range(3)))
    for name, row in METHODS.items():
        settings: dict[str, Any] = {"K_positive": 2, "K_negative": 2, "feature": "identity", "centre": True}
        settings |= {"ridge": 0.1, "heads": 2, "direction": None}
        taken = {key for key in settings if key in row.takes}
        maps, _ = row.fit(Collected({0: roles}, (0,), 2, 500), **{key: settings[key] for key in taken})
        assert maps[0].dim == 50_000, name
        assert isinstance(maps[0], Projector if name in ("sea", "contrastive") else AffineMap)


@pytest.mark.parametrize("name", METHODS)
def test_roles_of_other_shapes_are_refused(name: str) -> None:
    row = METHODS[name]
    roles = (torch.ones(4, 6), torch.ones(4, 6), torch.ones(3, 6))
    settings: dict[str, Any] = {"K_positive": 2, "K_negative": 2, "feature": "identity", "centre": True}
    settings |= {"ridge": 0.1, "heads": 2, "direction": 0}
    with pytest.raises(ActivationError, match="must share one"):
        row.fit(Collected({0: roles}, (0,), 2, 2), **{k: v for k, v in settings.items() if k in row.takes})


# ---------------------------------------------------------------------------------------------- through fit


TRIPLES = 12
SITES = {name: resolved({"method": name})["site"] for name in METHODS}


@functools.cache
def collected() -> dict[Site, Activations]:
    """Of a tiny model, at every site, all layers."""
    model, tokenizer = load_model(tiny.single()), load_tokenizer(tiny.single())
    return collect_sites(
        model, tokenizer, tiny.demonstrations(TRIPLES), source="tiny", sites=["mlp", "attn", "block", "heads"],
        max_new_tokens=4,
    )  # fmt: skip


@functools.cache
def fitted(method: str) -> Edit:
    return fit(None, activations=collected()[METHODS[method].reads or SITES[method]], method=method)


def same(one: Edit, other: Edit) -> bool:
    parts = [{(i, n): t for i, m in e.maps.items() for n, t in m.parts.items()} for e in (one, other)]
    return parts[0].keys() == parts[1].keys() and all(torch.equal(t, parts[1][k]) for k, t in parts[0].items())


@pytest.mark.parametrize("name", METHODS)
def test_a_fit_says_how_it_came_about(name: str, tmp_path: Path) -> None:
    edit, row = fitted(name), METHODS[name]
    assert (edit.method, edit.site, edit.alpha) == (name, row.site, row.alpha)
    assert edit.recipe["layers"] == row.layers
    assert {key for key in SETTINGS if key in edit.recipe} <= set(row.takes)
    assert not edit.changes_nothing
    back = Edit.load(edit.save(tmp_path / "edit.safetensors"))
    assert same(edit, back)
    assert back.recipe == edit.recipe
    assert edit.with_settings(alpha=0).changes_nothing


@pytest.mark.parametrize("name", ["mean-difference", "iti", "leace", "ablation"])
def test_a_fit_of_a_model_is_one_of_its_activations(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where neutral texts are not generated, since nothing reads them. Each text by itself: an answer that goes on
    from a prompt which is read otherwise differs by a rounding, and heads of equal accuracy then change places.
    """
    monkeypatch.setattr("sea_bake.activations.capture.shared", lambda *_, **__: None)
    collected.cache_clear()
    fitted.cache_clear()
    whole = fit(tiny.single(), tiny.demonstrations(TRIPLES), method=name)
    assert same(whole, fitted(name))
    assert whole.recipe["neutral"] == "prompt"
    assert not same(fit(tiny.single(), tiny.demonstrations(TRIPLES - 1), method=name), fitted(name))  # the control


def test_ablation_is_one_direction_at_two_sites() -> None:
    blocks = collected()[Site.BLOCK]
    attn, mlp = (fit(None, activations=blocks, method="ablation", site=site) for site in ("attn", "mlp"))
    assert (attn.site, mlp.site, attn.recipe["read_at"]) == (Site.ATTN, Site.MLP, "block")
    assert same(attn, mlp)
    assert len({one.A for one in attn.maps.values()}) >= 1
    again = fit(None, activations=blocks, method="ablation", direction=attn.recipe["direction"])
    assert same(again, attn)
    assert not same(fit(None, activations=blocks, method="ablation", direction=3), attn)  # the control: too late
    with pytest.raises(SettingError, match="reads activations of the site block, and these are of attn"):
        fit(None, activations=collected()[Site.ATTN], method="ablation")


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_a_bake_of_any_method_answers_like_its_hooks(name: str, tmp_path: Path) -> None:
    """Reloaded from disk, folded where ``auto`` folds; and unlike the base."""
    edit = fitted(name)
    ids = torch.randint(3, 500, (2, 12), generator=torch.Generator().manual_seed(0))
    model = load_model(tiny.single())
    with torch.inference_mode():
        plain = model(ids).logits
        with edit.live(model, check=False):
            live = model(ids).logits
    made = bake(tiny.single(), edit, tmp_path / "out")
    with torch.inference_mode():
        found = load_model(made.output, trust_remote_code=True)(ids).logits
    assert torch.allclose(found, live, atol=2e-4 * float(live.abs().max()))
    assert float((plain - live).abs().max()) > 1e-2  # the control


def words(count: int, seed: int) -> list[Demonstration]:
    """Answers that end in one word, or in another: a concept that every layer sees at the last token."""
    rng = np.random.default_rng(seed)
    names = ["sea", "sun", "tree", "stone", "bird", "river", "cloud", "house", "road", "star"]

    def text() -> str:
        return " ".join(rng.choice(names, size=4))

    return [Demonstration(f"Q {i} {text()}", f" {text()} good", f" {text()} bad") for i in range(count)]


def readable(model: Any, triples: list[Demonstration], site: str, layer: int) -> tuple[float, float]:
    """How well logistic regression tells positive from negative at a site: its mean log-loss on the texts it was fitted
    on, in units of that of a coin; and its accuracy on the other half of them, when fitted on one.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import log_loss

    found = collect(
        model, tiny.tokenizer(), triples, source="x", site=site, layers=[layer], neutral="prompt", position="last"
    )
    X = torch.cat([found.positive[0], found.negative[0]]).double().numpy()
    X = (X - X.mean(0)) / X.std()
    y = np.repeat([1, 0], len(triples))
    whole = LogisticRegression(C=1e3, max_iter=5000, tol=1e-8).fit(X, y)
    half = np.arange(len(y)) % 2 == 0
    part = LogisticRegression(C=1e3, max_iter=5000).fit(X[half], y[half])
    return log_loss(y, whole.predict_proba(X)) / np.log(2), part.score(X[~half], y[~half])


@pytest.mark.slow
def test_what_leace_has_erased_cannot_be_read_off_the_folded_model(tmp_path: Path) -> None:
    """The theorem on a plain checkpoint: no linear classifier is better than a coin on the texts of the fit, and on
    fresh ones a classifier is near chance; of the base, and where it was erased at half strength, it reads the concept.
    """
    triples, fresh = words(60, 0), words(60, 1)
    source = tiny.write_llama(tmp_path / "base", mlp_bias=True)  # which holds the constant
    edit = fit(source, triples, method="leace", site="mlp", layers=[1], held_back=0)  # no strength is searched
    made = bake(source, edit, tmp_path / "folded", how="fold")
    folded, base = load_model(made.output), load_model(source)
    assert type(folded).__name__ == "LlamaForCausalLM"
    loss, _ = readable(folded, triples, "mlp", 1)
    assert loss > 1 - 1e-3
    assert readable(folded, fresh, "mlp", 1)[1] < 0.65
    loss, accuracy = readable(base, triples, "mlp", 1)
    assert loss < 0.5
    assert accuracy > 0.9
    half = bake(source, edit.with_settings(alpha=0.5), tmp_path / "half", how="fold")
    loss, accuracy = readable(load_model(half.output), triples, "mlp", 1)
    assert loss < 0.5
    assert accuracy > 0.9


MAPS = ("sea", "iti", "leace", "act")  # merged by a norm; a constant at heads; low rank and constant; with a diagonal


@pytest.mark.slow
@pytest.mark.usefixtures("short_answers")
@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_fitted_for_a_kl_evaluated_and_searched(name: str, tmp_path: Path) -> None:
    """Through ``fit`` as it comes and ``tune``, one of each kind of map through ``eval`` and ``report`` too. What
    erases does so at strength 1, unsearched.
    """
    from sea_bake.evaluation import evaluate
    from sea_bake.fitting.tuning import Space, tune
    from sea_bake.reporting import report

    asked = tiny.demonstrations(60)
    edit = fit(tiny.single(), asked, method=name, max_new_tokens=4)
    found = edit.measured
    assert found is not None
    assert found.kl is not None
    assert found.gain is not None
    if METHODS[name].erases:
        assert (edit.alpha, found.budget) == (1.0, None)
    else:
        assert found.budget == 0.1
        assert found.kl.value == pytest.approx(0.1, rel=0.1)
    if name in MAPS:
        cost = evaluate(
            tiny.single(), edit=edit, tasks=[], behaviours=["fair"], limit=4, output=tmp_path / "evaluation"
        )
        # The very texts that the strength was found on, by another road.
        assert cost.row("neutral_text", "kl").found.edited.value == pytest.approx(found.kl.value, rel=1e-3)
        assert cost.row("behaviour-fair", "margin").found.n == 4
        edit.save(tmp_path / "edit.safetensors")
        shown = report(tmp_path / "edit.safetensors", evaluation=tmp_path / "evaluation", output=tmp_path / "report")
        assert METHODS[name].title in shown.html
        assert f"{cost.row('behaviour-fair', 'margin').found.edited.value:.3f}"[:4] in shown.html
    space = Space(method=(name,), layers=("all",), alpha=(0.5, 1.0))
    searched = tune(
        tiny.single(), asked, output=tmp_path / "tuned", space=space, trials=2, select=10, confirm=20, max_new_tokens=4
    )
    assert [trial.failure for trial in searched.trials] == ["", ""]
    assert searched.trials[1].settings["method"] == name
    if name == "iti":  # the control: of another strength the cost is another
        half = evaluate(tiny.single(), edit=edit.with_settings(alpha=edit.alpha / 2), tasks=[])
        assert half.row("neutral_text", "kl").found.edited.value < 0.5 * found.kl.value


# ---------------------------------------------------------------------------------------------- what is refused


REFUSED = {
    "an unknown method": ({"method": "mean-diference"}, "did you mean mean-difference"),
    "a setting of others": ({"method": "mean-difference", "K": 8}, "K is no setting of mean-difference"),
    "a merge of a vector": ({"method": "pca", "merge": "l2"}, "merge is no setting of pca"),
    "heads of SEA": ({"heads": 3}, "heads is no setting of sea (but of iti)"),
    "a ridge of LEACE": ({"method": "leace", "ridge": 0.2}, "ridge is no setting of leace (but of contrastive)"),
    "a feature of contrastive": ({"method": "contrastive", "feature": "tanh"}, "feature is no setting"),
    "a direction of ACT": ({"method": "act", "direction": 2}, "direction is no setting of act (but of ablation)"),
    "another site than the heads": ({"method": "iti", "site": "mlp"}, "iti edits the site heads, not mlp"),
    "no heads": ({"method": "iti", "heads": 0}, "heads = 0 is neither"),
    "more than all heads": ({"method": "iti", "heads": 1.5}, "heads = 1.5 is neither"),
    "more heads than there are": ({"method": "iti", "heads": 99}, "have 16 attention heads"),
    "no ridge": ({"method": "contrastive", "ridge": 0.0}, "ridge = 0.0 is not a number"),
    "a KL of what erases at one strength": ({"method": "leace", "budget": 0.05}, "budget is no setting of leace"),
    "a negative layer": ({"method": "ablation", "direction": -1}, "direction = -1 is no layer"),
    "a layer that is not there": ({"method": "ablation", "direction": 9}, "9"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    settings, said = REFUSED[case]
    if "there" not in case:  # before a model is loaded

        def loaded(*args: Any, **options: Any) -> None:
            raise AssertionError("the model was loaded")

        monkeypatch.setattr("sea_bake.fitting.load_model", loaded)
    with pytest.raises(SettingError, match=re.escape(said)):
        fit(tiny.single(), tiny.demonstrations(TRIPLES), **settings)


@pytest.mark.slow
@pytest.mark.parametrize("site", [None, "mlp"])
def test_what_reads_a_stream_that_is_not_there_is_refused(site: str | None, workshop: Workshop) -> None:
    """Gemma 3n has several residual streams. Naming another site to edit would lead back here; the cure does not."""
    model, asked = workshop.model("gemma3n_text"), tiny.demonstrations(TRIPLES)
    told: dict[str, Any] = {"tokenizer": families.tokenizer(), "source": "x", "neutral": "prompt", "measure": False}
    for one in (model, workshop.base("gemma3n_text")):
        with pytest.raises(SettingError, match=r"ablation reads the site block.*--method leace, or --method mean-diff"):
            fit(one, asked, **told, method="ablation", site=site)
    assert fit(model, asked, **told, method="leace").site is Site.ATTN
    assert fit(model, asked, **told, method="mean-difference", site="mlp", layers="middle", budget=None).layers == (2,)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["gemma4_text", "olmo_hybrid"])
def test_heads_of_two_widths_are_two_edits(family: str, workshop: Workshop, tmp_path: Path) -> None:
    """Full attention is wider than sliding, or linear, attention there. The cure's layers are fitted, and so are the
    others; both are baked together.
    """
    model = workshop.model(family)
    told: dict[str, Any] = {"tokenizer": families.tokenizer(), "source": family, "method": "iti", "neutral": "prompt"}
    told |= {"measure": False, "budget": None, "heads": 1.0}
    asked = tiny.demonstrations(TRIPLES)
    with pytest.raises(SettingError, match=r"wide in .*one edit for each width") as refused:
        fit(model, asked, **told)
    found = re.search(r"--layers ([\d,]+)", str(refused.value))
    assert found
    layers = [int(one) for one in found[1].split(",")]
    others = [i for i in range(4) if i not in layers]
    edits = [fit(model, asked, layers=own, **told) for own in (layers, others)]
    widths = [set(edit.widths.values()) for edit in edits]
    assert [len(own) for own in widths] == [1, 1]
    assert widths[0] != widths[1]
    ids = torch.randint(7, families.VOCAB, (2, 12), generator=torch.Generator().manual_seed(0))
    made = bake(workshop.base(family), edits, tmp_path / "out", how="insert")
    with torch.inference_mode(), edits[0].live(model), edits[1].live(model):
        expected = model(ids).logits
    with torch.inference_mode():
        assert torch.allclose(load_model(made.output, trust_remote_code=True)(ids).logits, expected, atol=1e-3)
        assert not torch.allclose(model(ids).logits, expected, atol=1e-2)


@pytest.mark.parametrize(("name", "n", "fewest"), [("iti", 9, 10), ("act", 9, 10), ("leace", 2, 3), ("pca", 2, 3),
                                                  ("sea", 2, 3)])  # fmt: skip
def test_too_few_demonstrations_are_refused(name: str, n: int, fewest: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sea_bake.fitting.load_model", lambda *args, **options: pytest.fail("loaded"))
    with pytest.raises(
        ActivationError, match=rf"{n} usable triples: {name} needs at least {fewest}\. .*\(--method\): .*mean-diff"
    ):
        fit(tiny.single(), tiny.demonstrations(n), method=name)


@pytest.mark.parametrize("name", ["mean-difference", "leace", "ablation"])
def test_one_class_is_refused(name: str) -> None:
    found = collected()[METHODS[name].reads or SITES[name]]
    with pytest.raises(ActivationError, match="identical in every layer"):
        fit(None, activations=replace(found, negative=found.positive), method=name)
    turned = replace(found, negative=found.positive.flip(1))  # other rows, the same mean
    with pytest.raises(ActivationError, match=r"same mean|nothing"):
        fit(None, activations=turned, method=name)


def test_without_the_package_leace_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    known = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n, *a: None if n == "concept_erasure" else known(n, *a))
    with pytest.raises(MissingExtraError, match=re.escape("pip install 'sea-bake[leace]'")):
        fit(tiny.single(), tiny.demonstrations(TRIPLES), method="leace")


def test_activations_of_another_site_are_refused() -> None:
    with pytest.raises(SettingError, match="iti is to edit the site heads, and the activations are of attn"):
        fit(None, activations=collected()[Site.ATTN], method="iti")
    with pytest.raises(SettingError, match="sea is to edit the site mlp, and the activations are of attn"):
        fit(None, activations=collected()[Site.ATTN], site="mlp")
    assert fit(None, activations=collected()[Site.MLP]).site is Site.MLP  # what they are of, where nothing is said


# ---------------------------------------------------------------------------------------------- through every command


def test_the_command_line_refuses_what_a_method_does_not_take(tmp_path: Path) -> None:
    out = tmp_path / "edit.safetensors"
    words = ["fit", tiny.single(), "-d", tiny.demonstrations_file(), "-o", out, "--method"]
    ran = tiny.run(*words, "mean-difference", "--K", "0.95")  # the default, and of no use all the same
    tiny.refused(ran, "SettingError", "K is no setting of mean-difference")
    tiny.refused(tiny.run(*words, "mean"), "SettingError", "unknown method 'mean'")
    searched = tiny.run(*words, "ablation", "--budget", "0.1")  # the default, and of no use all the same
    tiny.refused(searched, "SettingError", "budget is no setting of ablation: at strength 1 it erases", "--alpha")
    assert not out.exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mean-difference", "leace", "iti", "act", "ablation", "contrastive"])
def test_every_command_knows_an_edit_of_any_method(name: str, tmp_path: Path) -> None:
    base, file = tiny.changeable(tiny.single(), tmp_path / "base"), tiny.demonstrations_file(TRIPLES)
    edit, saved = tmp_path / "edit.safetensors", tmp_path / "saved.safetensors"

    def ran(*words: Any) -> str:
        done = tiny.run(*words)
        assert done.code == 0, done
        return " ".join(done.out.split())

    title = METHODS[name].title
    assert title in ran("fit", base, "-d", file, "--method", name, "-o", edit, "--save-activations", saved)
    again = tmp_path / "again.safetensors"
    ran("fit", "--activations", saved, "--method", name, "-o", again)
    assert same(Edit.load(edit), Edit.load(again))
    assert title in ran("inspect", edit, "--plot", tmp_path / "edit.png")
    shown = json.loads(ran("inspect", edit, "--json"))
    assert shown["edits"][0]["method"] == name
    ran("bake", base, edit, "-o", tmp_path / "out")
    ran("verify", tmp_path / "out")
    more = [] if METHODS[name].reads else ["--activations", saved]
    page = tmp_path / "page"
    ran("report", tmp_path / "out", *more, "-o", page)
    text = (page / "report.html").read_text("utf-8")
    assert title in text
    assert "imported" not in text
    ran("publish", tmp_path / "out", "user/tiny", "--dry-run", "--license", "mit")
    assert "reproduced" in ran("reproduce", tmp_path / "out", "--model", base, "-d", file)


@pytest.mark.slow
def test_a_recipe_runs_with_any_method(tmp_path: Path) -> None:
    base = tiny.changeable(tiny.single(), tmp_path / "base")
    fits = [
        {"name": name.replace("-", "_"), "method": name, "demonstrations": str(tiny.demonstrations_file(TRIPLES))}
        for name in ("mean-difference", "iti", "ablation", "leace")
    ]
    fits.append(fits[2] | {"name": "ablation_mlp", "site": "mlp"})
    (tmp_path / "recipe.yaml").write_text(
        yaml.safe_dump({"model": str(base), "output": str(tmp_path / "out"), "fit": fits, "bake": {}, "verify": {}})
    )
    done = tiny.run("run", tmp_path / "recipe.yaml")
    assert done.code == 0, done
    edits = [Edit.load(tmp_path / "out-work" / f"{one['name']}.safetensors") for one in fits]
    assert [edit.method for edit in edits] == [one["method"] for one in fits]
    assert (edits[2].site, edits[4].site) == (Site.ATTN, Site.MLP)
    assert same(edits[2], edits[4])
    fits[0]["merge"] = "l2"
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({"model": str(base), "output": "o", "fit": fits, "bake": {}}))
    tiny.refused(tiny.run("run", tmp_path / "recipe.yaml"), "SettingError", "merge is no setting of mean-difference")


@pytest.mark.slow
def test_a_search_goes_over_methods(tmp_path: Path) -> None:
    from sea_bake.fitting.tuning import Space, tune

    space = Space(method=("mean-difference", "leace", "iti", "ablation", "act"), layers=("all",), alpha=(0.5, 1.0))
    found = tune(
        tiny.single(), tiny.demonstrations(40), output=tmp_path / "out", space=space, trials=7, select=10, confirm=20,
        max_new_tokens=4,
    )  # fmt: skip
    tried = [trial.settings for trial in found.trials]
    assert tried[0]["method"] == "sea"  # the untuned default, beside the space
    assert len({settings["method"] for settings in tried}) >= 3
    for settings in tried[1:]:
        assert set(settings) <= {"method", "site", "layers", "alpha", *METHODS[settings["method"]].takes}
        assert settings["site"] == "heads" or settings["method"] != "iti"
    assert [trial.failure for trial in found.trials] == [""] * 7
    words = ["tune", tiny.single(), "-o", tmp_path / "no", "--method", "leace", "--merge", "l2"]
    tiny.refused(tiny.run(*words), "SettingError", "merge is no setting of leace")
