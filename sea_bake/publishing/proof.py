"""The sections of the model card that rest on the verification: exactness, and how to load it in what it was run in."""

from __future__ import annotations

from sea_bake.artefact import Artefact
from sea_bake.artefact.opened import ONNX
from sea_bake.artefact.verification import Variant
from sea_bake.pages.edits import compared
from sea_bake.pages.markdown import plain, table_of


def exactness(artefact: Artefact) -> str:
    """Numbers of the verification, or the lack of them."""
    report = artefact.verification
    if report is None or artefact.doubt:
        why = plain(artefact.doubt or "there is no verification")
        return f"Not verified: {why}. No number here speaks for these files."
    equality = report.equality
    table = table_of(
        ["against", "max \\|Δlogit\\|", "mean KL (nats)", "same top-1", "same greedy text"], compared(report)
    )
    if report.approximate and report.baseline is not None:
        promised = "" if report.kl_limit is None else f" (promised: at most {report.kl_limit:.2e})"
        verdict = (
            f"Verdict: **approximate**. Its mean KL per token from the true edit is {equality.mean_kl:.2e}{promised}"
            f"; the unedited base is at {report.baseline.mean_kl:.2e}."
        )
    else:
        verdict = (
            f"Verdict: **verified**. It answers like the live edit within {report.tolerance:.1e} in every logit, "
            "and unlike the base."
        )
    variants = _variants(report.variants)
    return (
        f"`sea-bake verify` loaded this artefact in a fresh process and gave it the same tokens as the base with the "
        f"edit live, and as the bare base ({_conditions(artefact)}).\n\n{table}\n\n{verdict}{variants}"
    )


def _variants(variants: dict[str, Variant]) -> str:
    """Graphs of less precision: never equal, and said to be so."""
    rows = [
        [
            plain(name),
            f"{variant.equality.mean_kl:.2e}",
            f"{100 * variant.equality.top1:.1f} %",
            "not measured" if variant.effect_correlation is None else f"{variant.effect_correlation:.3f}",
        ]
        for name, variant in variants.items()
    ]
    if not rows:
        return ""
    head = ["graph", "mean KL from the live edit", "same top-1", "correlation of the edit's effect with float32"]
    return f"\n\nOther precisions are **approximate** (rounded weights are another model):\n\n{table_of(head, rows)}"


def _conditions(artefact: Artefact) -> str:
    report = artefact.verification
    if report is None:
        return "not verified"
    facts = report.facts
    packages = ("transformers", "peft", "onnxruntime", "torch")
    versions = [f"{name} {plain(facts[name])}" for name in packages if facts.get(name)]
    return ", ".join([*versions, f"{plain(report.dtype)} on {plain(report.device)}"])


def loading(artefact: Artefact, repo: str, revision: str | None = None) -> str:
    """Only the runtimes that verification ran it in."""
    ran = "" if artefact.doubt else f" Verified with {_conditions(artefact)}."
    intro = "Nothing was run to check this:\n\n" if artefact.doubt else ""
    auto, base = artefact.auto_class, artefact.base_name
    pinned = f', revision="{revision}"' if revision else ""
    if artefact.kind == ONNX:
        return f"{intro}{_onnx(artefact, repo, pinned)}{ran}"
    options = pinned + (", trust_remote_code=True" if artefact.kind == "insert" else "")
    lines = [f"from transformers import {auto}, AutoTokenizer", ""]
    if artefact.kind == "adapter":
        lines = ["from peft import PeftModel", *lines]
        lines += [
            f'model = PeftModel.from_pretrained({auto}.from_pretrained("{base}"), "{repo}"{options})',
            f'tokenizer = AutoTokenizer.from_pretrained("{base}")',
        ]
    else:
        lines += [
            f'model = {auto}.from_pretrained("{repo}"{options})',
            f'tokenizer = AutoTokenizer.from_pretrained("{repo}"{options})',
        ]
    code = "```python\n" + "\n".join(lines) + "\n```"
    return f"{intro}{code}\n\n{_remarks(artefact)}{ran}"


def _remarks(artefact: Artefact) -> str:
    if artefact.kind == "insert":
        return (
            "`trust_remote_code=True` runs one file of this repository, `modeling_sea.py`: the base's own classes with "
            "an SEA layer behind each edited module. It opens no file, no network connection and no process; read it, "
            "and pin a commit with `revision=` if this repository is not yours. Without it loading fails: you never "
            "get the unedited base by accident."
        )
    if artefact.kind == "adapter":
        flags = (artefact.bake.details if artefact.bake else {}).get("flags") or {}
        rank = (artefact.bake.details if artefact.bake else {}).get("rank")
        told = "".join(f" For {plain(k)}: `{plain(v)}` (not part of this verification)." for k, v in flags.items())
        return f"One rank everywhere ({plain(rank)}), `lora_alpha == r`, no patterns.{told}"
    return "No custom code: everything that loads the base loads this."


def _onnx(artefact: Artefact, repo: str, pinned: str) -> str:
    graphs = sorted((p.name for p in (artefact.folder / ONNX).glob("*.onnx")), key=len)
    facts = artefact.verification.facts if artefact.verification else {}
    ran = "" if artefact.doubt else f"Verified in: {', '.join(map(plain, facts.get('runtimes') or ['onnxruntime']))}."
    return (
        "```python\nfrom huggingface_hub import snapshot_download\nimport onnxruntime\n\n"
        f'folder = snapshot_download("{repo}"{pinned})\n'
        f'session = onnxruntime.InferenceSession(f"{{folder}}/{ONNX}/{graphs[0]}")\n```\n\n'
        "One decoder with its KV cache: it takes `input_ids`, `attention_mask`, `position_ids` where it lists them, "
        f"and `past_key_values.*`, empty at first. {ran}"
    )
