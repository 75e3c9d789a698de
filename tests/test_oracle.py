"""The mathematics of the package against a second reading of the paper (``oracle``), and what the theory promises.

Every promise has a control: something near to it that must not keep it.
"""

from __future__ import annotations

import ast
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import oracle
import pytest
import torch
from families import tiny
from hypothesis import given
from hypothesis import strategies as st

from sea_bake import Edit, SeaBakeError
from sea_bake.errors import ActivationError, SettingError
from sea_bake.methods import sea
from sea_bake.methods.layers import select_layers
from sea_bake.model.anatomy import Site
from sea_bake.model.fingerprint import BaseModel
from sea_bake.modeling_sea import FEATURES, MERGES, PARTS, SEALayer

D = 24
SHAPES = {"n<d": 9, "n=d": D, "n>d": 60}
SETTINGS = list(itertools.product(oracle.MERGES, oracle.FEATURES, oracle.PARTS, (1.0, 0.35, -0.5)))
UNCLAMPED = ("asinh", "signed-square-root")
# float64, on projections from two different SVDs (of n x n, and of d x d), which agree to some 1e-14.
TWO_SVDS = 2.0**-46
seeds = st.integers(0, 2**31)


def activations(n: int, seed: int = 0, d: int = D) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """H, H+, H-: [n, d], correlated with each other, with a mean and with unequal directions, as real ones are."""
    rng = np.random.default_rng(seed)
    scale = np.geomspace(3.0, 0.1, d)[rng.permutation(d)]
    shared = rng.normal(size=(n, d)) * scale + rng.normal(size=d)
    return tuple(shared + 0.5 * rng.normal(size=(n, d)) * scale + 0.3 * rng.normal(size=d) for _ in range(3))


def tensors(arrays: tuple[np.ndarray, ...]) -> tuple[torch.Tensor, ...]:
    return tuple(torch.from_numpy(a) for a in arrays)


def layer(projector: sea.Projector, dtype: torch.dtype = torch.float64, **settings: object) -> SEALayer:
    """An SEALayer with these projections, filled the way its docstring says: A = [U+ᵀ; U-ᵀ], B = [U+, -U-]."""
    made = SEALayer(projector.dim, projector.ranks, **settings).to(dtype)
    with torch.no_grad():
        made.A.copy_(torch.cat([projector.positive, projector.negative]))
        made.B.copy_(torch.cat([projector.positive, -projector.negative]).T)
    return made


def dense(rows: torch.Tensor) -> np.ndarray:
    return (rows.T @ rows).double().numpy()


def random_projector(seed: int, d: int, k_pos: int, k_neg: int) -> sea.Projector:
    rng = np.random.default_rng(seed)
    rows = [np.linalg.qr(rng.normal(size=(d, k)))[0].T if k else np.zeros((0, d)) for k in (k_pos, k_neg)]
    return sea.Projector(*tensors(rows), *(torch.ones(k, dtype=torch.float64) for k in (k_pos, k_neg)))


def test_the_oracle_shares_no_code_with_the_package():
    tree = ast.parse(Path(oracle.__file__).read_text("utf-8"))
    imported = {a.name for node in ast.walk(tree) if isinstance(node, ast.Import) for a in node.names}
    imported |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert imported == {"__future__", "dataclasses", "numpy", "numpy.typing"}


def test_the_oracle_knows_every_setting_of_the_package():
    assert (set(oracle.MERGES), set(oracle.FEATURES), set(oracle.PARTS)) == (set(MERGES), set(FEATURES), set(PARTS))


# ---------------------------------------------------------------------------------------------- projections


@pytest.mark.parametrize("centre", [False, True], ids=["plain", "centred"])
@pytest.mark.parametrize("feature", oracle.FEATURES)
@pytest.mark.parametrize("K", [0.6, 0.95, 1.0, 3, 0], ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_projector_is_the_dense_one(shape: str, K: float | int, feature: str, centre: bool):
    data = activations(SHAPES[shape])
    K_neg = 0.9 if isinstance(K, float) else K + 1  # K+ and K- apart
    ours = sea.projector(*tensors(data), K_positive=K, K_negative=K_neg, feature=feature, centre=centre)
    theirs = oracle.projections(*data, K, K_neg, feature=feature, centre=centre)
    assert ours.ranks == theirs.ranks
    # Both are float64. A subspace is as sharp as the gap behind its last direction, relative to the largest singular
    # value: not under 1e-7 here (checked below), so rounding of 1e-16 stays under 1e-8.
    for s, k in zip(theirs.spectra, theirs.ranks):
        if 0 < k < len(s):
            assert (s[k - 1] - s[k]) / s[0] > 1e-7
    assert np.abs(dense(ours.positive) - theirs.positive).max() < 1e-8
    assert np.abs(np.eye(D) - dense(ours.negative) - theirs.negative).max() < 1e-8
    for found, true in zip((ours.positive_spectrum, ours.negative_spectrum), theirs.spectra):
        known = len(found)
        assert np.allclose(found, true[:known], atol=1e-12 * true[0])
        assert np.all(true[known:] < 1e-12 * true[0])  # what the thin form leaves out is zero


@pytest.mark.parametrize("shape", [(60, 40), (40, 60)])
@pytest.mark.parametrize("K", [0.95, 0.9999, 1.0, 7, 30])
def test_large_problems_have_the_same_projectors(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, int], K: float | int
) -> None:
    """By eigenvectors of the square, where that is exact enough; else, as at K = 1, by the SVD."""
    n, d = shape
    draw = np.random.default_rng(31)
    scale = np.logspace(0, -7, d)  # of the activations; Ω has it once more
    mix = np.linalg.qr(draw.normal(size=(d, d)))[0]
    roles = [torch.from_numpy(draw.normal(size=(n, d)) * scale @ mix) for _ in range(3)]
    plain = sea.projector(*roles, K_positive=K, K_negative=K)
    used: list[bool] = []
    squares = sea._by_squares

    def watched(*given: Any) -> Any:
        used.append((found := squares(*given)) is not None)
        return found

    monkeypatch.setattr(sea, "_LARGE", 8)
    monkeypatch.setattr(sea, "_by_squares", watched)
    found = sea.projector(*roles, K_positive=K, K_negative=K)
    assert found.ranks == plain.ranks
    # 1e-16 s₁² over the distance of the squares at the cut, which is s² or so: 1e-6 where s is the least allowed.
    for one, other in ((found.positive, plain.positive), (found.negative, plain.negative)):
        assert (one.T @ one - other.T @ other).abs().max() < (1e-12 if K == 0.95 else 1e-7)
    assert used == ([] if K == 1.0 else [K != 30] * 2)
    leading = plain.positive_spectrum > 1e-5 * plain.positive_spectrum[0]
    assert torch.allclose(found.positive_spectrum[leading], plain.positive_spectrum[leading], rtol=1e-5)
    monkeypatch.setattr(sea, "_REACH", 0.0)  # the control: squared to the very end it is another projector
    if K == 30:
        wrong = sea.projector(*roles, K_positive=K, K_negative=K)
        assert (wrong.positive.T @ wrong.positive - plain.positive.T @ plain.positive).abs().max() > 1e-7


def test_projector_of_swapped_roles_is_another_one():
    """Control: the comparison above sees the difference between H+ and H-."""
    H, H_pos, H_neg = activations(9)
    ours = sea.projector(*tensors((H, H_neg, H_pos)), K_positive=0.6, K_negative=0.6)
    theirs = oracle.projections(H, H_pos, H_neg, 0.6, 0.6)
    assert np.abs(dense(ours.positive) - theirs.positive).max() > 1e-2


@pytest.mark.slow
@given(seed=seeds, n=st.integers(2, 40), d=st.integers(2, 30))
def test_projectors_are_orthogonal_projections(seed: int, n: int, d: int):
    p = sea.projector(*tensors(activations(n, seed, d)), K_positive=0.9, K_negative=0.99)
    for rows in (p.positive, p.negative):
        P = dense(rows)
        assert np.allclose(P @ P, P, atol=1e-10)  # idempotent
        assert np.allclose(P, P.T, atol=1e-14)
        Q = np.eye(d) - P  # the complement: nothing in common, and together everything
        assert np.allclose(P @ Q, 0, atol=1e-10)
        assert round(np.trace(P)) + round(np.trace(Q)) == d
    assert 1 <= p.ranks[0] <= min(n, d)


def test_rows_that_are_not_orthonormal_give_no_projection():
    """Control of the theorem above."""
    rows = activations(3)[0]
    assert not np.allclose(dense(torch.from_numpy(rows)) @ dense(torch.from_numpy(rows)), rows.T @ rows, atol=1e-3)


def test_float_projector_keeps_ranks_and_directions():
    p = sea.projector(*tensors(activations(9)), K_positive=0.9, K_negative=0.9)
    small = p.float()
    assert small.positive.dtype == small.negative.dtype == torch.float32
    assert small.ranks == p.ranks
    assert torch.equal(small.positive, p.positive.float())


@pytest.mark.parametrize(
    "shapes", [((4, 5), (4, 5), (3, 5)), ((4, 5), (4, 6), (4, 5)), ((5,), (5,), (5,))], ids=["n", "d", "1-d"]
)
def test_projector_refuses_shapes_that_do_not_agree(shapes):
    with pytest.raises(ActivationError, match="must share one"):
        sea.projector(*(torch.ones(s) for s in shapes), K_positive=1, K_negative=1)


def test_projector_refuses_an_unknown_feature():
    with pytest.raises(SettingError, match="unknown feature function 'relu'"):
        sea.projector(*tensors(activations(4)), K_positive=1, K_negative=1, feature="relu")


# ---------------------------------------------------------------------------------------------- rank


@pytest.mark.parametrize(
    ("spectrum", "K", "expected"),
    [
        ([2.0, 1.0, 1.0, 1.0, 1.0], 0.5, 1),  # 4 of 8: exactly half is enough
        ([2.0, 1.0, 1.0, 1.0, 1.0], 0.5 + 1e-9, 2),  # and any more is not
        ([2.0, 1.0, 1.0, 1.0, 1.0], 0.625, 2),
        ([2.0, 1.0, 1.0, 1.0, 1.0], 1.0, 5),
        ([3.0, 4.0e-20, 0.0], 1.0, 1),  # rounding is no direction
        ([5.0], 1e-9, 1),  # at least one
        ([0.0, 0.0], 1.0, 0),  # no data, no direction
        ([], 0.9, 0),
        ([2.0, 1.0, 1.0], 2, 2),
        ([2.0, 1.0, 1.0], 0, 0),
        ([2.0, 1.0, 0.0], 3, 2),  # an integer rank does not invent directions either
        ([0.0], 3, 0),
    ],
)
def test_rank(spectrum: list[float], K: float | int, expected: int):
    assert sea.rank(torch.tensor(spectrum, dtype=torch.float64), K) == expected
    assert oracle.explained(np.array(spectrum), K) == expected


@given(seed=seeds, size=st.integers(1, 40), K=st.floats(1e-3, 1.0))
def test_rank_is_the_fewest_that_reach_the_share(seed: int, size: int, K: float):
    s = np.sort(np.random.default_rng(seed).exponential(size=size))[::-1].copy()
    k = sea.rank(torch.from_numpy(s), K)
    total = np.sum(s**2)
    assert np.sum(s[:k] ** 2) >= (K - 1e-11) * total
    assert k == 1 or np.sum(s[: k - 1] ** 2) < K * total
    assert k == oracle.explained(s, K)


@pytest.mark.parametrize("K", [0.0, -0.5, 1.0000001, float("nan"), float("inf"), -1, True, "0.9", None], ids=repr)
def test_shares_outside_their_range_are_refused(K: object):
    with pytest.raises(SettingError, match="K"):
        sea.rank(torch.ones(3), K)


# ---------------------------------------------------------------------------------------------- the edit


@pytest.mark.parametrize(("merge", "feature", "parts", "alpha"), SETTINGS, ids=lambda v: str(v))
def test_layer_is_the_dense_edit(merge: str, feature: str, parts: str, alpha: float):
    """Fit and edit on both sides: thin against dense, in float64, float32 and bfloat16 input."""
    data = activations(9, seed=3)
    p = sea.projector(*tensors(data), K_positive=0.8, K_negative=0.7, feature=feature)
    P = oracle.projections(*data, 0.8, 0.7, feature=feature)
    settings = {"merge": merge, "feature": feature, "parts": parts, "alpha": alpha}
    h = np.random.default_rng(4).normal(size=(2, 7, D)) * 1.5
    expected = oracle.edit(h, P.positive, P.negative, **settings)
    scale = np.abs(expected).max()
    found = layer(p, **settings)(torch.from_numpy(h)).detach().numpy()
    assert np.abs(found - expected).max() < oracle.tolerance(feature, TWO_SVDS, scale)
    in_float32 = layer(p, torch.float32, **settings)(torch.from_numpy(h).float()).detach()
    assert in_float32.dtype == torch.float32
    error = np.abs(in_float32.double().numpy() - expected)
    assert error.max() < oracle.tolerance(feature, 2.0**-24, scale)
    # φ⁻¹ enlarges the few near its edges only ("l2" spreads some of that over the token, through the norm).
    assert np.median(error) < 64 * 2.0**-24 * scale
    # A bfloat16 activation is edited in float32 and rounded once at the end, to a relative 2^-8.
    coarse = torch.from_numpy(h).bfloat16()
    in_bfloat16 = layer(p, torch.float32, **settings)(coarse).detach()
    assert in_bfloat16.dtype == torch.bfloat16
    exact = oracle.edit(coarse.double().numpy(), P.positive, P.negative, **settings)
    error = np.abs(in_bfloat16.double().numpy() - exact)
    assert np.all(error < oracle.tolerance(feature, 2.0**-24, scale) + np.abs(exact) * 2.0**-8)


@pytest.mark.parametrize("feature", oracle.FEATURES)
def test_the_comparison_with_the_oracle_sees_a_wrong_sign(feature: str):
    """Control: swapping the sign of U- in B, or U+ for U-, is far outside every tolerance above."""
    data = activations(9, seed=3)
    p = sea.projector(*tensors(data), K_positive=0.8, K_negative=0.7, feature=feature)
    P = oracle.projections(*data, 0.8, 0.7, feature=feature)
    h = np.random.default_rng(4).normal(size=(5, D)) * 1.5
    expected = oracle.edit(h, P.positive, P.negative, "sum", feature)
    limit = 10 * oracle.tolerance(feature, TWO_SVDS, np.abs(expected).max())
    right = layer(p, merge="sum", feature=feature)(torch.from_numpy(h)).detach().numpy()
    assert np.abs(right - expected).max() < limit / 10
    wrong = layer(p, merge="sum", feature=feature)
    with torch.no_grad():
        wrong.B[:, wrong.positive_rank :] *= -1
    assert np.abs(wrong(torch.from_numpy(h)).detach().numpy() - expected).max() > limit
    swapped = sea.Projector(p.negative, p.positive, p.negative_spectrum, p.positive_spectrum)
    found = layer(swapped, merge="sum", feature=feature)(torch.from_numpy(h)).detach().numpy()
    assert np.abs(found - expected).max() > limit


@given(seed=seeds, k_pos=st.integers(0, 6), k_neg=st.integers(0, 6))
def test_sum_without_feature_is_p_plus_and_p_minus(seed: int, k_pos: int, k_neg: int):
    p = random_projector(seed, 10, k_pos, k_neg)
    h = np.random.default_rng(seed + 1).normal(size=(4, 10))
    P_pos, P_neg = dense(p.positive), np.eye(10) - dense(p.negative)
    found = layer(p, merge="sum")(torch.from_numpy(h)).detach().numpy()
    assert np.allclose(found, h @ P_pos + h @ P_neg, atol=1e-13)


@pytest.mark.parametrize("merge", oracle.MERGES)
def test_an_edit_of_rank_zero_keeps_h(merge: str):
    """k+ = k- = 0: P+ = 0 and P- = I, so y = h; only "average" halves it."""
    nothing = random_projector(0, D, 0, 0)
    h = torch.from_numpy(np.random.default_rng(1).normal(size=(6, D)))
    factor = 0.5 if merge == "average" else 1.0
    # "l2" divides two equal norms: exactly 1.
    assert torch.equal(layer(nothing, merge=merge)(h), factor * h)
    something = random_projector(0, D, 1, 0)  # control
    assert not torch.allclose(layer(something, merge=merge)(h), factor * h, atol=1e-3)


def test_equal_projections_cancel():
    """U+ = U-: P+ h + P- h = h for every h."""
    p = random_projector(2, D, 5, 5)
    same = sea.Projector(p.positive, p.positive, p.positive_spectrum, p.positive_spectrum)
    h = torch.from_numpy(np.random.default_rng(3).normal(size=(6, D)))
    assert torch.allclose(layer(same, merge="sum")(h), h, atol=1e-14)
    assert not torch.allclose(layer(p, merge="sum")(h), h, atol=1e-2)  # control


def test_positive_and_negative_parts_add_up():
    p = random_projector(5, D, 4, 3)
    h = torch.from_numpy(np.random.default_rng(6).normal(size=(6, D)))
    both, positive, negative = (layer(p, merge="sum", parts=parts)(h) for parts in oracle.PARTS)
    assert torch.allclose(positive + negative, both, atol=1e-13)
    # With one part there is one term, and its average is itself; with two it is half of the sum.
    for parts, y in (("both", both / 2), ("positive", positive), ("negative", negative)):
        assert torch.allclose(layer(p, merge="average", parts=parts)(h), y, atol=1e-13)
    # "positive" lies inside the kept directions, "negative" outside the dropped ones.
    assert torch.allclose(positive @ p.positive.T @ p.positive, positive, atol=1e-13)
    assert torch.allclose(negative @ p.negative.T, torch.zeros(6, 3, dtype=torch.float64), atol=1e-13)


@pytest.mark.parametrize("feature", oracle.FEATURES)
@pytest.mark.parametrize("merge", oracle.MERGES)
def test_alpha_is_a_straight_line_from_h_to_the_edit(merge: str, feature: str):
    p = random_projector(7, D, 4, 3)
    h = torch.from_numpy(np.random.default_rng(8).normal(size=(6, D)))
    full = layer(p, merge=merge, feature=feature)(h)
    assert torch.equal(layer(p, merge=merge, feature=feature, alpha=0.0)(h), h)
    for alpha in (0.25, 2.0, -1.0):
        found = layer(p, merge=merge, feature=feature, alpha=alpha)(h)
        # lerp takes one of two equivalent forms; they differ by a rounding of the larger end.
        assert torch.allclose(found, h + alpha * (full - h), atol=1e-13 * float(full.detach().abs().max()))


# ---------------------------------------------------------------------------------------------- l2, per token


def edit_with_neighbours(function, h: np.ndarray) -> float:
    """Largest change of the first token's result when the other tokens are replaced."""
    others = h.copy()
    others[1:] = 10 * others[1:] + 1
    return float(np.abs(function(h)[0] - function(others)[0]).max())


@pytest.mark.parametrize("feature", oracle.FEATURES)
def test_l2_keeps_each_tokens_norm(feature: str):
    p = random_projector(9, D, 4, 3)
    h = torch.from_numpy(np.random.default_rng(10).normal(size=(3, 8, D)) * np.geomspace(0.1, 3, 8)[:, None])
    edited = layer(p, feature=feature)(h)
    assert torch.allclose(edited.norm(dim=-1), h.norm(dim=-1), rtol=1e-14)
    in_bfloat16 = layer(p, torch.bfloat16, feature=feature)(h)  # norms in float32 also where all else is coarse
    assert in_bfloat16.dtype == torch.float64
    control = layer(p, merge="sum", feature=feature)(h)
    assert not torch.allclose(control.norm(dim=-1), h.norm(dim=-1), rtol=1e-2)


@pytest.mark.parametrize("feature", oracle.FEATURES)
@pytest.mark.parametrize("merge", oracle.MERGES)
def test_a_tokens_result_does_not_depend_on_its_neighbours(merge: str, feature: str):
    p = random_projector(11, D, 4, 3)
    h = np.random.default_rng(12).normal(size=(6, D))
    module = layer(p, merge=merge, feature=feature)
    # Same arithmetic on the same numbers; a batch may be summed in another order (rounding, enlarged by φ⁻¹).
    limit = oracle.tolerance(feature, 2.0**-53, 10.0)
    assert edit_with_neighbours(lambda x: module(torch.from_numpy(x)).detach().numpy(), h) < limit


def test_the_released_codes_l2_does_depend_on_neighbours():
    """Control of the two tests above: the all-token norm of the released code keeps neither promise."""
    p = random_projector(11, D, 4, 3)
    P_pos, P_neg = dense(p.positive), np.eye(D) - dense(p.negative)
    h = np.random.default_rng(12).normal(size=(6, D))
    assert edit_with_neighbours(lambda x: oracle.released_l2(x, P_pos, P_neg), h) > 1e-2
    norms = np.linalg.norm(oracle.released_l2(h, P_pos, P_neg), axis=-1)
    assert not np.allclose(norms, np.linalg.norm(h, axis=-1), rtol=1e-2)


@pytest.mark.parametrize("merge", oracle.MERGES)
@pytest.mark.parametrize("feature", oracle.FEATURES)
def test_a_zero_vector_gives_no_nan(feature: str, merge: str):
    """Masked positions of a left-padded batch can be all zeros."""
    p = random_projector(13, D, 4, 3)
    found = layer(p, torch.float32, merge=merge, feature=feature)(torch.zeros(2, D))
    assert torch.isfinite(found).all()
    h = np.zeros((2, D))
    P_pos, P_neg = dense(p.positive), np.eye(D) - dense(p.negative)
    expected = oracle.edit(h, P_pos, P_neg, merge, feature)
    assert np.abs(found.detach().numpy() - expected).max() < oracle.tolerance(feature, 2.0**-24)


# ---------------------------------------------------------------------------------------------- Φ


@pytest.mark.parametrize("feature", oracle.FEATURES)
def test_feature_functions_are_the_oracles(feature: str):
    phi, inverse = FEATURES[feature]
    h = np.linspace(-6, 6, 1201)
    y = np.linspace(-1.5, 1.5, 1201)
    assert np.allclose(phi(torch.from_numpy(h)).numpy(), oracle.phi(feature, h), atol=1e-15)
    found = inverse(torch.from_numpy(y), torch.from_numpy(h)).numpy()
    # Element-wise in float64 on both sides: one rounding, enlarged by at most 1e4.
    assert np.allclose(found, oracle.phi_inverse(feature, y, h), atol=1e-11)


@pytest.mark.parametrize("feature", oracle.FEATURES)
def test_inverse_undoes_phi_for_moderate_h(feature: str):
    """P- = I (k- = 0) and the negative part alone: y = φ⁻¹(φ(h)) = h, wherever φ is not yet flat."""
    nothing = random_projector(0, D, 2, 0)
    h = torch.from_numpy(np.random.default_rng(14).uniform(-4, 4, size=(50, D)))
    found = layer(nothing, merge="sum", feature=feature, parts="negative")(h)
    # |h| <= 4 is inside the clamps: exp(-8) = 3.4e-4, 1 - tanh 4 = 6.7e-4, elu(-4) + 1 = 0.018, all above 1e-4. The
    # squared exponential forgets |h| < 1e-8 or so.
    limit = 1e-8 if feature == "squared-exponential" else 1e-11
    assert torch.allclose(found, h, atol=limit)
    far = layer(nothing, merge="sum", feature=feature, parts="negative")(h * 4)
    # Control: beyond the clamps it is not.
    assert torch.allclose(far, h * 4, atol=1e-2) == (feature in ("identity", *UNCLAMPED))


def test_squared_exponential_restores_the_sign_of_the_input():
    p = random_projector(15, D, 4, 3)
    h = torch.from_numpy(np.random.default_rng(16).normal(size=(40, D)))
    for parts in ("positive", "negative"):
        y = layer(p, merge="sum", feature="squared-exponential", parts=parts)(h)
        seen = y.abs() > 1e-6  # where φ⁻¹ gives exactly 0 there is no sign
        assert seen.float().mean() > 0.5
        assert torch.equal(torch.sign(y)[seen], torch.sign(h)[seen])
    released = torch.sqrt(-2 * torch.log(FEATURES["squared-exponential"][0](h)))  # control: without the sign
    assert not torch.equal(torch.sign(released), torch.sign(h))


@pytest.mark.parametrize("feature", ["squared-exponential", "tanh", "elu"])
def test_inverses_stay_finite_outside_their_range(feature: str):
    """A projection of φ(h) leaves the range of φ; the clamp at 1e-4 bounds what comes back."""
    _, inverse = FEATURES[feature]
    y = torch.tensor([-1e6, -1.0, -0.5, 0.0, 0.5, 1.0, 1e6], dtype=torch.float32)
    assert torch.isfinite(inverse(y, torch.ones_like(y))).all()
    unclamped = {"squared-exponential": torch.log, "tanh": torch.atanh, "elu": torch.log1p}[feature]
    assert not torch.isfinite(unclamped(y)).all()  # control


@pytest.mark.parametrize("feature", ["identity", *UNCLAMPED])
def test_functions_without_a_clamp_reach_all_numbers(feature: str):
    """φ(φ⁻¹(y)) = y wherever a projection may land; and gradients are finite, at 0 too."""
    phi, inverse = FEATURES[feature]
    y = torch.linspace(-30, 30, 601, dtype=torch.float64)
    assert torch.allclose(phi(inverse(y, y)), y, rtol=1e-13, atol=1e-13)
    h = torch.tensor([-2.0, 0.0, 0.5], requires_grad=True)
    inverse(phi(h), h).sum().backward()
    assert torch.isfinite(h.grad).all()
    for other in ("tanh", "elu", "squared-exponential"):  # control
        assert not torch.allclose(FEATURES[other][0](FEATURES[other][1](y, y)), y, atol=1e-1)


@pytest.mark.parametrize("setting", [{"merge": "mean"}, {"feature": "relu"}, {"parts": "none"}], ids=str)
def test_layer_refuses_unknown_settings(setting: dict[str, str]):
    with pytest.raises(ValueError, match="unknown SEA setting"):
        SEALayer(D, (1, 1), **setting)


def test_a_fresh_layer_gives_nan_never_the_base():
    assert torch.isnan(SEALayer(D, (1, 1))(torch.ones(2, D))).all()


# ---------------------------------------------------------------------------------------------- layers to edit


@given(seed=seeds, n=st.integers(1, 30))
def test_signature_is_numpys(seed: int, n: int):
    _, positive, negative = activations(n, seed)
    found = sea.signature(*tensors((positive, negative)))
    assert found == pytest.approx(oracle.signature(positive, negative), rel=1e-10)
    # By hand: the singular values of a [d, 2] matrix sum to sqrt(|a|² + |b|² + 2 |a||b| sin(angle)).
    a, b = positive.mean(0), negative.mean(0)
    area = np.sqrt(max((a @ a) * (b @ b) - (a @ b) ** 2, 0.0))
    assert found == pytest.approx(np.sqrt(a @ a + b @ b + 2 * area), rel=1e-8)


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("middle", (5,)),
        ("all", range(10)),
        (" all ", range(10)),
        ("last:3", (7, 8, 9)),
        ("last:10", range(10)),
        ("first:2", (0, 1)),
        ("first:0.5", range(5)),
        ("last:0.66", (3, 4, 5, 6, 7, 8, 9)),
        ("last:0.01", (9,)),  # a share of a layer is one layer
        ("2-4", (2, 3, 4)),
        ("3,5,7", (3, 5, 7)),
        ("7, 3,3", (3, 7)),
        ("0,4-6,9", (0, 4, 5, 6, 9)),
        ("signature:0.5", (2, 3, 9)),
        ("signature:1.0", (3,)),
        ([5, 1], (1, 5)),
        ((-1, 0), (0, 9)),
    ],
    ids=str,
)
def test_select_layers(spec, expected):
    signatures = {i: v for i, v in enumerate([1, 2, 5, 10, 4.999, 0, 0, 0, 0, 7.5])}
    assert select_layers(spec, 10, signatures) == tuple(expected)


@pytest.mark.parametrize(
    "spec",
    [
        "", "none", "last", "last:", "last:0", "last:-1", "last:11", "first:x", "last:nan", "last:2.5", "5-2", "10",
        "0-10", "1,,2", "-1", "3-", "signature:0", "signature:2", "signature:nan", "signature:x", "last:1e9",
        "last:inf", [], [10], [-11],
    ],
    ids=repr,
)  # fmt: skip
def test_select_layers_refuses_what_it_cannot_read(spec):
    with pytest.raises(SettingError):
        select_layers(spec, 10, dict.fromkeys(range(10), 1.0))


def test_signature_selection_needs_signatures():
    with pytest.raises(SettingError, match="needs activations of all layers"):
        select_layers("signature:0.5", 10)


# ---------------------------------------------------------------------------------------------- dense imports


@given(seed=seeds, k_pos=st.integers(0, 5), k_neg=st.integers(0, 5))
def test_dense_projections_come_back_thin(seed: int, k_pos: int, k_neg: int):
    p = random_projector(seed, 12, k_pos, k_neg)
    P_pos, P_neg = torch.from_numpy(dense(p.positive)), torch.eye(12).double() - torch.from_numpy(dense(p.negative))
    # The authors' files are float32 or float16; 2^-11 is half precision's rounding.
    for dtype, limit in ((torch.float64, 1e-12), (torch.float32, 1e-5), (torch.float16, 12 * 2.0**-11)):
        found = sea.from_dense(P_pos.to(dtype), P_neg.to(dtype), tolerance=1e-2)
        assert found.ranks == p.ranks
        assert np.abs(dense(found.positive) - dense(p.positive)).max() <= limit
        assert np.abs(dense(found.negative) - dense(p.negative)).max() <= limit


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda P: P * 0.9, "eigenvalues other than 0 and 1"),
        (lambda P: P + torch.triu(torch.ones_like(P), 1), "not symmetric"),
        (lambda P: P + float("nan"), "NaN"),
        (lambda P: P[:, :-1], r"must be \[d, d\]"),
    ],
    ids=["scaled", "asymmetric", "nan", "oblong"],
)
@pytest.mark.parametrize("which", [0, 1], ids=["positive", "negative"])
def test_a_matrix_that_is_no_projector_is_refused(which: int, break_it, message: str):
    p = random_projector(17, 12, 3, 2)
    pair = [torch.from_numpy(dense(p.positive)), torch.eye(12).double() - torch.from_numpy(dense(p.negative))]
    pair[which] = break_it(pair[which])
    with pytest.raises(ActivationError, match=message):
        sea.from_dense(*pair)


@pytest.mark.parametrize("rows", ["every layer", "the selected layers"])
def test_an_edit_goes_through_dense_files_and_comes_back(rows: str):
    """Thin -> the authors' stacked [L, d, d] form -> import: the same edit, layer by layer."""
    model = tiny("llama")
    base = BaseModel.of(model, "tiny-llama")
    fitted = {
        i: sea.projector(*tensors(activations(9, seed=i, d=48)), K_positive=0.9, K_negative=0.8) for i in (1, 2, 3)
    }
    edit = Edit({i: p.float() for i, p in fitted.items()}, Site.MLP, base)
    layers = range(4) if rows == "every layer" else edit.layers
    U_pos = torch.stack([torch.from_numpy(dense(fitted[i if i else 1].positive)) for i in layers])
    U_neg = torch.stack(
        [torch.eye(48).double() - torch.from_numpy(dense(fitted[i if i else 1].negative)) for i in layers]
    )
    imported = Edit.from_dense(U_pos.float(), U_neg.float(), model, source="tiny-llama", layers="last:3", site="mlp")
    assert imported.layers == edit.layers
    assert imported.ranks == edit.ranks
    h = torch.randn(5, 48, generator=torch.Generator().manual_seed(0))
    for i in edit.layers:
        # Both are float32: the eigenvectors of a float32 matrix are as sharp as its rounding, 1e-7, times a few.
        assert torch.allclose(imported.layer(i)(h), edit.layer(i)(h), atol=1e-5)
    assert not torch.allclose(imported.layer(1)(h), edit.layer(2)(h), atol=1e-2)  # control: not just any layer


def test_dense_files_of_another_shape_are_refused():
    model = tiny("llama")
    P = torch.eye(48).expand(2, 48, 48)
    with pytest.raises(SeaBakeError, match="2 dense projections for 4 layers"):
        Edit.from_dense(P, P, model, source="tiny-llama", layers="last:3")
    with pytest.raises(SeaBakeError, match="must both be"):
        Edit.from_dense(P[:, :5, :5], P[:, :5, :5], model, source="tiny-llama", layers="last:3")
