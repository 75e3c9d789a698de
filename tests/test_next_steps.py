"""What the product says to do next can be done: each printed command is taken out of the output and run as it stands.

For every kind of base and every way of baking it; folders have blanks in their names. Words in capitals (OUT, BASE,
MODEL) are for the reader to fill in, and so they are filled in here.
"""

from __future__ import annotations

import io
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import benchmarks
import exports
import families
import ggufs
import pytest
import test_sources
import tiny
import torch
from conftest import Workshop
from hub_server import Hub
from test_publish import ADA, Desk
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM

from sea_bake import Edit, bake
from sea_bake.artefact import Artefact
from sea_bake.errors import SeaBakeError, command

pytestmark = pytest.mark.usefixtures("every_processor_alike", "short_answers")
FIT = ("--neutral", "prompt", "--layers", "last:2", "-K", "0.9", "--merge", "sum", "--site", "mlp")


def following(said: str, **places: Any) -> list[str]:
    """The words behind the last "Next:", as a shell reads them, with the words in capitals filled in."""
    assert "Next: " in said, said
    words = shlex.split(said.rpartition("Next: ")[2].splitlines()[0])
    filled = [str(places.get(word, word)) for word in words]
    assert not [word for word in filled if re.fullmatch("[A-Z]{3,}", word)], filled
    return filled


def follow(said: str, *more: Any, run: Callable[..., tiny.Ran] = tiny.run, **places: Any) -> str:
    """Run it; returns what it said."""
    first, *words = following(said, **places)
    assert first == "sea-bake"
    return succeed(*words, *more, run=run)


def succeed(*words: Any, run: Callable[..., tiny.Ran] = tiny.run) -> str:
    ran = run(*words)
    assert ran.code == 0, (words, ran)
    return ran.out


# -------------------------------------------------------------------------------------------------- the kinds of bases


def short(workshop: Workshop, seed: int = 0) -> Path:
    """Of two layers, where an ONNX export follows: a trace takes its time by layers."""
    folder = workshop.folder / f"of-two-layers-{seed}"

    def make() -> Path:
        torch.manual_seed(seed)
        LlamaForCausalLM(LlamaConfig(**families.GROUPED | {"num_hidden_layers": 2})).save_pretrained(folder)
        families.tokenizer().save_pretrained(folder)
        return folder

    return workshop.once(folder, make)


def a_folder(workshop: Workshop, place: Path) -> Path:
    return tiny.changeable(short(workshop), place / "a model")


def in_shards(workshop: Workshop, place: Path) -> Path:
    return tiny.changeable(workshop.base("llama", shards=True), place / "in shards")


def a_gguf(workshop: Workshop, place: Path) -> Path:
    return ggufs.llama(place / "a model.gguf", exports.base(chat=False))


def an_adapter(workshop: Workshop, place: Path) -> Path:
    _, settings = test_sources.KINDS["plain"]
    return test_sources.adapt(short(workshop), place / "a lora", **settings)


def of_family(family: str) -> Callable[[Workshop, Path], Path]:
    return lambda workshop, place: tiny.changeable(workshop.base(family), place / family)


def in_fp8(workshop: Workshop, place: Path) -> Path:
    return tiny.changeable(test_sources.in_fp8(workshop), place / "in fp8")


def in_bits(bits: int) -> Callable[[Workshop, Path], Path]:
    """Of widths by 32, as every real model's are: bitsandbytes takes no others on processors with AVX512-BF16."""

    def make(workshop: Workshop, place: Path) -> Path:
        size = {"hidden_size": 64, "intermediate_size": 128, "initializer_range": 0.25}
        model = LlamaForCausalLM(LlamaConfig(**families.GROUPED | size))
        model.save_pretrained(place / "plain")
        options = {"device_map": "cpu", "quantization_config": BitsAndBytesConfig(**test_sources.BITS[bits])}
        found = AutoModelForCausalLM.from_pretrained(place / "plain", **options)
        found.save_pretrained(place / f"in {bits} bits")
        families.tokenizer().save_pretrained(place / f"in {bits} bits")
        return place / f"in {bits} bits"

    return make


APPROXIMATE = ("--approximate", "--how", "fold")
BASES: dict[str, tuple[Callable[[Workshop, Path], Path], tuple[str, ...]]] = {
    "folder": (a_folder, ("auto", "insert", "fold", "adapter", "approximate")),
    "shards": (in_shards, ("insert", "fold")),
    "GGUF": (a_gguf, ("auto", "insert", "fold", "adapter", "approximate")),
    "PEFT adapter": (an_adapter, ("auto", "insert", "fold", "approximate")),
    "4 bits": (in_bits(4), ("auto",)),
    "8 bits": (in_bits(8), ("auto",)),
    "fp8": (in_fp8, ("auto",)),
    "encoder-decoder": (of_family("t5"), ("auto", "insert", "fold", "adapter")),
    "a decoder inside": (of_family("llava"), ("auto", "insert", "fold")),
}


@pytest.fixture(scope="module")
def fitted(workshop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, str]]:
    """A base of this kind, and what ``fit`` on it printed."""

    def make(kind: str) -> tuple[Path, str]:
        place = tmp_path_factory.mktemp("bases") / "my bases"
        place.mkdir()
        base = BASES[kind][0](workshop, place)
        data = place / "triples.jsonl"
        data.write_bytes((tiny.demonstrations_file() if kind == "GGUF" else little_language()).read_bytes())
        return base, succeed("fit", base, "-d", data, *FIT, "-o", place / "an edit.safetensors")

    return lambda kind: workshop.once(("fitted", kind), lambda: make(kind))


def little_language() -> Path:
    path = tiny.root() / "little-language.jsonl"
    rows = [{"prompt": d.prompt, "positive": d.positive, "negative": d.negative} for d in families.demonstrations()]
    path.write_text("".join(f"{benchmarks.json.dumps(row)}\n" for row in rows), "utf-8")
    return path


# Every kind of base whose bakes are exported, and every way, more than once; the others lead as far as the proof.
EXPORTED = {"folder": ("insert", "fold"), "GGUF": ("insert", "approximate"), "PEFT adapter": ("fold", "approximate")}


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "how"), [(kind, how) for kind, (_, ways) in BASES.items() for how in ways])
def test_a_base_of_every_kind_is_led_from_fit_to_a_verified_export(
    fitted: Callable[[str], tuple[Path, str]],
    tmp_path: Path,
    kind: str,
    how: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """fit, bake, verify, chat; where there is an export of it, export, verify: each as the one before printed it."""
    base, said = fitted(kind)
    way = APPROXIMATE if how == "approximate" else ("--how", how)
    said = follow(said, *way, OUT=tmp_path / "an artefact")
    assert str(base) in shlex.split(said.rpartition("Next: ")[2])
    said = follow(said)
    assert "verified: equal" in said or "approximate: not equal" in said
    artefact = Artefact.open(tmp_path / "an artefact")
    assert artefact.doubt is None
    if how == "auto":
        monkeypatch.setattr("sys.stdin", io.StringIO("Hello\n"))
        said = follow(said, "--max-new-tokens", 2)
        assert "base: " in said
        assert "edited: " in said
    # What "auto" chose is exported under its own name.
    if how not in EXPORTED.get(kind, ()):
        return
    said = succeed("export", "onnx", artefact.folder, "-o", tmp_path / "an export")
    assert ("--base BASE" in said) == (base.parent != tmp_path)
    follow(said, BASE=base)
    assert Artefact.open(tmp_path / "an export").doubt is None


@pytest.fixture(scope="module")
def desk(workshop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    """A Hub on which the branch "old" is another model than "main"."""
    hub = Hub(tmp_path_factory.mktemp("hub"), {ADA: "ada"})
    with hub.running():
        made = Desk(hub, tmp_path_factory.mktemp("desk"))
        made.login.write_text(ADA)
        hub.add("tiny/llama", short(workshop))
        repo = hub.repos["tiny/llama"]
        repo.heads["old"] = repo.heads["main"]
        hub.add("tiny/llama", short(workshop, seed=1))
        yield made
        made.close()


@pytest.mark.slow
@pytest.mark.parametrize("how", ["insert", "fold", "adapter"])
@pytest.mark.parametrize("revision", ["main", "old"])
def test_a_base_on_the_hub(workshop: Workshop, desk: Desk, tmp_path: Path, how: str, revision: str) -> None:
    """A revision is part of what is printed: another one is another model, and the next step would refuse it.

    Fitted once for each revision; what that printed is followed in each way.
    """
    at = () if revision == "main" else ("--revision", revision)

    def run(*words: Any) -> tiny.Ran:
        return desk.run(*words)[0]

    edit = tiny.root() / f"an edit of {revision}.safetensors"
    words = ("fit", "tiny/llama", "-d", little_language(), *FIT, *at, "-o", edit)
    said = workshop.once(("on the hub", revision), lambda: succeed(*words, run=run))
    said = follow(said, "--how", how, OUT=tmp_path / "an artefact", run=run)
    assert following(said)[1:] == ["verify", str(tmp_path / "an artefact"), "--base", "tiny/llama", *at]
    follow(said, run=run)
    assert Artefact.open(tmp_path / "an artefact").doubt is None
    if how == "fold" and revision == "old":  # the one whose name alone leads to another model
        follow(succeed("export", "onnx", tmp_path / "an artefact", "-o", tmp_path / "an export", run=run), run=run)


# ----------------------------------------------------------------------------------------------------- other next steps


@pytest.mark.slow
@pytest.mark.parametrize("route", ["rewritten", "adapter"])
def test_a_gguf_is_run_by_llama_cpp(fitted: Callable[[str], tuple[Path, str]], tmp_path: Path, route: str) -> None:
    """``llama-cli`` itself is no Python package: llama.cpp loads the same files here."""
    xllamacpp = pytest.importorskip("xllamacpp")
    base, said = fitted("GGUF")
    how = "fold" if route == "rewritten" else "adapter"
    follow(said, "--how", how, OUT=tmp_path / "an artefact")
    said = succeed("export", "gguf", tmp_path / "an artefact", "--base", base, "-o", tmp_path / "an export.gguf")
    program, *words = following(said)
    lora = ["--lora", str(tmp_path / "an export.gguf")]
    assert (program, words) == (
        ("llama-cli", ["-m", str(tmp_path / "an export.gguf")])
        if route == "rewritten"
        else ("llama-cli", ["-m", str(base), *lora])
    )
    settings = xllamacpp.CommonParams()
    settings.model.path, settings.n_ctx, settings.n_parallel, settings.warmup = words[1], 64, 1, False
    if route == "adapter":
        settings.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(words[3], 1.0)]
    answer = xllamacpp.Server(settings).handle_completions({"prompt": [1, 5, 9], "max_tokens": 2})
    assert answer["choices"]


@pytest.mark.slow
def test_an_adapter_without_its_base_names_a_place_for_it(
    fitted: Callable[[str], tuple[Path, str]], tmp_path: Path
) -> None:
    _, said = fitted("GGUF")
    follow(said, "--how", "adapter", OUT=tmp_path / "an artefact")
    said = succeed("export", "gguf", tmp_path / "an artefact", "-o", tmp_path / "a.gguf")
    assert following(said, **{"BASE.gguf": "b.gguf"}) == [
        "llama-cli",
        "-m",
        "b.gguf",
        "--lora",
        str(tmp_path / "a.gguf"),
    ]


@pytest.mark.slow
def test_activations_without_a_model_leave_a_place_for_it(tmp_path: Path) -> None:
    saved, data = tmp_path / "some activations.safetensors", ("-d", tiny.demonstrations_file())
    edit = tmp_path / "an edit.safetensors"
    succeed("fit", tiny.single(), *data, *FIT, "--save-activations", saved, "-o", tmp_path / "first.safetensors")
    said = succeed("fit", "--activations", saved, "--merge", "sum", "-o", edit)
    follow(follow(said, MODEL=tiny.single(), OUT=tmp_path / "out"))


@pytest.mark.slow
def test_a_tuned_edit_is_baked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sea_bake.fitting.tuning.results

    monkeypatch.setattr(sea_bake.fitting.tuning.results.Tuning, "helps", property(lambda self: True))
    words = ("--site", "mlp", "--merge", "sum", "--layers", "1,3", "--trials", 1, "--neutral", "prompt")
    said = succeed("tune", tiny.single(), *words, "-o", tmp_path / "a search")
    follow(follow(said, OUT=tmp_path / "an artefact"))


@pytest.mark.slow
def test_the_demo_leads_on(workshop: Workshop, tmp_path: Path) -> None:
    """Both of its lines; the second with the benchmarks of ``--data``, since the Hub is not here."""
    said = succeed("demo", "--model", tiny.single(), "-o", tmp_path / "a demo")
    lines = [line.partition("Next: ")[2] for line in said.splitlines() if "Next: " in line]
    assert [shlex.split(line)[:2] for line in lines] == [["sea-bake", "inspect"], ["sea-bake", "eval"]]
    succeed(*shlex.split(lines[0])[1:])
    data = benchmarks.write(tmp_path / "data")
    neutral = tmp_path / "neutral.txt"
    neutral.write_text("A paragraph that is short.\n\nAnother one, shorter still.\n", "utf-8")
    succeed(*shlex.split(lines[1])[1:], "--data", data, "--tasks", "bbq", "--neutral-text", neutral)


@pytest.mark.slow
def test_a_starter_recipe_is_looked_through(tmp_path: Path) -> None:
    recipe = tmp_path / "my recipes" / "a recipe.yaml"
    recipe.parent.mkdir()
    follow(succeed("init", recipe, "--model", tiny.single(), "--output", tmp_path / "out"))
    tiny.run("run", tmp_path / "no such.yaml")
    ran = tiny.run("run", tmp_path / "another recipe.yaml")  # its cure leads to the same file
    cure = shlex.split(ran.message.rpartition("Write a starter with: ")[2])
    succeed(*cure[1:], "--model", tiny.single())
    succeed("run", tmp_path / "another recipe.yaml", "--dry-run")


@pytest.mark.slow
def test_exported_tasks_are_named_to_the_harness(tmp_path: Path) -> None:
    """By the harness' own command line, up to the model, which is the reader's."""
    from lm_eval._cli.harness import HarnessCLI
    from lm_eval.tasks import TaskManager

    data = benchmarks.write(tmp_path / "some data")
    folder = tmp_path / "some tasks"
    options = ("--data", data, "--tasks", "bbq,hellaswag", "--revision", "main")  # which is no option of the harness
    said = succeed("eval", "x", *options, "--export-tasks", folder)
    program, *words = following(said)
    assert program == "lm_eval"
    assert words.pop() == "..."
    parsed = HarnessCLI()._parser.parse_args(words)
    assert parsed.include_path == str(folder)
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    names = words[words.index("--tasks") + 1 : words.index("--model")]
    assert len(names) == 2
    assert set(names) <= set(manager.all_tasks)


@pytest.mark.slow
def test_a_page_is_looked_at(tmp_path: Path) -> None:
    export = tiny.changeable(exports.strong(), tmp_path / "an export")
    said = succeed("serve-web", export, "-o", tmp_path / "a page")
    assert following(said) == ["python", "-m", "http.server", "-d", str(tmp_path / "a page")]


# --------------------------------------------------------------------------------------------- commands that are a cure


def cure(error: str) -> list[str]:
    """The first command in a message, up to the end of its sentence or bracket."""
    found = re.search(r"sea-bake ((?:'[^']*'|[^',;()])+?)(?=[,;)]| or pass|$)", error)
    assert found is not None, error
    return shlex.split(found[1])


@pytest.mark.slow
def test_what_is_not_verified_names_the_command_that_verifies_it(workshop: Workshop, tmp_path: Path) -> None:
    """With a place for the base where that is not beside the artefact."""
    base = tiny.changeable(workshop.base("llama"), tmp_path / "a model")
    artefact = bake(base, workshop.edit("llama"), tmp_path / "an artefact").output
    moved = tiny.changeable(artefact, tmp_path / "apart" / "an artefact")
    for folder, more in ((artefact, []), (moved, ["--base", str(base)])):
        ran = tiny.run("publish", folder, "ada/x", "--dry-run", "--base-model", "tiny/llama")
        words = [str(base) if word == "BASE" else word for word in cure(ran.message)]
        assert words == ["verify", str(folder), *more]
        succeed(*words)
        assert Artefact.open(folder).doubt is None


@pytest.mark.slow
def test_an_evaluation_or_a_report_of_another_state_names_the_command_that_renews_it(tmp_path: Path) -> None:
    base = tiny.changeable(tiny.single(), tmp_path / "a model")
    artefact = bake(base, tiny.edit_file(), tmp_path / "an artefact", how="insert").output
    succeed("verify", artefact)
    data, neutral = benchmarks.write(tmp_path / "data"), tmp_path / "neutral.txt"
    neutral.write_text("A paragraph that is short.\n\nAnother one, shorter still.\n", "utf-8")
    with_data = ("--data", data, "--tasks", "bbq", "--limit", 2, "--neutral-text", neutral)
    succeed("eval", artefact, *with_data, "--write")
    succeed("report", artefact, "--write")
    (artefact / "generation_config.json").write_text("{}")
    succeed("verify", artefact)
    for attribute, verb, more in (("evaluation", "eval", with_data), ("page", "report", ())):
        with pytest.raises(SeaBakeError) as error:
            getattr(Artefact.open(artefact), attribute)
        words = cure(str(error.value))
        assert words == [verb, str(artefact), "--write"]
        succeed(*words, *more)
        assert getattr(Artefact.open(artefact), attribute) is not None


def test_words_are_one_line_for_a_shell(tmp_path: Path) -> None:
    """The control: without its quotes, the same line is another command."""
    words = ["sea-bake", "verify", tmp_path / "it's a folder; rm -rf $HOME", "--base", "`x`\n"]
    assert shlex.split(command(*words)) == [str(word) for word in words]
    assert shlex.split(" ".join(map(str, words[:2])) + " a folder") != ["sea-bake", "verify", "a folder"]
    assert command("sea-bake", "verify", Path("-o")) == "sea-bake verify ./-o"


def test_every_next_step_is_here() -> None:
    """Whoever prints another one adds a test of it."""
    house = Path(exports.__file__).parent.parent / "sea_bake"
    found = {p.stem: p.read_text("utf-8").count("call.go_on(") for p in (house / "cli").glob("*.py")}
    assert {name: count for name, count in found.items() if count} == {
        "bake": 1, "demo": 2, "eval": 1, "export": 3, "fit": 2, "run": 1, "serve_web": 1, "tune": 1, "verify": 1,
    }  # fmt: skip
    assert not [p.name for p in house.rglob("*.py") if re.search(r"Next: (?!\{)", p.read_text("utf-8"))]
    assert Edit.load(tiny.edit_file()).layers
