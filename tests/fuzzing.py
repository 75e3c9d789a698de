"""Inputs for every reader of files that strangers may have made, and what each reader makes of one.

``tests/test_fuzz.py`` draws a few thousand of them in every run, ``scripts/fuzz`` as many as one likes. A valid file is
taken, and something in it becomes something else: a value anywhere in its JSON, a key, the safetensors header around
it, single bytes; and some inputs never were such a file.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import json
import re
import shutil
import struct
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import benchmarks
import tiny
import yaml
from hypothesis import strategies as st

from sea_bake.errors import SeaBakeError

INDEX = "model.safetensors.index.json"
ODD = (
    *(None, True, False, 0, 1, -1, 2, 3, 4, 31, 32, 33, 2**31, 2**63, 2**64, 10**400, -(10**18), 0.5, 1e308, 1e-320),
    *(float("nan"), float("inf"), float("-inf"), "", " ", ".", "..", "../x", "../../etc/passwd", "/etc/passwd", "~"),
    *("~nobody/x", "a/b", "a/b/c", "a\\b", "C:\\x", "a\0b", "\x1b[2J", "\ud800", "‮x", "é" * 90, "x" * 300, "nan"),
    *("1", "-1", "inf", "layers.0.positive", "model.safetensors", "config.json", "F32", "BF16", "F4", "LORA", "insert"),
    *([], {}, [[]], [{}], {"": {}}, [1, 2], [0] * 500, {"a": [None]}, ["../x"], {"../x": "../y"}, "[" * 1200),
)  # fmt: skip
GRAMMAR = st.recursive(
    st.sampled_from(ODD) | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=5,
)


def grammar() -> st.SearchStrategy[Any]:
    """Any JSON value; a copy, so that who changes it further does not change what is drawn next."""
    return GRAMMAR.map(copy.deepcopy)


@dataclass(frozen=True)
class Target:
    """A reader under test.

    Attributes:
        inputs: strategy of what the file holds.
        read: folder, bytes -> nothing; reads them as a user's file, and uses what was accepted.
        share: how many inputs it gets for each one of the fastest readers.
    """

    inputs: Callable[[], st.SearchStrategy[bytes]]
    read: Callable[[Path, bytes], object]
    share: float = 1.0


def outcome(target: Target, folder: Path, data: bytes) -> str:
    """ "accepted", or the name of the SeaBakeError; any other exception is raised: a crash."""
    try:
        target.read(folder, data)
    except SeaBakeError as error:
        return type(error).__name__
    return "accepted"


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """A folder in memory, where there is one: what readers accept is written again, and each write waits for a disk."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(prefix="sea-bake-fuzz-", dir=memory if memory.is_dir() else None) as folder:
        yield Path(folder)


# ----------------------------------------------------------------------------------------------------------- strategies


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths to every value inside a JSON value, but for long lists' tails, which are all alike."""
    items = value.items() if isinstance(value, dict) else enumerate(value[:3]) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*at, key)
        yield from places(inner, (*at, key))


@st.composite
def changed(draw: Any, valid: Any, most: int = 2) -> Any:
    """The JSON value with one or a few places in it replaced, removed, renamed, doubled or swapped."""
    value = copy.deepcopy(valid)
    for _ in range(draw(st.integers(1, most))):
        found = list(places(value))
        if not found:
            return draw(grammar())
        *way, key = draw(st.sampled_from(found))
        parent = functools.reduce(lambda v, k: v[k], way, value)
        act = draw(st.sampled_from(("put", "put", "put", "grammar", "remove", "rename", "swap", "text")))
        if act == "put":
            parent[key] = copy.deepcopy(draw(st.sampled_from(ODD)))
        elif act == "grammar":
            parent[key] = draw(grammar())
        elif act == "remove":
            del parent[key]
        elif act == "swap":
            *other, last = draw(st.sampled_from(found))
            parent[key] = copy.deepcopy(functools.reduce(lambda v, k: v[k], [*other, last], value))
        elif act == "text":
            parent[key] = json.dumps(parent[key])
        elif isinstance(parent, dict):
            parent[str(draw(st.sampled_from(ODD)))] = parent.pop(key)
        else:
            parent.append(parent[key])
    return value


@st.composite
def bent(draw: Any, valid: bytes) -> bytes:
    """The bytes with a few of them changed, or cut off, or more behind them."""
    data = bytearray(valid)
    for where, byte in draw(st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(0, 255)), max_size=4)):
        data[where % len(data)] = byte
    cut = draw(st.integers(-8, len(data)))
    return bytes(data[:cut] if cut > 0 and draw(st.booleans()) else data) + draw(st.binary(max_size=4))


def as_json(values: st.SearchStrategy[Any]) -> st.SearchStrategy[bytes]:
    return values.map(lambda value: json.dumps(value).encode())


def json_files(valid: Any) -> st.SearchStrategy[bytes]:
    """A JSON file: changed in its values, in its bytes, doubled keys, or other JSON altogether."""
    text = json.dumps(valid).encode()
    doubled = as_json(changed(valid, 1)).map(lambda other: text[:-1] + b", " + other[1:])
    return st.one_of(
        as_json(changed(valid)),
        as_json(changed(valid, 5)),
        bent(text),
        doubled,
        as_json(grammar()),
        st.binary(max_size=40),
    )


def packed(header: Any, body: bytes, length: int | None = None) -> bytes:
    """A safetensors file of this header; ``length`` is what its first eight bytes say instead of the truth."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length % (1 << 64)) + text + body


def safetensors_files(valid: bytes) -> st.SearchStrategy[bytes]:
    """A safetensors file: changed in our own header inside, in its table of contents, in its bytes."""
    size = struct.unpack("<Q", valid[:8])[0]
    table, body = json.loads(valid[8 : 8 + size]), valid[8 + size :]
    lengths = st.sampled_from((0, 1, size - 1, size + 1, len(valid), 10**8, 10**9, 2**63, 2**64 - 1))
    kinds = [
        changed(table).map(lambda t: packed(t, body)),
        as_json(changed(table, 1)).map(lambda t: packed(json.dumps(table).encode()[:-1] + b", " + t[1:], body)),
        lengths.map(lambda length: packed(table, body, length)),
        bent(valid),
        st.binary(max_size=80).map(lambda junk: packed(junk, b"")),
    ]
    if "sea_bake" in table.get("__metadata__", {}):
        ours = json.loads(table["__metadata__"]["sea_bake"])

        def around(text: str) -> bytes:
            return packed(table | {"__metadata__": {"sea_bake": text}}, body)

        inside = json_files(ours).map(lambda data: around(data.decode("utf-8", "replace")))
        kinds += [inside, changed(ours).map(lambda o: around(json.dumps(o))), inside, inside]
    return st.one_of(*kinds)


# -------------------------------------------------------------------------------------------------------------- readers


def read_edit(folder: Path, data: bytes) -> None:
    """What was accepted can be applied, and written again."""
    import torch

    from sea_bake import Edit

    (folder / "edit.safetensors").write_bytes(data)
    edit = Edit.load(folder / "edit.safetensors")
    for layer in edit.layers:
        assert torch.isfinite(edit.layer(layer)(torch.ones(1, edit.projectors[layer].dim))).all()
    edit.save(folder / "again.safetensors", overwrite=True)


def read_activations(folder: Path, data: bytes) -> None:
    from sea_bake import Activations

    (folder / "activations.safetensors").write_bytes(data)
    Activations.load(folder / "activations.safetensors").save(folder / "again.safetensors", overwrite=True)


def opened(folder: Path) -> None:
    """Every tensor that a checkpoint lists can be looked at, or was refused."""
    from sea_bake.model.checkpoint import Checkpoint

    checkpoint = Checkpoint.open(folder)
    checkpoint.size()
    for name in checkpoint.weight_map:
        tensor = checkpoint.tensor(name)
        assert tensor is not None
        tensor.read()


def read_index(folder: Path, data: bytes) -> None:
    shutil.copytree(tiny.sharded(), folder / "model", dirs_exist_ok=True) if not (folder / "model").exists() else None
    (folder / "model" / INDEX).write_bytes(data)
    opened(folder / "model")


def read_shard(folder: Path, data: bytes) -> None:
    (folder / "model").mkdir(exist_ok=True)
    (folder / "model" / "config.json").write_text("{}")
    (folder / "model" / "model.safetensors").write_bytes(data)
    opened(folder / "model")


def read_config(folder: Path, data: bytes) -> None:
    """A base's config.json, up to where its weights would be needed."""
    from sea_bake.baking.open_base import open_folder
    from sea_bake.model.source import ModelSource

    if not (folder / "model").exists():
        shutil.copytree(tiny.single(), folder / "model")
    (folder / "model" / "config.json").write_bytes(data)
    base = open_folder(folder / "model", ModelSource.parse(folder / "model"))
    assert base.quantisation is None or base.is_quantised


@functools.cache
def llama_config() -> Any:
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(tiny.single())


def read_adapter(folder: Path, data: bytes) -> None:
    """An adapter's configuration: what it does to each tensor, and what its base is called."""
    from transformers import LlamaForCausalLM

    from sea_bake.model.lora import changes
    from sea_bake.model.source import ModelSource

    if not (folder / "lora").exists():
        shutil.copytree(adapter(), folder / "lora")
    (folder / "lora" / "adapter_config.json").write_bytes(data)
    source = ModelSource.parse(folder / "lora")
    changes(source, LlamaForCausalLM, llama_config())
    source.base()


def read_record(folder: Path, data: bytes) -> None:
    """An artefact's own record, as ``unbake``, ``verify`` and ``inspect`` take it."""
    from sea_bake.artefact import Artefact
    from sea_bake.artefact.names import RECORD
    from sea_bake.baking.unbake import _whole

    if not (folder / "artefact").exists():
        shutil.copytree(artefact(), folder / "artefact")
        shutil.copytree(tiny.single(), folder / tiny.single().name)
    (folder / "artefact" / RECORD).write_bytes(data)
    ran = tiny.run("inspect", folder / "artefact")
    assert ran.code in (0, 2)
    found = Artefact.open(folder / "artefact")
    if found.kind == "insert":
        _whole(found)
    if not re.fullmatch(r"[\w-]+/[\w.-]+", found.record.base):  # the Hub is offline
        found.base_source()


@functools.cache
def adapter() -> Path:
    """A LoRA of the tiny Llama, as PEFT writes it."""
    from peft import LoraConfig, get_peft_model

    folder = tiny.root() / "fuzzed-adapter"
    model = get_peft_model(tiny.new_llama(), LoraConfig(r=2, target_modules=["down_proj"], layers_to_transform=[1]))
    model.peft_config["default"].base_model_name_or_path = str(tiny.single())
    model.save_pretrained(folder)
    return folder


@functools.cache
def artefact() -> Path:
    from sea_bake import bake

    return bake(tiny.single(), tiny.edit_file(), tiny.root() / "fuzzed-artefact", how="insert").output


@functools.cache
def activations_file() -> Path:
    from sea_bake import collect
    from sea_bake.model.loading import load_model

    path = tiny.root() / "fuzzed-activations.safetensors"
    options = {"source": "tiny", "layers": [1], "neutral": "prompt"}
    collect(load_model(tiny.single()), tiny.tokenizer(), tiny.demonstrations(2), **options).save(path)
    return path


def _shard() -> bytes:
    import torch
    from safetensors.torch import save

    tensors = {"a.weight": torch.ones(2, 3), "b.bias": torch.zeros(3).half(), "c": torch.ones(1, dtype=torch.int8)}
    return bytes(save(tensors, {"format": "pt"}))


def read_recipe(folder: Path, data: bytes) -> None:
    from sea_bake.recipes.schema import read

    (folder / "recipe.yaml").write_bytes(data)
    read(folder / "recipe.yaml")


@functools.cache
def recipe() -> bytes:
    """The starter that ``sea-bake init`` writes."""
    from sea_bake.recipes.starter import starter

    return starter().encode()


def recipe_files() -> st.SearchStrategy[bytes]:
    """YAML that was bent in its bytes; and JSON, which is YAML, changed in its values."""
    tags = st.sampled_from((b"!!python/object/apply:os.system ['x']", b"&a [*a]", b"!x ", b"? ", b"<<: {}\n", b"\x00"))
    spots = st.integers(0, len(recipe()))
    tagged = st.tuples(spots, tags).map(lambda drawn: recipe()[: drawn[0]] + drawn[1] + recipe()[drawn[0] :])
    return st.one_of(bent(recipe()), tagged, json_files(yaml.safe_load(recipe())))


def read_evaluation(folder: Path, data: bytes) -> None:
    """As ``report`` and ``publish`` take it; what was accepted is put into a page."""
    from sea_bake.artefact import trusted
    from sea_bake.artefact.names import EVALUATION
    from sea_bake.reporting.page import page
    from sea_bake.reporting.subject import Subject

    (folder / EVALUATION).parent.mkdir(exist_ok=True)
    (folder / EVALUATION).write_bytes(data)
    with contextlib.suppress(SeaBakeError):  # each says no for itself
        trusted.evaluation(folder, [], None)
    subject = Subject.open(tiny.edit_file())
    found = subject.evaluation(folder / EVALUATION)
    assert found is not None
    page(subject, [], [], found, [], found.samples)


@functools.cache
def evaluation() -> Any:
    from sea_bake import evaluate

    data, neutral = benchmarks.write(tiny.root() / "fuzzed-benchmarks"), tiny.root() / "fuzzed-neutral.txt"
    neutral.write_text("A paragraph that is short.\n\nAnother one, shorter still.\n", "utf-8")
    return evaluate(tiny.single(), edit=tiny.edit_file(), tasks=["bbq"], data=data, limit=2, neutral=neutral).to_json()


def _json(path: Path) -> Any:
    return json.loads(path.read_text("utf-8"))


TARGETS: dict[str, Target] = {
    "edit": Target(lambda: safetensors_files(tiny.edit_file().read_bytes()), read_edit),
    "index": Target(lambda: json_files(_json(tiny.sharded() / INDEX)), read_index),
    "shard": Target(lambda: safetensors_files(_shard()), read_shard),
    "activations": Target(lambda: safetensors_files(activations_file().read_bytes()), read_activations, 0.1),
    "config": Target(lambda: json_files(_json(tiny.single() / "config.json")), read_config, 0.1),
    "adapter": Target(lambda: json_files(_json(adapter() / "adapter_config.json")), read_adapter, 0.05),
    "record": Target(lambda: json_files(_json(artefact() / "sea" / "bake.json")), read_record, 0.05),
    "recipe": Target(recipe_files, read_recipe, 0.1),
    "evaluation": Target(lambda: json_files(evaluation()), read_evaluation, 0.1),
}
