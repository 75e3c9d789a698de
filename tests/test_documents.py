"""What the documents say is so: links lead somewhere, commands and Python run, the front page is one screen.

Looked at are all Markdown files of the repository, and the commands in docstrings, help texts and messages. What cannot
run here stands in ``ELSEWHERE`` with the reason; of our own commands every option has to exist there too.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import importlib
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import documents
import exports
import pytest
import tiny
from documents import ROOT, Fence, fences, pages

CONSOLE = [fence for page in pages() for fence in fences(page, "console")]
PYTHON = [fence for page in pages() for fence in fences(page, "python")]
# Commands that do not run in these tests, and why. Ours are still held against the command line.
ELSEWHERE = {
    r"pip install .*|npm install .*|pre-commit install": "installs something, from a network",
    r"torchrun .*|accelerate launch .*": "more than one process: tests/test_processes.py runs torchrun, and "
    "tests/test_activations.py a fit in two processes",
    r"sea-bake tune .* --storage .*": "several machines: tests/test_tune_workers.py runs workers on either storage",
    r"sea-bake eval .* --backend vllm": "needs vLLM: tests/test_engines.py runs it with a stand-in",
    r"sea-bake verify .* --quantised .*": "needs another tool's copy: tests/test_quantised_copies.py makes one",
    r"vllm serve .*": "needs vLLM in an environment of its own: scripts/check_vllm runs it",
    r"transformers serve .*": "talks until Ctrl-C: scripts/check_transformers_serve runs it",
    r"scripts/\S+.*": "takes minutes; that it is there, and has the options, is looked at",
    r"sea-bake run": "a whole recipe: tests/test_recipes.py runs the starter",
    r"sea-bake export gguf .*--converter .*": "needs llama.cpp's converter: scripts/check_gguf_families runs it",
    r"sea-bake publish me/\S+|sea-bake publish (?!.*--dry-run).*|sea-bake reproduce .*": "needs the Hub: "
    "tests/test_publish.py and tests/test_reproduce.py run it on loopback",
    r"sea-bake (chat|serve) .*": "talks until Ctrl-D or Ctrl-C: tests/test_serving.py runs both",
    r"mlx_lm\..*": "needs mlx-lm in an environment of its own: scripts/check_mlx runs it",
    r"llama-cli .*": "llama.cpp's own: tests/test_control_vectors.py and tests/test_gguf.py run it in the process",
    r"sea-bake (import|bake|export control-vector) .*happy.*": "needs a file of another tool: "
    "tests/test_importing.py and tests/test_control_vectors.py make them",
    r"sea-bake export gguf .*": "needs a real GGUF: tests/test_gguf.py runs it on SmolLM2's",
}
# Python that is compiled only, with the reason; its imports of sea_bake are resolved.
COMPILED = {
    "optimum.intel": "needs an environment of its own: scripts/check_openvino runs it",
    "openvino": "needs an environment of its own: scripts/check_openvino runs it",
    "executorch": "needs an environment of its own: scripts/check_executorch runs it",
    "ctranslate2": "needs an environment of its own: scripts/check_ctranslate2 runs it",
    "from trl": "needs an environment of its own: scripts/check_trl runs it",
    "import openai": "asks a server: scripts/check_transformers_serve runs it",
    "onnxruntime_genai": "needs a real model: tests/test_onnx_runtimes.py runs it",
    "export_npz": "a format that is made up: how one would be added",
}
# What a document calls its inputs, and the tiny one that stands in for it.
BASES = r"HuggingFaceTB/SmolLM2-135M-Instruct|SmolLM2-135M-Instruct(\.Q4_1\.gguf)?|MODEL|BASE"
# More options where a real run would take long, or needs what a tiny model has not: command -> options.
SHORT = {
    "fit": ("--max-new-tokens", "4", "--controls", "1"),
    "ask": ("--max-new-tokens", "4"),
    "eval": ("--no-cost", "--limit", "4"),
    "tune": ("--trials", "2", "--max-new-tokens", "4"),
    "publish": ("--license", "apache-2.0", "--base-model", "someone/base"),
}
LASTING = {"--serve"}  # options that would wait for Ctrl-C


# --------------------------------------------------------------------------------------------------- pages and links


def test_every_link_leads_somewhere() -> None:
    wrong = []
    for page in pages():
        for link in documents.links(page):
            path, _, anchor = link.partition("#")
            if re.match(r"[a-z]+:", link):
                fine = re.fullmatch(r"https://[\w-]+(\.[\w-]+)+(/[\w./%~+#=?&@()-]*)?", link)
            else:
                target = (ROOT / page).parent / path if path else ROOT / page
                fine = target.resolve().is_relative_to(ROOT) and target.exists()
                if fine and anchor:
                    fine = anchor in documents.anchors(str(target.resolve().relative_to(ROOT)))
            wrong += [] if fine else [f"{page}: {link}"]
    assert not wrong, "\n".join(wrong)
    assert sum(len(documents.links(page)) for page in pages()) > 40  # the control: there are links


def test_what_is_named_is_there() -> None:
    """Files, tests and Python names in backticks."""
    wrong = []
    for page in pages():
        for name in documents.code(page):
            path, _, test = name.partition("::")
            if re.fullmatch(r"(scripts|tests|sea_bake|\.github|\.ci)/[\w./-]+", path) and "..." not in name:
                here = ROOT / path
                if not here.exists() or (test and f"def {test}(" not in here.read_text("utf-8")):
                    wrong.append(f"{page}: {name}")
            elif re.fullmatch(r"[\w/-]+\.py", name) and "/" in name:  # as seen from the page, or from sea_bake/
                if not any((place / name).is_file() for place in ((ROOT / page).parent, ROOT, ROOT / "sea_bake")):
                    wrong.append(f"{page}: {name}")
            elif re.fullmatch(r"sea_bake(\.\w+)+(\(.*\))?", name) and name != "sea_bake.yaml":
                module, _, attribute = name.split("(")[0].rpartition(".")
                if not _resolves(module, attribute):
                    wrong.append(f"{page}: {name}")
    assert not wrong, "\n".join(wrong)


def test_what_is_named_in_a_file_is_defined_there() -> None:
    """`NAME` in [`FILE`](...): a function, a class, a method of it, or a constant."""
    wrong, seen = [], 0
    for page in pages():
        for name, path in re.findall(r"`([\w.]+)(?:\(\))?` in \[?`([\w/-]+\.py)`", (ROOT / page).read_text("utf-8")):
            places = [place / path for place in ((ROOT / page).parent, ROOT, ROOT / "sea_bake")]
            file = next(place for place in places if place.is_file())
            seen += 1
            wrong += [] if name in _defined(file) else [f"{page}: {name} in {path}"]
    assert not wrong, "\n".join(wrong)
    assert seen >= 5
    assert "LinearEdit.__call__" not in _defined(ROOT / "sea_bake/baking/exactness.py")  # the control


def _defined(file: Path) -> set[str]:
    found = set()
    for node in ast.parse(file.read_text("utf-8")).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            inner = {getattr(part, "name", "") for part in node.body}
            found |= {node.name, *inner, *(f"{node.name}.{name}" for name in inner)}
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {ast.unparse(target) for target in targets}
    return found


def _resolves(module: str, attribute: str) -> bool:
    try:
        return hasattr(importlib.import_module(module), attribute) or bool(
            importlib.import_module(f"{module}.{attribute}")
        )
    except ImportError:
        return False


def test_the_front_page_is_one_screen() -> None:
    text = documents.text_of("README.md")
    assert text.count("\n") <= 150
    assert re.findall(r"^## (.*)$", text, re.MULTILINE) == [
        "Install",
        "Three commands",
        "In Python",
        "What it gains, and what it costs",
        "What is exact",
        "Where to read on",
        "This repository",
    ]
    (python,) = fences("README.md", "python")
    assert len([line for line in python.text.split("\n") if line.strip()]) <= 8


@pytest.mark.parametrize("folder", ["sea_bake", "tests"])
def test_the_tree_is_what_the_script_prints(folder: str) -> None:
    """Each room, and each file of tests with its promise."""
    told = [sys.executable, ROOT / "scripts" / "tree", folder]
    ran = subprocess.run(told, capture_output=True, text=True, check=True)
    drawn = [f.text for f in fences(f"{folder}/README.md", "text") if f.text.startswith(f"{folder}/\n")]
    assert drawn == [ran.stdout], "run scripts/tree --write"


# ---------------------------------------------------------------------------------------------------------- commands


def test_every_command_exists() -> None:
    """In blocks, whole: as the command line itself reads it. In backticks: the command, and every option."""
    wrong = []
    for fence in CONSOLE:
        for line in fence.commands():
            words = shlex.split(line)
            if "sea_bake" in words:  # python -m sea_bake, torchrun -m sea_bake, ...
                words = ["sea-bake", *words[words.index("sea_bake") + 1 :]]
            if words[0] == "sea-bake":
                try:
                    documents.whole(shlex.join(words))
                except Exception as error:
                    wrong.append(f"{fence.place}: {line}: {error}")
            elif words[0].startswith("scripts/"):
                wrong += [f"{fence.place}: {line}"] if not _is_script(words) else []
            elif not _elsewhere(line):
                wrong.append(f"{fence.place}: {line} is no command of ours, and not in ELSEWHERE")
    for page in pages():
        for text in documents.code(page):
            if re.match(r"scripts/[\w-]+( |$)", text):
                wrong += [f"{page}: {text}"] if not _is_script(text.split()) else []
            wrong += [f"{page}: {problem}" for problem in documents.named(text)]
    assert not wrong, "\n".join(wrong)


def _is_script(words: list[str]) -> bool:
    """Whether it can be run, and names each option."""
    path = ROOT / words[0]
    text = "".join(p.read_text("utf-8") for p in (path, *(ROOT / "scripts").glob("*.py")) if p.is_file())
    known = [word.split("=")[0] in text for word in words[1:] if word.startswith("--")]
    return os.access(path, os.X_OK) and (all(known) or words[0] in ("scripts/test", "scripts/check"))  # pytest's own


def _elsewhere(line: str) -> bool:
    return any(re.fullmatch(pattern, line) for pattern in ELSEWHERE)


def test_every_command_in_the_code_exists() -> None:
    """Examples in help texts and "Next: ..." are whole commands; in other texts the command and its options exist."""
    wrong, seen = [], 0
    for name in documents.tracked():
        if not (name.startswith("sea_bake/") and name.endswith(".py")):
            continue
        for line, text in documents.strings(ROOT / name):
            wrong += [f"{name}:{line}: {problem}" for problem in documents.named(text)]
            examples = re.findall(r"^ +(sea-bake .*?)(?:   .*)?$", text, re.MULTILINE)
            examples += re.findall(r"Next: (sea-bake .*?)(?: {2,}.*|\n.*)?$", text)
            for example in examples:
                for part in example.split(" && "):
                    seen += 1
                    try:
                        documents.whole(part)
                    except Exception as error:
                        wrong.append(f"{name}:{line}: {part}: {error}")
    assert not wrong, "\n".join(wrong)
    assert seen > 20


def test_what_is_wrong_with_a_command_is_seen() -> None:
    """The controls."""
    assert documents.named("run sea-bake bakke MODEL") == ["sea-bake bakke MODEL: there is no command bakke"]
    assert documents.named("with sea-bake eval X --writ, or remove it") != []
    assert documents.named("with sea-bake eval X --write, or with another --nonsense") == []
    assert documents.named("sea-bake export onnx X --strength; sea-bake export gguf X --strength") != []
    for line in (
        "sea-bake fit MODEL --nonsense",
        "sea-bake bake MODEL edit",
        "sea-bake",
        "sea-bake tune MODEL --trials x",
    ):
        with pytest.raises(Exception, match=r"."):
            documents.whole(line)
    documents.whole("sea-bake bake MODEL edit -o out")
    assert not _is_script(["scripts/bench_bake", "--nonsense"])
    assert not _is_script(["scripts/nothing"])


# ------------------------------------------------------------------------------------------------------- stand-ins


def _base() -> Path:
    return exports.base(chat=False)  # of two layers: a trace for ONNX takes its time by layers


@functools.cache
def _baked(how: str) -> Path:
    """An artefact, with its verification."""
    from sea_bake import bake, fit, verify

    folder = tiny.root() / f"documents-{how}" / "artefact"
    folder.parent.mkdir()
    shutil.copytree(_base(), folder.parent / "base")
    settings = {"layers": "last:2", "neutral": "prompt", "site": "mlp" if how == "insert" else "attn"}
    edit = fit(folder.parent / "base", tiny.demonstrations(), **settings, merge="l2" if how == "insert" else "sum")
    bake(folder.parent / "base", edit, folder, how=how)
    assert verify(folder, max_new_tokens=4).passed
    return folder


@functools.cache
def _exported() -> Path:
    from sea_bake import export_onnx

    return export_onnx(_baked("insert"), tiny.root() / "documents-onnx", strength=True).output


@functools.cache
def _edit() -> Path:
    from sea_bake.artefact import Artefact

    (path,) = Artefact.open(_baked("fold")).edit_files
    return path


@functools.cache
def _merged() -> Path:
    """What somebody else might have made of the same edit: a checkpoint without any record of ours."""
    folder = tiny.changeable(_baked("fold"), tiny.root() / "documents-merged")
    shutil.rmtree(folder / "sea")
    return folder


@functools.cache
def _activations() -> Path:
    from sea_bake import collect
    from sea_bake.model.loading import load_model, load_tokenizer
    from sea_bake.model.source import ModelSource

    source = ModelSource.parse(_base())
    living = (load_model(source), load_tokenizer(source))
    found = collect(*living, tiny.demonstrations(), source=source, site="attn", neutral="prompt")
    return found.save(tiny.root() / "documents-activations.safetensors")


@functools.cache
def _halueval() -> Path:
    path = tiny.root() / "halueval_qa.jsonl"
    rows = [
        {"knowledge": "", "question": d.prompt, "right_answer": d.positive, "hallucinated_answer": d.negative}
        for d in tiny.demonstrations(100)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


@functools.cache
def _benchmarks() -> Path:
    import benchmarks

    folder = tiny.root() / "documents-data"
    folder.mkdir()
    return benchmarks.write(folder)


@functools.cache
def _triples() -> Path:
    path = tiny.root() / "documents-triples.jsonl"
    rows = [{"prompt": d.prompt, "positive": d.positive, "negative": d.negative} for d in tiny.demonstrations(24)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


STAND_INS: dict[str, Callable[[], Path]] = {
    "base": _base,
    "BASE": _base,
    "EDIT": _edit,
    "THEIR_MODEL": _merged,
    "me/truthful": _edit,  # here it wins over the Hub's
    "truthful.safetensors": _edit,
    "fair.safetensors": _edit,
    "edit.safetensors": _edit,
    "ablation.safetensors": _edit,
    "activations.safetensors": _activations,
    "halueval_qa.jsonl": _halueval,
    "triples.jsonl": _triples,
    "DATA": _benchmarks,
    "ARTEFACT": lambda: _baked("insert"),
    "smollm2-truthful": lambda: _baked("fold"),
    "smollm2-inserted": lambda: _baked("insert"),
    "smollm2-adapter": lambda: _baked("adapter"),
    "smollm2-onnx": _exported,
}


def _place(name: str, folder: Path) -> None:
    """Put the stand-in for a name into a folder, where there is none yet."""
    for needed in (name, "base"):  # artefacts find their base beside them
        if needed in STAND_INS and not (folder / needed).exists():
            source = STAND_INS[needed]()
            (folder / needed).parent.mkdir(exist_ok=True)
            (shutil.copytree if source.is_dir() else shutil.copyfile)(source, folder / needed)


@contextlib.contextmanager
def _inside(folder: Path) -> Iterator[None]:
    here = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(here)


def _run(line: str, folder: Path) -> str:
    """A command of ours on stand-ins, in a folder; what went wrong, or nothing."""
    words = [re.sub(rf"^({BASES})$", "base", word) for word in shlex.split(line)[1:]]
    words = [word for word in words if word not in LASTING]
    outputs = [words[i + 1] for i, word in enumerate(words[:-1]) if word in ("-o", "--output")]
    for word in words:
        if word not in outputs:
            _place(word, folder)
    given = next((words.index(option) for option in ("-d", "--demonstrations") if option in words), None)
    if words[0] == "export" and "smollm2-truthful" in words and "--strength" in words:
        shutil.rmtree(folder / "smollm2-truthful")  # of a fold nothing is left to scale
        shutil.copytree(_baked("insert"), folder / "smollm2-truthful")
    short = [*SHORT.get(words[0], ()), *(("--limit", "8") if words[0] == "fit" and given is None else ())]
    short = [] if "--activations" in words else short  # which fix all that
    with _inside(folder):
        ran = tiny.run(*words, *short)
    return "" if ran.code == 0 else f"{line}: {ran.code} {ran.err}"


@pytest.mark.slow
@pytest.mark.parametrize("fence", CONSOLE, ids=lambda fence: fence.place)
def test_commands_run(fence: Fence, tmp_path: Path) -> None:
    """One after the other in one folder, on a tiny model."""
    ours = [line for line in fence.commands() if line.startswith("sea-bake ") and not _elsewhere(line)]
    assert [problem for line in ours if (problem := _run(line, tmp_path))] == []


# ------------------------------------------------------------------------------------------------------------ Python


@pytest.mark.slow
@pytest.mark.parametrize("page", sorted({fence.page for fence in PYTHON}))
def test_python_runs(page: str, tmp_path: Path) -> None:
    """The blocks of a page one after the other, each in a new folder, with stand-ins for what they name."""
    names: dict[str, Any] = {}
    for i, fence in enumerate(fences(page, "python")):
        tree = ast.parse(fence.text)
        folder = tmp_path / str(i)
        folder.mkdir()
        texts = [node for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
        for node in texts:
            node.value = re.sub(rf"^({BASES})$", "base", node.value)
        made = {node.args[-1].value for node in ast.walk(tree) if _writes(node)}
        for node in texts:
            if node.value.split("/")[0] not in made:
                _place(node.value.split("/")[0], folder)
        program = compile(tree, fence.place, "exec")
        if not any(word in fence.text for word in COMPILED):
            with _inside(folder), contextlib.redirect_stdout(io.StringIO()):
                exec(program, names)


def _writes(node: ast.AST) -> bool:
    """``bake(..., "out")``, ``edit.save("file")``"""
    if not isinstance(node, ast.Call) or not node.args or not isinstance(node.args[-1], ast.Constant):
        return False
    return ast.unparse(node.func) == "bake" or ast.unparse(node.func).endswith(".save")


def test_python_imports_what_there_is() -> None:
    wrong = []
    for fence in PYTHON:
        for node in ast.walk(ast.parse(fence.text)):
            if isinstance(node, ast.ImportFrom) and str(node.module).partition(".")[0] == "sea_bake":
                wrong += [f"{fence.place}: {a.name}" for a in node.names if not _resolves(str(node.module), a.name)]
    assert not wrong, "\n".join(wrong)
    assert PYTHON
