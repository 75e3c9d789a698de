"""A published recipe fits the same projectors again; other texts, another base or another seed are told apart."""

from __future__ import annotations

import functools
import json
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import yaml

from sea_bake import Edit, bake, fit
from sea_bake.demonstrations import digest, load
from sea_bake.errors import CheckpointError, DemonstrationError, EditError, RecipeError, SeaBakeError, WrongModelError
from sea_bake.fitting import gather
from sea_bake.methods.sea import left_singular, projector
from sea_bake.publishing.recipe import describe, dump
from sea_bake.publishing.tolerance import LARGEST, NOISE, Tolerance
from sea_bake.recipes.comparing import compare, sine
from sea_bake.recipes.reading import read_yaml
from sea_bake.recipes.reproducing import reproduce
from sea_bake.recipes.running import run
from sea_bake.recipes.schema import read

SETTINGS: dict[str, Any] = {"layers": "last:2", "K": 0.9, "position": "random", "max_new_tokens": 6}


@functools.cache
def published() -> Path:
    """What a Hub repository of ours holds beside its weights: the recipe and the edits. The base lies beside it."""
    home = tiny.root() / "home"
    tiny.changeable(tiny.single(), home / "tiny-base")
    file = shutil.copy(tiny.demonstrations_file(), home / "triples.jsonl")
    edits = [
        fit(home / "tiny-base", load(file, shuffle_seed=3, limit=7), **SETTINGS, seed=5),
        fit(
            home / "tiny-base", load("builtin", limit=6), site="attn", merge="sum", neutral="prompt", layers="0-1", K=3
        ),
    ]
    artefact = bake(home / "tiny-base", edits, home / "artefact").output
    folder = home / "published"
    (folder / "sea").mkdir(parents=True)
    for path in artefact.glob("sea/edit-*.safetensors"):
        shutil.copy(path, folder / "sea")
    (folder / "sea_bake.yaml").write_text(dump(artefact), "utf-8")
    return folder


def texts() -> list[str]:
    return [str(published().parent / "triples.jsonl"), "builtin"]


def spoiled(folder: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """A copy of ``published`` beside its base, with another recipe."""
    made = Path(shutil.copytree(published(), folder / "published"))
    shutil.copytree(published().parent / "tiny-base", folder / "tiny-base")
    data = read_yaml(made / "sea_bake.yaml")[0]
    change(data)
    (made / "sea_bake.yaml").write_text(yaml.safe_dump(data), "utf-8")
    return made


# ---------------------------------------------------------------------------------------------------------- comparison


def span(seed: int, k: int, d: int = 24) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(d, k, generator=generator, dtype=torch.float64)).Q.T.contiguous()


@pytest.mark.parametrize("k", [1, 3, 8])
def test_the_sine_is_the_spectral_norm_of_the_difference_of_dense_projectors(k: int) -> None:
    U = span(0, k)
    for seed, size in enumerate([1e-9, 1e-4, 1e-1, 1.0], start=1):
        V = torch.linalg.qr((U + size * span(seed, k)).T).Q.T
        dense = float(torch.linalg.matrix_norm(U.T @ U - V.T @ V, 2))
        assert sine(U, V) == pytest.approx(dense, rel=1e-6, abs=1e-15)  # float64; at 1e-9 few digits of it are left
        turned = torch.linalg.qr(torch.randn(k, k, dtype=torch.float64)).Q @ V  # another basis of the same span
        assert sine(U, turned) == pytest.approx(sine(U, V), rel=1e-6, abs=1e-14)
    assert sine(U, -U.flip(0)) < 1e-14  # signs and order are free
    assert sine(span(0, 2)[:1], span(0, 2)[1:]) == pytest.approx(1.0)


@pytest.mark.parametrize("size", [1e-6, 1e-4])
def test_the_limit_holds_for_every_cut_and_is_not_wide(size: float) -> None:
    """Wedin's bound on true perturbations of Ω, at every cut of its spectrum; a bound far narrower than the
    perturbation is broken at each.
    """
    generator = torch.Generator().manual_seed(1)
    H, other = (torch.randn(9, 24, generator=generator, dtype=torch.float64) for _ in range(2))
    U, s = left_singular(H, other)
    noise = torch.randn(9, 24, generator=generator, dtype=torch.float64)
    moved, _ = left_singular(H + size * noise, other)
    omega = [h.T @ other / 9 for h in (H, H + size * noise)]
    relative = float(torch.linalg.matrix_norm(omega[1] - omega[0], 2) / s[0])
    allowed, narrow = Tolerance(1.5 * relative, 1.0), Tolerance(1e-4 * relative, 1.0)  # 1.5: the gap has moved too
    found = [(sine(U[:, :k].T, moved[:, :k].T), allowed.limit(s, k), narrow.limit(s, k)) for k in range(1, 10)]
    assert all(angle <= limit for angle, limit, _ in found)
    assert all(angle > limit for angle, _, limit in found)


def test_ranks_layers_and_other_fits_are_told_apart() -> None:
    triples = tiny.demonstrations()
    acts = gather(tiny.single(), triples, neutral="prompt")
    edit, other, fewer = (
        fit(None, activations=acts, layers=layers, K=K) for layers, K in (("all", 2), ("all", 3), ("0-2", 2))
    )
    tolerance = Tolerance.of("float32")
    assert all(layer.same and layer.sine < 1e-12 for layer in compare(edit, edit, tolerance))  # float64
    assert not any(layer.same for layer in compare(edit, other, tolerance))
    assert [layer.layer for layer in compare(edit, fewer, tolerance) if not layer.same] == [3, 3]
    changed = fit(tiny.single(), triples[1:], neutral="prompt", layers="all", K=2)
    assert not any(layer.same for layer in compare(edit, changed, tolerance))


def test_a_cut_without_a_gap_has_the_largest_tolerance() -> None:
    assert Tolerance(1e-5).limit(torch.tensor([2.0, 1.0, 1.0]), 2) == LARGEST
    assert Tolerance(1e-5).limit(torch.tensor([2.0, 1.0]), 2) == pytest.approx(
        2e-5
    )  # nothing behind it: the gap is s_k
    full = torch.randn(3, 8, dtype=torch.float64)
    assert projector(full, full, full, K_positive=1.0, K_negative=1.0).ranks == (3, 3)


# ---------------------------------------------------------------------------------------------------------- the recipe


def test_the_recipe_says_how_the_edits_were_fitted_and_nothing_about_this_machine() -> None:
    folder = published()
    text = (folder / "sea_bake.yaml").read_text("utf-8")
    assert str(tiny.root()) not in text
    data = yaml.safe_load(text)
    assert data == json.loads(json.dumps(describe(folder.parent / "artefact")), object_hook=_whole_keys)
    first, second = data["fit"]
    assert {
        key: first[key] for key in ("demonstrations", "shuffle_seed", "limit", "seed", "position", "K_positive")
    } == {
        "demonstrations": "triples.jsonl",
        "shuffle_seed": 3,
        "limit": 7,
        "seed": 5,
        "position": "random",
        "K_positive": 0.9,
    }
    assert (second["demonstrations"], second["site"], second["merge"]) == ("builtin", "attn", "sum")
    record = data["provenance"]["edits"][0]
    assert record["sha256"] == tiny.sha256(folder / record["file"])
    assert record["demonstrations"]["file_sha256"] == tiny.sha256(folder.parent / "triples.jsonl")
    assert record["demonstrations"]["sha256"] == digest(load(texts()[0], shuffle_seed=3, limit=7))
    assert data["provenance"]["tolerance"]["noise"] == NOISE["float32"]
    assert set(data["provenance"]["versions"]) == {"sea_bake", "torch", "transformers", "python"}


def _whole_keys(data: dict[str, Any]) -> dict[Any, Any]:
    return {int(k) if k.isdigit() else k: v for k, v in data.items()}


def test_a_published_recipe_runs(tmp_path: Path) -> None:
    data = read_yaml(published() / "sea_bake.yaml")[0]
    made = {**data, "model": str(published().parent / "tiny-base"), "verify": False}
    made["fit"][0]["demonstrations"] = texts()[0]
    run(made, folder=tmp_path)
    for i in range(2):
        again = Edit.load(tmp_path / "artefact" / "sea" / f"edit-{i}.safetensors")
        same_projectors(again, Edit.load(published() / "sea" / f"edit-{i}.safetensors"))


def test_its_commands_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(published().parent / "tiny-base", tmp_path / "tiny-base")
    shutil.copy(texts()[0], tmp_path)
    monkeypatch.chdir(tmp_path)
    commands = read_yaml(published() / "sea_bake.yaml")[0]["provenance"]["commands"]
    assert [shlex.split(line)[1] for line in commands] == ["fit", "fit", "bake", "verify"]
    for line in commands[:-1]:
        ran = tiny.run(*shlex.split(line)[1:])
        assert ran.code == 0, ran
    for i in range(2):
        again = Edit.load(tmp_path / "artefact" / "sea" / f"edit-{i}.safetensors")
        same_projectors(again, Edit.load(published() / "sea" / f"edit-{i}.safetensors"))


def same_projectors(again: Edit, edit: Edit) -> None:
    assert (again.layers, again.site, again.merge, again.ranks) == (edit.layers, edit.site, edit.merge, edit.ranks)
    for layer in edit.layers:  # the same steps in one process: bit for bit
        assert torch.equal(again.projectors[layer].positive, edit.projectors[layer].positive)
        assert torch.equal(again.projectors[layer].negative, edit.projectors[layer].negative)


def test_what_is_not_known_is_not_made_up(tmp_path: Path) -> None:
    """Demonstrations given in Python, and an imported edit: the recipe says so, and reproduce asks or refuses."""
    base = tiny.changeable(tiny.single(), tmp_path / "tiny-base")
    triples = tiny.demonstrations(5)
    given = bake(base, fit(base, triples, neutral="prompt", layers="all", K=2), tmp_path / "given").output
    assert describe(given)["fit"][0]["demonstrations"] is None
    with pytest.raises(RecipeError, match="say where they are with --demonstrations"):
        reproduce(given)
    assert reproduce(given, demonstrations=tiny.demonstrations_file(5)).reproduced  # the artefact's own records do
    edit = Edit.load(given / "sea" / "edit-0.safetensors")
    imported = Edit(edit.projectors, edit.site, edit.base, recipe={"imported": "dense projections"})
    folder = bake(base, imported, tmp_path / "imported").output
    assert read(describe(folder), folder=folder).edits == (str(folder / "sea" / "edit-0.safetensors"),)
    with pytest.raises(RecipeError, match="not fitted by its recipe"):
        reproduce(folder)
    with pytest.raises(CheckpointError, match="is not an artefact"):
        describe(base)


# --------------------------------------------------------------------------------------------------------- reproducing


def test_the_same_projectors_come_out_again() -> None:
    found = reproduce(published(), demonstrations=texts(), batch_size=1)  # one by one: other roundings
    assert found.reproduced
    assert [edit.name for edit in found.edits] == ["edit-0", "edit-1"]
    sines = [layer.sine for edit in found.edits for layer in edit.layers]
    assert len(sines) == 8
    assert 0 < max(sines) < 1e-3  # rounding is there to be tolerated, and tolerated by far
    assert [edit.same_texts for edit in found.edits] == [True, True]
    assert [edit.versions for edit in found.edits] == [{}, {}]


def test_the_command_line_says_so(tmp_path: Path) -> None:
    sources = [word for text in texts() for word in ("-d", text)]
    ran = tiny.run("reproduce", published(), *sources)
    assert ran.code == 0, ran
    assert "reproduced: the same maps" in ran.out

    def another_seed(data: dict[str, Any]) -> None:
        data["fit"][0]["seed"] = 6

    ran = tiny.run("reproduce", spoiled(tmp_path, another_seed), *sources, "--json")
    assert ran.code == 1, ran
    found = json.loads(ran.out)
    assert [edit["reproduced"] for edit in found["edits"]] == [False, True]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("key", "value"),
    [("K_positive", 0.5), ("position", "last"), ("layers", "last:3"), ("merge", "l2"), ("alpha", 0.5)],
)
def test_another_setting_is_not_reproduced(tmp_path: Path, key: str, value: Any) -> None:
    def change(data: dict[str, Any]) -> None:
        data["fit"][0][key] = value

    found = reproduce(spoiled(tmp_path, change), demonstrations=texts())
    assert [edit.reproduced for edit in found.edits] == [False, True]
    assert found.edits[0].differences == ([key] if key in ("merge", "alpha") else [])


def test_other_versions_are_told(tmp_path: Path) -> None:
    folder = spoiled(tmp_path, lambda data: None)
    path = folder / "sea" / "edit-0.safetensors"
    edit = Edit.load(path)
    edit.recipe["versions"] |= {"torch": "1.0", "vanished": "2"}
    edit.save(path, overwrite=True)
    data = read_yaml(folder / "sea_bake.yaml")[0]
    data["provenance"]["edits"][0]["sha256"] = tiny.sha256(path)
    (folder / "sea_bake.yaml").write_text(yaml.safe_dump(data), "utf-8")
    found = reproduce(folder, demonstrations=texts())
    assert found.reproduced
    assert found.edits[0].versions == {"torch": ("1.0", torch.__version__), "vanished": ("2", "not installed")}


def set_limit(data: dict[str, Any]) -> None:
    data["fit"][0]["limit"] = 6


def set_file(data: dict[str, Any], name: Any = "../tiny-base/config.json") -> None:
    data["provenance"]["edits"][0]["file"] = name


def set_sha(data: dict[str, Any]) -> None:
    data["provenance"]["edits"][0]["sha256"] = "0" * 64


def set_tolerance(data: dict[str, Any]) -> None:
    data["provenance"]["tolerance"]["noise"] = 10.0


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (set_limit, DemonstrationError, r"texts is [0-9a-f]{64} \(6 triples\), and the recipe's is [0-9a-f]{64} \(7"),
        (set_file, RecipeError, "outside of its folder"),
        (lambda data: set_file(data, "/etc/passwd"), RecipeError, "outside of its folder"),
        (lambda data: set_file(data, "sea/edit-7.safetensors"), EditError, "not there"),
        (lambda data: set_file(data, 3), RecipeError, "outside of its folder"),
        (set_sha, EditError, "SHA-256 [0-9a-f]{64}, not 0{64}"),
        (set_tolerance, RecipeError, "it would prove nothing"),
        (lambda data: data["provenance"]["tolerance"].update(noise=NOISE["bfloat16"]), RecipeError, "wider .* float32"),
        (lambda data: data["provenance"]["tolerance"].update(noise=10**400), RecipeError, "lacks or garbles"),
        (lambda data: data["provenance"]["edits"][0].update(demonstrations=[1]), DemonstrationError, "holds other"),
        (lambda data: data["provenance"].pop("tolerance"), RecipeError, "tolerance lacks"),
        (lambda data: data.pop("provenance"), RecipeError, "no provenance"),
        (lambda data: data["provenance"].update(edits=[1]), RecipeError, "no provenance"),
        (lambda data: data.update(fit=[]), RecipeError, "not fitted by its recipe"),
        (lambda data: data["fit"][0].update(kk=1), RecipeError, "unknown key"),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else "",
)
def test_a_recipe_that_does_not_fit_is_refused(
    tmp_path: Path, change: Callable[[dict[str, Any]], None], error: type[SeaBakeError], words: str
) -> None:
    with pytest.raises(error, match=words):
        reproduce(spoiled(tmp_path, change), demonstrations=texts())


def test_another_base_or_nothing_at_all_is_refused(tmp_path: Path) -> None:
    other = tiny.changeable(tiny.single(seed=1), tmp_path / "tiny-base")
    with pytest.raises(WrongModelError, match=r"layer 2: [-0-9.e]+ there, [-0-9.e]+ here"):
        reproduce(published(), model=other, demonstrations=texts())
    with pytest.raises(RecipeError, match=r"has no sea_bake\.yaml"):
        reproduce(other)
    with pytest.raises(RecipeError, match="no model 'nobody/nothing': there is no such folder here"):
        reproduce("nobody/nothing")
    tiny.refused(tiny.run("reproduce", published(), "-d", "builtin"), "DemonstrationError", "SHA-256")
