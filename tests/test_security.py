"""What ``.github/SECURITY.md`` promises: no file of a stranger is executed, obeyed, or reaches beyond its own folder.

Here is what no other test has: ``test_edit_file``, ``test_bad_input``, ``test_sources`` and ``test_unbake`` hold most
of what damaged files get, and ``test_fuzz`` what nobody thought of. Each trap is sprung once, to see that it is one.
"""

from __future__ import annotations

import ast
import json
import os
import pickle
import re
import resource
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import yaml
from bending import packed
from fuzzing import adapter, llama_config
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaForCausalLM

import sea_bake
from sea_bake import Edit, bake
from sea_bake.artefact import Artefact
from sea_bake.artefact.code import check_code
from sea_bake.artefact.names import RECORD
from sea_bake.baking import unbake
from sea_bake.errors import CheckpointError, EditError, SeaBakeError
from sea_bake.model.checkpoint import Checkpoint
from sea_bake.model.loading import load_model
from sea_bake.model.lora import changes
from sea_bake.model.source import ModelSource
from sea_bake.recipes.schema import read as read_recipe
from sea_bake.verification.doors import fresh

INDEX = "model.safetensors.index.json"
EDIT_COPY = "sea/edit-0.safetensors"


def artefact(how: str = "insert") -> Path:
    """Baked from the tiny Llama. Not to be changed."""
    path = tiny.root() / f"artefact-for-security-{how}"
    edit = Edit.load(tiny.edit_file()).with_settings(merge="sum")
    return path if path.exists() else bake(tiny.single(), edit, path, how=how).output


def set_json(path: Path, **keys: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), **keys}), "utf-8")


# ----------------------------------------------------------------------------------------------------------- edit files


def table() -> tuple[dict[str, Any], dict[str, Any], bytes]:
    """The tiny edit in parts: its table of contents, our header in it, the bytes of its tensors."""
    data = tiny.edit_file().read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    found = json.loads(data[8 : 8 + length])
    return found, json.loads(found["__metadata__"]["sea_bake"]), data[8 + length :]


def with_tensor(**keys: Any) -> bytes:
    """The table says something else of one tensor."""
    found, _, body = table()
    found["layers.0.negative"] |= keys
    return packed(found, body)


def with_header(**keys: Any) -> bytes:
    found, ours, body = table()
    return packed(found | {"__metadata__": {"sea_bake": json.dumps(ours | keys)}}, body)


def with_base(**keys: Any) -> bytes:
    return with_header(base=table()[1]["base"] | keys)


def with_text(old: str, new: str) -> bytes:
    """Another spelling in our header's JSON."""
    found, ours, body = table()
    text = json.dumps(ours)
    assert old in text
    return packed(found | {"__metadata__": {"sea_bake": text.replace(old, new, 1)}}, body)


def with_length(length: int) -> bytes:
    found, _, body = table()
    return packed(found, body, length)


def other_layers(value: Any) -> dict[str, Any]:
    return {str(i): value for i in range(tiny.LAYERS)}


def many_rows(dim: int) -> bytes:
    """50,000 "orthonormal" rows of one number, or of none: 200 kB, whose products with each other are 20 GB."""
    _, ours, _ = table()
    config = ours["base"]["config"] | {"hidden_size": dim}
    header = ours | {"base": ours["base"] | {"config": config}, "layers": [0], "ranks": {"0": [50_000, 1]}}
    entry = {"dtype": "F32", "shape": [50_000, dim], "data_offsets": [0, 200_000 * dim]}
    last = {"dtype": "F32", "shape": [1, dim], "data_offsets": [200_000 * dim, 200_000 * dim + 4 * dim]}
    tensors = {"layers.0.positive": entry, "layers.0.negative": last}
    return packed({**tensors, "__metadata__": {"sea_bake": json.dumps(header)}}, b"\0\0\x80?" * (50_001 * dim))


NAN = float("nan")
BASE_CONFIG = {"model_type": "llama", "num_hidden_layers": tiny.LAYERS}
HOSTILE_EDITS: dict[str, tuple[Callable[[], bytes], str]] = {
    "header beyond the file": (lambda: with_length(10**6), "cannot be read"),
    "header of 10 GB": (lambda: with_length(10**10), "cannot be read"),
    "header of 2^64 - 1 bytes": (lambda: with_length(2**64 - 1), "cannot be read"),
    "no header": (lambda: with_length(0), "cannot be read"),
    "tensors that overlap": (lambda: with_tensor(data_offsets=table()[0]["layers.0.positive"]["data_offsets"]), "offs"),
    "a tensor beyond the file": (lambda: with_tensor(data_offsets=[0, 10**9]), "cannot be read"),
    "a tensor that ends before it begins": (lambda: with_tensor(data_offsets=[64, 0]), "cannot be read"),
    "a shape of 2^63 numbers": (lambda: with_tensor(shape=[2**62, 2]), "cannot be read"),
    "a negative shape": (lambda: with_tensor(shape=[-1, 32]), "cannot be read"),
    "an unknown dtype": (lambda: with_tensor(dtype="OBJECT"), "cannot be read"),
    "50,000 rows of one number": (lambda: many_rows(1), "more than can be orthonormal in 1"),
    "50,000 rows of none": (lambda: many_rows(0), "base.config.hidden_size"),
    "a layer a million times": (lambda: with_header(layers=[0] * 1_000_000), "a layer is listed twice"),
    "a hidden size of True": (lambda: with_base(config=BASE_CONFIG | {"hidden_size": True}), "base.config.hidden_size"),
    "NaN as a text": (lambda: with_header(spectra=other_layers({"positive": ["nan"], "negative": []})), "'nan', which"),
    "NaN in a spectrum": (lambda: with_header(spectra=other_layers({"positive": [NAN], "negative": []})), "Out of"),
    "infinity in the recipe": (lambda: with_header(recipe={"x": float("-inf")}), "Out of range float values"),
    "a number beyond all floats": (lambda: with_text('"alpha": 1.0', '"alpha": 1e999'), "Out of range float values"),
    "half a surrogate pair": (lambda: with_base(name="\ud800"), "surrogates not allowed"),
    "a sample that is none": (lambda: with_base(samples={"0.mlp.down_proj": ["inf"]}), "'inf', which is no number"),
    "a revision that is a list": (lambda: with_base(revision=["main"]), "base.revision"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE_EDITS)
def test_a_hostile_edit_is_refused(tmp_path: Path, name: str) -> None:
    make, words = HOSTILE_EDITS[name]
    path = tmp_path / "edit.safetensors"
    path.write_bytes(make())
    with tiny.nothing_happens(tmp_path):
        with pytest.raises(EditError) as caught:
            Edit.load(path)
        tiny.refused(tiny.run("bake", tiny.single(), path, "-o", tmp_path / "out"), "EditError", words)
    assert words in str(caught.value)


def test_a_key_that_stands_twice_has_one_meaning(tmp_path: Path) -> None:
    """Whoever reads the table of contents, the last one counts: what was checked is what is used."""
    first, last = ({"dtype": d, "shape": s, "data_offsets": [0, 24]} for d, s in (("F32", [2, 3]), ("I32", [6])))
    text = f'{{"a": {json.dumps(first)}, "a": {json.dumps(last)}}}'
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(packed(text.encode(), bytes(24)))
    theirs, ours = load_file(tmp_path / "model.safetensors")["a"], Checkpoint.open(tmp_path).tensor("a")
    assert ours is not None
    assert (ours.shape, ours.dtype) == (tuple(theirs.shape), theirs.dtype) == ((6,), torch.int32)


def test_paths_in_an_edit_lead_nowhere(tmp_path: Path) -> None:
    """Names in it are names: nothing is read or written there."""
    (tmp_path / "work").mkdir()
    path = tmp_path / "work" / "edit.safetensors"
    path.write_bytes(with_base(name="../../outside", revision="/etc/passwd"))
    report = bake(tiny.single(), path, tmp_path / "work" / "out")
    assert tiny.listing(tmp_path) == {"work"}
    assert tiny.listing(tmp_path / "work") == {"edit.safetensors", "out"}
    assert (report.base, Artefact.open(report.output).record.base) == (tiny.single().name, tiny.single().name)


def test_a_name_is_not_obeyed_by_the_terminal(tmp_path: Path) -> None:
    """An escape sequence in a file (here: one that names the window and clears the screen) is shown, not sent."""
    evil = "\x1b]0;owned\x07\x1b[2J\x9b"
    (tmp_path / "edit").write_bytes(with_base(name=evil))
    assert Edit.load(tmp_path / "edit").base.name == evil
    ran = tiny.run("inspect", tmp_path / "edit")
    assert ran.code == 0
    assert "\\u001b]0;owned\\u0007\\u001b[2J\\u009b" in ran.out
    base = tiny.changeable(tiny.sharded(), tmp_path / "base")
    weight_map = json.loads((base / INDEX).read_text())["weight_map"]
    set_json(base / INDEX, weight_map={**weight_map, evil: next(iter(weight_map.values()))})
    refused = tiny.run("bake", base, tiny.edit_file(), "-o", tmp_path / "out")
    assert refused.code == 2
    as_json = tiny.run("inspect", tmp_path / "edit", "--json").out
    assert json.loads(as_json)["edits"][0]["base"] == evil
    for shown in (ran.out, refused.err, as_json):
        assert not {c for c in shown if (c < " " and c != "\n") or "\x7f" <= c <= "\x9f"}


# ---------------------------------------------------------------------------------------------------------- checkpoints


def outside(folder: Path) -> Path:
    """A secret that no checkpoint may reach."""
    secret = folder / "outside" / "id_rsa"
    secret.parent.mkdir()
    secret.write_text("PRIVATE KEY")
    return secret


def link_file(base: Path, secret: Path) -> None:
    (base / "README.md").symlink_to(secret)


def link_relative(base: Path, secret: Path) -> None:
    (base / "README.md").symlink_to(Path("..") / secret.parent.name / secret.name)


def link_below(base: Path, secret: Path) -> None:
    (base / "docs").mkdir()
    (base / "docs" / "key.txt").symlink_to(secret)


def link_folder(base: Path, secret: Path) -> None:
    (base / "docs").symlink_to(secret.parent, target_is_directory=True)


def link_configuration(base: Path, secret: Path) -> None:
    shutil.copyfile(base / "config.json", secret)
    (base / "config.json").unlink()
    (base / "config.json").symlink_to(secret)


def link_weights(base: Path, secret: Path) -> None:
    (base / "model.safetensors").rename(secret)
    (base / "model.safetensors").symlink_to(secret)


def link_in_a_circle(base: Path, secret: Path) -> None:
    (base / "a.txt").symlink_to("b.txt")
    (base / "b.txt").symlink_to("a.txt")


def as_in_a_cache(base: Path, secret: Path) -> None:
    """Looks like the Hub's cache, and leads beside its blobs."""
    (base / "README.md").symlink_to(Path("..") / ".." / "blobs" / ".." / secret.parent.name / secret.name)


def put_a_pipe(base: Path, secret: Path) -> None:
    os.mkfifo(base / "notes.txt")


STRAY = (
    link_file, link_relative, link_below, link_folder, link_configuration, link_weights, link_in_a_circle,
    as_in_a_cache, put_a_pipe,
)  # fmt: skip


@pytest.mark.parametrize("stray", STRAY, ids=lambda f: f.__name__)
def test_nothing_outside_of_a_checkpoint_is_carried(tmp_path: Path, stray: Callable[[Path, Path], None]) -> None:
    """What a link leads to would be published with the artefact. A pipe would have to be waited for."""
    root = tmp_path / "snapshots" if stray is as_in_a_cache else tmp_path
    base = tiny.changeable(tiny.single(), root / "base")
    stray(base, outside(tmp_path))
    for how in ("insert", "fold"):
        ran = tiny.run("bake", base, tiny.edit_file(), "-o", tmp_path / "out", "--how", how)
        tiny.refused(ran, "CheckpointError", "neither a file nor" if stray is put_a_pipe else "leads out of its folder")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("stray", [link_file, link_below, put_a_pipe], ids=lambda f: f.__name__)
def test_nothing_outside_of_an_artefact_is_carried(tmp_path: Path, stray: Callable[[Path, Path], None]) -> None:
    changed = tiny.changeable(artefact(), tmp_path / "artefact")
    stray(changed, outside(tmp_path))
    with tiny.nothing_happens(tmp_path), pytest.raises(CheckpointError, match=r"leads out|neither a file"):
        unbake(changed, tmp_path / "out")
    with pytest.raises(CheckpointError, match=r"leads out|neither a file"):
        check_code(changed)


def test_nothing_outside_of_an_adapter_is_carried(tmp_path: Path) -> None:
    """Its tokenizer, if it has one, goes into the merged checkpoint."""
    lora = tiny.changeable(adapter(), tmp_path / "lora")
    (lora / "tokenizer_config.json").symlink_to(outside(tmp_path))
    ran = tiny.run("bake", lora, tiny.edit_file(), "-o", tmp_path / "out")
    tiny.refused(ran, "CheckpointError", "tokenizer_config.json is a link that leads out of its folder")


def test_links_that_stay_inside_are_followed(tmp_path: Path) -> None:
    """The control: not every link is refused, and a link to a folder is left out, and said to be."""
    base = tiny.changeable(tiny.single(), tmp_path / "base")
    (base / "docs").mkdir()
    (base / "docs" / "card.md").write_text("# Card")
    (base / "README.md").symlink_to(Path("docs") / "card.md")
    (base / "more").symlink_to("docs", target_is_directory=True)
    report = bake(base, tiny.edit_file(), tmp_path / "out")
    assert (tmp_path / "out" / "README.md").read_text() == "# Card"
    assert not (tmp_path / "out" / "README.md").is_symlink()
    assert report.left_out == ["more"]


@pytest.mark.parametrize(
    "name", ["modeling_sea.py", "tokenizer_config.json", "config.json", "LICENSE", "w.bin", "x" * 300]
)
def test_only_weights_are_shards(tmp_path: Path, name: str) -> None:
    """A shard under the name of a file that an artefact has of its own: linked, the base itself would be written to."""
    base = tiny.changeable(tiny.sharded(), tmp_path / "base")
    if len(name) < 256:
        (base / name).unlink(missing_ok=True)
        shutil.copyfile(base / "model-00001-of-00006.safetensors", base / name)
    weight_map = json.loads((base / INDEX).read_text())["weight_map"]
    names = {tensor: name if shard.startswith("model-00001") else shard for tensor, shard in weight_map.items()}
    set_json(base / INDEX, weight_map=names)
    if name == "config.json":
        shutil.copyfile(tiny.sharded() / "config.json", base / name)
    with tiny.nothing_happens(tmp_path, base):
        ran = tiny.run("bake", base, tiny.edit_file(), "-o", tmp_path / "out")
        tiny.refused(ran, "CheckpointError", "no .safetensors file")


@pytest.mark.parametrize("kind", ["folder", "pipe", "too long"])
def test_a_shard_is_a_file(tmp_path: Path, kind: str) -> None:
    base = tiny.changeable(tiny.sharded(), tmp_path / "base")
    name = "x" * 300 + ".safetensors" if kind == "too long" else "model-00007.safetensors"
    if kind == "folder":
        (base / name).mkdir()
    if kind == "pipe":
        os.mkfifo(base / name)
    weight_map = json.loads((base / INDEX).read_text())["weight_map"]
    set_json(base / INDEX, weight_map={**weight_map, "model.norm.weight": name})
    with pytest.raises(CheckpointError, match="is missing"):
        Checkpoint.open(base)


CONFIGURATIONS: dict[str, tuple[dict[str, Any], str]] = {
    "a billion layers": ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000, which no model has"),
    "no layers": ({"num_hidden_layers": 0}, "0 layers"),
    "a kernel from the Hub": ({"attn_implementation": "evil/kernel"}, "asks for a kernel from the Hub"),
    "a kernel by its inner name": ({"_attn_implementation_internal": "evil/kernel@main:f"}, "kernel from the Hub"),
    "a kernel for experts": ({"experts_implementation": {"": "evil/kernel"}}, "asks for a kernel from the Hub"),
    "a kernel in a part": ({"text_config": {"attn_implementation": "evil/kernel"}}, "asks for a kernel from the Hub"),
    "architectures of another kind": ({"architectures": 5, "model_type": "llama", "num_hidden_layers": -1}, ""),
    "half a surrogate pair": ({"_name_or_path": "\udc00"}, "surrogates not allowed"),
}


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_a_hostile_configuration_is_refused(tmp_path: Path, name: str) -> None:
    keys, words = CONFIGURATIONS[name]
    base = tiny.changeable(tiny.single(), tmp_path / "base")
    set_json(base / "config.json", **keys)
    with tiny.nothing_happens(tmp_path, base):
        tiny.refused(tiny.run("bake", base, tiny.edit_file(), "-o", tmp_path / "out"), "CheckpointError", words)
    if "kernel" in name:
        with pytest.raises(CheckpointError, match=words):
            load_model(base)


# ----------------------------------------------------------------------------------------------------------------- code


class Trap:
    """Unpickled, or imported as its text, it leaves a mark."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)

    @property
    def text(self) -> str:
        return f"import os\nos.makedirs({str(self.mark)!r}, exist_ok=True)\n"

    def sprung(self) -> bool:
        if self.mark.exists():
            self.mark.rmdir()
            return True
        return False


OWN = "from transformers import LlamaForCausalLM\nclass Own(LlamaForCausalLM): pass\n"
CODE = ("modeling_own.py", "tokenization_own.py", "setup.py", "sitecustomize.py", "custom_generate/generate.py")
PICKLES = ("pytorch_model.bin", "training_args.bin", "optimizer.pt", "model.pkl", "weights.npy", "MODEL.PTH")


def test_code_and_pickles_of_a_base_are_neither_run_nor_carried(tmp_path: Path) -> None:
    """By none of the commands that take a base; and each file that is left out is named, to people too."""
    trap = Trap(tmp_path / "owned")
    base = tiny.changeable(tiny.single(), tmp_path / "base")
    for name in CODE:
        (base / name).parent.mkdir(exist_ok=True)
        (base / name).write_text(trap.text)
    for name in PICKLES:
        (base / name).write_bytes(pickle.dumps(trap))
    data = ("-d", tiny.demonstrations_file(), "--neutral", "prompt", "--layers", "all", "--merge", "l2")
    assert tiny.run("fit", base, *data, "-o", tmp_path / "edit").code == 0
    assert tiny.run("plan", base, tmp_path / "edit").code == 0
    ran = tiny.run("bake", base, tmp_path / "edit", "-o", tmp_path / "out")
    assert ran.code == 0
    carried = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert carried.isdisjoint({*CODE, *PICKLES})
    assert {name for name in carried if name.endswith(".py")} == {"modeling_sea.py"}
    assert Artefact.open(tmp_path / "out").record.left_out == sorted({*CODE, *PICKLES})
    assert all(name in ran.out for name in (*CODE, *PICKLES))
    assert not trap.sprung()
    pickle.loads((base / "optimizer.pt").read_bytes())  # the controls: these are traps
    assert trap.sprung()
    exec((base / "setup.py").read_text())
    assert trap.sprung()


def test_pickles_alone_are_not_loaded(tmp_path: Path) -> None:
    trap = Trap(tmp_path / "owned")
    base = tiny.changeable(tiny.single(), tmp_path / "base")
    (base / "model.safetensors").unlink()
    (base / "pytorch_model.bin").write_bytes(pickle.dumps(trap))
    with pytest.raises(CheckpointError):
        load_model(base)
    with pytest.raises(CheckpointError, match="pickles are never loaded here"):
        Checkpoint.open(base)
    lora = tiny.changeable(adapter(), tmp_path / "lora")
    (lora / "adapter_model.safetensors").unlink()
    (lora / "adapter_model.bin").write_bytes(pickle.dumps(trap))
    with pytest.raises(CheckpointError, match="pickles are never loaded here"):
        load_model(lora)
    assert not trap.sprung()


@pytest.mark.parametrize("name", ["tokenizer_config.json", "processor_config.json", "generation_config.json"])
@pytest.mark.parametrize("how", ["insert", "fold"])
def test_a_reference_to_code_is_not_carried(tmp_path: Path, name: str, how: str) -> None:
    """``trust_remote_code``, meant for modeling_sea.py, would fetch and run it where the artefact is loaded."""
    base = tiny.changeable(tiny.single(), tmp_path / "base")
    config = json.loads((base / name).read_text()) if (base / name).exists() else {}
    (base / name).write_text(json.dumps(config | {"auto_map": {"AutoTokenizer": ["evil/repo--own.Tokenizer", None]}}))
    with tiny.nothing_happens(tmp_path, base):
        ran = tiny.run("bake", base, tiny.edit_file(), "-o", tmp_path / "out", "--how", how)
        tiny.refused(ran, "CheckpointError", name, "names custom code (auto_map)")


def test_code_in_a_base_that_names_it_is_not_run(tmp_path: Path) -> None:
    """``fit`` loads the model by transformers' own class, or not at all."""
    trap = Trap(tmp_path / "owned")
    base = tiny.changeable(tiny.single(), tmp_path / "base")
    (base / "modeling_own.py").write_text(trap.text + OWN)
    set_json(base / "config.json", auto_map={"AutoModelForCausalLM": "modeling_own.Own"}, architectures=["Own"])
    data = ("-d", tiny.demonstrations_file(), "--neutral", "prompt")
    assert tiny.run("fit", base, *data, "-o", tmp_path / "edit").code in (0, 2)
    tiny.refused(tiny.run("bake", base, tiny.edit_file(), "-o", tmp_path / "out"), "CheckpointError", "custom code")
    assert not trap.sprung()
    AutoModelForCausalLM.from_pretrained(base, trust_remote_code=True)  # the control
    assert trap.sprung()


def test_an_adapters_configuration_imports_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PEFT's has keys that name Python modules."""
    trap = Trap(tmp_path / "owned")
    (tmp_path / "evil_module.py").write_text(trap.text)
    monkeypatch.syspath_prepend(str(tmp_path))
    lora = tiny.changeable(adapter(), tmp_path / "lora")
    own = {"base_model_class": "Evil", "parent_library": "evil_module"}
    set_json(lora / "adapter_config.json", auto_mapping=own, megatron_core="evil_module")
    assert changes(ModelSource.parse(lora), LlamaForCausalLM, llama_config())
    set_json(lora / "adapter_config.json", megatron_config={"a": 1})
    with pytest.raises(CheckpointError, match="megatron_config"):
        changes(ModelSource.parse(lora), LlamaForCausalLM, llama_config())
    assert not trap.sprung()
    assert "evil_module" not in sys.modules
    __import__("evil_module")  # the control
    assert trap.sprung()


def swap_code(folder: Path, trap: Trap) -> None:
    (folder / "modeling_sea.py").write_text(trap.text + (folder / "modeling_sea.py").read_text("utf-8"), "utf-8")


def name_code(folder: Path, trap: Trap) -> None:
    config = json.loads((folder / "config.json").read_text("utf-8"))
    other = {auto: name.replace("modeling_sea", "other") for auto, name in config["auto_map"].items()}
    (folder / "other.py").write_text(trap.text + (folder / "modeling_sea.py").read_text("utf-8"), "utf-8")
    set_json(folder / "config.json", auto_map=other)


def name_a_repository(folder: Path, trap: Trap) -> None:
    set_json(folder / "config.json", auto_map={"AutoModelForCausalLM": "evil/repo--modeling_sea.SEALlamaForCausalLM"})


def name_a_tokenizer(folder: Path, trap: Trap) -> None:
    set_json(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["other.Tokenizer", None]})


def name_a_kernel(folder: Path, trap: Trap) -> None:
    set_json(folder / "config.json", attn_implementation="evil/kernel")


@pytest.mark.slow
@pytest.mark.parametrize("spoil", [swap_code, name_code, name_a_repository, name_a_tokenizer, name_a_kernel])
def test_code_in_an_artefact_that_is_not_ours_is_noticed(tmp_path: Path, spoil: Callable[[Path, Trap], None]) -> None:
    """And ``verify``, ``inspect``, ``unbake`` and a bake on top of it run none of it."""
    trap = Trap(tmp_path / "owned")
    changed = tiny.changeable(artefact(), tmp_path / "artefact")
    check_code(changed)  # the control
    spoil(changed, trap)
    with pytest.raises(CheckpointError, match=r"not run|kernel from the Hub"):
        check_code(changed)
    assert tiny.run("verify", changed, "--base", tiny.single()).code == 2
    assert tiny.run("inspect", changed).code == 0
    assert tiny.run("unbake", changed, "-o", tmp_path / "out").code in (0, 2)
    assert tiny.run("bake", changed, tiny.edit_file(), "-o", tmp_path / "again").code == 2
    assert not trap.sprung()
    if spoil in (swap_code, name_code):
        AutoModelForCausalLM.from_pretrained(changed, trust_remote_code=True)
        assert trap.sprung()


def test_yaml_makes_no_objects(tmp_path: Path) -> None:
    trap = Trap(tmp_path / "owned")
    recipe = tmp_path / "recipe.yaml"
    for text in (
        f'model: !!python/object/apply:os.mkdir ["{trap.mark}"]\n',
        f'model: x\nfit: [!!python/object/apply:os.system ["mkdir {trap.mark}"]]\n',
        f'!!python/object/new:os.system ["mkdir {trap.mark}"]\n',
        "model: !!python/name:os.system\n",
        "a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n",
    ):
        recipe.write_text(text)
        with pytest.raises(SeaBakeError):
            read_recipe(recipe)
        assert not trap.sprung(), text
    yaml.unsafe_load(f'!!python/object/apply:os.mkdir ["{trap.mark}"]')  # the control
    assert trap.sprung()


# -------------------------------------------------------------------------------------------------------------- records


@pytest.mark.parametrize("name", ["/etc", "../base", "a/../../base", "~", "~root/base", "..", ""])
def test_a_record_names_its_base_and_no_path(tmp_path: Path, name: str) -> None:
    """Else it would choose what is read (and by ``unbake`` given away) from this machine."""
    tiny.changeable(tiny.single(), tmp_path / "base")
    (tmp_path / "sub").mkdir()
    fold = tiny.changeable(artefact("fold"), tmp_path / "sub" / "fold")
    set_json(fold / RECORD, base=name)
    with pytest.raises(CheckpointError, match=r"is a path|names no base"):
        Artefact.open(fold).base_source()
    with tiny.nothing_happens(tmp_path / "sub"):
        tiny.refused(tiny.run("unbake", fold, "-o", tmp_path / "sub" / "out"), "CheckpointError", "--base")


@pytest.mark.parametrize("edits", [["../edit.safetensors"], ["/etc/passwd"], [EDIT_COPY, EDIT_COPY], [], "sea", [1]])
def test_a_record_names_its_own_edits(tmp_path: Path, edits: Any) -> None:
    changed = tiny.changeable(artefact(), tmp_path / "artefact")
    set_json(changed / RECORD, edits=edits)
    with pytest.raises(
        CheckpointError,
        match=r"does not list the edits as sea_bake writes them|edits(\[0\])? is \w+ .*, not (list|str)",
    ):
        Artefact.open(changed)


CLAIMS: dict[str, dict[str, Any]] = {
    "left out, but there": {"left_out": ["model.safetensors"]},
    "patched, but a shard": {"patched": ["config.json", INDEX, "model.safetensors"]},
    "a shard under a file's name": {"shards": {"tokenizer.json": "model-base.safetensors"}},
}


@pytest.mark.parametrize("claim", CLAIMS)
def test_an_unbake_writes_over_nobodys_file(tmp_path: Path, claim: str) -> None:
    """Shards in an output are hard links: whoever writes to one writes into the base's, and the artefact's, own."""
    base = tiny.changeable(tiny.single(), tmp_path / "base")
    other = tiny.changeable(tiny.single(seed=1), tmp_path / "other")
    changed = bake(base, tiny.edit_file(), tmp_path / "artefact", how="insert").output
    assert (changed / "model-base.safetensors").samefile(base / "model.safetensors")
    set_json(changed / RECORD, **CLAIMS[claim])
    (changed / "sea" / "base" / "model.safetensors").write_text("evil")
    with tiny.nothing_happens(tmp_path, base, changed):
        ran = tiny.run("unbake", changed, "--base", other, "-o", tmp_path / "out")
        tiny.refused(ran, "CheckpointError", "is listed twice, as two different files")


RECORDS: dict[str, Callable[[Path], None]] = {
    "no architecture": lambda a: tiny.patch_json(a / RECORD, architecture=None),
    "details of another kind": lambda a: set_json(a / RECORD, details=[1]),
    "an approximation of another kind": lambda a: set_json(a / RECORD, details={"approximation": {"layers": 1}}),
    "a verification of another kind": lambda a: (a / "sea_verification.json").write_text("{}") and None,
    "a verification in pieces": lambda a: (a / "sea_verification.json").write_text("[") and None,
}


@pytest.mark.parametrize("name", RECORDS)
def test_inspect_shows_a_whole_record_or_none(tmp_path: Path, name: str) -> None:
    changed = tiny.changeable(artefact(), tmp_path / "artefact")
    RECORDS[name](changed)
    tiny.refused(tiny.run("inspect", changed), "CheckpointError")


def test_a_folder_is_recorded_by_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one that is called by dots; and of an odd name nothing is heard but that there is no such model."""
    base = tiny.changeable(tiny.single(), tmp_path / "base")
    (base / "sub").mkdir()
    for where, spelling in ((base, "."), (base / "sub", "..")):
        monkeypatch.chdir(where)
        assert ModelSource.parse(spelling).name == "base"
    for name in ("a\0b", "~nobody-at-all/x", "x" * 5000, "./" + "y" * 300):
        with pytest.raises(CheckpointError):
            ModelSource.parse(name).on_disk()
    tiny.refused(tiny.run("unbake", "~nobody-at-all/x", "-o", tmp_path / "out"), "CheckpointError", "not an artefact")


# ----------------------------------------------------------------------------------------------------- what is not said


def test_no_token_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Hub's token of this process is in no file, and we do not ask for one outside of publishing."""
    secret = "hf_" + "s3cret" * 6
    monkeypatch.setenv("HF_TOKEN", secret)
    save_file({"a": torch.ones(1)}, tmp_path / "marked", metadata={"token": secret})
    for how in ("insert", "fold", "adapter"):
        edit = Edit.load(tiny.edit_file()).with_settings(merge="sum")
        bake(tiny.single(), edit, tmp_path / how, how=how)
    files = [path for how in ("insert", "fold", "adapter") for path in (tmp_path / how).rglob("*") if path.is_file()]
    assert len(files) > 20
    assert not [path for path in files if secret.encode() in path.read_bytes()]
    assert secret.encode() in (tmp_path / "marked").read_bytes()  # the control


HOUSE = Path(sea_bake.__file__).parent
EXECUTES = {"eval", "exec", "compile", "__import__", "os.system", "os.popen", "runpy.run_path", "yaml.load"}
PICKLING = {"pickle", "cPickle", "marshal", "shelve", "dill", "joblib", "cloudpickle"}


def dangers(source: str) -> set[str]:
    """Calls and imports in a module's text that could execute what was loaded."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [str(node.module)]
            found |= {name for name in names if name.split(".")[0] in PICKLING}
        if not isinstance(node, ast.Call):
            continue
        name, options = ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}
        if name in EXECUTES or name in ("yaml.unsafe_load", "yaml.full_load"):
            found.add(name)
        if name.endswith("torch.load") and options.get("weights_only") != "True":
            found.add("torch.load")
        if options.get("trust_remote_code") == "True" or options.get("shell") == "True":
            found.add(f"{name} of strangers' code")
        if options.get("allow_pickle") == "True":
            found.add("allow_pickle")
    return found


@pytest.mark.slow
def test_modules_are_not_looked_for_in_the_folder_that_one_works_in(tmp_path: Path) -> None:
    """A folder of a stranger's, in which ``verify .`` starts a process of its own."""
    marks = {name: tmp_path / f"{name} ran" for name in ("sea_bake", "json", "torch", "numpy")}
    for name, mark in marks.items():
        (tmp_path / f"{name}.py").write_text(f"open({str(mark)!r}, 'w')\nraise ImportError")
    options: dict[str, Any] = {"cwd": tmp_path, "capture_output": True, "text": True}
    ran = subprocess.run([*fresh("sea_bake.verification.reference"), "request.json"], **options)
    assert "FileNotFoundError" in ran.stderr  # it is ours that ran, and lacks its request
    assert "request.json" in ran.stderr
    assert not [name for name, mark in marks.items() if mark.exists()]
    for name, mark in marks.items():
        subprocess.run([sys.executable, "-c", f"import {name}"], **options)
        assert mark.exists()  # the control: the trap is one


def test_every_process_of_ours_is_fresh() -> None:
    """``-m`` and a bare ``-c`` look for modules in the working folder."""
    starts = [
        (path.name, line.strip())
        for path in Path(sea_bake.__file__).parent.rglob("*.py")
        for line in path.read_text("utf-8").splitlines()
        if "sys.executable," in line
    ]
    apart = ('"-I"', "str(converter)", 'f"{ours}; {code}"')  # a file that is named is looked for beside itself
    assert [start for start in starts if not any(words in start[1] for words in apart)] == []
    assert len(starts) >= 3


def test_nothing_in_the_house_executes_what_it_loads() -> None:
    modules = sorted(HOUSE.rglob("*.py"))
    assert len(modules) > 50
    found = {path.name: what for path in modules if (what := dangers(path.read_text("utf-8")))}
    assert found == {"sandbox_child.py": {"compile", "exec"}}  # what a model wrote, in a process of its own
    for control in (
        "eval(x)", "import pickle", "from joblib import load", "torch.load(f)", "torch.load(f, weights_only=False)",
        "yaml.load(f)", "yaml.unsafe_load(f)", "A.from_pretrained(f, trust_remote_code=True)", "run(c, shell=True)",
        "np.load(f, allow_pickle=True)",
    ):  # fmt: skip
        assert dangers(control), control
    assert dangers("torch.load(f, weights_only=True); yaml.safe_load(f); model.eval(); re.compile(p)") == set()


def test_every_promise_has_its_mechanism_and_its_tests() -> None:
    """Those that the page names are there."""
    house = Path(__file__).parent.parent
    page = (house / ".github" / "SECURITY.md").read_text("utf-8")
    promised = page[page.index("## What is promised") : page.index("## What is not promised")]
    rows = [line.split(" | ") for line in promised.splitlines() if line.startswith("| ")]
    promises = [row for row in rows if row[0] not in ("| promise", "| ---")]
    assert len(promises) > 25
    for promise, mechanism, tests in promises:
        files = re.findall(r"`([\w./]+)`", mechanism)
        named = re.findall(r"`tests/(\w+\.py)::(\w+)`", tests)
        assert files, promise
        assert [file for file in files if not (house / file).is_file()] == []
        assert named, promise
        missing = [name for file, name in named if f"\ndef {name}(" not in (house / "tests" / file).read_text("utf-8")]
        assert missing == []


def test_the_tests_themselves_have_a_limit() -> None:
    """A trap for memory that went off would be the end of this machine; so see that memory was never near it."""
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 12e6  # kB; two of the matrices above are 40 GB


# ------------------------------------------------------------------------------------------ what others wrote of theirs


@pytest.mark.parametrize("how", ["fold", "insert"])
@pytest.mark.parametrize("place", ["/home/somebody/llama", "~/llama", "./llama", "C:\\models\\llama", "a/b/llama"])
def test_where_a_base_lay_is_not_told(place: str, how: str, tmp_path: Path) -> None:
    """transformers and tokenizers write it into their configurations. What names the Hub stays."""
    base = tiny.changeable(tiny.single(), tmp_path / "base")
    note = {"name_or_path": "owner/name"}
    set_json(base / "config.json", _name_or_path=place, text={"_name_or_path": place}, note=note)
    set_json(base / "tokenizer_config.json", name_or_path=place)
    edit = Edit.load(tiny.edit_file()).with_settings(merge="sum")
    made = bake(base, edit, tmp_path / "made", how=how).output
    files = [p for p in made.rglob("*") if p.suffix in (".json", ".yaml", ".md")]
    assert len(files) > 4
    assert [p for p in files if place in p.read_text("utf-8") or json.dumps(place) in p.read_text("utf-8")] == []
    assert json.loads((made / "config.json").read_text("utf-8"))["note"] == note
    unbake(made, tmp_path / "back", base=base)


@pytest.mark.parametrize("metadata", ["text", [1], 3, None, {"total_size": "much"}])
def test_metadata_of_an_index(metadata: Any, tmp_path: Path) -> None:
    base = tiny.changeable(tiny.sharded(), tmp_path / "base")
    set_json(base / INDEX, metadata=metadata)
    for how in ("fold", "insert"):
        ran = tiny.run("bake", base, tiny.edit_file(), "-o", tmp_path / how, "--how", how)
        if isinstance(metadata, dict):
            assert ran.code == 0 or "NotExactError" in ran.err, ran
        else:  # None: no such entry
            tiny.refused(ran, "CheckpointError", 'has no JSON object "metadata"')


READERS = {
    "bake": lambda d, a: ("bake", d, tiny.edit_file(), "-o", d.parent / "o"),
    "plan": lambda d, a: ("plan", d),
    "fit": lambda d, a: ("fit", d, "-o", d.parent / "o.safetensors"),
    "eval": lambda d, a: ("eval", d),
    "verify": lambda d, a: ("verify", a),
    "inspect": lambda d, a: ("inspect", a),
    "report": lambda d, a: ("report", a, "-o", d.parent / "o"),
    "publish": lambda d, a: ("publish", a, "me/x", "--dry-run"),
    "export onnx": lambda d, a: ("export", "onnx", a, "-o", d.parent / "o"),
    "export gguf": lambda d, a: ("export", "gguf", a, "-o", d.parent / "o.gguf"),
    "export mlx": lambda d, a: ("export", "mlx", a, "-o", d.parent / "o"),
    "serve-web": lambda d, a: ("serve-web", a, "-o", d.parent / "o"),
    "unbake": lambda d, a: ("unbake", a, "-o", d.parent / "o"),
    "reproduce": lambda d, a: ("reproduce", a),
}


@pytest.mark.parametrize("command", READERS)
@pytest.mark.parametrize("name", ["tokenizer.json", "sea/more.json", "LICENSE"])
def test_no_reader_follows_a_link_out_of_a_folder(name: str, command: str, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("mine")
    base, made = tiny.changeable(tiny.single(), tmp_path / "base"), tiny.changeable(artefact(), tmp_path / "made")
    for folder in (base, made):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(secret)
    with tiny.nothing_happens(tmp_path):
        tiny.refused(tiny.run(*READERS[command](base, made)), "Error", f"{name} is a link that leads out")


@pytest.mark.parametrize(
    "numbers",
    [
        {"num_hidden_layers": 10**9},
        {"hidden_size": 10**12},
        {"vocab_size": 10**30},
        {"text_config": {"num_hidden_layers": -(10**9)}},
        {"layer_types": ["full_attention"] * 10**5},
        {"num_local_experts": 10**7},
    ],
)
def test_numbers_that_no_model_has(numbers: dict[str, Any], tmp_path: Path) -> None:
    """They would take minutes and gigabytes before a word is said."""
    base = tiny.changeable(tiny.single(), tmp_path / "base")
    set_json(base / "config.json", **numbers)
    for command in ("plan", "bake", "fit", "eval"):
        ran = tiny.run(*READERS[command](base, base))
        tiny.refused(
            ran, "CheckpointError", f"config.json: {'text_config.' if 'text_config' in numbers else ''}", "no model has"
        )


@pytest.mark.parametrize("text", [{}, {"a": 1}, {"model_type": "llama", "hidden_size": 1}, [1], "x", 3])
@pytest.mark.parametrize("key", ["text_config", "decoder", pytest.param("text_encoder", marks=pytest.mark.slow)])
def test_a_part_for_text_that_is_none(key: str, text: Any, tmp_path: Path) -> None:
    base = tiny.changeable(tiny.single(), tmp_path / "base")
    set_json(base / "config.json", **{key: text})
    for command in ("plan", "bake", "fit"):
        ran = tiny.run(*READERS[command](base, base))
        if ran.code:
            tiny.refused(ran, "Error", "remove that entry" if key == "text_config" and text else "")


@pytest.mark.parametrize("what", ["pipe", "device", "large"])
def test_no_reader_waits_or_reads_without_end(what: str, tmp_path: Path) -> None:
    """A pipe that nobody writes to, a device that never ends, a file beyond all reason: one sentence, at once."""
    from time import monotonic

    def put(path: Path) -> Path:
        path.unlink(missing_ok=True)
        if what == "pipe":
            os.mkfifo(path)
        elif what == "device":
            path.symlink_to("/dev/zero")
        else:
            with path.open("wb") as file:
                file.truncate(1 << 40)
        return path

    edit = tiny.edit_file()
    base = tiny.changeable(tiny.single(), tmp_path / "base")
    put(base / "config.json")
    for arguments in (
        ("run", put(tmp_path / "sea.yaml")),
        ("inspect", put(tmp_path / "edit.safetensors")),
        ("fit", tiny.single(), "-d", put(tmp_path / "d.jsonl"), "-o", tmp_path / "o"),
        ("fit", tiny.single(), "-d", put(tmp_path / "d.csv"), "-o", tmp_path / "o"),
        (
            "bake",
            tiny.single(),
            edit,
            "-o",
            tmp_path / "o",
            "--approximate",
            "--calibration",
            put(tmp_path / "c.jsonl"),
        ),
        ("bake", base, edit, "-o", tmp_path / "o"),
        ("plan", base),
        ("fit", base, "-o", tmp_path / "o"),
        ("eval", tiny.single(), "--edit", edit, "--neutral", put(tmp_path / "n.txt"), "--tasks", "damage"),
    ):
        start = monotonic()
        tiny.refused(tiny.run(*arguments), "Error")
        assert monotonic() - start < 5, arguments
