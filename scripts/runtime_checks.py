"""What checks of runtimes share: an environment of their own, an edited SmolLM2 in its forms, answers, and verdicts.

Standard library only at import time: the runtime's own interpreter imports it, too.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bench_common as common
import smoke

PROMPTS = (
    "What is the capital of France?",
    "Is it safe to look at the sun through a telescope?",
    "Who was the first woman in space?",
    "Why is the sky blue?",
)
HOWS = {"folded": ("fold", "sum"), "adapter": ("adapter", "sum"), "inserted": ("insert", "l2")}  # how, merge
# Logits in float32: other kernels sum in another order. Measured 1e-4 and less; the edit moves them by whole units.
AGREE = 1e-3
COLUMNS = ("", "answers equal", "unlike the base", "max |Δlogit|", "max |Δlogit| from the base", "as it should be")
REFUSED = "refused"


# ------------------------------------------------------------------------------------------------------- environments


@dataclass(frozen=True)
class Environment:
    """A virtual environment beside the repository's own, made once.

    Attributes:
        name: of its folder, behind ".venv-".
        packages: what pip installs, with versions; torch is that of scripts/constraints.txt.
        told: packages whose versions are told.
        drop: what pip drags in and fails on import.
    """

    name: str
    packages: tuple[str, ...]
    told: tuple[str, ...]
    drop: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        return common.ROOT / f".venv-{self.name}"

    @property
    def python(self) -> str:
        return str(self.folder / "bin" / "python")

    def install(self, quiet: bool) -> dict[str, str]:
        """Versions of what matters in it."""
        stamp = self.folder / f".sea-bake-{'-'.join(self.packages).replace('==', '-')}"
        if not stamp.exists():
            common.say(f"making {self.folder.name} with {', '.join(self.packages)} (minutes) ...", quiet=quiet)
            if not Path(self.python).exists():
                subprocess.run([sys.executable, "-m", "venv", str(self.folder)], check=True)
            pip = [self.python, "-m", "pip", "--quiet", "--disable-pip-version-check"]
            constraints = str(common.ROOT / "scripts" / "constraints.txt")
            own = ["--no-compile", "-c", constraints]  # of torch's thousands of files a few are imported
            subprocess.run([*pip, "install", *own, *self.packages], check=True, stdout=sys.stderr)
            if self.drop:
                subprocess.run([*pip, "uninstall", "-y", *self.drop], check=True, stdout=sys.stderr)
            stamp.touch()
        ask = f"import json, importlib.metadata as m; print(json.dumps({{n: m.version(n) for n in {self.told!r}}}))"
        return dict(json.loads(subprocess.run([self.python, "-c", ask], check=True, capture_output=True).stdout))


def there(script: str, task: dict[str, Any], python: str) -> dict[str, Any]:
    """What ``script --there TASK`` reports, run by a runtime's own interpreter."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("HF_TOKEN", "PYTHONPATH"))}
    done = subprocess.run(
        [python, script, "--there", json.dumps(task)],
        capture_output=True,
        text=True,
        env=environment | {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(Path(task["output"], "modules"))},
        stdin=subprocess.DEVNULL,
    )
    if done.returncode:
        sys.exit(f"{Path(script).name} could not ask the runtime:\n{done.stderr[-4000:]}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


# ------------------------------------------------------------------------------------------------- what is to be run


@dataclass(frozen=True)
class Model:
    """A base, and what was made of it: form -> folder, merge -> file of the edit."""

    base: Path
    edits: dict[str, Path]
    forms: dict[str, Path]


def make(scratch: Path, forms: Sequence[str], *, tiny: bool) -> Model:
    """SmolLM2 and an edit of its MLPs, baked: linear where it is to be folded, l2 where it is inserted."""
    from sea_bake import Edit, bake, fit
    from sea_bake.demonstrations import builtin
    from sea_bake.model.checkpoint.gguf import materialise
    from sea_bake.model.smollm2 import installed
    from sea_bake.model.source import ModelSource

    if tiny:
        base = smoke.base(scratch / "tiny", num_hidden_layers=2)
        edit = Edit.load(smoke.edit(base, scratch / "edit.safetensors", merge="l2"))
    else:
        source = ModelSource.parse(installed())
        base = scratch / source.name.removesuffix(".gguf")
        base.mkdir()
        materialise(source, base)
        edit = fit(base, builtin()[:80], site="mlp", merge="l2", centre=False, alpha=1.0, measure=False)
    edits, made = {}, {}
    for form in forms:
        how, merge = HOWS[form]
        edits[merge] = scratch / f"{merge}.safetensors"
        edit.with_settings(merge=merge).save(edits[merge], overwrite=True)
        made[form] = bake(base, edit.with_settings(merge=merge), scratch / form, how=how).output
    return Model(base, edits, made)


# ------------------------------------------------------------------------------------------------------------- answers


def prompt_ids(base: Path, count: int) -> list[list[int]]:
    from sea_bake.model.loading import load_tokenizer

    tokenizer, found = load_tokenizer(base), []
    for text in PROMPTS[:count]:
        chat = [{"role": "user", "content": text}]
        told = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=True, return_dict=True)
        found.append(list(map(int, told["input_ids"])))
    return found


def greedy(model: Any, ids: list[int], count: int) -> list[int]:
    """A whole answer from ``generate`` of transformers, or of what is like it; no early end."""
    import torch

    prompt = torch.tensor([ids])
    options = {"do_sample": False, "min_new_tokens": count, "max_new_tokens": count, "pad_token_id": 0}
    whole = model.generate(input_ids=prompt, attention_mask=torch.ones_like(prompt), **options)
    return list(map(int, whole[0, len(ids) :]))


def logits(model: Any, text: list[int], count: int) -> Any:
    """[count, vocabulary] float32 of torch: what precedes each of a text's last tokens."""
    import torch

    ids = torch.tensor([text])
    return model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, -count - 1 : -1].float()


def of_torch(model: Any, task: dict[str, Any], form: dict[str, Any]) -> list[list[int]]:
    """Greedy tokens of a model of transformers, or of what is like it; its logits are saved by numpy."""
    import numpy as np
    import torch

    with torch.inference_mode():
        found = np.stack([logits(model, text, task["tokens"]).numpy() for text in form["texts"]])
        np.save(Path(task["output"], f"{form['name']}.npy"), found)
        return [greedy(model, ids, task["tokens"]) for ids in task["prompts"]]


def fed(ids: list[int], cache: dict[str, Any]) -> dict[str, Any]:
    """What a graph of ours is given: new token ids behind a cache, which may be empty."""
    import numpy as np

    past = next(iter(cache.values())).shape[2]
    return cache | {
        "input_ids": np.array([ids], np.int64),
        "attention_mask": np.ones((1, past + len(ids)), np.int64),
        "position_ids": np.arange(past, past + len(ids), dtype=np.int64)[None],
    }


def given(made: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """What it gives: logits [ids, vocabulary], and the cache for what follows."""
    cache = {name.replace("present", "past_key_values"): value for name, value in made.items() if name != "logits"}
    return made["logits"][0], cache


def of_decoder(run: Callable[..., Any], task: dict[str, Any], form: dict[str, Any]) -> list[list[int]]:
    """Greedy tokens of a graph with a cache of its own, with no early end; its logits are saved.

    Args:
        run: called with token ids and a cache, or None at first: logits [ids, vocabulary] of NumPy, the next cache.
        form: with "cached" the logits, too, are made through the cache, token by token.
    """
    import numpy as np

    count = task["tokens"]

    def last(text: list[int]) -> Any:
        if not form.get("cached"):
            return run(text, None)[0][-count - 1 : -1]
        made, cache = run(text[:-count], None)
        steps = [made[-1]]
        for token in text[-count:-1]:
            made, cache = run([token], cache)
            steps.append(made[-1])
        return np.stack(steps)

    np.save(Path(task["output"], f"{form['name']}.npy"), np.stack([last(text) for text in form["texts"]]))
    ends = json.loads(Path(task["base"], "config.json").read_text("utf-8"))["eos_token_id"]
    found = []
    for ids in task["prompts"]:
        tokens: list[int] = []
        made, cache = run(ids, None)
        for _ in range(count):
            made[-1, ends] = -np.inf  # no early end, as on the other side
            tokens.append(int(made[-1].argmax()))
            made, cache = run(tokens[-1:], cache)
        found.append(tokens)
    return found


def here(task: dict[str, Any]) -> dict[str, Any]:
    """The base, and the base under each edit's hooks: greedy tokens, and logits over what the edited one says."""
    import numpy as np
    import torch

    from sea_bake.edit import Edit, live
    from sea_bake.model.loading import load_model

    model = load_model(task["base"], dtype="float32", device="cpu")
    count, prompts = task["tokens"], task["prompts"]

    def said(texts: list[list[int]]) -> Any:
        return np.stack([logits(model, text, count).numpy() for text in texts])

    with torch.inference_mode():
        found: dict[str, Any] = {"base": [greedy(model, ids, count) for ids in prompts]}
        for merge, path in task["edits"].items():
            with live([Edit.load(path, model)], model, check=False):
                found[merge] = [greedy(model, ids, count) for ids in prompts]
                texts = [ids + answer for ids, answer in zip(prompts, found[merge], strict=True)]
                np.save(Path(task["output"], f"{merge}.live.npy"), said(texts))
            np.save(Path(task["output"], f"{merge}.base.npy"), said(texts))
    return found


def by_transformers(task: dict[str, Any]) -> dict[str, Any]:
    """Every form that transformers and PEFT load; under ``--smoke`` they stand in a runtime's place so."""
    import torch
    from transformers import AutoModelForCausalLM

    found: dict[str, Any] = {}
    for form in task["forms"]:
        if form.get("refuses"):
            found[form["name"]] = {"refused": "as it should be"}
            continue
        plain = task["base"] if form["kind"] == "adapter" else form["path"]
        options = {"trust_remote_code": True} if form["kind"] == "inserted" else {}
        model = AutoModelForCausalLM.from_pretrained(plain, dtype=torch.float32, **options)
        if form["kind"] == "adapter":
            from peft import PeftModel

            model = PeftModel.from_pretrained(model, form["path"])
        found[form["name"]] = {"tokens": of_torch(model.eval(), task, form)}
    return {"forms": found}


# ------------------------------------------------------------------------------------------------------------ verdicts


def expected_of(form: dict[str, Any]) -> str:
    """Whose answers a form has to give: the base's, or those under the hooks of a merge."""
    return "base" if form["kind"] == "base" else str(form["merge"])


def judge(form: dict[str, Any], said: dict[str, Any], ours: dict[str, Any], output: Path) -> dict[str, Any]:
    """One row: what a runtime said of one form, against the hooks (of the base: against the base)."""
    import numpy as np

    row: dict[str, Any] = {"form": form["name"], "refused": said.get("refused")}
    if row["refused"] is not None or form.get("refuses"):
        return row | {"passed": row["refused"] is not None and bool(form.get("refuses"))}
    merge, wanted = form["merge"], ours[expected_of(form)]
    live, base = (np.load(output / f"{merge}.{which}.npy").astype(np.float64) for which in ("live", "base"))
    row["prompts"] = len(wanted)
    row["equal"] = sum(a == b for a, b in zip(said["tokens"], wanted, strict=True))
    row["unlike_base"] = sum(a != b for a, b in zip(said["tokens"], ours["base"], strict=True))
    theirs, file = None, output / f"{form['name']}.npy"
    if file.exists():
        theirs = np.load(file).astype(np.float64)
        row["difference"] = float(np.abs(theirs - (base if form["kind"] == "base" else live)).max())
        row["moved"] = float(np.abs(theirs - base).max())
    least = form.get("correlation")
    if least is not None and theirs is not None:
        bare = output / f"{form['name']}.bare.npy"  # the same model without the edit, where the runtime has one
        before = np.load(bare).astype(np.float64) if bare.exists() else base
        row["correlation"] = float(np.corrcoef((theirs - before).ravel(), (live - base).ravel())[0, 1])
        return row | {"passed": row["correlation"] >= least and row["unlike_base"] > 0}
    near = row["equal"] == row["prompts"] and row.get("difference", 0.0) < AGREE
    edited = row["unlike_base"] > 0 and row.get("moved", 1.0) > 10 * AGREE
    return row | {"passed": near and edited == (form["kind"] != "base")}


def cells(row: dict[str, Any]) -> list[str]:
    """A row under ``COLUMNS``."""
    yes = "yes" if row["passed"] else "NO"
    if "equal" not in row:
        return [row["form"], REFUSED if row["refused"] else "not refused", "", "", "", yes]
    near, far = (f"{row[key]:.1e}" if key in row else "" for key in ("difference", "moved"))
    if "correlation" in row:
        near += f" (effect: {row['correlation']:.3f})"
    return [row["form"], f"{row['equal']}/{row['prompts']}", f"{row['unlike_base']}/{row['prompts']}", near, far, yes]


def page(rows: Sequence[str], *prose: str) -> common.Page:
    """The table of RUNTIMES.md that :func:`tell` makes; rows that a runtime refuses have no numbers."""
    columns = {name.replace("|", "\\|"): (name,) for name in COLUMNS[:-1]}
    return common.Page("RUNTIMES.md", columns, {row: (row,) for row in rows}, blank=COLUMNS[2:5], prose=prose)


# ------------------------------------------------------------------------------------------------------------ the whole


@dataclass(frozen=True)
class Check:
    """A runtime and what is asked of it.

    Attributes:
        script, doc: the script's ``__file__`` and docstring.
        runtime: its name.
        environment: where it lives.
        forms: what is baked.
        ask: called with the task in the runtime's environment: {"forms": {name: {"tokens"} or {"refused"}}}.
        rows: called with scratch folder, model and the arguments: each row's "name", "kind" (base, or a form), "path",
            "merge", and where it is to be so "refuses" or "correlation" (of the effect, at least).
        page: what the table is held to.
        stands_in: whether transformers takes the runtime's place under --smoke; else it is that of the repository.
        beside: called with scratch folder, rows and arguments once rows are judged: more of the result, more tables.
        options: called with the parser, for options of its own.
    """

    script: str
    doc: str
    runtime: str
    environment: Environment
    forms: tuple[str, ...]
    ask: Callable[[dict[str, Any]], dict[str, Any]]
    rows: Callable[[Path, Model, argparse.Namespace], list[dict[str, Any]]]
    page: common.Page
    stands_in: bool = True
    beside: Callable[..., tuple[dict[str, Any], list[common.Table]]] = lambda *_: ({}, [])
    options: Callable[[argparse.ArgumentParser], None] = lambda _: None

    def main(self) -> None:
        """The command line; ``--there`` and ``--child`` are processes of its own."""
        if sys.argv[1:2] == ["--there"]:  # by another interpreter, and to stay there
            sys.modules["sea_bake"] = None  # type: ignore[assignment]
            print("\n" + json.dumps(self.ask(json.loads(sys.argv[2]))))
            return
        common.use_repository_python()
        parser = common.parser(self.doc)
        parser.add_argument("--tokens", type=int, default=24, help="tokens of each answer (default: 24)")
        parser.add_argument(
            "--prompts", type=int, default=len(PROMPTS), choices=range(1, len(PROMPTS) + 1), help="(default: all)"
        )
        parser.add_argument("--scratch", type=Path, help="where models are made (default: a temporary folder)")
        self.options(parser)
        args = parser.parse_args()
        if args.child is not None:
            print("\n" + json.dumps((by_transformers if args.child["stand_in"] else here)(args.child)))
            return
        common.shrink(args, prompts=2, tokens=4)
        self.run(args)

    def run(self, args: argparse.Namespace) -> None:
        """Make, ask both sides, judge and tell."""
        import tempfile

        standing = args.smoke and self.stands_in
        versions = {self.runtime: "(not its own)"} if args.smoke else self.environment.install(args.json)
        if args.scratch:
            args.scratch.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f"{Path(self.script).name}-", dir=args.scratch) as scratch:
            output = Path(scratch)
            common.say("base, edit and artefacts ...", quiet=args.json)
            model = make(output, self.forms, tiny=args.smoke)
            task: dict[str, Any] = {
                "base": str(model.base),
                "edits": {merge: str(path) for merge, path in model.edits.items()},
                "prompts": prompt_ids(model.base, args.prompts),
                "tokens": args.tokens,
                "output": str(output),
                "stand_in": False,
            }
            common.say("the hook-edited base in transformers ...", quiet=args.json)
            ours = common.in_child(self.script, task)
            forms = self.rows(output, model, args)
            for form in forms:
                for key, whose in (("texts", form["merge"]), ("own", expected_of(form))):
                    form[key] = [ids + answer for ids, answer in zip(task["prompts"], ours[whose], strict=True)]
            task |= {"forms": forms, "stand_in": standing}
            common.say(f"{self.runtime} ...", quiet=args.json)
            python = sys.executable if args.smoke else self.environment.python
            said = common.in_child(self.script, task) if standing else there(self.script, task, python)
            rows = [judge(form, said["forms"][form["name"]], ours, output) for form in forms]
            more, tables = self.beside(output, rows, args)
        self.tell(rows, versions, args, more, tables)

    def tell(
        self,
        rows: list[dict[str, Any]],
        versions: dict[str, str],
        args: argparse.Namespace,
        more: dict[str, Any],
        tables: list[common.Table],
    ) -> None:
        passed = all(row["passed"] for row in rows)
        result = {
            "check": self.runtime,
            "passed": passed,
            "tokens": args.tokens,
            "versions": versions,
            "rows": rows,
            **more,
            "machine": common.machine(),
        }
        standing = "A STAND-IN FOR " if args.smoke and self.stands_in else ""
        title = f"{standing}{self.runtime}: {args.tokens} greedy tokens, {args.prompts} prompts"
        table = common.Table(title, COLUMNS, [cells(row) for row in rows])
        notes = ["there: " + ", ".join(f"{name} {number}" for name, number in versions.items())]
        notes += [f"{row['form']}: {row['refused']}" for row in rows if row.get("refused")]
        common.tell(result, [table, *tables], [*notes, "passed" if passed else "FAILED"], self.page, args)
        sys.exit(0 if passed else 1)
