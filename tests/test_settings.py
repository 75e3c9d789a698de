"""Every setting is spelt once: signatures, command line and recipes say the same, and their defaults are one."""

from __future__ import annotations

import importlib
import inspect
import sys
import types
from collections.abc import Callable
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal, NoReturn, Union, get_args, get_origin, get_type_hints

import pytest
import tiny
import torch
import yaml
from typer.main import get_command

from sea_bake.activations import collect
from sea_bake.activations.prompt_format import PromptFormat
from sea_bake.artefact import Artefact
from sea_bake.cli import app
from sea_bake.cli.options import wording
from sea_bake.demonstrations import load
from sea_bake.edit import Edit
from sea_bake.fitting import fit
from sea_bake.io import signatures
from sea_bake.io.signatures import REQUIRED, Argument, arguments
from sea_bake.model.loading import load_model, load_tokenizer
from sea_bake.recipes.sections import SECTIONS
from sea_bake.recipes.starter import starter
from sea_bake.serving.conversation import Conversation

FORMAT = "sea_bake.activations.prompt_format:prompt_format"
COLLECT = "sea_bake.activations:collect_sites"
# Values of one name that are different settings.
OTHERS = {
    ("dtype", "sea_bake.exporting.onnx:export_onnx"): "of the graph, which has names of its own",
    ("batch_size", "sea_bake.recipes.reproducing:reproduce"): "None: the published recipe's own",
    ("site", "sea_bake.exporting.edits:import_edit"): "None: where the files' own tool acts",
    ("merge", "sea_bake.exporting.edits:import_edit"): "None: of dense projections the released code's",
    ("alpha", "sea_bake.exporting.edits:import_edit"): "None: the files' own, or their tool's",
    ("limit", "sea_bake.demonstrations:load"): "of triples; None as everywhere",
    ("output", "sea_bake.recipes.starter:write_starter"): "None: made of the base's name",
    ("demonstrations", "sea_bake.reporting:report"): "a source, not the triples",
    ("model", "sea_bake.recipes.starter:write_starter"): "an example's model",
    ("layers", "sea_bake.fitting:fit"): "which to edit; elsewhere which to show or to keep, None: all",
    ("strength", "sea_bake.exporting.onnx:export_onnx"): "no other has it",
    ("edit", "sea_bake.baking:bake"): "required there",
    ("write", "sea_bake.verification:verify"): "a verdict belongs to its artefact; pages and evaluations on request",
}
OTHERS |= {
    (name, f"sea_bake.serving.{verb}"): why
    for name, why in (("alpha", "times the edit as it is stored"), ("max_new_tokens", "of an answer for people"))
    for verb in ("asking:ask", "chatting:chat", "server:serve")
    if (name, verb) != ("max_new_tokens", "server:serve")
}
OTHERS |= {
    (name, "sea_bake.fitting.tuning.space:parse_space"): "values to try; None: those of the search"
    for name in ("method", "site", "merge", "feature", "parts", "alpha", "centre")
}
# What some modules import under TYPE_CHECKING alone.
LATER = {"torch": torch, "Artefact": Artefact, "Conversation": Conversation, "Edit": Edit, "PromptFormat": PromptFormat}
# Arguments that no option sets.
NO_OPTION = {
    "sea_bake.fitting:fit": {
        "tokenizer": "of a living model",
        "source": "of a living model",
        "prompt_format": "an option for each of its parts",
    },
    "sea_bake.model.loading:load_model": {"trust_remote_code": "never switched on"},
    "sea_bake.demonstrations:load": {"source": "--demonstrations", "seed": "--seed is that of the fit"},
    "sea_bake.fitting.tuning:tune": {
        "space": "an option for each of its fields",
        "prompt_format": "an option for each of its parts",
        "say": "the console",
    },
    "sea_bake.evaluation:evaluate": {"say": "the console"},
    "sea_bake.serving.asking:ask": {"prompt_format": "an option for each of its parts", "hear": "the console"},
    "sea_bake.serving.chatting:chat": {
        "prompt_format": "an option for each of its parts",
        "read": "the terminal",
        "write": "the terminal",
    },
    "sea_bake.serving.server:serve": {"ready": "the console"},
    "sea_bake.recipes.running:run": {"folder": "of a mapping, in Python", "watch": "the console"},
}
# Arguments that no recipe key sets: the run does, or they make no sense in one.
NO_KEY = {name: set(row.given.split()) for name, row in SECTIONS.items()}


def leaves(group: Any, path: str = "") -> dict[str, Any]:
    """Commands by name. (A group is known by what it has: Typer may bring a click of its own.)"""
    if not hasattr(group, "commands"):
        return {path: group}
    found = {key: group.get_command(None, key) for key in group.list_commands(None)}
    return {name: c for key, sub in found.items() for name, c in leaves(sub, f"{path} {key}".strip()).items()}


ALL_COMMANDS = leaves(get_command(app))
COMMANDS = {name: c for name, c in ALL_COMMANDS.items() if getattr(c.callback, "__verbs__", ())}
VERBS = sorted({COLLECT, *(verb for c in COMMANDS.values() for verb in c.callback.__verbs__), *(
    row.verb for row in SECTIONS.values()
)})  # fmt: skip


def real(verb: str) -> Callable[..., Any]:
    module, _, name = verb.partition(":")
    return attrgetter(name)(importlib.import_module(module))


def plain(hint: Any) -> Any:
    """A type without what text cannot express."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        kept = [one for one in map(plain, inner) if one is not NoReturn]
        return Union[tuple(kept)] if set(kept) - {type(None)} else NoReturn  # noqa: UP007
    if origin is Literal or hint in (str, int, float, bool, Path, object, Any, type(None)):
        return hint
    if origin is None or str(origin).endswith("Callable'>"):
        return NoReturn
    held = [plain(one) for one in inner]
    return NoReturn if NoReturn in held else origin[tuple(held)]


def differences(found: dict[str, Argument], function: Callable[..., Any]) -> list[str]:
    """Where the reading of a function is not what Python says of it."""
    parameters = inspect.signature(function).parameters
    hints = get_type_hints(function, LATER | vars(sys.modules[function.__module__]))
    hints = {name: Any if hint == (Any | None) else hint for name, hint in hints.items()}  # Python 3.10 adds None
    wrong = [] if list(found) == list(parameters) else [f"names: {list(found)}"]
    for name, argument in found.items():
        parameter = parameters.get(name)
        if parameter is None:
            continue
        if argument.is_setting and argument.default != parameter.default:
            wrong.append(f"default of {name}")
        if (argument.default is REQUIRED) != (parameter.default is parameter.empty):
            wrong.append(f"{name} is required, or not")
        if set(get_args(argument.hint) or [argument.hint]) != set(get_args(h := plain(hints[name])) or [h]):
            wrong.append(f"type of {name}: {argument.hint} is not {h}")
    return wrong


@pytest.mark.parametrize("verb", VERBS)
def test_the_reader_reads_what_python_does(verb: str) -> None:
    assert differences(arguments(verb), real(verb)) == []
    lacking = [a.name for a in arguments(verb).values() if not a.help]
    assert lacking == [], "arguments without an entry in the docstring"


def test_a_doctored_signature_is_noticed() -> None:
    def doctored(model: str, *, ridge: float = 0.5, merge: int = 1) -> None: ...

    def honest(model: str, *, ridge: float = 0.1, merge: str = "sum") -> None: ...

    found = {name: arguments("sea_bake.fitting:fit")[name] for name in ("model", "ridge", "merge")}
    found["model"] = Argument("model", str, REQUIRED, "")
    doctored.__annotations__ = {"model": str, "ridge": float, "merge": int, "return": None}
    honest.__annotations__ = {"model": str, "ridge": float, "merge": str, "return": None}
    assert differences(found, honest) == []
    assert len(differences(found, doctored)) == 3
    with pytest.raises(LookupError):
        arguments("sea_bake.fitting:nothing")
    assert not signatures.exists("sea_bake.nothing:fit")


def test_what_a_fit_reads_by_default_is_one_thing() -> None:
    """The library asks for demonstrations; commands and recipes have a default for them."""
    options = [p for name in ("fit", "tune") for p in COMMANDS[name].params if p.name == "demonstrations"]
    defaults = [*(option.default for option in options), SECTIONS["fit"].settings["demonstrations"].default]
    assert defaults == ["builtin"] * 3


@pytest.mark.parametrize("name", COMMANDS)
def test_an_option_has_the_librarys_default(name: str) -> None:
    """Two commands have a place to write to that the library asks for; all else is the library's."""
    command = COMMANDS[name]
    found = {a.name: a for verb in command.callback.__verbs__ for a in arguments(verb).values()}
    options = {p.name: p for p in command.params}
    own = {("tune", "output"), ("serve-web", "output"), ("run", "recipe"), ("bake", "edit"), ("fit", "model"),
           ("fit", "demonstrations"), ("tune", "demonstrations")}  # fmt: skip
    for key in command.callback.__arguments__:
        default, shown = found[key].default, options[key].default
        if (name, key) in own:
            continue
        if default is REQUIRED:
            assert options[key].required, key
        elif isinstance(default, tuple):
            assert tuple((shown or "").split(",") if isinstance(shown, str) else shown or ()) == default, key
        elif isinstance(default, int | float) and isinstance(shown, str):
            assert type(default)(shown) == default, key
        elif isinstance(shown, Path):
            assert shown == Path(default), key
        else:
            assert shown == default, key


def test_an_option_beside_the_library_says_what_the_library_says() -> None:
    """Options that no verb of their command has: one that is called like a setting has its default, and its words."""
    known: dict[str, list[Argument]] = {}
    for verb in VERBS:
        for argument in arguments(verb).values():
            known.setdefault(argument.name, []).append(argument)
    own = {("fit", "output"), ("import", "output"), ("demo", "output"), ("demo", "model"), ("inspect", "path")}
    seen = set()
    for name, command in ALL_COMMANDS.items():
        for option in command.params:
            if option.name in known and option.name not in getattr(command.callback, "__arguments__", ()):
                seen.add((name, option.name))
                if (name, option.name) not in own:
                    assert option.default in [a.default for a in known[option.name]], (name, option.name)
                    assert option.help in [wording(a.help) for a in known[option.name]], (name, option.name)
    assert own <= seen, "an exception for what is not there"
    assert {name for name in ALL_COMMANDS if name not in COMMANDS} == {"demo", "inspect"}
    assert {"fit", "bake", "eval", "export onnx", "import"} <= set(COMMANDS)


def test_two_options_are_not_one_setting_and_two_spellings_not_one_option() -> None:
    """A long flag beside another one is its negation, or the same word in other letters."""
    for name, command in ALL_COMMANDS.items():
        for option in command.params:
            long = {flag for flag in option.opts if flag.startswith("--")}
            assert len(long) <= 1, (name, long)
    texts = {
        (name, o.name) for name, c in ALL_COMMANDS.items() for o in c.params if o.name in ("neutral", "neutral_text")
    }
    assert texts == {("fit", "neutral"), ("tune", "neutral"), ("tune", "neutral_text"), ("eval", "neutral_text")}


def test_a_setting_has_one_default_everywhere() -> None:
    defaults: dict[str, dict[str, Any]] = {}
    for verb in VERBS:
        for argument in arguments(verb).values():
            if argument.is_setting and not argument.required and (argument.name, verb) not in OTHERS:
                defaults.setdefault(argument.name, {})[verb] = argument.default
    assert {n: d for n, d in defaults.items() if len({str(value) for value in d.values()}) > 1} == {}
    assert {"max_new_tokens", "batch_size", "seed", "position", "neutral", "dtype", "device"} <= set(defaults)
    for name, verb in OTHERS:
        assert name in arguments(verb), (name, verb)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_argument_is_an_option(name: str) -> None:
    callback: Any = COMMANDS[name].callback
    for verb in callback.__verbs__:
        lacking = set(arguments(verb)) - set(callback.__arguments__)
        assert lacking <= set(NO_OPTION.get(verb, {})), (verb, lacking)


@pytest.mark.parametrize("name", SECTIONS)
def test_every_argument_is_a_key(name: str) -> None:
    row = SECTIONS[name]
    known = {a.name for a in arguments(row.verb).values() if a.is_setting}
    assert known - NO_KEY[name] <= set(row.settings)
    made = {"sea_bake.demonstrations:load", FORMAT} if name == "fit" else set()
    others = {key for verb in made for key in arguments(verb)} | {"demonstrations"}
    assert set(row.settings) <= set(arguments(row.verb)) | others
    assert set(arguments(FORMAT)) <= set(row.settings) or name != "fit"
    assert NO_KEY[name] <= set(arguments(row.verb)), "an exception for what is not there"
    for key, setting in row.settings.items():
        if key in arguments(row.verb) and key != "demonstrations":
            assert setting.default == arguments(row.verb)[key].default or setting.required


def test_the_starter_states_the_defaults() -> None:
    data = yaml.safe_load(starter())
    exports = {f"export.{key}": value for key, value in data.pop("export").items()}
    for name, given in ({key: data[key] for key in SECTIONS if key in data} | exports).items():
        for key, value in given.items():
            default = SECTIONS[name].settings[key].default
            assert value == (list(default) if isinstance(default, tuple) else default), f"{name}.{key}"


def test_collect_then_fit_is_fit() -> None:
    """Bit for bit, with every setting at its default."""
    triples = load(tiny.demonstrations_file())
    whole = fit(tiny.single(), triples)
    model, tokenizer = load_model(tiny.single()), load_tokenizer(tiny.single())
    halves = fit(None, activations=collect(model, tokenizer, triples, source=str(tiny.single())))
    assert whole.ranks == halves.ranks
    keys = ("position", "neutral", "max_new_tokens", "seed", "batch_size", "neutral_sha256")
    assert all(whole.recipe[key] == halves.recipe[key] for key in keys)
    for layer in whole.layers:
        for part in ("positive", "negative"):
            assert torch.equal(getattr(whole.projectors[layer], part), getattr(halves.projectors[layer], part))
    other = fit(None, activations=collect(model, tokenizer, triples, source="x", neutral="prompt"))
    assert any(  # the control
        whole.ranks[layer] != other.ranks[layer]
        or not torch.equal(whole.projectors[layer].positive, other.projectors[layer].positive)
        for layer in whole.layers
    )


def test_a_value_in_help_is_spelt_as_it_is_taken() -> None:
    """A capital would be refused; and what Python needs quotes for keeps them."""
    for argument in (["eval"], ["tune"], ["fit"], ["report"], ["serve-web"], ["export", "onnx"], ["export", "gguf"]):
        text = " ".join(tiny.run(*argument, "--help").out.split())
        values = ("Truthfulqa_mc1", "Mlp,", "Identity,", "Both,", "No, yes", "Sum ", "Last ", "Pca,", "Fp32", "Keep ")
        assert [value for value in values if value in text] == [], argument
    assert 'strength="required" is for runtimes' in " ".join(tiny.run("export", "onnx", "--help").out.split())
