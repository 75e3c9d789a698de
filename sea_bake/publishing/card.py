"""The model card: metadata as the Hub reads it, and a page for people. The same artefact gives the same card."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from sea_bake.artefact import Artefact
from sea_bake.artefact.evaluation import Row
from sea_bake.artefact.opened import ONNX
from sea_bake.publishing import proof, sections
from sea_bake.publishing.licence import Licence

# What the Hub's model tree calls an edit of this kind: the edited weights are new ones, whatever file they lie in.
_RELATIONS = {"insert": "finetune", "fold": "finetune", "adapter": "adapter", ONNX: "finetune"}
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
    recipe: str | None = None,
    report: str | None = None,
    revision: str | None = None,
) -> str:
    """README.md of the published artefact.

    Args:
        repo: where it will be: "user/name".
        base_card: metadata of the base's card, for its language.
        results: what was measured; nothing is claimed without.
        datasets: Hub ids of the demonstrations.
        recipe: name of the recipe's file, where there is one.
        report: path of the HTML report, where there is one.
        revision: the branch that it is published to; None: main.
    """
    from huggingface_hub import ModelCard

    parts = [
        sections.warning(artefact),
        f"# {repo.rpartition('/')[2]}",
        sections.summary(artefact),
        "## What was edited",
        sections.edits(artefact),
        "## Gain and damage",
        sections.effects(results, report),
        "## Exactness",
        proof.exactness(artefact),
        "## How to load it",
        proof.loading(artefact, repo, revision),
        "## How it was made",
        sections.making(artefact, repo, recipe, revision),
        "## Limitations",
        sections.limitations(artefact, results),
        "## Licence",
        sections.licence(artefact, licence),
        "## Citation",
        sections.CITATION,
    ]
    data = metadata(artefact, repo, licence=licence, base_card=base_card, results=results, datasets=datasets)
    text = f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(part for part in parts if part) + "\n"
    return str(ModelCard(text))  # parsed once: what the Hub's own library cannot read does not leave the house


def metadata(
    artefact: Artefact,
    repo: str,
    *,
    licence: Licence,
    base_card: dict[str, Any],
    results: Sequence[Row] = (),
    datasets: Sequence[str] = (),
) -> Any:
    """The card's metadata, as huggingface_hub's ModelCardData."""
    from huggingface_hub import ModelCardData

    relation = _RELATIONS[artefact.kind]
    tags = ["sea", "sea_bake", "activation-steering", "model-editing", "arxiv:2405.09719"]
    tags += ["onnx"] if artefact.kind == ONNX else ["lora"] if artefact.kind == "adapter" else []
    tags += ["custom_code"] if artefact.kind == "insert" else []
    tags += ["unverified"] if artefact.doubt else ["approximate"] if artefact.approximate else []
    tags += [f"base_model:{relation}:{artefact.base}"] if artefact.base else []
    return ModelCardData(
        language=_languages(base_card.get("language")),
        library_name=_LIBRARIES[artefact.kind],
        pipeline_tag=_TASKS.get(artefact.auto_class, "text-generation"),
        base_model=artefact.base,
        base_model_relation=relation if artefact.base else None,
        datasets=list(datasets) or None,
        tags=tags,
        model_name=repo.rpartition("/")[2] if results else None,
        eval_results=[_eval_result(result, artefact) for result in results] or None,
        **licence.metadata(),
    )


def _languages(value: Any) -> list[str] | None:
    """What the base's card says, as far as these are languages: somebody else wrote it."""
    codes = [value] if isinstance(value, str) else value if isinstance(value, list) else []
    return [code for code in codes if isinstance(code, str) and re.fullmatch(r"[\w-]{2,20}", code)] or None


def _eval_result(result: Row, artefact: Artefact) -> Any:
    from huggingface_hub import EvalResult

    return EvalResult(
        task_type=_TASKS.get(artefact.auto_class, "text-generation"),
        dataset_type=result.dataset["type"],
        dataset_name=result.dataset["name"],
        dataset_config=result.dataset.get("config"),
        dataset_split=result.dataset.get("split"),
        dataset_revision=result.dataset.get("revision"),
        metric_type=result.measure.key,
        metric_name=result.measure.name,
        metric_value=(result.found.edited or result.found.base).value,
    )
