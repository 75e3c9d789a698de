"""What answers from headers alone does not wait for torch and transformers; and what is known without them is what
they say.
"""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import families
import numpy as np
import pytest
import tiny
import torch
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM
from transformers.models.auto import tokenization_auto

from sea_bake import Edit, modeling_sea
from sea_bake.baking import plan
from sea_bake.baking.granting import _names, holder, with_key
from sea_bake.baking.insert import class_name, insert, sea_tensors
from sea_bake.baking.linear import changes
from sea_bake.baking.llamas import why_not
from sea_bake.baking.loadable import check_inserted
from sea_bake.baking.open_base import class_names, open_folder
from sea_bake.errors import SeaBakeError
from sea_bake.io.files import read_json
from sea_bake.model import travelling
from sea_bake.model.anatomy import Site
from sea_bake.model.checkpoint import Checkpoint
from sea_bake.model.plain import BUILDS, KEYS, plain
from sea_bake.model.sites import planned_layers
from sea_bake.model.source import ModelSource
from sea_bake.verification import answers
from sea_bake.verification.doors import fresh

# What each build may be besides as its tiny config in ``families`` is.
VARIANTS: dict[str, list[dict[str, Any]]] = {
    "llama": [
        {},
        {"attention_bias": True},
        {"mlp_bias": True, "head_dim": 16},
        {"num_key_value_heads": 4, "tie_word_embeddings": True},
        {"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0,
                             "high_freq_factor": 4.0, "original_max_position_embeddings": 64}},
    ],
    "mistral": [{}, {"head_dim": 8}, {"sliding_window": 512}, {"tie_word_embeddings": True, "sliding_window": None}],
    "qwen2": [{}, {"tie_word_embeddings": True}],
    "qwen3": [{}, {"attention_bias": True}, {"head_dim": 16, "tie_word_embeddings": True}],
    "granite": [{}, {"attention_bias": True, "mlp_bias": True}, {"tie_word_embeddings": True}],
    "olmo2": [{}, {"attention_bias": True}],
}  # fmt: skip
HEADERS = ("plan", "plan, an edit", "inspect, an edit", "inspect, an artefact", "bake", "help")


def written(family: str, folder: Path, **changes: Any) -> Path:
    """A checkpoint of random weights with a tiny configuration's numbers, some of them changed."""
    text = families.CONFIGS[family]().to_dict() | changes
    config = AutoConfig.for_model(family, **{k: v for k, v in text.items() if k != "model_type"})
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


ALL = [(family, i) for family, variants in VARIANTS.items() for i in range(len(variants))]


def test_every_build_is_tried() -> None:
    assert set(VARIANTS) == set(BUILDS) <= set(families.CONFIGS)


@pytest.mark.parametrize(("family", "number"), ALL)
def test_what_is_known_of_a_build_is_what_transformers_says(family: str, number: int, tmp_path: Path) -> None:
    folder = written(family, tmp_path / "base", **VARIANTS[family][number])
    base = open_folder(folder, ModelSource.parse(folder))
    known, theirs = base.plain, base.text
    assert known is not None, "it is left to transformers"
    names = ("model_type", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
    assert {n: getattr(known, n) for n in names} == {n: getattr(theirs, n) for n in names}
    assert known.num_key_value_heads == theirs.num_key_value_heads
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(base.config)
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    shapes.pop("lm_head.weight", None)
    assert known.tensors() == shapes
    assert base.classes == class_names(base.checkpoint.config)
    own = base.classes["AutoConfig"]
    assert {class_name(name, own) for name in base.classes.values()} == {f"SEA{n}" for n in base.classes.values()}
    assert planned_layers(base.config, Site.MLP) == tuple(range(known.num_hidden_layers))  # transformers builds it
    assert why_not(base) == why_not(replace(base, plain=None))
    for key in (*base.row.bias_keys, "attention_bias", "mlp_bias"):
        asked = replace(base, plain=None)
        granted = with_key(base, key).checkpoint if known.biases(key) else None
        there = with_key(asked, key).checkpoint if _names(asked, key) else None
        assert (granted and set(granted.weight_map)) == (there and set(there.weight_map)), key
        assert granted is None or there is None or granted.config == there.config


@pytest.mark.parametrize("family", BUILDS)
def test_both_ways_plan_and_bake_the_same(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = written(family, tmp_path / "base")
    source = ModelSource.parse(folder)
    edit = edit_of(folder)
    quick = plan(folder).to_json(), plan(folder, [edit]).to_json()
    bakes = []
    for name in ("quick", "asked"):
        if name == "asked":
            monkeypatch.setattr(sys.modules["sea_bake.baking.open_base"], "plain", lambda checkpoint: None)
        base = open_folder(folder, source)
        assert (base.plain is None) == (name == "asked")
        bakes.append(insert(base, [edit], tmp_path / name, why=""))
        assert holder(base, Site.MLP, [1]) == holder(open_folder(folder, source), Site.MLP, [1])
    assert (plan(folder).to_json(), plan(folder, [edit]).to_json()) == quick
    assert tiny.snapshot(tmp_path / "quick").keys() == tiny.snapshot(tmp_path / "asked").keys()
    for path in (tmp_path / "quick").rglob("*"):
        other = tmp_path / "asked" / path.relative_to(tmp_path / "quick")
        assert path.is_dir() or path.read_bytes() == other.read_bytes(), path.name
    base = open_folder(folder, source)
    check_inserted(base, tmp_path / "quick", sea_tensors([edit], base))  # as it is done where transformers is asked


def edit_of(folder: Path) -> Edit:
    """An edit of layers 1 and 3, with random directions."""
    from sea_bake.methods.sea import Projector
    from sea_bake.model.fingerprint import BaseModel

    base = open_folder(folder, ModelSource.parse(folder))
    found = BaseModel.of_checkpoint(base.source, base.numbers, base.row, base.checkpoint, base.stem)
    rows = [torch.linalg.qr(torch.randn(found.hidden_size, k)).Q.T.contiguous() for k in (3, 2)]
    one = Projector(*rows, *(torch.ones(k, dtype=torch.float64) for k in (3, 2)))
    return Edit({1: one, 3: one}, Site.MLP, found, merge="sum")


def changed(key: str, value: Any) -> Callable[[Path], None]:
    return lambda folder: tiny.patch_json(folder / "config.json", **{key: value})


ODD: dict[str, Callable[[Path], None]] = {
    "a key that is not known": changed("rope_interleave", False),
    "a number in words": changed("num_hidden_layers", "4"),
    "a truth value for a number": changed("hidden_size", True),
    "another activation": changed("hidden_act", "sillu"),
    "heads that do not divide the width": changed("num_attention_heads", 5),
    "another rope": changed("rope_parameters", {"rope_type": "spiral", "rope_theta": 1e4}),
    "a layer more": changed("num_hidden_layers", 5),
    "another class": changed("architectures", ["LlamaForSequenceClassification"]),
    "no class": changed("architectures", None),
    "code": changed("auto_map", {"AutoModelForCausalLM": "own.Own"}),
    "quantised": changed("quantization_config", {"quant_method": "gptq", "bits": 4}),
    "a padding token beyond the vocabulary": changed("pad_token_id", 512),
    "a whole number for a share": changed("initializer_range", 1),
    "a list of first tokens": changed("bos_token_id", [1]),
    "a wider MLP": changed("intermediate_size", 96),
    "an output head that is not there": lambda folder: without(folder, "lm_head.weight"),
    "a tensor that is not there": lambda folder: without(folder, "model.layers.2.mlp.up_proj.weight"),
}
REFUSED = ("heads that", "another class", "a wider", "an output", "a tensor", "a layer more", "a number in",
           "a truth", "another act", "another rope", "a whole", "a list")  # fmt: skip


def without(folder: Path, name: str) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    del tensors[name]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize("odd", ODD)
def test_what_is_odd_is_left_to_transformers(odd: str, tmp_path: Path) -> None:
    """And refused by it, as ever; the control is known without."""
    folder = tiny.changeable(tiny.single(), tmp_path / "base")
    assert plain(Checkpoint.open(folder)) is not None
    ODD[odd](folder)
    try:
        found = plain(Checkpoint.open(folder))
    except SeaBakeError:
        found = None
    assert found is None
    if odd.startswith(REFUSED):
        ran = tiny.run("bake", folder, tiny.edit_file(), "-o", tmp_path / "out", "--how", "insert")
        assert ran.code == 2
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("family", BUILDS)
def test_what_is_usual_is_what_transformers_takes(family: str) -> None:
    """Every key, with numbers of both kinds, lists, nothing, truth values and words."""
    made, taken = CONFIG_MAPPING[family](), 0
    sizes = ("hidden_size", "num_attention_heads", "num_key_value_heads", "vocab_size")  # which have to fit each other
    for key, usual in {**KEYS, **BUILDS[family].keys}.items():
        for value in (1, 0, 2, 0.5, 1.0, [1], [1, 2], None, True, False, "word", "silu", "float32", {}):
            if key in ("rope_scaling", "rope_parameters", "model_type", *sizes) or not usual(value):
                continue
            layers = {"layer_types": ["full_attention"] * value} if key == "num_hidden_layers" else {}
            type(made).from_dict({**made.to_dict(), key: value, **layers})
            taken += 1
    assert taken > 30


def test_tokenizers_that_transformers_distrusts_are_known() -> None:
    distrusted = tokenization_auto.MODELS_WITH_INCORRECT_HUB_TOKENIZER_CLASS
    names = tokenization_auto.TOKENIZER_MAPPING_NAMES
    assert {family for family, build in BUILDS.items() if build.tokenizer} == distrusted & set(BUILDS)
    for family, build in BUILDS.items():
        named = names.get(family)
        assert build.tokenizer in (None, named[0] if isinstance(named, tuple) else named)


def test_what_the_travelling_file_says_is_read_off_its_text() -> None:
    for name in ("MERGES", "PARTS", "EXTRA", "CONFIGURED"):
        assert getattr(travelling, name) == getattr(modeling_sea, name)
    assert tuple(modeling_sea.FEATURES) == travelling.FEATURES
    assert Path(inspect.getfile(modeling_sea)) == travelling.FILE
    config = {"a": 1, "text_config": {"num_attention_heads": 2, "b": 3}, "n_head": 7}
    for guard in ({"n_head": 7}, {"text_config": {"num_attention_heads": 2}}, {"new": {"n": 1}}):
        assert travelling.guarded(config, guard) == modeling_sea.put(config, guard, modeling_sea.GUARD.format)


def test_an_edit_from_a_file_says_of_itself_what_its_tensors_say() -> None:
    path = tiny.edit_file()
    edit, again = Edit.load(path), Edit.load(path)
    living = replace(again, maps=dict(again.maps))
    assert edit.describe() == living.describe()
    assert (edit.ranks, edit.widths, edit.extra, edit.changes_nothing, edit.is_sea) == (
        living.ranks, living.widths, living.extra, living.changes_nothing, living.is_sea,
    )  # fmt: skip
    for layer in edit.layers:
        ours, theirs = edit.layer_arrays(layer), living.layer_tensors(layer)
        assert {n: a.tobytes() for n, a in ours.items()} == {n: t.numpy().tobytes() for n, t in theirs.items()}
    assert np.shares_memory(again.seen[again.layers[0]].parts["positive"], again.maps[again.layers[0]].positive.numpy())


@pytest.mark.parametrize("parts", ["both", "positive", "negative"])
def test_the_rank_of_an_adapter_is_that_of_its_factors(parts: str, tmp_path: Path) -> None:
    from sea_bake.baking.planning import _rank

    folder = written("llama", tmp_path / "base")
    one = edit_of(folder)
    two = replace(one, parts=parts, site=Site.ATTN)
    for edits in ([one], [two], [one, two], [two, one, one]):
        assert _rank(edits) == max(change.rank for change in changes(edits).values())


def test_saved_again_it_is_the_same_to_the_byte(tmp_path: Path) -> None:
    path = tiny.edit_file()
    edit = Edit.load(path)
    living = replace(edit, maps=dict(edit.maps))
    assert edit.save(tmp_path / "a").read_bytes() == path.read_bytes() == living.save(tmp_path / "b").read_bytes()


# ------------------------------------------------------------------------------------------------- in new processes

RUN = """
import os, sys
from sea_bake.cli import main
try:
    main()
except SystemExit as ended:
    code = ended.code
spent = os.times()
print("\\n%s %.3f" % (code or 0, spent.user + spent.system), *sorted({"torch", "transformers"} & set(sys.modules)))
"""
IMPORTS = """
import os, torch, transformers
spent = os.times()
print("0 %.3f" % (spent.user + spent.system))
"""


def started(script: str, *arguments: object) -> tuple[str, float, list[str]]:
    """Exit code, seconds of the processor and what of torch and transformers was imported, in a new process."""
    ran = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        capture_output=True, text=True, stdin=subprocess.DEVNULL, env=os.environ | {"COLUMNS": "100"},
    )  # fmt: skip
    assert ran.stdout, ran.stderr
    code, seconds, *imported = ran.stdout.splitlines()[-1].split()
    return code, float(seconds), imported


def commands(tmp_path: Path) -> dict[str, tuple[object, ...]]:
    base, edit = tiny.single(), tiny.edit_file()
    return {
        "bake": ("bake", base, edit, "-o", tmp_path / "out", "--how", "insert", "--overwrite"),
        "plan": ("plan", base),
        "plan, an edit": ("plan", base, edit),
        "inspect, an edit": ("inspect", edit),
        "inspect, an artefact": ("inspect", tmp_path / "out"),
        "help": ("bake", "--help"),
    }


@pytest.fixture(scope="module")
def once(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, tuple[str, float, list[str]]]]:
    """Each command in a new process, and the folder of what it wrote."""
    folder = tmp_path_factory.mktemp("once")
    return folder, {name: started(RUN, *arguments) for name, arguments in commands(folder).items()}


@pytest.mark.slow
def test_headers_are_enough_without_torch(once: Any, tmp_path: Path) -> None:
    """The control: what is odd is asked of transformers."""
    _, found = once
    assert {name: (code, imported) for name, (code, _, imported) in found.items()} == dict.fromkeys(HEADERS, ("0", []))
    odd = tiny.changeable(tiny.single(), tmp_path / "odd")
    tiny.patch_json(odd / "config.json", some_key=1)
    assert started(RUN, "plan", odd)[2] == ["torch", "transformers"]


@pytest.mark.slow
def test_they_take_less_than_half_of_what_the_imports_alone_take(once: Any) -> None:
    """Of the processor's time, in the same run, so that a slow machine slows down both: the least of two, and of a
    command the least of three, where the first is not enough.
    """
    folder, found = once
    imports = min(started(IMPORTS)[1] for _ in range(2))
    for name, arguments in commands(folder).items():
        took = found[name][1]
        for _ in range(2):
            if took >= imports / 2:
                took = min(took, started(RUN, *arguments)[1])
        assert took < imports / 2, f"{name}: {took:.2f} s, and the imports {imports:.2f} s"
    assert read_json(folder / "out" / "config.json")["model_type"] == "sea_llama"


def test_a_command_that_was_meant_is_named() -> None:
    """In a process that has made no command yet."""
    script = "from sea_bake.cli import main; main()"
    for told, meant in (("fitt", "fit"), ("serve_web", "serve-web")):
        ran = subprocess.run([sys.executable, "-c", script, told], capture_output=True, text=True)
        assert ran.returncode == 2
        assert f"Did you mean '{meant}'" in ran.stderr.replace("\n", " "), ran.stderr


@pytest.mark.parametrize(
    ("act", "seldom"),
    [
        ("sys.argv[1:] = ['--version']; from sea_bake.cli import main; main()", True),
        (f"sys.argv[1:] = ['none']; runpy.run_path({answers.__file__!r}, None, '__main__')", True),
        (fresh("sea_bake.errors")[-1], True),
        ("import sea_bake.cli; import sea_bake.verification.answers", False),
    ],
)
def test_only_a_process_of_ours_seldom_looks_for_garbage(act: str, seldom: bool) -> None:
    """Whoever imports the library keeps their own settings."""
    watch = "import atexit, gc, runpy, sys; atexit.register(lambda: print('every', gc.get_threshold()[0]))"
    ran = subprocess.run([sys.executable, "-c", f"{watch}; {act}"], capture_output=True, text=True)
    said = ran.stdout.split()
    assert said[-2] == "every"
    assert (said[-1] == "50000") == seldom
