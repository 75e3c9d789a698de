"""What each reader of files that strangers may have made does with one: accepts it and uses it, or refuses it; in time,
and within its limits.

``tests/test_fuzz.py`` draws a few thousand inputs in every run (``bending`` makes them), ``scripts/fuzz`` as many as
one likes.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import benchmarks
import ggufs
import numpy as np
import tiny
import yaml
from bending import bent, gguf_files, json_files, safetensors_files
from hypothesis import strategies as st

from sea_bake.errors import SeaBakeError

INDEX = "model.safetensors.index.json"
SECONDS = 2.0  # of this process's own time, for one input; all take milliseconds
READ = 4  # times the bytes of all files in the folder, for one input: some are read twice, as text and as a digest
ROOM = 8 << 20  # bytes that may be read besides: modules, tokenizers
MEMORY = 256 << 10  # kB by which one input may raise the peak of this process
WORDS = 4000  # characters of an error


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


class OverLimitError(Exception):
    """An input that took too long, too much memory, or more bytes than there are; or an error as long as a book."""


def outcome(target: Target, folder: Path, data: bytes) -> str:
    """ "accepted", or the name of the SeaBakeError; any other exception is raised: a crash.

    Raises:
        OverLimitError: over one of the limits above, whatever the reader made of the input.
    """
    _forget_peak()
    began, peak, were = time.process_time(), _peak(), _bytes_read()
    kind, said = "accepted", ""
    try:
        target.read(folder, data)
    except SeaBakeError as error:
        kind, said = type(error).__name__, str(error)
    took, grew, read = time.process_time() - began, _peak() - peak, _bytes_read() - were
    there = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) if read > ROOM else 0
    if took > SECONDS or grew > MEMORY or read > READ * there + ROOM or len(said) > WORDS:
        raise OverLimitError(
            f"{took:.1f} s, {grew >> 10} MB more at its peak, {read:,} bytes read of {there:,}, {len(said)} characters"
        )
    return kind


def _forget_peak() -> None:
    """Or what came before would hide what an input takes (clear_refs in proc(5))."""
    Path("/proc/self/clear_refs").write_text("5")


def _peak() -> int:
    """kB that were resident in this process at most."""
    text = Path("/proc/self/status").read_text("utf-8")
    return int(text.partition("VmHWM:")[2].split()[0])


def _bytes_read() -> int:
    """Bytes that this process has got from ``read`` so far, from wherever."""
    with open("/proc/self/io", "rb", buffering=0) as file:
        return int(file.read(64).split()[1])


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """A folder in memory, where there is one: what readers accept is written again, and each write waits for a disk."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(prefix="sea-bake-fuzz-", dir=memory if memory.is_dir() else None) as folder:
        yield Path(folder)


def read_edit(folder: Path, data: bytes) -> None:
    """What was accepted can be applied, and written again."""
    import torch

    from sea_bake import Edit

    (folder / "edit.safetensors").write_bytes(data)
    edit = Edit.load(folder / "edit.safetensors")
    for layer in edit.layers:
        assert torch.isfinite(edit.layer(layer)(torch.ones(1, edit.maps[layer].dim))).all()
    edit.save(folder / "again.safetensors", overwrite=True)


@functools.cache
def edits() -> tuple[bytes, ...]:
    """SEA's projectors, as they are written and as version 1 had them; and maps with every part that there is."""
    import torch

    from sea_bake import Edit
    from sea_bake.methods.affine import AffineMap
    from sea_bake.model.anatomy import Site

    sea = Edit.load(tiny.edit_file())
    dim, some = sea.maps[sea.layers[0]].dim, torch.Generator().manual_seed(0)
    sizes = {"A": (3, dim), "B": (dim, 3), "scale": (dim,), "constant": (dim,), "gate": (3,)}
    found = [tiny.edit_file().read_bytes(), (Path(__file__).parent / "files/version_1/l2.safetensors").read_bytes()]
    for site, names in ((Site.HEADS, tuple(sizes)), (Site.BLOCK, ("constant",))):
        maps = {layer: AffineMap(**{n: torch.randn(sizes[n], generator=some) for n in names}) for layer in sea.layers}
        made = Edit(maps, site, sea.base, merge="sum", alpha=0.5, recipe=sea.recipe)
        path = tiny.root() / f"fuzzed-{site.value}.safetensors"
        found.append(made.save(path, overwrite=True).read_bytes())
    return tuple(found)


def edit_files() -> st.SearchStrategy[bytes]:
    return st.one_of(*map(safetensors_files, edits()))


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
    """A base's config.json, up to where its weights would be needed; and what ``plan`` says of it."""
    from sea_bake.baking import plan
    from sea_bake.baking.open_base import open_folder
    from sea_bake.model.source import ModelSource

    if not (folder / "model").exists():
        shutil.copytree(tiny.single(), folder / "model")
    (folder / "model" / "config.json").write_bytes(data)
    base = open_folder(folder / "model", ModelSource.parse(folder / "model"))
    assert base.quantisation is None or base.is_quantised
    assert plan(folder / "model").rows


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
    with scratch() as folder:  # what a good one imports is not the doing of the first that is good
        read_recipe(folder, recipe())
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
    return evaluate(
        tiny.single(), edit=tiny.edit_file(), tasks=["bbq"], data=data, limit=2, neutral_text=neutral
    ).to_json()


def in_artefact(folder: Path, name: str, data: bytes) -> Path:
    """A copy of the artefact with this in one of its files."""
    copied = folder / "artefact"
    if not copied.exists():
        shutil.copytree(verified(), copied)
    (copied / name).parent.mkdir(exist_ok=True)
    (copied / name).write_bytes(data)
    return copied


def read_verification(folder: Path, data: bytes) -> None:
    """As ``inspect``, ``report`` and ``publish`` take it; what was accepted is put into a table and a card."""
    from rich.console import Console

    from sea_bake.artefact import Artefact
    from sea_bake.artefact.names import VERIFICATION
    from sea_bake.cli.verify import show
    from sea_bake.pages.edits import compared
    from sea_bake.publishing.card import render
    from sea_bake.publishing.licence import Licence

    found = Artefact.open(in_artefact(folder, VERIFICATION, data))
    assert found.verdict in ("verified", "approximate", "NOT verified")
    render(found, "ada/x", licence=Licence("mit", "given by the publisher"), base_card={})
    verification = found.last_verification
    assert verification is not None
    assert len(compared(verification)) == 2
    show(verification, Console(file=io.StringIO()))


def read_page(folder: Path, data: bytes) -> None:
    """The numbers behind a report, as ``publish`` takes them."""
    from sea_bake.artefact import Artefact
    from sea_bake.artefact.names import PAGE_NUMBERS

    assert Artefact.open(in_artefact(folder, PAGE_NUMBERS, data)).page is not None


def read_export(folder: Path, data: bytes) -> None:
    """The record of an ONNX export; the graphs need not be there."""
    from sea_bake.artefact import Artefact
    from sea_bake.artefact.names import EXPORT

    (folder / EXPORT).parent.mkdir(exist_ok=True)
    (folder / EXPORT).write_bytes(data)
    found = Artefact.open(folder)
    assert found.doubt
    assert found.onnx.graphs
    json.dumps(found.record.to_json())


def read_gguf(folder: Path, data: bytes) -> None:
    """A base's GGUF; what was accepted is exported, and the export is a GGUF again."""
    from sea_bake import export_gguf
    from sea_bake.exporting.gguf.header import GgufFile

    (folder / "base.gguf").write_bytes(data)
    file = GgufFile.open(folder / "base.gguf")
    for tensor in file.tensors.values():
        file.rows(tensor, 0, 1)
    options: dict[str, Any] = {"base": folder / "base.gguf", "overwrite": True}
    export_gguf(gguf_edit(), folder / "out.gguf", **options)
    assert GgufFile.open(folder / "out.gguf").tensors.keys() == file.tensors.keys()


def read_gguf_record(folder: Path, data: bytes) -> None:
    """The record beside a GGUF of ours, as ``inspect`` takes it."""
    if not (folder / "m.gguf").exists():
        shutil.copyfile(gguf_export(), folder / "m.gguf")
    (folder / "m.gguf.sea.json").write_bytes(data)
    ran = tiny.run("inspect", folder / "m.gguf")
    assert ran.code in (0, 2)
    from sea_bake.artefact import Artefact

    json.dumps(Artefact.open(folder / "m.gguf").record.to_json())


def read_demonstrations(folder: Path, data: bytes) -> None:
    """The first word is how the file's name ends."""
    from sea_bake.demonstrations import load

    suffix, _, content = data.partition(b" ")
    path = folder / f"triples.{suffix.decode()}"
    path.write_bytes(content)
    assert all(one.prompt and one.positive for one in load(path))


def demonstration_files() -> st.SearchStrategy[bytes]:
    rows = [{"prompt": d.prompt, "positive": d.positive, "negative": d.negative} for d in tiny.demonstrations(4)]
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    table = "prompt,positive,negative\n" + "".join(",".join(json.dumps(v) for v in r.values()) + "\n" for r in rows)
    one = json_files(rows[0]).map(lambda data: lines + data)
    return st.one_of(
        bent(lines).map(lambda data: b"jsonl " + data),
        one.map(lambda data: b"jsonl " + data),
        json_files(rows).map(lambda data: b"json " + data),
        bent(table.encode()).map(lambda data: b"csv " + data),
        bent(table.replace(",", "\t").encode()).map(lambda data: b"tsv " + data),
    )


def read_foreign(folder: Path, data: bytes) -> None:
    """A file of another tool; the first word is its name. What is accepted is an edit that can be saved and applied."""
    import torch

    from sea_bake import Edit, import_edit
    from sea_bake.errors import SettingError

    name, _, content = data.partition(b" ")
    path = folder / name.decode()
    path.write_bytes(content)
    heads = folder / "heads.npy"
    if path.suffix == ".npy" and not heads.exists():
        np.save(heads, np.array([(1, 1)]))
    files = [path, heads] if path.suffix == ".npy" else [path]
    needs = {"layers": "1", "site": "mlp"} if path.stem == "eraser" else {"layers": "1"}
    try:
        edit = import_edit(files, tiny.single(), **{} if path.suffix in (".gguf", ".npy") else needs)
    except SettingError:  # a file that names other layers
        edit = import_edit(files, tiny.single(), alpha=1.0)
    for layer in edit.layers:
        assert torch.isfinite(edit.layer(layer)(torch.ones(1, edit.maps[layer].dim))).all()
    Edit.load(edit.save(folder / "edit.safetensors", overwrite=True))


@functools.cache
def foreign_samples() -> dict[str, bytes]:
    """A small file of each kind, by its name."""
    import foreign

    folder = tiny.root() / "fuzzed-foreign"
    folder.mkdir()
    model = tiny.new_llama()
    for name in ("control-vector", "glp", "persona", "svec", "steering-vectors", "leace"):
        (folder / name).mkdir()
        foreign.TOOLS[name].write(folder / name, model)
    (folder / "leace" / "plain.pt").rename(folder / "leace" / "eraser.pt")
    (folder / "act").mkdir()
    foreign.write_act(folder / "act", model)
    np.save(folder / "bank.npy", np.random.default_rng(0).standard_normal((16, 8)))
    return {path.name: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def foreign_files() -> st.SearchStrategy[bytes]:
    """GGUF and JSON changed in what they say, all others in their bytes."""

    def of(name: str, content: bytes) -> st.SearchStrategy[bytes]:
        kinds = {".gguf": gguf_files, ".svec": lambda data: json_files(json.loads(data))}
        made = kinds.get(Path(name).suffix, bent)(content)
        return made.map(lambda data: name.encode() + b" " + data)

    return st.one_of(*(of(name, content) for name, content in foreign_samples().items()))


@functools.cache
def verified() -> Path:
    """The artefact with its verification and its report."""
    from sea_bake import verify
    from sea_bake.reporting import report

    folder = Path(shutil.copytree(artefact(), tiny.root() / "fuzzed" / "artefact"))
    verify(folder, base=tiny.single(), prompts=["Why?"], max_new_tokens=2)
    report(folder, write=True)
    return folder


@functools.cache
def onnx_record() -> Any:
    """As an export of the artefact leaves it, without a trace of ten seconds."""
    from sea_bake.artefact.record import BakeRecord, OnnxRecord

    made = OnnxRecord(
        base="single-0", how="insert", architecture="LlamaForCausalLM", edits=["sea/edit-0.safetensors"], layers=(0, 1),
        sea_nodes=["sea.0"], strength="optional", nodes=9, error=1e-7, files={"onnx/model.onnx": 9},
        variants={"int8": {"weights": {"8": 9}, "bytes": 9, "distance": {"tokens": 9, "mean_kl": 1e-3, "top1": 1.0}}},
        bake=BakeRecord.from_json(_json(artefact() / "sea" / "bake.json")), versions={"torch": "2.13.0"},
    )  # fmt: skip
    found = made.to_json()
    return {key: value for key, value in found.items() if key not in ("output", "seconds")}


@functools.cache
def gguf_base() -> Path:
    """Of one layer: most of the file is its header."""
    folder = tiny.write_llama(tiny.root() / "one-layer", num_hidden_layers=1)
    return ggufs.llama(tiny.root() / "one-layer.gguf", folder)


@functools.cache
def gguf_edit() -> Any:
    from sea_bake import fit

    options: dict[str, Any] = {"layers": "all", "neutral": "prompt", "K": 0.9, **tiny.PAPER, "merge": "sum"}
    return fit(gguf_base(), tiny.demonstrations(), **options)


@functools.cache
def gguf_export() -> Path:
    from sea_bake import export_gguf

    return export_gguf(gguf_edit(), tiny.root() / "fuzzed.gguf", base=gguf_base()).output


def _json(path: Path) -> Any:
    return json.loads(path.read_text("utf-8"))


def _sea(name: str) -> Any:
    return _json(verified() / name)


# The first eight are those that a stranger's file meets first.
TARGETS: dict[str, Target] = {
    "edit": Target(edit_files, read_edit),
    "index": Target(lambda: json_files(_json(tiny.sharded() / INDEX)), read_index),
    "config": Target(lambda: json_files(_json(tiny.single() / "config.json")), read_config, 0.3),
    "record": Target(lambda: json_files(_json(artefact() / "sea" / "bake.json")), read_record, 0.05),
    "verification": Target(lambda: json_files(_sea("sea_verification.json")), read_verification, 0.1),
    "evaluation": Target(lambda: json_files(evaluation()), read_evaluation, 0.1),
    "recipe": Target(recipe_files, read_recipe, 0.1),
    "gguf": Target(lambda: gguf_files(gguf_base().read_bytes()), read_gguf, 0.2),
    "shard": Target(lambda: safetensors_files(_shard()), read_shard),
    "activations": Target(lambda: safetensors_files(activations_file().read_bytes()), read_activations, 0.1),
    "adapter": Target(lambda: json_files(_json(adapter() / "adapter_config.json")), read_adapter, 0.05),
    "export": Target(lambda: json_files(onnx_record()), read_export, 0.1),
    "gguf-record": Target(
        lambda: json_files(_json(gguf_export().with_suffix(".gguf.sea.json"))), read_gguf_record, 0.05
    ),
    "page": Target(lambda: json_files(_sea("sea/report.json")), read_page, 0.1),
    "demonstrations": Target(demonstration_files, read_demonstrations, 0.3),
    "foreign": Target(foreign_files, read_foreign, 0.3),
}
