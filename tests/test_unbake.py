"""Unbake: the base again, every file of it bit for bit; and no other folder is ever taken for it."""

from __future__ import annotations

import functools
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
from conftest import Workshop
from test_checkpoint import CARRIED, LEFT_OUT, furnished

from sea_bake import Edit, bake
from sea_bake.artefact.record import RECORD
from sea_bake.baking import unbake
from sea_bake.errors import CheckpointError, OutputError, WrongModelError

KINDS = pytest.mark.parametrize("kind", ["single", "sharded"])


def contents(folder: Path) -> dict[str, str]:
    """Every file but git's -> SHA-256."""
    return {name: entry[-1] for name, entry in tiny.snapshot(folder).items() if not name.startswith(".git/")}


@functools.cache
def sum_edit() -> Edit:
    return Edit.load(tiny.edit_file()).with_settings(merge="sum")


def artefact(kind: str, how: str, copy: bool = False) -> Path:
    """Baked from ``furnished(kind)``. Not to be changed."""
    return _artefact(kind, how, copy)


@functools.cache
def _artefact(kind: str, how: str, copy: bool) -> Path:
    output = tiny.root() / f"unbake-{kind}-{how}-{copy}"
    return bake(furnished(kind), sum_edit(), output, how=how, copy=copy).output


def spoilt(folder: Path, target: Path, name: str) -> Path:
    """A copy in which the last byte of one file is another: of JSON white space, else a bit."""
    copied = tiny.changeable(folder, target)
    data = bytearray((copied / name).read_bytes())
    data[-1] = ord(" ") if name.endswith(".json") else data[-1] ^ 1
    (copied / name).unlink()  # it may be a hard link
    (copied / name).write_bytes(data)
    return copied


# ---------------------------------------------------------------------------------------------------------- insert


@KINDS
@pytest.mark.parametrize("copy", [False, True])
def test_an_insert_gives_its_base_bit_for_bit(kind: str, copy: bool, tmp_path: Path) -> None:
    """From the artefact alone: all that it holds; with the base: compared file by file, and what was left out too."""
    base, baked = furnished(kind), artefact(kind, "insert", copy)
    expected = contents(base)
    alone = unbake(baked, tmp_path / "alone")
    assert contents(tmp_path / "alone") == {k: v for k, v in expected.items() if k not in LEFT_OUT}
    assert set(CARRIED) - {".gitattributes"} < set(contents(tmp_path / "alone"))
    assert alone.left_out == sorted(LEFT_OUT)
    assert alone.hash_checked == 0
    compared = unbake(baked, tmp_path / "compared", base=base, copy=copy)
    assert contents(tmp_path / "compared") == expected
    assert compared.left_out == []
    assert compared.hash_checked == len(expected)
    assert (compared.bytes_linked == 0) == copy
    assert contents(baked) != expected  # the control: the artefact itself is something else
    assert not (tmp_path / "compared" / "sea").exists()


@pytest.mark.parametrize(
    "name", ["model.safetensors", "README.md", "config.json", "sub/folder/notes.txt", "tokenizer_config.json"]
)
def test_a_base_that_differs_in_one_byte_is_noticed(name: str, tmp_path: Path) -> None:
    base = spoilt(furnished("single"), tmp_path / "base", name)
    with tiny.nothing_happens(tmp_path, base), pytest.raises(WrongModelError) as error:
        unbake(artefact("single", "insert"), tmp_path / "out", base=base)
    assert f"{name} differs from the base's" in str(error.value)


def test_an_artefact_that_was_changed_is_noticed(tmp_path: Path) -> None:
    baked = spoilt(artefact("single", "insert", True), tmp_path / "art", "model-base.safetensors")
    with pytest.raises(WrongModelError, match=r"model\.safetensors differs"):
        unbake(baked, tmp_path / "out", base=furnished("single"))
    (tmp_path / "art" / "new.txt").write_text("more")
    with pytest.raises(WrongModelError, match="differs"):
        unbake(baked, tmp_path / "out", base=furnished("single"))


def test_a_file_more_or_less_is_noticed(tmp_path: Path) -> None:
    more = tiny.changeable(furnished("single"), tmp_path / "more")
    (more / "new.txt").write_text("more")
    with pytest.raises(WrongModelError, match=r"new\.txt: the artefact holds none"):
        unbake(artefact("single", "insert"), tmp_path / "out", base=more)
    less = tiny.changeable(furnished("single"), tmp_path / "less")
    (less / "LICENSE").unlink()
    with pytest.raises(WrongModelError, match="LICENSE: the base has no such file"):
        unbake(artefact("single", "insert"), tmp_path / "out", base=less)


def test_what_bake_wrote_itself_goes_away(workshop: Workshop, tmp_path: Path) -> None:
    """A tokenizer_config.json that the base never had, two edits, and the report that ``verify`` leaves."""
    base = tiny.changeable(workshop.base("qwen2"), tmp_path / "base")
    (base / "tokenizer_config.json").unlink()
    edit = workshop.edit("qwen2", "mlp", "sum")
    baked = bake(base, [edit, edit], tmp_path / "art", how="insert").output
    assert (baked / "tokenizer_config.json").is_file()
    (baked / "sea_verification.json").write_text("{}")
    unbake(baked, tmp_path / "out", base=base)
    assert contents(tmp_path / "out") == contents(base)


def test_an_artefact_is_not_replaced_by_its_base(tmp_path: Path) -> None:
    """It is what is read: whoever wants it gone removes it, once the base is there."""
    place = tiny.changeable(artefact("sharded", "insert"), tmp_path / "art")
    with tiny.nothing_happens(tmp_path, place):
        with pytest.raises(OutputError, match="pass --overwrite"):
            unbake(place, place)
        with pytest.raises(OutputError, match="is read, and lies in the output"):
            unbake(place, place, overwrite=True, base=furnished("sharded"))


@pytest.mark.parametrize("how", ["insert", "fold"])
@pytest.mark.parametrize("base", ["sharded", "single"])
def test_its_own_earlier_output_is_replaced(base: str, how: str, tmp_path: Path) -> None:
    """It carries no mark of ours, and is known by its files; with one more, or another one, it is somebody's own."""
    made, out = artefact(base, how), tmp_path / "out"
    options = ["--base", furnished(base)] if how == "fold" else []
    for overwrite in ([], ["--overwrite"], ["--overwrite"]):
        assert tiny.run("unbake", made, "-o", out, *options, *overwrite).code == 0
    assert contents(out).items() <= contents(furnished(base)).items()
    for name in ("diary.txt", ".git", "config.json"):
        place = shutil.copytree(out, tmp_path / f"with {name}")
        (place / name).write_text("mine")
        with tiny.nothing_happens(tmp_path, place):
            ran = tiny.run("unbake", made, "-o", place, *options, "--overwrite")
            tiny.refused(ran, "OutputError", "was not written by sea_bake")


@pytest.mark.slow
def test_a_base_merged_from_an_adapter_is_given_back_merged(tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    from sea_bake import fit

    base = tiny.changeable(tiny.sharded(), tmp_path / "base")
    model = get_peft_model(tiny.new_llama(), LoraConfig(r=2, target_modules=["down_proj"], init_lora_weights=False))
    model.peft_config["default"].base_model_name_or_path = "somewhere/base"  # found beside the adapter
    model.save_pretrained(tmp_path / "lora")
    edit = fit(tmp_path / "lora", tiny.demonstrations(), layers=[1], neutral="prompt", K=0.9, merge="sum", alpha=0.77)
    for how in ("insert", "fold"):
        baked = bake(tmp_path / "lora", edit, tmp_path / how, how=how).output
        unbake(baked, tmp_path / f"{how}-out", base=tmp_path / "lora")
        with pytest.raises(WrongModelError, match="not the"):  # the control: the bare base is another model
            unbake(baked, tmp_path / "other", base=base)
    assert contents(tmp_path / "insert-out") == contents(tmp_path / "fold-out") != contents(base)


# ------------------------------------------------------------------------------------------------- fold and adapter


@KINDS
def test_a_fold_is_restored_from_its_base(kind: str, tmp_path: Path) -> None:
    base, baked = furnished(kind), artefact(kind, "fold")
    report = unbake(baked, tmp_path / "out", base=base)
    assert contents(tmp_path / "out") == contents(base)
    changed = json.loads((baked / RECORD).read_text("utf-8"))["coverage"]["changed"]
    assert f"exactly the {len(changed)} that the fold lists" in report.proof
    assert report.bytes_linked > 0
    weights = [name for name in contents(base) if name.startswith("model") and name.endswith(".safetensors")]
    assert any(contents(baked)[name] != contents(base)[name] for name in weights)  # the control


@pytest.mark.slow
def test_an_approximate_fold_is_restored_like_an_exact_one(tmp_path: Path) -> None:
    texts = tiny.demonstrations(24)
    report = bake(tiny.single(), tiny.edit_file(), tmp_path / "art", approximate=True, calibration=texts)
    assert (report.how, report.exact) == ("fold", False)
    unbake(tmp_path / "art", tmp_path / "out", base=tiny.single())
    assert contents(tmp_path / "out") == contents(tiny.single())
    with pytest.raises(WrongModelError, match="not the base of"):
        unbake(tmp_path / "art", tmp_path / "other", base=tiny.single(seed=1))


def test_a_folds_base_is_found_by_its_record(tmp_path: Path) -> None:
    baked = tiny.changeable(artefact("single", "fold"), tmp_path / "art")
    with tiny.nothing_happens(tmp_path, baked), pytest.raises(CheckpointError, match="say where it is with --base"):
        unbake(baked, tmp_path / "out")
    base = tiny.changeable(furnished("single"), tmp_path / furnished("single").name)
    unbake(baked, tmp_path / "out")
    assert contents(tmp_path / "out") == contents(base)


def test_another_base_is_not_the_folds(tmp_path: Path) -> None:
    baked = artefact("single", "fold")
    with pytest.raises(WrongModelError, match="not the base of"):  # other weights
        unbake(baked, tmp_path / "out", base=tiny.single(seed=1))
    with pytest.raises(WrongModelError, match="not the base of"):  # already folded
        unbake(baked, tmp_path / "out", base=baked)
    # The last tensor of the file is a norm, which no fold lists; a fingerprint samples its last value.
    fine_tuned = spoilt(furnished("single"), tmp_path / "sampled", "model.safetensors")
    with pytest.raises(WrongModelError, match="its weights are not those of"):
        unbake(baked, tmp_path / "out", base=fine_tuned)
    fine_tuned = tiny.changeable(furnished("single"), tmp_path / "tuned")
    data = bytearray((fine_tuned / "model.safetensors").read_bytes())
    data[-5] ^= 0xFF  # the value before, which none does
    (fine_tuned / "model.safetensors").unlink()  # it may be a hard link
    (fine_tuned / "model.safetensors").write_bytes(data)
    with pytest.raises(WrongModelError, match=r"model\.norm\.weight differs from the artefact's, which the fold does"):
        unbake(baked, tmp_path / "out", base=fine_tuned)
    other = tiny.changeable(furnished("single"), tmp_path / "config")
    tiny.patch_json(other / "config.json", rms_norm_eps=0.5)
    with pytest.raises(WrongModelError, match=r"config\.json is not the same"):
        unbake(baked, tmp_path / "out", base=other)


def test_a_listed_tensor_has_to_differ(tmp_path: Path) -> None:
    baked = tiny.changeable(artefact("single", "fold"), tmp_path / "art")
    record = json.loads((baked / RECORD).read_text("utf-8"))
    record["coverage"]["changed"]["model.norm.weight"] = 0.1
    (baked / RECORD).write_text(json.dumps(record))
    with pytest.raises(WrongModelError, match=r"model\.norm\.weight is the same as in the artefact's"):
        unbake(baked, tmp_path / "out", base=furnished("single"))
    record["coverage"]["changed"]["model.norm.weight"] = 0  # as of a bias of zeros: listed, and left as it was
    (baked / RECORD).write_text(json.dumps(record))
    unbake(baked, tmp_path / "out", base=furnished("single"))


def test_there_is_nothing_to_undo_for_an_adapter(tmp_path: Path) -> None:
    baked = artefact("single", "adapter")
    tiny.refused(
        tiny.run("unbake", baked, "-o", tmp_path / "out"), "CheckpointError", "nothing to undo", "delete the folder"
    )
    assert tiny.listing(tmp_path) == set()


# -------------------------------------------------------------------------------------------------- the door, bad input


def test_the_command_line(tmp_path: Path) -> None:
    base = furnished("single")
    ran = tiny.run("unbake", artefact("single", "insert"), "--base", base, "-o", tmp_path / "out", "--json")
    assert ran.code == 0
    said = json.loads(ran.out)
    assert (said["how"], said["hash_checked"], said["left_out"]) == ("insert", len(contents(base)), [])
    assert contents(tmp_path / "out") == contents(base)
    ran = tiny.run("unbake", artefact("single", "insert"), "-o", tmp_path / "alone")
    assert "rebuilt from the artefact alone" in ran.out
    assert "pytorch_model.bin" in ran.out  # what is not there is said
    ran = tiny.run("unbake", "--help")
    for word in ("insert", "fold", "adapter", "--base", "sea-bake unbake smollm2-truthful"):
        assert word in ran.out
    ran = tiny.run("unbake", base, "-o", tmp_path / "other", "--json")
    assert (ran.code, json.loads(ran.out)["error"]["type"]) == (2, "CheckpointError")


def test_outputs_obey_the_house_rules(tmp_path: Path) -> None:
    baked = artefact("single", "insert")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "diary.txt").write_text("dear diary")
    with tiny.nothing_happens(tmp_path, baked, tmp_path / "mine"):
        for output, options, words in (
            (tmp_path / "mine", [], "pass --overwrite"),
            (tmp_path / "mine", ["--overwrite"], "remove it yourself"),
            (baked / "inside", [], "which is read: choose an output outside of it"),
        ):
            tiny.refused(tiny.run("unbake", baked, "-o", output, *options), "OutputError", words)
        tiny.refused(tiny.run("unbake", tiny.single(), "-o", tmp_path / "o"), "CheckpointError", "not an artefact")
        tiny.refused(
            tiny.run("unbake", baked, "-o", tmp_path / "o", "--base", tmp_path / "nowhere"),
            "CheckpointError",
            "no such model",
        )


def set_record(**changes: Any) -> Callable[[Path], None]:
    return lambda folder: tiny.patch_json(folder / RECORD, **changes)


def write_record(text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / RECORD).write_text(text) and None


def removed(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


DAMAGE: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "no JSON": ("insert", write_record("{"), "cannot be read as JSON"),
    "no object": ("insert", write_record("[]"), "not a JSON object"),
    "no how": ("insert", set_record(how=None), "how is missing"),
    "unknown how": ("insert", set_record(how="melt"), "how is 'melt', none of insert, fold, adapter"),
    "no shards": ("insert", set_record(shards=None), "does not list the base's files"),
    "shards of another kind": ("insert", set_record(shards=["a"]), "shards is list ['a'], not dict"),
    "no patched": ("insert", set_record(patched=None), "does not list the base's files"),
    "left_out of another kind": ("insert", set_record(left_out=[1]), "left_out[0] is int 1, not str"),
    "a shard outside": ("insert", set_record(shards={"../x": "model-base.safetensors"}), "outside"),
    "a shard from outside": ("insert", set_record(shards={"model.safetensors": "../x"}), "outside"),
    "a file outside": ("insert", set_record(left_out=["../../x.bin"]), "outside"),
    "a patch outside": ("insert", set_record(patched=["../config.json"]), "outside"),
    "a shard less": ("insert", removed("model-base.safetensors"), "is missing"),
    "another shard's name": ("insert", set_record(shards={"other.safetensors": "model-base.safetensors"}), "neither"),
    "no configuration": ("insert", removed("sea/base/config.json"), "is missing"),
    "no coverage": ("fold", set_record(coverage=None), "coverage is missing"),
    "coverage of another kind": (
        "fold",
        set_record(coverage={"changed": {"a": "b"}}),
        "a change in its coverage is no number",
    ),
    "no base": ("fold", set_record(base=None), "base is missing"),
    "no edits": ("fold", set_record(edits=None), "does not list the edits"),
}


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_record_is_one_clear_error(damage: str, tmp_path: Path) -> None:
    how, spoil, words = DAMAGE[damage]
    baked = tiny.changeable(artefact("single", how), tmp_path / "art")
    os.symlink(furnished("single"), tmp_path / furnished("single").name)  # a fold's base is found
    spoil(baked)
    with tiny.nothing_happens(tmp_path, baked):
        tiny.refused(tiny.run("unbake", baked, "-o", tmp_path / "out"), "CheckpointError", words)
    shutil.rmtree(baked)
    tiny.changeable(artefact("single", how), baked)
    assert tiny.run("unbake", baked, "-o", tmp_path / "out").code == 0  # the control: undamaged, it goes through
