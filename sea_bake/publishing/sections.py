"""The sections of the model card, one function each: plain facts out of the record and the edits."""

from __future__ import annotations

from collections.abc import Sequence

from sea_bake.artefact import Artefact
from sea_bake.artefact.evaluation import Paired, Row
from sea_bake.artefact.opened import ONNX
from sea_bake.edit import Edit
from sea_bake.pages.edits import settings
from sea_bake.pages.markdown import plain, table_of
from sea_bake.publishing.licence import Licence

_WAYS = {
    "insert": "inserted: the base's own weights, an SEA layer behind each edited module, and one file of code",
    "fold": "folded into the output projections: a plain checkpoint of the base's architecture, no custom code",
    "adapter": "a PEFT LoRA adapter of the base: the folded change, in low rank",
    ONNX: "exported to ONNX, with the edit in its graph",
}
_BAKE = "[sea_bake](https://pypi.org/project/sea-bake/)"
_PAPER = "[Spectral Editing of Activations](https://arxiv.org/abs/2405.09719)"

CITATION = """The method:

```bibtex
@inproceedings{qiu2024spectral,
  title     = {Spectral Editing of Activations for Large Language Model Alignment},
  author    = {Qiu, Yifu and Zhao, Zheng and Ziser, Yftah and Korhonen, Anna and Ponti, Edoardo M. and Cohen, Shay B.},
  booktitle = {Advances in Neural Information Processing Systems},
  year      = {2024},
  eprint    = {2405.09719},
  archivePrefix = {arXiv}
}
```"""


def warning(artefact: Artefact) -> str:
    """The first line, where something is to be warned of."""
    if artefact.doubt:
        why = plain(artefact.doubt)
        return f"> **Not verified.** Nobody has shown that this model is the edit that it says it is: {why}."
    if artefact.approximate:
        return (
            "> **Approximate.** This is a linear stand-in for the edit, near it and not equal to it: see *Exactness*."
        )
    return ""


def summary(artefact: Artefact) -> str:
    base = _base(artefact) + (f" (commit `{plain(artefact.revision)}`)" if artefact.revision else "")
    return (
        f"{base} with {_PAPER} (SEA) baked in by {_BAKE}: no training, and no hooks needed to run it. "
        f"The edit is {_WAYS[artefact.kind]}."
    )


def edits(artefact: Artefact) -> str:
    """A table per setting, a column per edit."""
    if not artefact.edits:
        return "The artefact holds no copy of its edits."
    rows = [settings(edit) for edit in artefact.edits]
    names = ["", *(f"edit {i + 1}" for i in range(len(rows)))] if len(rows) > 1 else ["", ""]
    table = table_of(names, [[key, *(plain(row[key]) for row in rows)] for key in rows[0]])
    bake = artefact.bake
    reason = f"\n\nBaked as *{bake.how}*: {plain(bake.why)}." if bake and bake.why not in ("", "asked for") else ""
    return table + reason + _ranks(artefact.edits)


def _ranks(edits: Sequence[Edit]) -> str:
    """Every layer's ranks, folded away."""
    rows = [
        [str(i + 1), str(layer), str(k[0]), str(k[1])]
        for i, edit in enumerate(edits)
        for layer, k in edit.ranks.items()
    ]
    table = table_of(["edit", "layer", "k+", "k-"], rows)
    return f"\n\n<details><summary>Ranks per layer</summary>\n\n{table}\n\n</details>"


def effects(results: Sequence[Row], report: str | None) -> str:
    """Gain first, then damage; or plainly that nobody measured either."""
    link = f"\n\nMore, with figures: [{report}]({report})." if report else ""
    if not results:
        return (
            "**Not measured.** Whether the edit makes the model better at anything, and what it costs elsewhere, has "
            "not been evaluated for this artefact. That it *is* the edit is another matter: see *Exactness*." + link
        )
    ordered = sorted(results, key=lambda result: result.kind != "gain")
    rows = [
        [
            result.kind,
            plain(result.dataset["name"]),
            f"{plain(result.measure.name)} ({'↑' if result.measure.better == 'higher' else '↓'})",
            str(result.found.n),
            *_values(result.found),
        ]
        for result in ordered
    ]
    table = table_of(["", "data", "metric", "n", "base", "edited", "change [95 % interval]"], rows)
    return table + "\n\n↑: higher is better; ↓: lower is." + link


def _values(found: Paired) -> list[str]:
    """Base, edited, and the change with its interval, never a bare verdict."""
    if found.edited is None or found.difference is None:
        return [f"{found.base.value:.4g}", "", ""]
    change, low, high = found.difference.value, found.difference.low, found.difference.high
    return [f"{found.base.value:.4g}", f"{found.edited.value:.4g}", f"{change:+.4g} [{low:+.4g}, {high:+.4g}]"]


def making(artefact: Artefact, repo: str, recipe: str | None, revision: str | None = None) -> str:
    if recipe is None:
        version = plain(artefact.bake.sea_bake if artefact.bake else "")
        return f"Baked with sea_bake {version}. No recipe was written for this kind of artefact."
    pinned = f" --revision {revision}" if revision else ""
    return (
        f"[`{recipe}`]({recipe}) holds every setting, seed, version and hash, and the commands. To fit it again and "
        "compare the projectors with the published ones:\n\n"
        f"```console\n$ pip install sea-bake\n$ sea-bake reproduce {repo}{pinned}\n```{_needed(artefact)}"
    )


def _needed(artefact: Artefact) -> str:
    """What ``reproduce`` does not find by itself."""
    origins = [edit.recipe.get("demonstrations_from") for edit in artefact.edits]
    told = [o for o in origins if isinstance(o, dict) and o.get("kind") in ("file", "folder")]
    lacking = [f"demonstrations `{plain(o.get('source'))}`, which are not published here (`-d`)" for o in told]
    lacking += [f"the base `{plain(artefact.base_name)}`, a local folder (`--model`)"] if artefact.base is None else []
    return f"\n\nIt has to be told where these are: {'; '.join(dict.fromkeys(lacking))}." if lacking else ""


def limitations(artefact: Artefact, results: Sequence[Row]) -> str:
    lines = [
        f"Everything that limits {_base(artefact)} limits this model too: it knows nothing more than its base.",
        "The edit acts on every token of every text, also where that has nothing to do with the demonstrations.",
        "Its directions come from a few demonstrations, in their language and style: elsewhere it may do nothing, or "
        "harm.",
    ]
    if not results:
        lines.append("Neither gain nor damage has been measured on a benchmark.")
    if artefact.approximate:
        lines.append("It is an approximation of the edit: what was measured of the edit itself need not hold for it.")
    if artefact.verification and not artefact.doubt:
        prompts = artefact.verification.equality.prompts
        lines.append(
            f"Verification compares answers to {prompts} prompts: it proves that the file is the edit, not that the "
            "edit is good."
        )
    return "\n".join(f"- {line}" for line in lines)


def licence(artefact: Artefact, found: Licence) -> str:
    name = found.name or found.id
    if found.id == "unknown":
        return (
            f"**Unknown**: {found.origin}. The terms of {_base(artefact)} hold for what is derived from it: look there."
        )
    stated = f"[{plain(name)}]({found.link})" if found.link else f"`{plain(name)}`"
    return f"{stated}, taken from {found.origin}." if found.origin[:5] != "given" else f"{stated}, {found.origin}."


def _base(artefact: Artefact) -> str:
    if artefact.base is None:
        return f"`{plain(artefact.base_name)}` (a local folder; its Hub id is not known)"
    return f"[{artefact.base}](https://huggingface.co/{artefact.base})"
