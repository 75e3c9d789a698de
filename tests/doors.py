"""The processes of ``verify``, forked from one that has imported transformers and loaded a model already: a fork takes
a tenth of a second where a new process takes four.

Scripts that measure are run so too, under ``--smoke``, and the processes that they start of themselves.

A test that is marked ``own_processes`` gets processes of its own, and so does every process whose environment another
one has changed in what these libraries read when they are imported. As a script (``python tests/doors.py``) this is the
process that forks; sea_bake is not imported in it, and in no child that does not ask for it.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import gc
import io
import json
import os
import runpy
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import types
from typing import Any

READ_AT_IMPORT = ("HF_", "HUGGINGFACE", "TRANSFORMERS", "PYTORCH", "TORCH", "CUDA", "PYTHON", "HOME", "OMP_", "MKL_")


# By torch and by lm_eval themselves, for what is compiled and what is fetched: neither is done here.
SET_AT_IMPORT = ("TORCHINDUCTOR_CACHE_DIR", "HF_XET_HIGH_PERFORMANCE", "HF_HUB_ENABLE_HF_TRANSFER")


def read_at_import(environment: Any) -> dict[str, str]:
    return {k: v for k, v in environment.items() if k.startswith(READ_AT_IMPORT) and k not in SET_AT_IMPORT}


class Doors:
    """A process that has imported "torch", transformers and PEFT, or "onnxruntime" alone, and forks a child for every
    command.
    """

    def __init__(self, environment: dict[str, str], library: str) -> None:
        command = [sys.executable, "-I", __file__, library]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        atexit.register(self.close)

    def run(self, command: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
        number = f"{os.getpid()}.{time.monotonic_ns()}"
        asked = {"number": number, "command": command[1:], "environment": environment}
        self.process.stdin.write(json.dumps(asked) + "\n")
        self.process.stdin.flush()
        while line := self.process.stdout.readline():
            with contextlib.suppress(ValueError):  # what is left of an answer whose reader was killed
                answer = json.loads(line)
                if answer.pop("number") == number:
                    return subprocess.CompletedProcess(command, **answer)
        raise RuntimeError(f"the process that forks has ended: {self.process.wait()}")

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.stdin.close()
            self.process.wait()


@functools.cache
def _doors(environment: tuple[tuple[str, str], ...], library: str) -> Doors:
    """One for all processes whose environments differ in nothing that is read when libraries are imported."""
    own = read_at_import(os.environ)
    return Doors({k: v for k, v in os.environ.items() if k not in own} | dict(environment), library)


def _key(environment: Any) -> tuple[tuple[str, str], ...]:
    return tuple(sorted(read_at_import(environment).items()))


def forked(command: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """``subprocess.run`` in an environment of its own: a fork of a process that has imported transformers in it."""
    return _doors(_key(environment), "torch").run(command, environment)


_first: list[dict[str, str]] = []


def begin() -> None:
    """``verify`` in this process, and in those that are forked from it, forks its processes: one of them at a time."""
    from sea_bake.verification import doors as verification

    if not _first:
        _first.append({**os.environ, "HF_HUB_DISABLE_PROGRESS_BARS": "1", "TRANSFORMERS_VERBOSITY": "error"})
        _doors(_key(_first[0]), "torch")
        vars(verification)["subprocess"] = types.SimpleNamespace(run=run, DEVNULL=subprocess.DEVNULL)


def run(command: list[str], *, env: dict[str, str], **options: Any) -> subprocess.CompletedProcess[str]:
    """``subprocess.run`` for ``verify``: a fork where that is as good."""
    library = "onnxruntime" if any("onnx_answers" in word for word in command) else "torch"
    if not _first:
        _first.append(dict(env))
    if _key(env) == _key(_first[0]):
        return _doors(_key(env), library).run(command, env)
    return subprocess.run(command, env=env, **options)


def one_thread() -> None:
    """Of a process that forks. A pool of threads does not survive that: each child makes its own before it has threads,
    since of two that ask for it at once one would find none.
    """
    import torch

    torch.set_num_threads(1)
    os.register_at_fork(after_in_child=functools.partial(torch.set_num_threads, 1))


def warm() -> None:
    """What transformers works out once in a process, and every child would anew: how checkpoints of all its families
    are renamed, and what the first model of all imports and looks up. No thread is begun.
    """
    import torch
    import tqdm
    from transformers import AutoModelForCausalLM, LlamaConfig

    interval, tqdm.tqdm.monitor_interval = tqdm.tqdm.monitor_interval, 0  # which would be a thread
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 1, "num_hidden_layers": 1}
    made = AutoModelForCausalLM.from_config(LlamaConfig(**sizes, vocab_size=8, pad_token_id=0))
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()), torch.inference_mode():
        made.save_pretrained(folder)
        loaded = AutoModelForCausalLM.from_pretrained(folder)
        loaded.generate(torch.tensor([[1, 2]]), max_new_tokens=2, do_sample=False)
    tqdm.tqdm.monitor_interval = interval
    assert threading.active_count() == 1


def _serve(library: str) -> None:
    if library == "torch":
        import peft  # noqa: F401
        from transformers import AutoModelForCausalLM, LlamaForCausalLM, PreTrainedTokenizerFast  # noqa: F401

        one_thread()
        answers = os.fdopen(os.dup(1), "w")
        warm()
    else:  # the door of a graph has no torch
        import onnxruntime  # noqa: F401
        import safetensors.numpy  # noqa: F401

        assert "torch" not in sys.modules
        answers = os.fdopen(os.dup(1), "w")
    assert "sea_bake" not in sys.modules
    while line := sys.stdin.readline():
        asked = json.loads(line)
        code, out, err = _forked(asked)
        answer = {"number": asked["number"], "returncode": code, "stdout": out, "stderr": err}
        print(json.dumps(answer), file=answers, flush=True)


def _forked(asked: dict[str, Any]) -> tuple[int, str, str]:
    """Exit code and what was written, of a command in a fork of this process."""
    gc.freeze()  # no child looks for garbage among what was imported here
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        pid = os.fork()
        if pid == 0:
            _live(asked, out.fileno(), err.fileno())
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read().decode("utf-8", "replace"))
    return code, *texts


_start, _popen = subprocess.run, subprocess.Popen


def _ours(command: Any) -> bool:
    """Whether a script starts itself (``--child``), a command line of ours or transformers', a door, or the server that
    stands in.
    """
    if isinstance(command, str) or command[0] != sys.executable:
        return False
    words = list(map(str, command[1:]))
    door = words[0] == "-I" or (words[0] == "-c" and "runpy.run_module" in words[1])
    line = words[:2] in (["-m", "sea_bake"], ["-m", "transformers.cli.transformers"])
    return door or "--child" in words or line or "stand_ins.py" in words[0]


def _fork_of_script(command: Any, **options: Any) -> Any:
    """``subprocess.run`` inside a script of ours: a fork of what is ours."""
    if not _ours(command) or not {*options} <= {"capture_output", "text", "env", "cwd", "stdin", "stdout"}:
        return _start(command, **options)
    code, out, err = _forked(_asked(command, options))
    if "stdout" in options:
        options["stdout"].write(out)
        options["stdout"].flush()
    return subprocess.CompletedProcess(command, code, out, err)


def _asked(command: Any, options: dict[str, Any]) -> dict[str, Any]:
    environment = dict(options.get("env") or os.environ)
    return {"command": list(map(str, command[1:])), "environment": environment, "cwd": options.get("cwd")}


class _Server:
    """``subprocess.Popen`` inside a script of ours, of what goes on meanwhile and writes into one file."""

    def __new__(cls, command: Any, **options: Any) -> Any:
        into_one = options.get("stderr") == subprocess.STDOUT and options.get("start_new_session")
        return super().__new__(cls) if _ours(command) and into_one else _popen(command, **options)

    def __init__(self, command: Any, *, stdout: Any, **options: Any) -> None:
        self.returncode: int | None = None
        gc.freeze()
        self.pid = os.fork()
        if self.pid == 0:
            os.setsid()
            _live(_asked(command, options), stdout.fileno(), stdout.fileno())

    def poll(self) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def wait(self, timeout: float) -> int:
        end = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired("", timeout)
            time.sleep(0.02)
        return code


def _live(asked: dict[str, Any], out: int, err: int) -> None:
    """The child: the command as ``python`` itself would run it, then gone without any clean-up of ours."""
    code = 1
    try:
        for number, stream in ((0, os.open(os.devnull, os.O_RDONLY)), (1, out), (2, err)):
            os.dup2(stream, number)
        sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
        os.environ.clear()
        os.environ.update(asked["environment"])
        os.chdir(asked.get("cwd") or os.getcwd())
        words = [word for word in asked["command"] if word != "-I"]
        if words == asked["command"]:  # this process is isolated, and that one would not be
            sys.path[:0] = filter(None, asked["environment"].get("PYTHONPATH", "").split(os.pathsep))
        module, text = words[0] == "-m", words[0] == "-c"
        if "-I" not in asked["command"] and not module and not text:  # where a script looks for what it imports
            paths = asked["environment"].get("PYTHONPATH", "").split(os.pathsep)
            sys.path[:0] = [os.path.dirname(words[0]), *filter(None, paths)]
            vars(subprocess).update(run=_fork_of_script, Popen=_Server)
        if "-I" in asked["command"]:  # of a script that has imported it
            for name in [name for name in sys.modules if name.partition(".")[0] == "sea_bake"]:
                del sys.modules[name]
        sys.argv = words[module:]
        roomy = runpy.run_path(os.path.join(os.path.dirname(__file__), "roomy.py"))["roomy"]
        if text:
            sys.argv = ["-c", *words[2:]]
            roomy(lambda: exec(words[1], {"__name__": "__main__"}))
            sys.exit(0)
        start = runpy.run_module if module else runpy.run_path
        roomy(lambda: start(words[module], run_name="__main__"))
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    _serve(sys.argv[1])
