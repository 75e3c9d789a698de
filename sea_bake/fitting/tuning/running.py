"""One search from its activations to its verdict, in one process or in several that share the answers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from sea_bake.activations import Activations, collect_sites
from sea_bake.activations.prompt_format import PromptFormat
from sea_bake.errors import EvaluationError
from sea_bake.evaluation import Judge
from sea_bake.evaluation.doors import BASE, Doors
from sea_bake.fitting.tuning import splits
from sea_bake.fitting.tuning.folder import EDIT, Folder
from sea_bake.fitting.tuning.objective import Objective
from sea_bake.fitting.tuning.results import DEFAULT, Tuning, choose, front
from sea_bake.fitting.tuning.searching import Bench, compare, looked_once, search
from sea_bake.fitting.tuning.space import Space, untuned
from sea_bake.fitting.tuning.trials import Trials
from sea_bake.model.fingerprint import BaseModel
from sea_bake.model.processes import are_several, check_alike, from_main, is_main_process, on_main


@dataclass
class Run:
    """A search with everything checked that can be checked without the model. Of several processes the main one alone
    touches the folder and the trials.
    """

    folder: Folder
    trials: Trials
    doors: Doors
    goal: Objective
    space: Space
    parts: splits.Splits
    texts: tuple[list[str], list[str]]
    collecting: dict[str, Any]
    form: PromptFormat
    judging: dict[str, Any]

    def go(self, *, wanted: int, timeout: float | None, seed: int, max_kl: float) -> Tuning:
        with self.doors.open(BASE) as model:
            if getattr(model.config, "is_encoder_decoder", False):
                raise EvaluationError("KL on running text is not measured on encoder-decoders, so they are not tuned")
            if are_several():
                check_alike({"model": BaseModel.of(model, self.doors.base).to_json()})
            tokenizer = self.doors.tokenizer()
            collected = self._activations(model, tokenizer)
            # With the day that it shows.
            self.form = from_main(PromptFormat.shared([found.recipe for found in collected.values()]))
            bench = Bench(collected, self._judge(model, tokenizer, 0), self.goal)
            self.goal.row(bench.judge.rows(bench.judge.base))  # what ails the model ends it here
            ended = search(self.trials, bench, self.space, wanted=wanted, seed=seed, max_kl=max_kl, timeout=timeout)
            numbers = front(ended)
            if not numbers:
                raise EvaluationError(f"all {len(ended)} trials failed; the first: {ended[0].failure}")
            chosen = choose([trial for trial in ended if trial.number in numbers], max_kl)
            edit = bench.edit(chosen.settings)
            edits = {"chosen": edit}
            default = next(trial for trial in ended if trial.number == DEFAULT)
            if not default.failure:
                edits["default"] = bench.edit(default.settings)
            del bench  # with what it keeps of the base's answers
            held_back = looked_once(
                self.trials,
                chosen.number,
                lambda: compare(self._judge(model, tokenizer, 1), edits, self.parts.repeated),
            )
            looks = on_main(lambda: self.trials.looks)
        self.doors.close()
        told = {"trial": chosen.number, "of": len(ended), "seed": seed, "objective": self.goal.name, "max_kl": max_kl}
        told |= {key: value for key, value in chosen.to_json().items() if key in ("value", "base", "gain", "kl")}
        edit = replace(edit, recipe={**edit.recipe, "tuning": told})
        on_main(lambda: edit.save(self.folder.path / EDIT, overwrite=True))
        objective = {name: self.goal.row(rows) for name, rows in held_back.items()}
        before = on_main(lambda: self.folder.looks_before)
        return Tuning(edit, ended, numbers, chosen.number, held_back, objective, max_kl, looks, before)

    def _activations(self, model: Any, tokenizer: Any) -> dict[str, Activations]:
        """Of every site that is searched, all layers: from an earlier run where there was one."""
        sites = list(dict.fromkeys([untuned()["site"], *self.space.sites]))
        base, triples = BaseModel.of(model, self.doors.base), self.parts.fit
        kept: dict[str, Activations | None] = dict.fromkeys(sites)
        if is_main_process():
            triples = self.folder.triples(triples)
            kept = {site: self.folder.activations(site, base, triples, self.collecting, self.form) for site in sites}
        self.form = from_main(
            next((PromptFormat.from_json(one.recipe) for one in kept.values() if one is not None), self.form)
        )
        missing = from_main([site for site in sites if kept[site] is None])
        if missing:  # all from the same passes, and the same generated texts
            how: dict[str, Any] = {"source": self.doors.base, "prompt_format": self.form, **self.collecting}
            found = collect_sites(model, tokenizer, triples, sites=missing, **how)
            for site, activations in found.items():
                kept[site.value] = activations
                if is_main_process():
                    self.folder.keep(site.value, activations)
        return {site: activations for site, activations in kept.items() if activations is not None}

    def _judge(self, model: Any, tokenizer: Any, part: int) -> Judge:
        """0: the data for selection, 1: those held back."""
        rows = (self.parts.rows or (None, None))[part]
        limits: dict[str, Any] = {} if rows is None else {"offset": rows[0], "limit": rows[1] - rows[0]}
        triples = (self.parts.selection, self.parts.held_back)[part]
        more = {"texts": self.texts[part], **self.judging}
        return Judge(model, tokenizer, demonstrations=triples, form=self.form, **limits, **more)
