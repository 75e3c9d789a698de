"""Tiny real models with a real tokenizer, made once per run; the command line, called in this very process; and a
nursery of processes that can be killed.

Run as a script (``python tests/tiny.py``) it is the nursery: it imports everything once, then forks one child for each
command it is told, so that a kill falls into the work and not into three seconds of imports.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import functools
import gc
import hashlib
import io
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import doors
from roomy import roomy

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # of processes started here: tiny models gain nothing from more

LAYERS, HIDDEN, VOCAB, CONTEXT = 4, 32, 512, 512
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)


@functools.cache
def root() -> Path:
    """A folder of this run, removed at its end."""
    folder = Path(tempfile.mkdtemp(prefix="sea-bake-tests-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


# ------------------------------------------------------------------------------------------------ models and tokenizers


@functools.cache
def tokenizer(*, chat: bool = False, appends_eos: bool = False) -> Any:
    """A byte-level BPE trained on the built-in demonstrations: 512 tokens, <s> in front, </s> behind on demand."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    from sea_bake.demonstrations import builtin

    trained = tokenizers.Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trained.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    trained.train_from_iterator([t for d in builtin() for t in (d.prompt, d.positive, d.negative)], trainer)
    trained.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>" if appends_eos else "<s> $A", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    made = PreTrainedTokenizerFast(
        tokenizer_object=trained, pad_token="<pad>", bos_token="<s>", eos_token="</s>", model_max_length=CONTEXT
    )
    if chat:
        made.chat_template = CHAT_TEMPLATE
    return made


def new_llama(seed: int = 0, **changes: Any) -> Any:
    """A random Llama in float32 and evaluation mode.

    Weights of standard deviation 0.2 (not transformers' 0.02): its answers then depend on its layers, not on the
    embeddings alone, so an edit is seen.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    settings = {
        "vocab_size": VOCAB,
        "hidden_size": HIDDEN,
        "intermediate_size": 64,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": CONTEXT,
        "initializer_range": 0.2,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(**{**settings, **changes})).eval()


def write_llama(folder: Path, *, shard: str | None = None, chat: bool = False, seed: int = 0, **changes: Any) -> Path:
    """Save a model of ``new_llama`` with its tokenizer, once; ``shard`` is the size of a shard, such as "40KB"."""
    if folder.exists():
        return folder
    new_llama(seed, **changes).save_pretrained(folder, **({"max_shard_size": shard} if shard else {}))
    tokenizer(chat=chat).save_pretrained(folder)
    return folder


def single(*, chat: bool = False, seed: int = 0) -> Path:
    """A checkpoint in one file. Not to be changed: ``changeable`` copies it."""
    return write_llama(root() / f"single{'-chat' * chat}-{seed}", chat=chat, seed=seed)


def sharded(*, seed: int = 0) -> Path:
    """The model of ``single`` in several shards and an index. Not to be changed."""
    return write_llama(root() / f"sharded-{seed}", shard="40KB", seed=seed)


def large() -> Path:
    """A Llama of more than 20 shards, some 115 MB: baking it with --copy takes long enough to be killed on the way."""
    size = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 25, "initializer_range": 0.05}
    return write_llama(root() / "large", shard="5MB", **size)


def changeable(folder: Path, target: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(folder, target))


def patch_json(path: Path, **changes: Any) -> None:
    """Set keys of a JSON object on disk; None removes one."""
    data = {**json.loads(path.read_text("utf-8")), **changes}
    path.write_text(json.dumps({k: v for k, v in data.items() if v is not None}), "utf-8")


# ------------------------------------------------------------------------------------------------ demonstrations, edits


def demonstrations(count: int = 8) -> list[Any]:
    """The first of the built-in ones."""
    from sea_bake.demonstrations import builtin

    return builtin()[:count]


@functools.cache
def demonstrations_file(count: int = 8) -> Path:
    """The same as JSON Lines."""
    path = root() / f"triples-{count}.jsonl"
    rows = ({"prompt": d.prompt, "positive": d.positive, "negative": d.negative} for d in demonstrations(count))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


# The paper's way of editing, whatever fit's defaults are: what needs an inserted layer takes it. What such an edit is
# worth, nobody asks here: measuring that is four fifths of a fit.
PAPER: dict[str, Any] = {"site": "mlp", "merge": "l2", "centre": False, "alpha": 1.0, "measure": False}


def edit_file(folder: Path | None = None, site: str = "mlp") -> Path:
    """An edit of all layers, fitted on 8 demonstrations. Not to be changed."""
    from sea_bake import fit

    folder = folder or single()
    path = root() / f"{folder.name}-{site}.safetensors"
    if path.exists():
        return path
    fit(folder, demonstrations(), layers="all", neutral="prompt", K=0.9, **{**PAPER, "site": site}).save(path)
    return path


# ----------------------------------------------------------------------------------------------------- looking at disks


def snapshot(folder: Path) -> dict[str, tuple[int, int, int, str]]:
    """Every file below a folder -> (mode, size, time of change in ns, SHA-256): what "untouched" means."""
    return {
        str(path.relative_to(folder)): (
            path.stat().st_mode,
            path.stat().st_size,
            path.stat().st_mtime_ns,
            # A file of more than 1 GB is a sparse one, made to be too large: its size and time have to do.
            sha256(path) if path.stat().st_size < 1 << 30 else "",
        )
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"  # which some releases of filelock touch
    }


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def listing(folder: Path) -> set[str]:
    """Names in a folder, hidden ones too: what litter would show in."""
    return {path.name for path in folder.iterdir()}


# ----------------------------------------------------------------------------------------------------- the command line


@dataclass(frozen=True)
class Ran:
    """What a command left behind: exit code, stdout, stderr."""

    code: int
    out: str
    err: str

    @property
    def message(self) -> str:
        """The error's text without the frame that is drawn around it."""
        return " ".join(re.sub(r"[│╭╮╰╯─┌┐└┘]", " ", self.err).split())


@functools.cache
def commands() -> Any:
    """The command line, made of its functions once in this process and in those forked from it: half of the time that
    a refused command takes.
    """
    import typer.main

    from sea_bake.cli import app

    typer.main.get_command = functools.cache(typer.main.get_command)
    made = typer.main.get_command(app)
    for name in made.list_commands(None):
        made.get_command(None, name)
    return made


def run(*args: Any) -> Ran:
    """``sea-bake ARGS`` through its own ``main``, in this process: what ``sys.exit`` is told is the exit code."""
    from sea_bake.cli import main

    commands()
    argv, columns, out, err = sys.argv, os.environ.get("COLUMNS"), io.StringIO(), io.StringIO()
    sys.argv = ["sea-bake", *map(str, args)]
    os.environ["COLUMNS"] = "4000"  # no line of an error is broken
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = 0
            try:
                main()
            except SystemExit as stop:
                code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    finally:
        sys.argv = argv
        os.environ.pop("COLUMNS")
        if columns is not None:
            os.environ["COLUMNS"] = columns
    return Ran(code, out.getvalue(), err.getvalue())


def refused(ran: Ran, kind: str, *words: str) -> None:
    """Assert one clear paragraph: exit code 2, stdout empty, the error's kind and all telling words, no traceback."""
    assert ran.code == 2, ran
    assert ran.out == "", ran
    assert "Traceback" not in ran.err, ran
    assert kind in ran.err, ran
    missing = [word for word in words if word not in ran.message]
    assert not missing, f"{missing} not in: {ran.message}"


@contextlib.contextmanager
def nothing_happens(parent: Path, *inputs: Path) -> Iterator[None]:
    """Assert that a block leaves no new name in ``parent``, and the inputs as they were."""
    names, before = listing(parent), [snapshot(folder) for folder in inputs]
    yield
    assert listing(parent) == names
    assert [snapshot(folder) for folder in inputs] == before


# -------------------------------------------------------------------------------------------------------------- nursery


class Nursery:
    """A process that has imported sea_bake, and forks a child for every command: one that may be killed."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        atexit.register(self.close)

    def start(self, *args: Any, limit: int | None = None, warm: bool = False) -> int:
        """Start ``sea-bake ARGS`` and return its pid, at the moment it begins to work.

        Args:
            limit: the largest file it may write, in bytes (RLIMIT_FSIZE): beyond it the system says EFBIG.
            warm: run it in the nursery itself, so that all children inherit what it imports.
        """
        self._tell({"args": list(map(str, args)), "limit": limit, "warm": warm})
        return int(self._hear()["pid"])

    def wait(self) -> tuple[Ran, float]:
        """How the command ended (a negative code: by that signal), and the seconds it took. No more signals now."""
        self._tell({})
        heard = self._hear()
        return Ran(heard["code"], heard["out"], heard["err"]), heard["seconds"]

    def run(self, *args: Any, **options: Any) -> tuple[Ran, float]:
        self.start(*args, **options)
        return self.wait()

    def killed(self, delay: float, *args: Any, with_signal: int = signal.SIGKILL) -> Ran:
        """Start a command, send it a signal after ``delay`` seconds, and see it end."""
        pid = self.start(*args)
        time.sleep(delay)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, with_signal)  # surely still ours: the nursery reaps it when it is waited for
        return self.wait()[0]

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.stdin.close()
            self.process.wait()

    def _tell(self, message: dict[str, Any]) -> None:
        self.process.stdin.write(json.dumps(message) + "\n")

    def _hear(self) -> dict[str, Any]:
        return json.loads(self.process.stdout.readline())


@functools.cache
def nursery() -> Nursery:
    """The one of this run, which has baked and fitted once, so that every module is imported."""
    made = Nursery()
    for args in (
        ("bake", single(), edit_file()),
        ("fit", single(), "-d", demonstrations_file(), "--neutral", "prompt"),
    ):
        ran, _ = made.run(*args, "-o", root() / f"nursery-{args[0]}", warm=True)
        assert ran.code == 0, ran
    return made


def preload() -> None:
    """Import what the commands will, so that no child does."""
    import peft  # noqa: F401
    from transformers import AutoModelForCausalLM, LlamaForCausalLM, PreTrainedTokenizerFast  # noqa: F401

    import sea_bake.baking.adapter
    import sea_bake.baking.fold
    import sea_bake.baking.insert
    import sea_bake.fitting
    import sea_bake.publishing
    import sea_bake.verification.checkpoint  # noqa: F401

    commands()


def _serve() -> None:
    doors.one_thread()
    answers = os.fdopen(os.dup(1), "w")
    while line := sys.stdin.readline():
        _work(json.loads(line), answers)


def _work(request: dict[str, Any], answers: Any) -> None:
    say = functools.partial(print, file=answers, flush=True)
    if request["warm"]:
        say(json.dumps({"pid": os.getpid()}))
        began, ran = time.monotonic(), run(*request["args"])
        sys.stdin.readline()
        say(json.dumps({**vars(ran), "seconds": time.monotonic() - began}))
        return
    if request["args"][0] == "verify":
        doors.begin()
    streams = {name: os.pipe() for name in ("began", "out", "err")}  # not files: a limit on their size is part of tests
    for _, writing in streams.values():
        fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 1 << 20)  # read only after the end, so room for all that is said
    gc.freeze()  # a bake collects garbage, and would look through all that the nursery has imported
    pid = os.fork()
    if pid == 0:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job starts with it ignored
        try:
            _live(request, *(writing for _, writing in streams.values()))
        finally:
            os._exit(1)
    for _, writing in streams.values():
        os.close(writing)
    os.read(streams["began"][0], 1)
    began = time.monotonic()
    say(json.dumps({"pid": pid}))
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    seconds = time.monotonic() - began
    sys.stdin.readline()
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    said = {name: os.fdopen(reading, "r").read() for name, (reading, _) in streams.items() if name != "began"}
    os.close(streams["began"][0])
    say(json.dumps({"code": code, **said, "seconds": seconds}))


def _live(request: dict[str, Any], began: int, out: int, err: int) -> None:
    """The child: the command line as ``sea-bake`` itself would start it, then gone without any clean-up of ours."""
    for number, stream in ((0, os.open(os.devnull, os.O_RDONLY)), (1, out), (2, err)):
        os.dup2(stream, number)
    sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
    if request["limit"] is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (request["limit"], request["limit"]))  # python ignores SIGXFSZ
    sys.argv = ["sea-bake", *request["args"]]
    os.environ["COLUMNS"] = "4000"
    from sea_bake.cli import main

    code = 0
    try:
        os.write(began, b"!")
        roomy(main)
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        code = 1
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    _serve()
