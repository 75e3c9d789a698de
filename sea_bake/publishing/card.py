"""The model card: metadata as the Hub reads it, and a page for people. The same artefact gives the same card."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from sea_bake.artefact import Artefact
from sea_bake.artefact.evaluation import Row
from sea_bake.artefact.names import GRAPH_FILES, RECIPE
from sea_bake.artefact.opened import ONNX
from sea_bake.artefact.verification import Verification
from sea_bake.methods.table import METHODS
from sea_bake.pages.edits import COMPARED, columns, compared, worth
from sea_bake.pages.markdown import front_matter
from sea_bake.pages.templates import Markdown, markdown
from sea_bake.publishing.licence import Licence
from sea_bake.publishing.recipe import can_be_fitted_again, origin
from sea_bake.publishing.runtimes import proved

# What the Hub's model tree calls an edit of this kind: the edited weights are new ones, whatever file they lie in.
_RELATIONS = {"insert": "finetune", "fold": "finetune", "adapter": "adapter", ONNX: "finetune"}
SEA = METHODS["sea"]
_TASKS = {"AutoModelForImageTextToText": "image-text-to-text"}  # else text-generation, encoder-decoders too
_LIBRARIES = {"insert": "transformers", "fold": "transformers", "adapter": "peft", ONNX: "transformers.js"}


def render(
    artefact: Artefact,
    repo: str,
    *,
    licence: Licence,
    base_card: dict[str, Any],
    results: Sequence[Row] = (),
    datasets: Sequence[str] = (),
    report: str | None = None,
    revision: str | None = None,
    kept: tuple[list[str], Sequence[list[Any]]] | None = None,
) -> str:
    """README.md of the published artefact; its prose stands in pages/templates/card.md.j2.

    Args:
        repo: where it will be: "user/name".
        base_card: metadata of the base's card, for its language.
        results: what was measured; nothing is claimed without.
        datasets: Hub ids of the demonstrations.
        report: path of the HTML report, where there is one.
        revision: the branch that it is published to; None: main.
        kept: head and rows of a table of quantised GGUFs beside it.
    """
    from huggingface_hub import ModelCard

    title = repo.rpartition("/")[2]
    data = _metadata(artefact, title, licence, languages(base_card.get("language")), results, datasets)
    verification, why = artefact.verification, artefact.bake.why if artefact.bake else ""
    body = markdown(
        "card.md.j2",
        artefact=artefact,
        origins=artefact.bake.origins.values() if artefact.bake else (),
        refits=all(map(can_be_fitted_again, artefact.edits)),
        title=title,
        repo=repo,
        revision=revision,
        recipe=RECIPE,
        report=report,
        licence=licence,
        why=why if why != "asked for" else "",
        settings=columns(artefact.edits),
        methods=_methods(artefact),
        ranks=[[i, n, *one.ranks] for i, edit in enumerate(artefact.edits, 1) for n, one in edit.projectors.items()],
        worth=worth(artefact.edits),
        gains=any(edit.measured and edit.measured.gain for edit in artefact.edits),
        results=[measured(row) for row in sorted(results, key=lambda row: row.kind != "gain")],
        compared=(COMPARED, compared(verification)) if verification else None,
        variants=_variants(verification) if verification else [],
        conditions=_conditions(verification) if verification else "",
        missing=_missing(artefact),
        kept=kept,
        runtimes=proved(artefact, repo, _options(artefact, revision)),
        graph=next((name for name in GRAPH_FILES.values() if (artefact.folder / ONNX / name).is_file()), ""),
    )
    text = f"{front_matter(data.to_dict())}\n{body}"
    ModelCard(text)  # parsed once: what the Hub's own library cannot read does not leave the house
    return text


def _options(artefact: Artefact, revision: str | None) -> str:
    """What ``from_pretrained`` has to be given beside the name."""
    pin = f', revision="{revision}"' if revision else ""
    return pin + (", trust_remote_code=True" if artefact.kind == "insert" else "")


def _methods(artefact: Artefact) -> list[tuple[str, str]]:
    """Title and paper of each method that its edits were found by; SEA's where they are not with it."""
    rows = [METHODS.get(edit.method) for edit in artefact.edits] or [SEA]
    found = [(row.title, row.paper) if row else ("an edit from elsewhere", "") for row in rows]
    return list(dict.fromkeys(found))


def measured(row: Row) -> list[str]:
    """A line of the table of gain and damage; the change with its interval, never a bare verdict."""
    found, change = row.found, row.found.difference
    return [
        row.kind,
        row.dataset["name"],
        f"{row.measure.name} ({'↑' if row.measure.better == 'higher' else '↓'})",
        str(found.n),
        f"{found.base.value:.4g}",
        f"{found.edited.value:.4g}" if found.edited else "",
        Markdown(f"{change.value:+.4g} [{change.low:+.4g}, {change.high:+.4g}]") if change else "",
    ]


def _variants(verification: Verification) -> list[list[str]]:
    """Graphs of less precision: how far each is from the float32 model."""
    return [
        [
            name,
            f"{variant.equality.mean_kl:.2e}",
            f"{100 * variant.equality.top1:.1f} %",
            "not measured" if variant.effect_correlation is None else f"{variant.effect_correlation:.3f}",
        ]
        for name, variant in verification.variants.items()
    ]


def _conditions(verification: Verification) -> str:
    """Versions of what it was run in, dtype and device."""
    facts = verification.facts
    packages = (name for name in ("transformers", "peft", "onnxruntime", "torch") if facts.get(name))
    versions = (f"{name} {facts[name]}" for name in packages)
    return ", ".join([*versions, f"{verification.dtype} on {verification.device}"])


def _missing(artefact: Artefact) -> list[str]:
    """Demonstrations that ``reproduce`` does not find by itself."""
    local = [one for one in map(origin, artefact.edits) if one.get("kind") in ("file", "folder")]
    return list(dict.fromkeys(str(one.get("source")) for one in local))


def _metadata(
    artefact: Artefact, title: str, licence: Licence, language: Any, results: Sequence[Row], datasets: Sequence[str]
) -> Any:
    """The card's metadata, as huggingface_hub's ModelCardData."""
    from huggingface_hub import ModelCardData

    task = _TASKS.get(artefact.auto_class, "text-generation")
    rows = model_index(results, task)
    relation = _RELATIONS[artefact.kind]
    papers = [paper for _, paper in _methods(artefact) if paper]
    tags = ["sea"] if SEA.paper in papers else []
    tags += ["sea_bake", "activation-steering", "model-editing", *(f"arxiv:{paper}" for paper in papers)]
    tags += ["steering-vector"] if any(edit.is_constant for edit in artefact.edits) else []
    tags += ["onnx"] if artefact.kind == ONNX else ["lora"] if artefact.kind == "adapter" else []
    tags += ["custom_code"] if artefact.kind == "insert" else []
    tags += ["unverified"] if artefact.doubt else ["approximate"] if artefact.approximate else []
    tags += [f"base_model:{relation}:{artefact.base}"] if artefact.base else []
    return ModelCardData(
        language=language,
        library_name=_LIBRARIES[artefact.kind],
        pipeline_tag=task,
        base_model=artefact.base,
        base_model_relation=relation if artefact.base else None,
        datasets=list(datasets) or None,
        tags=tags,
        model_name=title if results else None,
        eval_results=rows or None,
        license=licence.id,
        license_name=licence.name or None,
        license_link=licence.link or None,
    )


def model_index(results: Sequence[Row], task: str) -> list[Any]:
    """The results as huggingface_hub's EvalResults, for the card's metadata."""
    from huggingface_hub import EvalResult

    return [
        EvalResult(
            task_type=task,
            dataset_type=row.dataset["type"],
            dataset_name=row.dataset["name"],
            dataset_config=row.dataset.get("config"),
            dataset_split=row.dataset.get("split"),
            dataset_revision=row.dataset.get("revision"),
            metric_type=row.measure.key,
            metric_name=row.measure.name,
            metric_value=(row.found.edited or row.found.base).value,
        )
        for row in results
    ]


def languages(value: Any) -> list[str] | None:
    """What the base's card says, as far as these are languages: somebody else wrote it."""
    codes = [value] if isinstance(value, str) else value if isinstance(value, list) else []
    return [code for code in codes if isinstance(code, str) and re.fullmatch(r"[\w-]{2,20}", code)] or None
