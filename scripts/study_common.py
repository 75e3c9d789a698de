"""What the studies share: settings, activations collected once, edits judged by workers, answers kept, tables.

Every judgement is one file, named by a digest of its setting and of its exam: a study that is stopped goes on where it
was. A worker is a process with one model, on one core. Under ``torchrun`` its processes are the workers: each setting
is judged by all of them, which part its batches as ``eval`` does, and the first one reads, writes and prints.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import bench_common as common
import smoke

common.use_repository_python()
os.environ["OMP_NUM_THREADS"] = "1"  # of the workers: two that share two cores with threads of their own crawl

from sea_bake import Edit, __version__, fit  # noqa: E402
from sea_bake.activations import Activations, collect_sites  # noqa: E402
from sea_bake.artefact.evaluation import Record, Row  # noqa: E402
from sea_bake.demonstrations import Demonstration, load  # noqa: E402
from sea_bake.evaluation import Judge, damage  # noqa: E402
from sea_bake.evaluation.controls import turned  # noqa: E402
from sea_bake.evaluation.neutral import TEXTS  # noqa: E402
from sea_bake.evaluation.rendering import number  # noqa: E402
from sea_bake.evaluation.results import rows_of  # noqa: E402
from sea_bake.io.staging import staged_file  # noqa: E402
from sea_bake.model.anatomy import Site  # noqa: E402
from sea_bake.model.hooks import hooked  # noqa: E402
from sea_bake.model.loading import load_model, load_tokenizer  # noqa: E402
from sea_bake.model.processes import are_several, check_alike, is_main_process, on_main  # noqa: E402
from sea_bake.model.source import ModelSource  # noqa: E402

SETS = {"halueval": "halueval/qa_one-turn_500.jsonl", "bbq": "bbq/bbq_lite_2700.jsonl", "builtin": "builtin"}
NEW_TOKENS = 32  # of a neutral answer

Found = dict[str, list[Record]]


@dataclass(frozen=True)
class Setting:
    """One edit, or a control.

    Attributes:
        demonstrations, count: a key of ``SETS``, and how many of its first triples.
        control: "" is the edit itself; "base" none; "random": turned at random (evaluation/controls.py), one draw;
            "reversed": positive and negative answers change places; "temperature": no edit, but logits divided by
            ``alpha``.
        the others: arguments of ``fit``.
    """

    demonstrations: str = "halueval"
    count: int = 200
    site: str = "mlp"
    layers: str = "last:0.66"
    K: float = 0.95
    merge: str = "l2"
    feature: str = "identity"
    parts: str = "both"
    alpha: float = 1.0
    centre: bool = False
    neutral: str = "generate"
    position: str = "last"
    control: str = ""
    offset: int = 0

    def told(self, other: Setting | None = None) -> str:
        """What differs from another one (from the defaults of this class), for people."""
        start = asdict(other or Setting())
        parts = [f"{key} {value}" for key, value in asdict(self).items() if value != start[key]]
        return ", ".join(parts) or "as it is"


BASE = Setting(control="base")


@dataclass(frozen=True)
class Exam:
    """What a setting is judged by: tasks and their rows, triples kept back, neutral text, greedy answers."""

    tasks: tuple[tuple[tuple[str, ...], int, int], ...] = ()  # names, offset, limit
    triples: tuple[int, int] | None = None  # rows of HaluEval, from and to
    neutral: bool = True
    generation: bool = False


@dataclass(frozen=True)
class Place:
    """Where a study reads and writes."""

    model: str
    data: str
    output: str

    def answers(self, setting: Setting, exam: Exam) -> Path:
        told = json.dumps([asdict(setting), asdict(exam), self.model.rsplit("/", 1)[-1]], sort_keys=True)
        return Path(self.output) / "answers" / f"{hashlib.sha256(told.encode()).hexdigest()[:24]}.json"


def say(text: str) -> None:
    common.say(text, quiet=not is_main_process())


def parser(doc: str) -> Any:
    made = common.parser(doc)
    made.add_argument("--model", help="SmolLM2-135M-Instruct: a folder, a .gguf file or its Hub id")
    made.add_argument("--data", help="folder with truthfulqa/, halueval/, bbq/, hellaswag/")
    made.add_argument("--output", "-o", help="folder for activations and answers; a study goes on there")
    workers = "processes, one model and core each (under torchrun: those that it starts)"
    made.add_argument("--workers", type=int, default=os.cpu_count() or 1, help=workers)
    return made


@contextlib.contextmanager
def place(made: Any, args: Any) -> Iterator[Place]:
    """Where the study reads and writes; under --smoke a tiny model and rows made up for the tests, for a while."""
    if args.smoke:
        global _begin, TEXTS
        args.workers, _begin = 1, "fork"  # this process has one thread and has imported all that a worker needs
        TEXTS = TEXTS[:4]
        damage.generations.__wrapped__.__kwdefaults__["max_new_tokens"] = 8
        with scratch() as folder:
            model = on_main(lambda: str(smoke.base(folder / "tiny", num_hidden_layers=3)))
            data = on_main(lambda: str(smoke.data(folder / "data")))
            with _ended:
                yield Place(model, data, str(folder / "study"))
        return
    missing = [f"--{name}" for name in ("model", "data", "output") if getattr(args, name) is None]
    if missing:
        made.error(f"name {', '.join(missing)} (or --smoke)")
    with _ended:
        yield Place(args.model, args.data, args.output)


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """A folder for a smoke run, the same for all processes."""
    with contextlib.ExitStack() as stack:
        made = tempfile.TemporaryDirectory(prefix="study-smoke-")
        yield Path(on_main(lambda: stack.enter_context(made)))
        on_main(lambda: None)  # nobody reads there any longer


# ------------------------------------------------------------------------------------------------------------- edits


def demonstrations(place: Place, s: Setting) -> list[Demonstration]:
    found = load("builtin") if s.demonstrations == "builtin" else load(Path(place.data) / SETS[s.demonstrations])
    chosen = list(found)[s.offset : s.offset + s.count]
    if len(chosen) < s.count:
        sys.exit(f"{s.demonstrations} has {len(found)} triples, fewer than {s.offset} + {s.count}")
    return chosen


@dataclass(frozen=True)
class Texts:
    """What activations of all sites are collected from in one go."""

    demonstrations: str
    neutral: str
    position: str

    @classmethod
    def of(cls, s: Setting) -> Texts:
        return cls(s.demonstrations, s.neutral, s.position)

    def path(self, place: Place, count: int | str, site: str) -> Path:
        stem = f"{self.demonstrations}-{self.neutral}-{self.position}"
        return Path(place.output) / "activations" / f"{stem}-{site}-{count}.safetensors"

    def enough(self, place: Place, count: int, site: str) -> Path | None:
        """The smallest file that holds this number of triples."""
        paths = self.path(place, "*", site)
        there = {int(p.stem.rsplit("-", 1)[1]): p for p in paths.parent.glob(paths.name)}
        fit = [n for n in there if n >= count]
        return there[min(fit)] if fit else None


def needed(place: Place, settings: Iterable[Setting]) -> list[tuple[Texts, int]]:
    """Activations that are not there yet."""
    most: dict[Texts, int] = {}
    for s in settings:
        if s.control not in ("base", "temperature"):
            most[Texts.of(s)] = max(most.get(Texts.of(s), 0), s.offset + s.count)
    return [(texts, n) for texts, n in most.items() if not all(texts.enough(place, n, x.value) for x in Site)]


def edit_of(place: Place, s: Setting) -> Edit:
    """Fitted from saved activations."""
    path = Texts.of(s).enough(place, s.offset + s.count, s.site)
    assert path is not None
    whole = Activations.load(path)
    rows = slice(s.offset, s.offset + s.count)
    roles = {role: getattr(whole, role)[:, rows] for role in ("neutral", "positive", "negative")}
    if s.control == "reversed":
        roles["positive"], roles["negative"] = roles["negative"], roles["positive"]
    K = int(s.K) if s.K >= 2 else s.K
    edit = fit(
        None, activations=replace(whole, **roles), layers=s.layers, K=K, merge=s.merge, feature=s.feature,
        parts=s.parts, alpha=s.alpha, centre=s.centre,
    )  # fmt: skip
    return turned(edit, 0) if s.control == "random" else edit


# ------------------------------------------------------------------------------------------------------------ judging


@contextlib.contextmanager
def warmer(model: Any, temperature: float) -> Iterator[None]:
    """Logits divided by a temperature: a flatter distribution, and nothing else."""
    with hooked({0: model.get_output_embeddings()}, lambda _, logits: logits / temperature):
        yield


class _Worker:
    """One model, and a judge for each part of an exam."""

    def __init__(self, place: Place) -> None:
        import torch

        from sea_bake.io import progress

        torch.set_num_threads(1)
        progress.set_quiet(True)
        self.place = place
        self.source = ModelSource.parse(place.model)
        self.model, self.tokenizer = load_model(self.source, dtype="float32"), load_tokenizer(self.source)
        self._judges: dict[Exam, list[Judge]] = {}

    def judges(self, exam: Exam) -> list[Judge]:
        if exam not in self._judges:
            made = [
                Judge(
                    self.model, self.tokenizer, tasks=names, data=self.place.data, limit=limit, offset=offset, texts=()
                )
                for names, offset, limit in exam.tasks
            ]
            if exam.triples:
                kept = Setting(offset=exam.triples[0], count=exam.triples[1] - exam.triples[0])
                triples = demonstrations(self.place, kept)
                made.append(Judge(self.model, self.tokenizer, demonstrations=triples, texts=()))
            if exam.neutral or exam.generation:
                texts = TEXTS if exam.neutral else ()
                made.append(Judge(self.model, self.tokenizer, texts=texts, generation=exam.generation))
            self._judges[exam] = made
        return self._judges[exam]

    def collect(self, texts: Texts, count: int) -> None:
        found = collect_sites(
            self.model, self.tokenizer, demonstrations(self.place, Setting(texts.demonstrations, count)),
            source=self.source, sites=list(Site), neutral=texts.neutral, position=texts.position,
            max_new_tokens=NEW_TOKENS,
        )  # fmt: skip
        for site, activations in found.items():
            path = texts.path(self.place, count, site.value)
            on_main(functools.partial(activations.save, path, overwrite=True))

    def answer(self, setting: Setting, exam: Exam) -> Found:
        edits = []
        if setting.control not in ("base", "temperature"):
            edits = [on_main(lambda: edit_of(self.place, setting))]
        found: Found = {}
        for judge in self.judges(exam):
            if setting.control == "temperature":
                judge([])  # the base, before the hook
                with warmer(self.model, setting.alpha):
                    found |= judge([])
            else:
                found |= judge(edits)
        return found


_worker: _Worker
_begin = "spawn"  # how a worker begins
_ended = contextlib.ExitStack()  # of the study: its workers end with it


def _start(place: Place) -> None:
    global _worker
    _worker = _Worker(place)


@functools.cache
def _pool(place: Place, workers: int) -> Any:
    """The workers of a study, for as long as it runs: each loads its model once."""
    pool = multiprocessing.get_context(_begin).Pool(workers, _start, (place,))

    def end(error: type[BaseException] | None, *_: object) -> None:
        pool.close() if error is None else pool.terminate()
        pool.join()

    _ended.push(end)
    return pool


def _worked(place: Place, workers: int, act: Callable[[Any], Any], tasks: Sequence[Any]) -> Iterator[Any]:
    """What workers give for these tasks: in any order, or of several processes, all at one task, in this one."""
    if not are_several():
        yield from _pool(place, workers).imap_unordered(act, tasks)
        return
    if tasks and "_worker" not in globals():
        _start(place)
    yield from map(act, tasks)


def keep(path: Path, found: Any) -> None:
    """Write an answer whole."""
    with staged_file(path, overwrite=True) as stage:
        stage.write_text(json.dumps(found, default=lambda value: value.tolist()), "utf-8")


def _judge(task: tuple[Setting, Exam]) -> tuple[Setting, Exam, Found | str, float]:
    from sea_bake.errors import SeaBakeError

    start = time.perf_counter()
    try:
        found: Found | str = _worker.answer(*task)
    except SeaBakeError as error:
        found = str(error)
    return *task, found, time.perf_counter() - start


def _collect(task: tuple[Texts, int]) -> tuple[Texts, int, float]:
    start = time.perf_counter()
    _worker.collect(*task)
    return *task, time.perf_counter() - start


def judge(place: Place, exam: Exam, settings: Sequence[Setting], workers: int) -> dict[Setting, Found]:
    """The base's answers and those of every setting that could be fitted, in that order."""
    wanted = list(dict.fromkeys([BASE, *settings]))
    check_alike({"study": [__version__, Path(place.model).name, asdict(exam), [asdict(s) for s in wanted]]})
    missing = on_main(lambda: [(s, exam) for s in wanted if not place.answers(s, exam).is_file()])
    if missing:
        for name in ("activations", "answers"):
            folder = Path(place.output) / name
            on_main(functools.partial(folder.mkdir, parents=True, exist_ok=True))
        lacking = on_main(lambda: needed(place, [s for s, _ in missing]))
        for texts, count, seconds in _worked(place, workers, _collect, lacking):
            say(f"activations of {count} triples, {texts}: {seconds:.0f} s")
        for i, (setting, _, found, seconds) in enumerate(_worked(place, workers, _judge, missing), start=1):
            on_main(functools.partial(keep, place.answers(setting, exam), found))
            say(f"{i}/{len(missing)} {setting.told()}: {seconds:.0f} s")
    read = on_main(lambda: {s: json.loads(place.answers(s, exam).read_text("utf-8")) for s in wanted})
    for s, found in read.items():
        if isinstance(found, str):
            say(f"left out: {s.told()}: {found}")
    return {s: found for s, found in read.items() if not isinstance(found, str)}


# ------------------------------------------------------------------------------------------------------------- tables


_ROWS: dict[tuple[int, int], tuple[Found, Found, dict[tuple[str, str], Row]]] = {}


def rows(base: Found, found: Found) -> dict[tuple[str, str], Row]:
    """(unit, measure) -> its paired difference from the base; computed once, for its thousands of resamples."""
    key = id(base), id(found)
    if key not in _ROWS:
        made = {
            (row.task, row.measure.key): row
            for unit in found
            for row in rows_of(unit, {"base": base[unit], "edited": found[unit]}, detail=False)
        }
        _ROWS[key] = base, found, made  # both are kept, so that nothing else gets their ids
    return _ROWS[key][2]


def cell(row: Row | None) -> str:
    """ "+0.021 ± 0.008": half of the 95 % interval; bold where it leaves 0 out."""
    if row is None or row.found.difference is None:
        return ""
    text = number(row.found.difference, row.measure.unit, sign=row.measure.key != "kl")
    found = row.found.difference
    return f"**{text}**" if row.measure.key not in ("kl", "top1") and not found.low <= 0 <= found.high else text


def markdown(made: common.Table) -> str:
    """A table without its title."""
    lines = [made.columns, ["---"] + ["---:"] * (len(made.columns) - 1), *made.rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
