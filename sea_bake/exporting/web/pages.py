"""The page's own words: what is edited and how much, for people, with every name escaped."""

from __future__ import annotations

from html import escape
from importlib import resources
from string import Template
from typing import Any

from sea_bake.exporting.web.models import WebModel
from sea_bake.pages.edits import sentence
from sea_bake.pages.markdown import plain

STATIC = ("style.css", "page.js", "worker.js")
TEMPLATE = "index.html"
EXAMPLES = (
    "Do goldfish forget everything after three seconds?",
    "Is it dangerous to wake a sleepwalker?",
    "Why do we have seasons on Earth?",
)


def asset(name: str) -> str:
    """A file of the page, as it comes with the package."""
    return (resources.files("sea_bake.exporting.web") / "page" / name).read_text("utf-8")


def html(model: WebModel, *, title: str, sides: list[str], bytes_first: int) -> str:
    """index.html."""
    first, *others = EXAMPLES
    both = (
        "twice: as it is, and with an activation edit baked in" if len(sides) > 1 else "with an activation edit in it"
    )
    return Template(asset(TEMPLATE)).substitute(
        title=escape(title),
        lead=f"One model, {both}. It runs here, in your browser.",
        facts="\n".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in facts(model)),
        load=escape(f"Load the model ({bytes_first / 1e6:,.0f} MB)"),
        prompt=escape(first),
        examples="\n".join(f'<button type="button">{escape(text)}</button>' for text in (first, *others)),
        sides="\n".join(_side(side) for side in sides),
    )


def _side(side: str) -> str:
    return (
        f'<section class="side {side}" aria-labelledby="{side}-name">\n'
        f'<header><h2 id="{side}-name">{side.capitalize()}</h2><span class="speed" id="{side}-speed"></span></header>\n'
        f'<p class="answer" id="{side}-answer" aria-live="polite" aria-busy="false" data-empty="No answer yet"></p>\n'
        "</section>"
    )


def facts(model: WebModel) -> list[tuple[str, str]]:
    """Name and text: base, each edit, and how much it changes where that was verified."""
    record = model.record
    revision = f" at {record.revision}" if record.revision else ""
    told = [("Base", f"{record.base}{revision}")]
    told += [("Edit", sentence(edit)) for edit in model.artefact.edits]
    report = model.artefact.verification
    if report is None or not report.passed:
        return [*told, ("Proof", "not verified")]
    equality, effect = report.equality, report.effect
    changes = (
        f"the most likely token at {100 * (1 - effect.top1):.0f} % of positions; mean KL from the base "
        f"{effect.mean_kl:.2g} nats per token"
    )
    proof = (
        f"{report.verdict}: in ONNX Runtime no logit is further than {equality.max_abs:.0e} from the edited "
        "PyTorch model's"
    )
    return [*told, ("Changes", changes), ("Proof", proof)]


def card(model: WebModel, *, title: str) -> str:
    """README.md: the front matter by which a Hugging Face Space knows a static page, and what it is."""
    import yaml

    matter: dict[str, Any] = {
        "title": title,
        "sdk": "static",
        "app_file": "index.html",
        "pinned": False,
        # Only a page that shares its process with no other may use several threads in WebAssembly.
        "custom_headers": {
            "cross-origin-embedder-policy": "credentialless",
            "cross-origin-opener-policy": "same-origin",
            "cross-origin-resource-policy": "cross-origin",
        },
    }
    base = model.record.base
    if base.count("/") == 1:
        matter["models"] = [base]
    front = yaml.safe_dump(matter, sort_keys=False, allow_unicode=True)
    lines = "\n".join(f"- {name}: {plain(text)}" for name, text in facts(model))
    return (
        f"---\n{front}---\n\n# {plain(title)}\n\nA static page: a language model and the same model with an "
        f"activation edit baked in, side by side in the browser. Made with `sea-bake serve-web`.\n\n{lines}\n"
    )
