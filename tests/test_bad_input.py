"""What bad input gets: one clear paragraph, exit code 2, nothing half-written, the input untouched.

Every case goes through the command line's own ``main``. It is run twice: for people (stderr), and with ``--json``.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import tiny
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import sea_bake
from sea_bake.artefact import Artefact
from sea_bake.demonstrations import load
from sea_bake.demonstrations.primers import primer_pairs
from sea_bake.edit import Edit
from sea_bake.errors import SeaBakeError
from sea_bake.methods.sea import Projector

INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class Case:
    """A command that must be refused: its arguments, the error's kind, the words it must say, the inputs it reads."""

    args: tuple[object, ...]
    kind: str
    words: tuple[str, ...]
    inputs: tuple[Path, ...] = ()


CASES: dict[str, Callable[[Path], Case]] = {}


def case(make: Callable[[Path], Case]) -> Callable[[Path], Case]:
    """A function makes the bad input in a folder and returns the case; its name is the test's."""
    CASES[make.__name__] = make
    return make


@pytest.mark.parametrize("name", CASES)
def test_refused(name: str, tmp_path: Path) -> None:
    bad, outputs = tmp_path / "input", tmp_path / "output"
    bad.mkdir()
    outputs.mkdir()
    made = CASES[name](bad)
    args = [outputs / arg.name if isinstance(arg, Out) else arg for arg in made.args]
    for arg in made.args:
        if isinstance(arg, Out) and arg.prepare:
            arg.prepare(outputs / arg.name)
    with (
        tiny.nothing_happens(tmp_path, bad, outputs, *made.inputs),
        tiny.nothing_happens(outputs),
        tiny.nothing_happens(bad),
    ):
        tiny.refused(tiny.run(*args), made.kind, *made.words)
        ran = tiny.run(*args, "--json")
    assert ran.code == 2
    assert ran.err == ""
    error = json.loads(ran.out)["error"]
    assert error["type"] == made.kind
    assert all(word in " ".join(error["message"].split()) for word in made.words)


@dataclass(frozen=True)
class Out:
    """An output in the test's own folder; ``prepare`` puts something there first."""

    name: str = "out"
    prepare: Callable[[Path], object] | None = None


def fitting(model: object, *more: object, kind: str, words: tuple[str, ...], inputs: tuple[Path, ...] = ()) -> Case:
    """``fit`` on 8 demonstrations, unless ``more`` says otherwise."""
    data = () if "-d" in more else ("-d", tiny.demonstrations_file())
    return Case(("fit", model, "-o", Out(), "--neutral", "prompt", *data, *more), kind, words, inputs)


def baking(base: object, *more: object, kind: str, words: tuple[str, ...], edit: object = None) -> Case:
    output = () if "-o" in more else ("-o", Out())
    return Case(("bake", base, edit or tiny.edit_file(), *output, *more), kind, words, (tiny.single(), tiny.sharded()))


def setting(*args: object, words: tuple[str, ...]) -> Callable[[Path], Case]:
    return lambda _: fitting(tiny.single(), *args, kind="SettingError", words=words, inputs=(tiny.single(),))


# ------------------------------------------------------------------------------------------------------------- settings

for value in ("0", "0.0", "1.5", "-0.1", "nan", "-inf", "1.0000001"):
    CASES[f"K_is_{value}"] = setting("-K", value, words=("K", "is outside (0, 1]"))
CASES |= {
    "K_is_a_word": setting("-K", "abc", words=("K", "share such as 0.998", "rank such as 8", "'abc'")),
    "K_is_a_negative_rank": setting("-K", "-1", words=("K_positive = -1", "not a rank")),
    "K_positive_alone": setting("--K-positive", "2.5", words=("K_positive = 2.5 is outside (0, 1]",)),
    "K_negative_alone": setting("--K-negative", "0.0", words=("K_negative = 0.0 is outside (0, 1]",)),
    "layer_out_of_range": setting("--layers", "4", words=("layer 4 is out of range", "layers 0 to 3")),
    "layer_range_too_long": setting("--layers", "2-99999999999", words=("out of range", "layers 0 to 3")),
    "more_layers_than_there_are": setting("--layers", "last:5", words=("last:5", "4 layers")),
    "no_layer": setting("--layers", "3-1", words=("selects no layer", "use last:21")),
    "layers_unreadable": setting("--layers", "centre", words=("'centre' cannot be read", "use last:21")),
    "layers_by_nan": setting("--layers", "last:nan", words=("last:nan", "4 layers")),
    "signature_share": setting("--layers", "signature:1.5", words=("signature:1.5 is outside (0, 1]",)),
    "site": setting("--site", "head", words=("unknown site 'head'", "mlp, attn, block")),
    "merge": setting("--merge", "max", words=("unknown merge 'max'", "l2, sum, average")),
    "feature": setting("--feature", "relu", words=("unknown feature function 'relu'", "tanh, elu")),
    "parts": setting("--parts", "neither", words=("unknown parts 'neither'", "both, positive, negative")),
    "position": setting("--position", "first", words=("unknown token position 'first'", "last, mean or random")),
    "neutral": setting("--neutral", "silence", words=("unknown neutral text 'silence'", "generate or prompt")),
    "alpha": setting("--alpha", "nan", words=("alpha = nan", "between -1e6 and 1e6")),
    "dtype": setting("--dtype", "int4", words=("unknown dtype 'int4'", "float32, bfloat16, float16")),
    "batch_size": setting("--batch-size", "0", words=("batch_size (0)", "at least 1")),
    "max_new_tokens": setting("--max-new-tokens", "-3", words=("max_new_tokens (-3)", "at least 1")),
}


@case
def model_and_activations(_: Path) -> Case:
    args = ("fit", tiny.single(), "--activations", tiny.edit_file(), "-o", Out())
    return Case(args, "SettingError", ("either a MODEL or --activations", "not both"))


@case
def neither_model_nor_activations(_: Path) -> Case:
    return Case(("fit", "-o", Out()), "SettingError", ("either a MODEL or --activations",))


@case
def unknown_way_to_bake(_: Path) -> Case:
    return baking(tiny.single(), "--how", "glue", kind="SettingError", words=("unknown way to bake 'glue'", "insert"))


# ------------------------------------------------------------------------------------------------------- demonstrations

GOOD_ROW = json.dumps({"prompt": "Is it so?", "positive": "It is.", "negative": "It is not."})


def demonstrations(text: str | bytes, *words: str, name: str = "data.jsonl") -> Callable[[Path], Case]:
    def make(folder: Path) -> Case:
        path = folder / name
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return fitting(tiny.single(), "-d", path, kind="DemonstrationError", words=words)

    return make


CASES |= {
    "demonstrations_empty": demonstrations("", "data.jsonl", "empty"),
    "demonstrations_one": demonstrations(GOOD_ROW, "data.jsonl", "at least 2 usable triples", "1 found"),
    "demonstrations_not_json": demonstrations(
        f"{GOOD_ROW}\n{GOOD_ROW}\n{{'prompt'\n", "data.jsonl:3", "not valid JSON"
    ),
    "demonstrations_not_utf8": demonstrations(
        GOOD_ROW.encode() + b"\n" + GOOD_ROW.encode("utf-16"), "data.jsonl:2", "not UTF-8"
    ),
    "demonstrations_without_a_key": demonstrations(
        f'{GOOD_ROW}\n{{"prompt": "Is it?", "positive": "Yes."}}\n', "data.jsonl:2", "'negative' is missing"
    ),
    "demonstrations_with_an_empty_text": demonstrations(
        f'{GOOD_ROW}\n{{"prompt": "Is it?", "positive": " ", "negative": "No."}}\n',
        "data.jsonl:2",
        "'positive' is empty",
    ),
    "demonstrations_of_no_format": demonstrations('{"a": 1}\n{"a": 2}\n', "data.jsonl:1", "Rename the columns"),
    "demonstrations_short_csv": demonstrations(
        "prompt,positive,negative\nA,B,C\nA,B\n", "data.csv:3", "2 fields", name="data.csv"
    ),
    "demonstrations_of_no_suffix": demonstrations("x", "no suffix", ".jsonl", name="data"),
}


@case
def demonstrations_absent(folder: Path) -> Case:
    where = folder / "none.jsonl"
    return fitting(tiny.single(), "-d", where, kind="DemonstrationError", words=(str(where), "no such file"))


@case
def demonstrations_limited_to_one(_: Path) -> Case:
    words = ("limit=1 leaves 1", "raise the limit")
    return fitting(tiny.single(), "--limit", 1, kind="DemonstrationError", words=words)


@case
def demonstrations_of_unknown_format(_: Path) -> Case:
    words = ("no demonstration format 'xml'", "halueval_qa")
    return fitting(tiny.single(), "--format", "xml", kind="DemonstrationError", words=words)


# ---------------------------------------------------------------------------------------------------------- activations


@case
def nan_in_a_layer(folder: Path) -> Case:
    base = spoiled(folder, lambda t: t["model.layers.2.self_attn.o_proj.weight"].__setitem__((0, 0), float("nan")))
    words = ("neutral activation of demonstration 1", "NaN or infinite at layer 2", "--dtype bfloat16")
    return fitting(base, "--layers", "all", kind="ActivationError", words=words)


@case
def nan_in_a_demonstration(folder: Path) -> Case:
    """Only the third demonstration's positive text holds a section sign; the embedding of its last byte is NaN."""
    section = tiny.tokenizer()("§", add_special_tokens=False)["input_ids"][-1]
    base = spoiled(folder, lambda t: t["model.embed_tokens.weight"].__setitem__(section, float("nan")))
    rows = [{"prompt": "Is it?", "positive": "Yes.", "negative": "No."} for _ in range(4)]
    rows[2]["positive"] = "Yes, by § 3."
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    words = ("positive activation of demonstration 3", "NaN or infinite at layer 0", "4 such vectors")
    more = ("-d", folder / "data.jsonl", "--layers", "all")
    return fitting(base, *more, kind="ActivationError", words=words)


@case
def overflow_in_float16(folder: Path) -> Case:
    """3e4 is a float16, and twice that as well; what a layer makes of it is not."""
    base = spoiled(folder, lambda t: t["model.layers.1.self_attn.o_proj.weight"].mul_(1e6))
    words = ("NaN or infinite at layer 1", "float16 overflows in some models", "float32")
    return fitting(base, "--dtype", "float16", "--layers", "1-3", kind="ActivationError", words=words)


@case
def text_beyond_the_context(folder: Path) -> Case:
    row = {"prompt": "Is it? " * 500, "positive": "Yes.", "negative": "No."}
    (folder / "data.jsonl").write_text(f"{GOOD_ROW}\n{json.dumps(row)}\n{GOOD_ROW}\n", "utf-8")
    words = ("positive text of demonstration 2", "positions for 512", "--max-new-tokens")
    return fitting(tiny.single(), "-d", folder / "data.jsonl", kind="ActivationError", words=words)


def beyond_the_embedding(role: str) -> Callable[[Path], Case]:
    """One token more than the embedding has rows, in one text of the third demonstration."""

    def make(folder: Path) -> Case:
        base = tiny.changeable(tiny.single(), folder / "model")
        tokenizer = tiny.tokenizer().__class__.from_pretrained(base)
        tokenizer.add_tokens(["<novel>"])
        tokenizer.save_pretrained(base)
        rows = [{"prompt": f"Is it {i}?", "positive": f"Yes, {i}.", "negative": f"No, {i}."} for i in range(4)]
        rows[2][role] += " <novel>"
        (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
        where = "positive" if role == "prompt" else role
        words = (f"{where} text of demonstration 3", "'<novel>' (id 512)", "512 rows (ids 0 to 511)", "tokenizer")
        return fitting(base, "-d", folder / "data.jsonl", kind="ActivationError", words=words)

    return make


CASES |= {f"a_token_beyond_the_embedding_in_a_{r}": beyond_the_embedding(r) for r in ("prompt", "positive", "negative")}


def nothing_to_learn(change: Callable[[int], dict[str, str]], *words: str) -> Callable[[Path], Case]:
    def make(folder: Path) -> Case:
        rows = [
            {"prompt": f"Is it {i}?", "positive": f"Yes, {i}.", "negative": f"No, {i}."} | change(i) for i in range(7)
        ]
        (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
        more = ("-d", folder / "data.jsonl", "--feature", "tanh")
        return fitting(tiny.single(), *more, kind="ActivationError", words=words)

    return make


CASES |= {
    "the_same_answers": nothing_to_learn(
        lambda i: {"positive": f"It is {i}.", "negative": f"It is {i}."},
        "the same in every demonstration",
        "differ",
    ),
    "the_same_question_everywhere": nothing_to_learn(
        lambda i: {"prompt": "Is it?"}, "neutral activations of all 7 demonstrations are identical", "--no-centre"
    ),
    "the_same_own_answer_everywhere": nothing_to_learn(
        lambda i: {"prompt": "Is it?", "neutral": "Who knows?"}, "neutral activations of all 7", "are identical"
    ),
}


@case
def answers_that_are_read_at_the_same_token(folder: Path) -> Case:
    """Activations saved by hand, positive and negative ones the same: what older versions let through."""
    path = folder / "acts.safetensors"
    base = tiny.root() / "acts-of-one-role.safetensors"
    if not base.exists():
        data = ("-d", tiny.demonstrations_file(), "--neutral", "prompt", "--save-activations", base)
        assert tiny.run("fit", tiny.single(), *data, "-o", tiny.root() / "acts-of-one-role-edit").code == 0
    tensors = load_file(base)
    with safe_open(base, "pt") as file:
        metadata = file.metadata()
    save_file({**tensors, "negative": tensors["positive"].clone()}, path, metadata=metadata)
    words = ("positive and the negative activations are identical in every layer", "give answers that differ")
    return Case(("fit", "--activations", path, "-o", Out()), "ActivationError", words)


def idle(name: str, words: str, **changes: object) -> Callable[[Path], Case]:
    """An edit file that leaves every activation as it is."""

    def make(folder: Path) -> Case:
        edit = Edit.load(tiny.edit_file(site="attn"))
        if not changes:
            empty = {i: Projector(*(t[:0] for t in vars(p).values())) for i, p in edit.projectors.items()}
            edit = replace(edit, maps=empty)
        path = replace(edit, **changes).save(folder / "idle.safetensors")
        return baking(tiny.single(), edit=path, kind="EditError", words=("changes nothing", words))

    return make


CASES |= {
    "an_edit_without_a_direction": idle("ranks", "it holds no direction in any layer"),
    "an_edit_of_no_strength": idle("alpha", "alpha is 0", alpha=0.0),
}


@case
def activations_truncated(folder: Path) -> Case:
    path = truncated(tiny.edit_file(), folder / "acts.safetensors", 2000)
    words = ("acts.safetensors cannot be read", "truncated")
    return Case(("fit", "--activations", path, "-o", Out()), "ActivationError", words)


@case
def activations_that_are_an_edit(_: Path) -> Case:
    words = ("holds 'sea_bake.edit', not 'sea_bake.activations'",)
    return Case(("fit", "--activations", tiny.edit_file(), "-o", Out()), "ActivationError", words)


# ------------------------------------------------------------------------------------------------------------ the model


def spoiled(folder: Path, change: Callable[[dict[str, torch.Tensor]], object], name: str = "model") -> Path:
    """A copy of the single-file checkpoint with changed tensors."""
    base = tiny.changeable(tiny.single(), folder / name)
    tensors = load_file(base / "model.safetensors")
    change(tensors)
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    return base


def truncated(source: Path, target: Path, size: int) -> Path:
    target.write_bytes(source.read_bytes()[:size])
    return target


def configured(folder: Path, **changes: object) -> Path:
    """A copy of the single-file checkpoint with other keys in config.json."""
    base = tiny.changeable(tiny.single(), folder / "model")
    tiny.patch_json(base / "config.json", **changes)
    return base


def reindexed(folder: Path, shard: object) -> Path:
    """A copy of the sharded checkpoint in whose index one tensor lies somewhere else."""
    base = tiny.changeable(tiny.sharded(), folder / "model")
    weight_map = json.loads((base / INDEX).read_text())["weight_map"]
    tiny.patch_json(base / INDEX, weight_map={**weight_map, "model.norm.weight": shard})
    return base


for command in (fitting, baking):
    CASES |= {
        f"{command.__name__}_no_such_folder": lambda f, run=command: run(
            f / "nowhere", kind="CheckpointError", words=("no such model", str(f / "nowhere"))
        ),
        f"{command.__name__}_no_checkpoint": lambda f, run=command: run(
            f, kind="CheckpointError", words=(str(f), "no config.json", "not a Hugging Face checkpoint")
        ),
        f"{command.__name__}_a_file": lambda _, run=command: run(
            tiny.demonstrations_file(), kind="CheckpointError", words=("is a file", "folder, a .gguf file, or a Hub id")
        ),
        f"{command.__name__}_a_hub_id_offline": lambda _, run=command: run(
            "nobody/nothing", kind="CheckpointError", words=("'nobody/nothing'", "offline" if run is fitting else "Hub")
        ),
        f"{command.__name__}_an_unknown_family": lambda f, run=command: run(
            configured(f, model_type="mamba", architectures=["MambaForCausalLM"]),
            kind="FamilyError",
            words=("unknown model family 'mamba'", "Found: stack of layers", "sea_bake/model/anatomy.py"),
        ),
        f"{command.__name__}_a_family_unknown_to_transformers": lambda f, run=command: run(
            configured(f, model_type="brand_new"), kind="FamilyError", words=("unknown model family 'brand_new'",)
        ),
        f"{command.__name__}_a_truncated_file": lambda f, run=command: run(
            cut(tiny.changeable(tiny.single(), f / "model"), "model.safetensors"),
            kind="CheckpointError",
            words=("incomplete metadata, file not fully covered",),
        ),
        f"{command.__name__}_pickles_only": lambda f, run=command: run(
            pickled(f), kind="CheckpointError", words=("model.safetensors",)
        ),
        f"{command.__name__}_an_edited_model": lambda _, run=command: run(
            artefact(), kind="FamilyError", words=("'sea_llama'", "already edited", "Start from its base model")
        ),
        f"{command.__name__}_without_a_layer": lambda f, run=command: run(
            spoiled(f, lambda t: t.pop("model.layers.3.mlp.down_proj.weight")),
            kind="CheckpointError",
            words=("lacks", "model.layers.3.mlp.down_proj.weight", "incomplete"),
        ),
        f"{command.__name__}_garbled_configuration": lambda f, run=command: run(
            garbled(f), kind="CheckpointError", words=("config.json", "JSON")
        ),
    }


def cut(base: Path, shard: str) -> Path:
    """Half of a shard."""
    path = base / shard
    truncated(path, path, path.stat().st_size // 2)
    return base


def pickled(folder: Path) -> Path:
    """A checkpoint with a pickle alone."""
    base = tiny.changeable(tiny.single(), folder / "model")
    torch.save(load_file(base / "model.safetensors"), base / "pytorch_model.bin")
    (base / "model.safetensors").unlink()
    return base


def garbled(folder: Path) -> Path:
    base = tiny.changeable(tiny.single(), folder / "model")
    (base / "config.json").write_text('{"model_type": "llama"')
    return base


def artefact() -> Path:
    path = tiny.root() / "artefact-for-bad-input"
    if not path.exists():
        assert tiny.run("bake", tiny.single(), tiny.edit_file(), "-o", path).code == 0
    return path


@case
def fitting_without_a_tokenizer(folder: Path) -> Case:
    base = tiny.changeable(tiny.single(), folder / "model")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (base / name).unlink()
    return fitting(base, kind="CheckpointError", words=("tokenizer of 'model' cannot be loaded",))


@case
def fitting_what_is_no_causal_lm(folder: Path) -> Case:
    """A classifier has no head for the next token: transformers would make one up."""
    base = spoiled(folder, lambda t: t.pop("lm_head.weight"))
    return fitting(base, kind="CheckpointError", words=("'model' is incomplete", "lm_head.weight"))


@case
def baking_what_is_no_causal_lm(folder: Path) -> Case:
    base = configured(folder, architectures=["LlamaForSequenceClassification"])
    words = ("LlamaForSequenceClassification", "not the language model LlamaForCausalLM")
    return baking(base, kind="CheckpointError", words=words)


@case
def baking_with_code_of_its_own(folder: Path) -> Case:
    own = {"AutoModelForCausalLM": "modeling_own.OwnForCausalLM"}
    base = configured(folder, auto_map=own, architectures=["OwnForCausalLM"])
    words = ("custom code of its own", "auto_map", "no OwnForCausalLM of its own", "supports natively")
    return baking(base, kind="CheckpointError", words=words)


@case
def baking_without_model_type(folder: Path) -> Case:
    return baking(
        configured(folder, model_type=None), kind="CheckpointError", words=("config.json names no model_type",)
    )


@case
def baking_a_truncated_shard(folder: Path) -> Case:
    base = cut(tiny.changeable(tiny.sharded(), folder / "model"), "model-00003-of-00006.safetensors")
    return baking(base, kind="CheckpointError", words=("model-00003-of-00006.safetensors cannot be read", "truncated"))


@case
def baking_without_a_shard(folder: Path) -> Case:
    base = tiny.changeable(tiny.sharded(), folder / "model")
    (base / "model-00002-of-00006.safetensors").unlink()
    words = ("model-00002-of-00006.safetensors is missing", INDEX, "is the download complete?")
    return baking(base, kind="CheckpointError", words=words)


@case
def baking_without_a_tensor_of_the_index(folder: Path) -> Case:
    base = reindexed(folder, "model-00001-of-00006.safetensors")
    words = ("model-00001-of-00006.safetensors lacks the tensor model.norm.weight", INDEX)
    return baking(base, kind="CheckpointError", words=words)


@case
def baking_an_empty_index(folder: Path) -> Case:
    base = tiny.changeable(tiny.sharded(), folder / "model")
    tiny.patch_json(base / INDEX, weight_map={})
    return baking(base, kind="CheckpointError", words=(INDEX, "no weight_map"))


for label, shard in {"up": "../x.safetensors", "absolute": "/etc/passwd", "below": "sub/x.safetensors"}.items():
    CASES[f"baking_an_index_that_points_{label}"] = lambda f, shard=shard: baking(
        reindexed(f, shard), kind="CheckpointError", words=(INDEX, "points outside its folder", shard)
    )
for label, shard in {"list": ["x"], "number": 1, "null": None}.items():
    CASES[f"baking_an_index_with_a_{label}"] = lambda f, shard=shard: baking(
        reindexed(f, shard), kind="CheckpointError", words=(INDEX, "no string")
    )


@case
def baking_shards_called_like_ours(folder: Path) -> Case:
    """A shard under the name of ours: linked over it, the base itself would be changed."""
    base = _renamed(folder, {"model-00001-of-00006.safetensors": "model-sea.safetensors"})
    return baking(base, kind="CheckpointError", words=("called like one of ours", "rename it"))


@case
def baking_a_shard_called_like_the_whole(folder: Path) -> Case:
    """transformers takes it for all of the model, and an insert would rename it over the other one."""
    names = {"model-00001-of-00006.safetensors": "model.safetensors"}
    base = _renamed(folder, names | {"model-00002-of-00006.safetensors": "model-base.safetensors"})
    return baking(base, kind="CheckpointError", words=("one of the shards", "rename it"))


def _renamed(folder: Path, names: dict[str, str]) -> Path:
    base = tiny.changeable(tiny.sharded(), folder / "model")
    for old, new in names.items():
        (base / old).rename(base / new)
    weight_map = json.loads((base / INDEX).read_text())["weight_map"]
    tiny.patch_json(base / INDEX, weight_map={k: names.get(v, v) for k, v in weight_map.items()})
    return base


@case
def baking_a_dangling_link(folder: Path) -> Case:
    base = tiny.changeable(tiny.single(), folder / "model")
    os.symlink("nowhere", base / "README.md")
    # The system's own words name the file.
    return baking(base, kind="OutputError", words=("nothing was left behind", "No such file", "README.md"))


# ------------------------------------------------------------------------------------------------------------- the edit


@case
def edit_absent(folder: Path) -> Case:
    return baking(tiny.single(), edit=folder / "none.st", kind="EditError", words=("no such file", "none.st"))


@case
def edit_truncated(folder: Path) -> Case:
    path = truncated(tiny.edit_file(), folder / "edit.safetensors", tiny.edit_file().stat().st_size - 10)
    return baking(tiny.single(), edit=path, kind="EditError", words=("edit.safetensors cannot be read", "truncated"))


@case
def edit_empty(folder: Path) -> Case:
    path = truncated(tiny.edit_file(), folder / "edit.safetensors", 0)
    return baking(tiny.single(), edit=path, kind="EditError", words=("edit.safetensors cannot be read",))


@case
def edit_that_is_a_checkpoint(_: Path) -> Case:
    path = tiny.single() / "model.safetensors"
    return baking(tiny.single(), edit=path, kind="EditError", words=("not one of sea_bake's",))


@case
def edit_of_a_model_of_other_shape(folder: Path) -> Case:
    base = tiny.write_llama(folder / "wider", intermediate_size=96)
    words = ("was fitted on 'single-0' with intermediate_size = 64", "'wider' has intermediate_size = 96", "fit again")
    return baking(base, kind="WrongModelError", words=words)


@case
def edit_of_a_model_of_other_weights(folder: Path) -> Case:
    base = spoiled(folder, lambda t: t["model.layers.1.self_attn.o_proj.weight"].mul_(1.01), "tuned")
    words = ("built like 'single-0'", "weights differ", "self_attn.o_proj of layer 1", "Fit the edit on this model")
    return baking(base, kind="WrongModelError", words=words)


# ----------------------------------------------------------------------------------------------------------- the output


def written(path: Path) -> None:
    path.write_text("mine")


def filled(path: Path) -> None:
    (path / "sea").mkdir(parents=True)  # not enough to be taken for one of ours
    (path / "thesis.txt").write_text("mine")


@case
def output_file_exists(_: Path) -> Case:
    args = ("fit", tiny.single(), "-o", Out(prepare=written))
    return Case(args, "OutputError", ("exists already", "choose another output or pass --overwrite"))


@case
def output_file_is_a_folder(_: Path) -> Case:
    args = ("fit", tiny.single(), "-o", Out(prepare=filled), "--overwrite")
    return Case(args, "OutputError", ("is not a file", "choose another output"))


@case
def activations_file_exists(_: Path) -> Case:
    args = ("fit", tiny.single(), "-o", Out("edit"), "--save-activations", Out(prepare=written))
    return Case(args, "OutputError", ("out exists already",))


@case
def activations_and_edit_in_one_file(_: Path) -> Case:
    args = ("fit", tiny.single(), "-o", Out(), "--save-activations", Out())
    return Case(args, "SettingError", ("--output and --save-activations are one file",))


@case
def output_folder_exists(_: Path) -> Case:
    more = ("-o", Out(prepare=filled))
    return baking(tiny.single(), *more, kind="OutputError", words=("exists already", "--overwrite"))


@case
def output_folder_is_not_ours(_: Path) -> Case:
    more = ("--overwrite", "-o", Out(prepare=filled))
    words = ("was not written by sea_bake", "remove it yourself")
    return baking(tiny.single(), *more, kind="OutputError", words=words)


@case
def output_folder_is_a_file(_: Path) -> Case:
    more = ("--overwrite", "-o", Out(prepare=written))
    return baking(tiny.single(), *more, kind="OutputError", words=("is not a folder",))


@case
def output_below_a_file(folder: Path) -> Case:
    written(folder / "note.txt")
    more = ("-o", folder / "note.txt" / "out")
    return baking(tiny.single(), *more, kind="OutputError", words=("cannot write into", "note.txt"))


@case
def output_inside_the_base(folder: Path) -> Case:
    base = tiny.changeable(tiny.single(), folder / "model")
    return baking(base, "-o", base / "out", kind="OutputError", words=("choose an output outside of it", str(base)))


@case
def output_name_too_long(_: Path) -> Case:
    return baking(tiny.single(), "-o", Out("x" * 256), kind="OutputError", words=("a name of 256 bytes",))


@case
def verifying_a_base(_: Path) -> Case:
    words = ("not an artefact of sea_bake", "sea/bake.json")
    return Case(("verify", tiny.single()), "CheckpointError", words, (tiny.single(),))


@case
def verifying_without_the_base(folder: Path) -> Case:
    moved = tiny.changeable(artefact(), folder / "artefact")
    words = ("'single-0' is neither beside the artefact nor on the Hub", "--base")
    return Case(("verify", moved), "VerificationError", words)


@case
def verifying_a_gguf_without_its_record(folder: Path) -> Case:
    (folder / "m.gguf").write_bytes(b"GGUF")
    words = ("not an artefact of sea_bake", "m.gguf.sea.json", "sea-bake export gguf")
    return Case(("verify", folder / "m.gguf"), "CheckpointError", words)


@case
def inspecting_a_base(_: Path) -> Case:
    words = ("not an artefact of sea_bake", "sea/bake.json")
    return Case(("inspect", tiny.single()), "CheckpointError", words, (tiny.single(),))


# ----------------------------------------------------------------------------------------------------------- full disks


def test_no_space_is_seen_before_anything_is_written(tmp_path: Path) -> None:
    """A base of more bytes than the disk has left (a sparse file), copied; linked it needs none, and is baked."""
    base = tiny.changeable(tiny.sharded(), tmp_path / "base")
    size = shutil.disk_usage(tmp_path).free // 4 * 4 + (10 << 30)
    header = json.dumps({"big.weight": {"dtype": "F32", "shape": [size // 4], "data_offsets": [0, size]}}).encode()
    with open(base / "model-big.safetensors", "wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + size)
    weight_map = json.loads((base / INDEX).read_text())["weight_map"]
    tiny.patch_json(base / INDEX, weight_map={**weight_map, "big.weight": "model-big.safetensors"})
    with tiny.nothing_happens(tmp_path, base):
        ran = tiny.run("bake", base, tiny.edit_file(), "-o", tmp_path / "out", "--copy")
    tiny.refused(ran, "OutputError", "no space on disk", "MB free", "the output needs", "another disk")
    control = tiny.run("bake", base, tiny.edit_file(), "-o", tmp_path / "out")
    assert control.code == 0, control
    assert (tmp_path / "out" / "model-big.safetensors").samefile(base / "model-big.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("limit", [100, 3000, 15_000, 30_000])
def test_a_disk_that_fills_up_while_baking(tmp_path: Path, limit: int) -> None:
    """No file may grow beyond a limit: the system's EFBIG, as a full disk's ENOSPC, comes in the middle of a file.

    30 kB is reached within the shards; the others, with linked shards, within what is written one after another: the
    SEA tensors, the index, the code, the tokenizer.
    """
    args = ("bake", tiny.sharded(), tiny.edit_file(), "-o", tmp_path / "out", *["--copy"] * (limit == 30_000))
    with tiny.nothing_happens(tmp_path, tiny.sharded()):
        ran, _ = tiny.nursery().run(*args, limit=limit)
    tiny.refused(ran, "OutputError", "no space on disk while writing", str(tmp_path / "out"), "nothing was left behind")
    control, _ = tiny.nursery().run(*args, limit=300_000)
    assert control.code == 0, control


@pytest.mark.slow
def test_a_disk_that_fills_up_while_saving_an_edit(tmp_path: Path) -> None:
    args = ("fit", tiny.single(), "-d", tiny.demonstrations_file(), "--neutral", "prompt", "-o", tmp_path / "edit")
    with tiny.nothing_happens(tmp_path, tiny.single()):
        ran, _ = tiny.nursery().run(*args, limit=3000)
    tiny.refused(ran, "OutputError", "no space on disk while writing", str(tmp_path / "edit"))
    control, _ = tiny.nursery().run(*args, limit=300_000)
    assert control.code == 0, control


# ---------------------------------------------------------------------------------------------------- the door as it is


@pytest.mark.slow
@pytest.mark.parametrize("as_json", [False, True])
def test_a_process_of_its_own(tmp_path: Path, as_json: bool) -> None:
    """``python -m sea_bake`` itself, without a terminal and without input: what the cases above say holds there."""
    args = ["bake", tiny.single(), tmp_path / "none.safetensors", "-o", tmp_path / "out", *["--json"] * as_json]
    with tiny.nothing_happens(tmp_path, tiny.single()):
        ran = subprocess.run(
            [sys.executable, "-m", "sea_bake", *map(str, args)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env={**os.environ, "COLUMNS": "4000"},
        )
    result = tiny.Ran(ran.returncode, ran.stdout, ran.stderr)
    if as_json:
        assert (ran.returncode, ran.stderr) == (2, "")
        assert json.loads(ran.stdout)["error"]["type"] == "EditError"
    else:
        tiny.refused(result, "EditError", "no such file", "none.safetensors")


def test_the_checks_can_fail(tmp_path: Path) -> None:
    """The controls: good input is not refused, and litter and a changed input are seen."""
    ran = tiny.run("bake", tiny.single(), tiny.edit_file(), "-o", tmp_path / "out")
    assert ran.code == 0
    with pytest.raises(AssertionError):
        tiny.refused(ran, "EditError")
    with pytest.raises(AssertionError), tiny.nothing_happens(tmp_path):
        (tmp_path / ".out.sea-bake-litter").touch()
    with pytest.raises(AssertionError), tiny.nothing_happens(tmp_path, tmp_path / "out"):
        (tmp_path / "out" / "config.json").touch()


TAKES: dict[str, Callable[[str], object]] = {
    "Edit.load": Edit.load,
    "Artefact.open": Artefact.open,
    "load": load,
    "primer_pairs": primer_pairs,
    "Activations.load": sea_bake.Activations.load,
    "import_edit": lambda name: sea_bake.import_edit(name, tiny.single()),
    "evaluate": lambda name: sea_bake.evaluate(tiny.single(), data=name, tasks=["truthfulqa_mc1"]),
    "publish": lambda name: sea_bake.publish(name, "me/it"),
    "unbake": lambda name: sea_bake.unbake(name, "out"),
    "export_gguf": lambda name: sea_bake.export_gguf(name, "out.gguf", base=name),
    "export_mlx": lambda name: sea_bake.export_mlx(name, "out"),
    "report": lambda name: sea_bake.report(name, output="out"),
    "reproduce": sea_bake.reproduce,
}


@pytest.mark.parametrize("name", ["x" * 300, "./" + "x" * 300, "x/" * 3000], ids=["name", "path", "folders"])
@pytest.mark.parametrize("taker", TAKES)
def test_a_name_that_no_file_can_have_is_one_of_nothing(taker: str, name: str) -> None:
    with pytest.raises(SeaBakeError):
        TAKES[taker](name)
