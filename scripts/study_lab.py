"""What the studies of behaviours share: one model, its edits at one KL, their margins, and all of it kept.

:class:`Lab` finds an edit's strength for the KL, measures it on behaviours' kept-back parts, and keeps the answer in a
file named by a digest of what was asked: a study that is stopped goes on where it was. The answers that a page shows
are in ``scripts/answers``, from which --print makes its tables anew, without any model. :class:`Told` makes gains of
margins. Beside an edit stand random ones of the same KL (``KINDS``), drawn once per model.
"""

from __future__ import annotations

import functools
import hashlib
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import NormalDist
from typing import Any

import bench_common as common

common.use_repository_python()

import numpy as np  # noqa: E402
import study_common as study  # noqa: E402

from sea_bake import Edit, __version__, fit  # noqa: E402
from sea_bake.activations import Activations, collect_sites  # noqa: E402
from sea_bake.activations.prompt_format import PromptFormat, prompt_format  # noqa: E402
from sea_bake.demonstrations import Demonstration, load  # noqa: E402
from sea_bake.edit.measured import Controls, Estimate  # noqa: E402
from sea_bake.errors import SeaBakeError, first_line_of  # noqa: E402
from sea_bake.evaluation import matrix, preference  # noqa: E402
from sea_bake.evaluation.controls import Draw, compared, constants, lengths_of, turned  # noqa: E402
from sea_bake.evaluation.running import Session  # noqa: E402
from sea_bake.evaluation.strength import find  # noqa: E402
from sea_bake.evaluation.worth import Bench  # noqa: E402
from sea_bake.io.staging import staged_file  # noqa: E402
from sea_bake.methods.affine import AffineMap  # noqa: E402
from sea_bake.methods.table import named  # noqa: E402
from sea_bake.model.anatomy import Site  # noqa: E402
from sea_bake.model.loading import load_model, load_tokenizer  # noqa: E402
from sea_bake.model.processes import check_alike, on_main  # noqa: E402
from sea_bake.model.source import ModelSource  # noqa: E402

VARIANTS: dict[str, dict[str, Any]] = {
    "sea": {},
    "mean-difference": {"method": "mean-difference"},
    "mean-difference, last:0.66": {"method": "mean-difference", "layers": "last:0.66"},
    "mean-difference at attn": {"method": "mean-difference", "site": "attn", "layers": "last:0.66"},
    "contrastive": {"method": "contrastive"},
    "sea, positive alone": {"parts": "positive"},
    "sea at mlp": {"site": "mlp"},
    "sea, K 0.99": {"K": 0.99},
    "iti": {"method": "iti"},
    "act": {"method": "act"},
    "leace": {"method": "leace"},
    "ablation": {"method": "ablation"},
    "pca": {"method": "pca"},
    "sea, not centred": {"centre": False},
    "sea, asinh": {"feature": "asinh"},
    "sea, layers by signature": {"layers": "signature:0.5"},
    "sea, the paper's": {"site": "mlp", "merge": "l2", "centre": False, "K": 0.998},
}
# What takes more than other settings of a fit: a primer before every prompt; the sum of two behaviours' edits.
OF_TWO = "mean-difference of two"
OTHERS: dict[str, dict[str, Any]] = {"sea, with the paper's primer": {"primer": "truthfulqa"}, OF_TWO: {}}
KINDS = {
    "subspaces": "random subspaces, attn",
    "constants-block": "random constants, block",
    "constants-attn": "random constants, attn",
}
TEXTS = 10  # neutral ones on which the KL is measured
POWER = 2.8  # standard errors: what four of five studies show at p < 0.05
CLOSE = 0.05  # of the budget
ANSWERS = Path(__file__).resolve().parent / "answers"
DIGITS = 6  # of the margins that are kept there; pages have three
FINE = 40000  # resamples for a p-value that is to be corrected for many others
DTYPES = (  # matrix products of torch 2.13.0 on one core: 52 against 7 GFLOP/s where there is only AVX2
    "of the weights: float32 takes two to three times as long where the processor has instructions for bfloat16 "
    "(avx512_bf16 or amx_bf16 in /proc/cpuinfo), and a seventh of the time where it has none"
)


def control_of(variant: str) -> str:
    """The kind of random edits, a key of ``KINDS``, that is an edit's own: constants for a constant at the residual
    stream, subspaces for all others.
    """
    return "constants-block" if variant.startswith("mean-difference") or variant == "pca" else "subspaces"


def options(
    made: Any, *, items: int = 40, of: str = "per behaviour, of the part that no fit sees", draws: int = 20
) -> None:
    """What a :class:`Lab` needs, beside --model, --output and the behaviours."""
    made.add_argument("--items", type=int, default=items, help=of)
    made.add_argument("--triples", type=int, help="fitted on, at most (default: all of the other part)")
    made.add_argument("--draws", type=int, default=draws, help="random edits of each kind")
    made.add_argument("--texts", type=int, default=TEXTS, help="neutral ones, for the KL")
    made.add_argument("--budget", type=float, default=0.1, help="nats of KL per token")
    made.add_argument("--dtype", default="bfloat16", help=DTYPES)
    made.add_argument("--output", "-o", help="folder for activations and answers; a study goes on there")
    there = "measure nothing: print what is in --output, or without it in scripts/answers"
    made.add_argument("--print", action="store_true", help=there)
    made.add_argument("--record", action="store_true", help="keep what is printed in scripts/answers, for the page")


def check(made: Any, args: Any, *needed: str) -> None:
    """Of a parser that has :func:`options`: what is missing is said before anything is loaded."""
    asked = [*needed] if args.print else [*needed, "output"]
    if args.record and not args.output:
        made.error("--record keeps what is in a study's folder: name it with --output")
    missing = [f"--{name}" for name in asked if not getattr(args, name)]
    if missing:
        made.error(f"name {', '.join(missing)} (or --smoke)")


def agree(args: Any) -> None:
    """All processes of a study have one release, models of one name and one set of settings; where files lie and what
    is printed is each one's own.
    """
    own = ("model", "output", "data", "json", "record")
    told = {name: value for name, value in vars(args).items() if name not in own}
    check_alike({"study": [__version__, [Path(model).name for model in args.model], told]})


class Lab:
    """One model: what was measured of it is kept, and it is loaded only for what is missing.

    Args:
        model: folder, .gguf file or Hub id.
        args: with what :func:`options` adds to a parser, and "behaviours".
        reference: the behaviour whose edits the random ones are drawn like. Default: the first of those asked for.
    """

    def __init__(self, model: str, args: Any, reference: str | None = None) -> None:
        self.args, self.model = args, model
        self.reference = reference or args.behaviours[0]
        self.name = Path(str(model)).name.removesuffix(".gguf")
        self.folder = Path(args.output or ANSWERS) / self.name
        if args.output:
            on_main(lambda: (self.folder / "answers").mkdir(parents=True, exist_ok=True))
        self._starts: dict[str, float] = {}
        self.used: dict[str, Any] = {}  # answers by the name of their file

    @property
    def source(self) -> ModelSource:
        return ModelSource.parse(self.model)

    @functools.cached_property
    def living(self) -> tuple[Any, Any]:
        return load_model(self.source, dtype=self.args.dtype), load_tokenizer(self.source)

    @functools.cached_property
    def bench(self) -> Bench:
        return Bench(*self.living)

    def items(self, behaviour: str) -> list[Demonstration]:
        """Of the part that no fit sees, evenly spread."""
        there = list(load(behaviour, split="test"))
        count = min(self.args.items, len(there))
        return [there[i * len(there) // count] for i in range(count)]

    # ---------------------------------------------------------------------------------------------------- kept answers

    def path(self, key: str) -> Path:
        args = self.args
        told = json.dumps([key, self.name, args.items, args.budget, args.dtype, args.triples, args.texts])
        mark = hashlib.sha256(told.encode()).hexdigest()[:12]
        return self.folder / "answers" / f"{key.replace(' ', '_')}-{mark}.json"

    def kept(self, key: str) -> dict[str, Any]:
        path = self.path(key)
        if not self.args.output:
            return dict(self._recorded.get(path.stem, {}))
        found = dict(on_main(lambda: json.loads(path.read_text("utf-8")) if path.is_file() else {}))
        self.used |= {path.stem: found} if found else {}
        return found

    @property
    def _record(self) -> Path:
        return ANSWERS / self.name / f"{Path(sys.argv[0]).name.removeprefix('study_')}.jsonl"

    @functools.cached_property
    def _recorded(self) -> dict[str, Any]:
        if not self._record.is_file():
            sys.exit(f"{self._record} is not there: name the study's folder with --output")
        lines = map(json.loads, self._record.read_text("utf-8").splitlines())
        return {line.pop("name"): line for line in lines}

    def record(self) -> None:
        """Keep the answers that were read, and what there was, in ``scripts/answers``."""
        if not self.args.record:
            return
        found = (self._recorded if self._record.is_file() else {}) | self.used
        self._record.parent.mkdir(parents=True, exist_ok=True)
        lines = [json.dumps({"name": name, **_rounded(found[name])}) for name in sorted(found)]
        with staged_file(self._record, overwrite=True) as stage:
            stage.write_text("\n".join(lines) + "\n", "utf-8")

    def answers(
        self, key: str, make: Callable[[], Edit] | None, start: str = "", on: Sequence[str] | None = None
    ) -> dict[str, Any]:
        """ "alpha", "kl" and, by behaviour, "margins" of an edit; of the base for None. An "error" where there is none.

        Args:
            key: what the edit is called among the answers kept.
            make: makes it, where something is missing.
            start: edits that need about the same strength have it in common.
            on: behaviours that it is measured on. Default: all that were asked for.
        """
        found = self.kept(key)
        missing = [name for name in on or self.args.behaviours if name not in found.get("margins", {})]
        if "error" in found or not missing or self.args.print:
            return found
        try:
            edit = None if make is None else make()
            if edit is not None:
                if "alpha" not in found:
                    best = self.strength(edit, self._starts.get(start, edit.alpha or 1.0))
                    found |= {"alpha": best.alpha, "kl": best.kl}
                edit = replace(edit, alpha=found["alpha"])
                self._starts[start] = edit.alpha
            found["margins"] = found.get("margins", {}) | self.margins(edit, missing)
        except SeaBakeError as error:
            found = {"error": first_line_of(error)}
        self._keep(key, found)
        return found

    def strength(self, edit: Edit, start: float) -> Any:
        places = self.bench.spread(self.args.texts)
        return find(lambda a: self.bench.kl(edit, a, places), self.args.budget, start=start, close=CLOSE)

    def fact(self, key: str, make: Callable[[], Any]) -> Any:
        """What activations say of an edit beside its answers, kept as these are; None where neither is there."""
        found = self.kept(key)
        if not found and self.args.output:
            found = {"value": make()}
            self._keep(key, found)
        return found.get("value")

    def prompted(self, behaviour: str, kind: str) -> dict[str, Any]:
        """Margins of the unedited model under a prompt that asks for a behaviour, or shows it."""
        key = f"{kind} {behaviour}"
        found = self.kept(key)
        if not found and not self.args.print:
            try:
                form = matrix.baselines(behaviour, PromptFormat())[kind]
                found = {"margins": self.margins(None, [behaviour], form)}
            except SeaBakeError as error:
                found = {"error": first_line_of(error)}
            self._keep(key, found)
        return found

    def margins(self, edit: Edit | None, names: Sequence[str], form: PromptFormat | None = None) -> Any:
        model, tokenizer = self.living
        triples = {name: self.items(name) for name in names}
        everything = [one for found in triples.values() for one in found]
        with self.edited(edit):
            session = Session(model, tokenizer, 16, study.say, self.bench.lower)
            told = iter(preference.records(session, everything, form=form))
        return {name: [next(told)["values"]["margin"] for _ in found] for name, found in triples.items()}

    def edited(self, edit: Edit | None) -> Any:
        """While it lasts, the model has this edit."""
        return self.bench.edited(edit)

    def _keep(self, key: str, found: dict[str, Any]) -> None:
        self.used[self.path(key).stem] = found
        on_main(lambda: study.keep(self.path(key), found))
        study.say(f"{self.name}: {key}" + (f": {found['error']}" if "error" in found else ""))

    # ----------------------------------------------------------------------------------------------------------- edits

    def activations(self, behaviour: str, site: Site, primer: str | None = None) -> Activations:
        def place(one: Site) -> Path:
            name = f"{behaviour}-{primer}" if primer else behaviour
            return self.folder / f"{name}-{one.value}-{self.args.triples}.safetensors"

        path = place(site)
        if not on_main(path.exists):
            model, tokenizer = self.living
            triples = load(behaviour, limit=self.args.triples)
            form, sites = prompt_format(primer=primer), [site] if primer else list(Site)
            told = collect_sites(model, tokenizer, triples, source=self.source, sites=sites, prompt_format=form)
            for one, activations in told.items():
                on_main(functools.partial(activations.save, place(one), overwrite=True))
            study.say(f"{self.name}: activations of {len(triples)} triples, {behaviour}")
        return on_main(lambda: Activations.load(path))

    def edit(self, behaviour: str, variant: str) -> Edit:
        if variant == OF_TWO:
            return self._sum(behaviour, self.next(behaviour))
        settings = dict((VARIANTS | OTHERS)[variant])
        row = named(settings.get("method", "sea"))
        site = row.reads or Site.parse(settings.pop("site", row.site))
        found = self.activations(behaviour, site, settings.pop("primer", None))
        return on_main(lambda: fit(None, activations=found, held_back=0, **settings))

    def next(self, behaviour: str) -> str:
        """The behaviour asked for behind this one; behind the last the first."""
        names = list(self.args.behaviours)
        return str(names[(names.index(behaviour) + 1) % len(names)])

    def _sum(self, *behaviours: str) -> Edit:
        """The vectors of two mean differences, each as strong as it is for the budget alone, added."""
        edits = [self.edit(name, "mean-difference") for name in behaviours]
        alphas = [self.kept(f"{name} mean-difference").get("alpha", 1.0) for name in behaviours]
        sums: dict[int, Any] = {}
        for layer in edits[0].layers:
            sums[layer] = sum(alpha * edit.maps[layer].parts["constant"] for edit, alpha in zip(edits, alphas))
        maps = {layer: AffineMap(constant=constant) for layer, constant in sums.items()}
        return replace(edits[0], maps=maps, alpha=0.5, recipe={}, measured=None)

    def draw(self, kind: str, seed: int) -> Edit:
        """A random edit: of a SEA edit's ranks, or as long as the site's activations."""
        if kind == "subspaces":
            return turned(self._reference("sea"), seed)
        reference = self._reference("sea" if kind == "constants-attn" else "mean-difference")
        return replace(constants(reference, self._lengths(kind, reference), seed), alpha=0.1)

    @functools.cache  # noqa: B019
    def _reference(self, variant: str) -> Edit:
        return self.edit(self.reference, variant)

    def _lengths(self, kind: str, reference: Edit) -> dict[int, float]:
        path = self.folder / f"lengths-{kind}.json"
        if not on_main(path.exists):
            ids = self.bench.neutral.ids
            places = self.bench.spread(self.args.texts)
            on_main(lambda: study.keep(path, lengths_of(self.living[0], reference, [ids[i] for i in places])))
        found = on_main(lambda: json.loads(path.read_text("utf-8")))
        return {int(layer): length for layer, length in found.items()}


# ------------------------------------------------------------------------------------------------- what it says


class Told:
    """Gains on one behaviour, weighted so that items which the base has right count as much as the others."""

    def __init__(self, base: Sequence[float]) -> None:
        self.base = np.array(base)
        right = self.base > 0
        self.right, self.n = int(right.sum()), len(right)
        self.balanced = min(self.right, self.n - self.right) >= matrix.FEWEST
        each = np.where(right, 0.5 / max(self.right, 1), 0.5 / max(self.n - self.right, 1)) * self.n
        self.weights = each if self.balanced else np.ones(self.n)
        self.kinds = {"base right": right, "base wrong": ~right}

    def gains(self, margins: Sequence[float]) -> Any:
        return (np.array(margins) - self.base) * self.weights

    def estimate(self, gains: Any) -> Estimate:
        drawn = np.random.default_rng(0).multinomial(len(gains), np.full(len(gains), 1 / len(gains)), size=4000) @ gains
        return estimate(float(gains.mean()), drawn / len(gains))

    def p(self, gains: Any) -> float:
        """Two-sided, of a mean of 0, from resampled items."""
        n = len(gains)
        return p_of(np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), size=FINE) @ gains)

    def against(self, margins: Sequence[float], draws: Sequence[dict[str, Any]], behaviour: str) -> Controls | None:
        there = [
            Draw(one["alpha"], one["kl"], tuple(self.gains(one["margins"][behaviour])))
            for one in draws
            if behaviour in one.get("margins", {})
        ]
        return compared("subspaces", tuple(self.gains(margins)), there)


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, DIGITS)
    if isinstance(value, list):
        return [_rounded(one) for one in value]
    return {key: _rounded(one) for key, one in value.items()} if isinstance(value, dict) else value


def estimate(value: float, resampled: Any) -> Estimate:
    """A value with the 95 % interval of its resamples."""
    low, high = np.quantile(resampled, [0.025, 0.975])
    return Estimate(value, float(low), float(high))


def cell(found: Estimate) -> str:
    text = f"{found.value:+.3f} ± {found.half:.3f}"
    return text if found.low <= 0 <= found.high else f"**{text}**"


def p_of(resampled: Any) -> float:
    """Two-sided p-value of a mean of 0, from its resamples."""
    below = int((resampled <= 0).sum())
    return min(1.0, 2 * (min(below, len(resampled) - below) + 1) / (len(resampled) + 1))


def smallest_shown(gains: Any, tests: int = 1) -> float:
    """The mean gain that so many items show four times of five, at p < 0.05; as one of so many tests."""
    wanted = NormalDist().inv_cdf(1 - 0.025 / tests) + NormalDist().inv_cdf(0.8)
    return float(wanted * np.std(gains, ddof=1) / len(gains) ** 0.5)


def holm(p: Sequence[float]) -> list[float]:
    """p-values corrected for their number, after Holm: any true null is refused with their own error rate at most."""
    found, largest = [0.0] * len(p), 0.0
    for rank, i in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
        largest = max(largest, min(1.0, (len(p) - rank) * p[i]))
        found[i] = largest
    return found
