"""The sections of the model card, one function each: plain facts out of the record, the edits and the verification."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sea_bake.edit import Edit
from sea_bake.fitting import ranges
from sea_bake.publishing.artefact import ONNX, Artefact
from sea_bake.publishing.evaluation import Result
from sea_bake.publishing.licence import Licence

_WAYS = {
    "insert": "inserted: the base's own weights, an SEA layer behind each edited module, and one file of code",
    "fold": "folded into the output projections: a plain checkpoint of the base's architecture, no custom code",
    "adapter": "a PEFT LoRA adapter of the base: the folded change, in low rank",
    ONNX: "exported to ONNX, with the edit in its graph",
}
_SITES = {"mlp": "MLP output", "attn": "attention output", "block": "block output (residual stream)"}
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
        return f"> **Not verified.** Nobody has shown that this model is the edit that it says it is: {artefact.doubt}."
    if artefact.approximate:
        return (
            "> **Approximate.** This is a linear stand-in for the edit, near it and not equal to it: see *Exactness*."
        )
    return ""


def summary(artefact: Artefact) -> str:
    base = _base(artefact) + (f" (commit `{_plain(artefact.revision)}`)" if artefact.revision else "")
    return (
        f"{base} with {_PAPER} (SEA) baked in by {_BAKE}: no training, and no hooks needed to run it. "
        f"The edit is {_WAYS[artefact.how]}."
    )


def edits(artefact: Artefact) -> str:
    """A table per setting, a column per edit."""
    if not artefact.edits:
        return "The artefact holds no copy of its edits."
    rows = [_settings(edit) for edit in artefact.edits]
    names = ["", *(f"edit {i + 1}" for i in range(len(rows)))] if len(rows) > 1 else ["", ""]
    table = _table(names, [[key, *(row[key] for row in rows)] for key in rows[0]])
    why = artefact.record.get("why")
    reason = f"\n\nBaked as *{artefact.how}*: {_plain(why)}." if why and why != "asked for" else ""
    return table + reason + _ranks(artefact.edits)


def _settings(edit: Edit) -> dict[str, str]:
    recipe = edit.recipe
    positive, negative = ([ranks[i] for ranks in edit.ranks.values()] for i in (0, 1))
    feature = "linear SEA" if edit.feature == "identity" else f"Φ-SEA, {edit.feature}"
    K = [recipe.get(f"K_{part}") for part in ("positive", "negative")]
    texts = recipe.get("demonstrations")
    source = (recipe.get("demonstrations_from") or {}).get("source")
    return {
        "site": _SITES[edit.site.value],
        "decoder layers": f"{ranges(edit.layers)} of {edit.base.num_layers}",
        "kind": feature,
        "merge": edit.merge + ("" if edit.parts == "both" else f", {edit.parts} projection only"),
        "strength": f"{edit.alpha:g}",
        "K (share of variance, or rank)": "/".join(dict.fromkeys(str(k) for k in K))
        if None not in K
        else "not recorded",
        "rank kept, k+": _span(positive),
        "rank dropped, k-": _span(negative),
        "demonstrations": f"{texts} triples" + (f" ({_plain(source)})" if isinstance(source, str) else "")
        if isinstance(texts, int)
        else _plain(recipe.get("imported") or "not recorded"),
    }


def _span(ranks: Sequence[int]) -> str:
    return str(min(ranks)) if min(ranks) == max(ranks) else f"{min(ranks)} to {max(ranks)}"


def _ranks(edits: Sequence[Edit]) -> str:
    """Every layer's ranks, folded away."""
    rows = [
        [str(i + 1), str(layer), str(k[0]), str(k[1])]
        for i, edit in enumerate(edits)
        for layer, k in edit.ranks.items()
    ]
    table = _table(["edit", "layer", "k+", "k-"], rows)
    return f"\n\n<details><summary>Ranks per layer</summary>\n\n{table}\n\n</details>"


def effects(results: Sequence[Result], report: str | None) -> str:
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
            result.dataset["name"],
            f"{result.metric['name']} ({'↑' if result.better == 'higher' else '↓'})",
            "" if result.n is None else str(result.n),
            f"{result.base:.4g}",
            f"{result.value:.4g}",
            result.change,
        ]
        for result in ordered
    ]
    table = _table(["", "data", "metric", "n", "base", "edited", "change [95 % interval]"], rows)
    return table + "\n\n↑: higher is better; ↓: lower is." + link


def exactness(artefact: Artefact) -> str:
    """Numbers of the verification, or the lack of them."""
    report = artefact.verification
    if report is None or artefact.doubt:
        return f"Not verified: {artefact.doubt or 'there is no verification'}. No number here speaks for these files."
    equality, effect = report["equality"], report["effect"]
    rows = [
        [
            name,
            f"{max(c['max_abs'], c['padded_max_abs']):.2e}",
            f"{c['mean_kl']:.2e}",
            f"{100 * c['top1']:.1f} %",
            f"{c['greedy_equal']}/{c['prompts']}",
        ]
        for name, c in (("the live edit (hooks on the base)", equality), ("the unedited base", effect))
    ]
    table = _table(["against", "max \\|Δlogit\\|", "mean KL (nats)", "same top-1", "same greedy text"], rows)
    if report.get("approximate"):
        verdict = (
            f"Verdict: **approximate**. Its mean KL per token from the true edit is {equality['mean_kl']:.2e} "
            f"(promised: at most {report['kl_limit']:.2e}); the unedited base is at "
            f"{report['baseline']['mean_kl']:.2e}."
        )
    else:
        verdict = (
            f"Verdict: **verified**. It answers like the live edit within {report['tolerance']:.1e} in every logit, "
            "and unlike the base."
        )
    return (
        f"`sea-bake verify` loaded this artefact in a fresh process and gave it the same tokens as the base with the "
        f"edit live, and as the bare base ({_conditions(artefact)}).\n\n{table}\n\n{verdict}"
    )


def _conditions(artefact: Artefact) -> str:
    report = artefact.verification or {}
    facts = report.get("facts") or {}
    packages = ("transformers", "peft", "onnxruntime", "torch")
    versions = [f"{name} {_plain(facts[name])}" for name in packages if facts.get(name)]
    return ", ".join([*versions, f"{_plain(report.get('dtype'))} on {_plain(report.get('device'))}"])


def loading(artefact: Artefact, repo: str) -> str:
    """Only the runtimes that verification ran it in."""
    ran = "" if artefact.doubt else f" Verified with {_conditions(artefact)}."
    intro = "Nothing was run to check this:\n\n" if artefact.doubt else ""
    auto, base = artefact.auto_class, artefact.base_name
    if artefact.how == ONNX:
        return f"{intro}{_onnx(artefact, repo)}{ran}"
    trust = ", trust_remote_code=True" if artefact.how == "insert" else ""
    lines = [f"from transformers import {auto}, AutoTokenizer", ""]
    if artefact.how == "adapter":
        lines = ["from peft import PeftModel", *lines]
        lines += [
            f'model = PeftModel.from_pretrained({auto}.from_pretrained("{base}"), "{repo}")',
            f'tokenizer = AutoTokenizer.from_pretrained("{base}")',
        ]
    else:
        lines += [
            f'model = {auto}.from_pretrained("{repo}"{trust})',
            f'tokenizer = AutoTokenizer.from_pretrained("{repo}"{trust})',
        ]
    code = "```python\n" + "\n".join(lines) + "\n```"
    return f"{intro}{code}\n\n{_remarks(artefact)}{ran}"


def _remarks(artefact: Artefact) -> str:
    if artefact.how == "insert":
        return (
            "`trust_remote_code=True` runs one file of this repository, `modeling_sea.py`: the base's own classes with "
            "an SEA layer behind each edited module. It opens no file, no network connection and no process; read it, "
            "and pin a commit with `revision=` if this repository is not yours. Without it loading fails: you never "
            "get the unedited base by accident."
        )
    if artefact.how == "adapter":
        flags = (artefact.record.get("details") or {}).get("flags") or {}
        rank = (artefact.record.get("details") or {}).get("rank")
        told = "".join(f" For {name}: `{flag}` (not part of this verification)." for name, flag in flags.items())
        return f"One rank everywhere ({rank}), `lora_alpha == r`, no patterns.{told}"
    return "No custom code: everything that loads the base loads this."


def _onnx(artefact: Artefact, repo: str) -> str:
    facts = (artefact.verification or {}).get("facts") or {}
    runtimes = facts.get("runtimes") or ["onnxruntime"]
    return (
        "```python\nfrom huggingface_hub import snapshot_download\nimport onnxruntime\n\n"
        f'folder = snapshot_download("{repo}")\n'
        'session = onnxruntime.InferenceSession(f"{folder}/onnx/model.onnx")\n```\n\n'
        f"Runtimes that were verified: {', '.join(map(_plain, runtimes))}."
    )


def making(artefact: Artefact, repo: str, recipe: str | None) -> str:
    if recipe is None:
        version = _plain(artefact.record.get("sea_bake"))
        return f"Baked with sea_bake {version}. No recipe was written for this kind of artefact."
    return (
        f"[`{recipe}`]({recipe}) holds every setting, seed, version and hash, and the commands. To fit it again and "
        "compare the projectors with the published ones:\n\n"
        f"```console\n$ pip install sea-bake\n$ sea-bake reproduce {repo}\n```"
    )


def limitations(artefact: Artefact, results: Sequence[Result]) -> str:
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
        prompts = artefact.verification["equality"]["prompts"]
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
    stated = f"[{_plain(name)}]({found.link})" if found.link else f"`{_plain(name)}`"
    return f"{stated}, taken from {found.origin}." if found.origin[:5] != "given" else f"{stated}, {found.origin}."


def _base(artefact: Artefact) -> str:
    if artefact.base is None:
        return f"`{_plain(artefact.base_name)}` (a local folder; its Hub id is not known)"
    return f"[{artefact.base}](https://huggingface.co/{artefact.base})"


def _plain(value: Any) -> str:
    """Text that cannot break out of its place on the page."""
    text = " ".join(str(value).split())
    return "".join(f"\\{c}" if c in "`|<>[]*" else c for c in text)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
