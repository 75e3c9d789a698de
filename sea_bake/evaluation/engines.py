"""Another engine than transformers behind the harness' door: its own vLLM model, which is handed folds and adapters.

vLLM answers tasks; it has no hooks, and gives no distributions: live edits and costs on running text are transformers'.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any

from sea_bake.activations.prompt_format import PromptFormat
from sea_bake.activations.rendering import complete
from sea_bake.baking.open_base import check_edits, open_folder
from sea_bake.errors import EvaluationError, MissingExtraError, SettingError
from sea_bake.evaluation.doors import BASE, Doors
from sea_bake.model.processes import are_several

TRANSFORMERS, VLLM = "transformers", "vllm"
BACKENDS = (TRANSFORMERS, VLLM)


def check_backend(doors: Doors, *, cost: bool, behaviours: bool) -> None:
    """Raise for a backend that is not known, not installed, or cannot do what it is asked, before anything is loaded.

    Raises:
        SettingError, MissingExtraError, EvaluationError: see above.
        WrongModelError: the artefact was baked from another base.
    """
    backend = doors.backend
    if backend not in BACKENDS:
        raise SettingError(f"unknown backend {backend!r}: use one of {', '.join(BACKENDS)}")
    if backend == TRANSFORMERS:
        return
    if find_spec("vllm") is None:
        raise MissingExtraError(
            "the backend vllm needs the package 'vllm', which wants an environment of its own for its torch. Install "
            "it there, beside sea-bake, with: pip install 'lm-eval[vllm]'"
        )
    if doors.how == "live":
        raise EvaluationError("vLLM has no hooks for a live edit: bake it (sea-bake bake), and evaluate the artefact")
    if behaviours:
        raise EvaluationError("the backend vllm answers tasks alone: drop --behaviours, or --backend")
    if cost:
        raise EvaluationError("the backend vllm gives no distributions, which costs are read from: pass --no-cost")
    if are_several():
        raise EvaluationError("vLLM parts its work by itself: start one process for the backend vllm")
    if doors.device is not None:
        raise EvaluationError("vLLM chooses its devices by itself (CUDA_VISIBLE_DEVICES): drop --device")
    for name in doors.names:
        arguments(doors, name)
    if doors.artefact is not None:
        check_edits(open_folder(doors.base.folder(), doors.base), doors.artefact.edits)


class Engine:
    """One door, open in vLLM, as :class:`sea_bake.evaluation.running.Session` is in transformers.

    Args:
        arguments: of the harness' ``VLLM``.
    """

    def __init__(self, arguments: dict[str, Any]) -> None:
        self._lm = _made(arguments)

    def lm(self, advance: Callable[[int], None], data: str) -> Any:
        self._lm.advance = advance
        return self._lm

    def check(self, *, cost: bool) -> None:
        """It has been asked nothing that it cannot do."""


@contextlib.contextmanager
def opened(doors: Doors, name: str) -> Iterator[Engine]:
    """The engine behind a door; its memory is given back.

    Raises:
        EvaluationError: an insert, or a base that is no folder of safetensors.
    """
    engine = Engine(arguments(doors, name))
    try:
        yield engine
    finally:
        del engine
        gc.collect()


def arguments(doors: Doors, name: str) -> dict[str, Any]:
    """What the harness' vLLM model is given for a door.

    Raises:
        EvaluationError: an insert, an adapter of too high a rank, or a base that is no folder of safetensors.
    """
    source = doors.base
    if source.is_gguf or source.is_adapter:
        raise EvaluationError(f"vLLM is handed folders of safetensors, and {source.name} is none: merge or convert it")
    if doors.how not in (None, "fold", "adapter"):
        raise EvaluationError(f"vLLM is handed folds and adapters, no {doors.how}: bake it as one of them (--how fold)")
    base = str(source.folder())
    given: dict[str, Any] = {"pretrained": base, "tokenizer": base, "dtype": doors.dtype}
    if name == BASE or doors.artefact is None:
        return given
    folder = str(doors.artefact.folder)
    if doors.how != "adapter":
        return given | {"pretrained": folder}
    flag = str(getattr(doors.artefact.record, "details", {}).get("flags", {}).get("vLLM", ""))
    rank = flag.rpartition(" ")[2]
    if not rank.isdigit() or not flag.startswith("--enable-lora"):
        raise EvaluationError(f"vLLM cannot serve this adapter ({flag or 'its rank is not known'}): bake it as a fold")
    return given | {"lora_local_path": folder, "max_lora_rank": int(rank)}


def _made(arguments: dict[str, Any]) -> Any:
    """The harness' own model, which also notes what records of answers are made of."""
    from lm_eval.models import vllm_causallms

    class Noted(vllm_causallms.VLLM):
        """With ``lengths``, ``cut``, ``form`` and ``advance`` of ``language_model.SharedPrefixLM``."""

        def __init__(self, **given: Any) -> None:
            super().__init__(**given)
            self.lengths: dict[tuple[str, ...], int] = {}
            self.cut: dict[tuple[str, ...], int] = {}
            self.form = PromptFormat()
            self.advance: Callable[[int], None] = lambda count: None

        def apply_chat_template(self, chat_history: Any, add_generation_prompt: bool = True) -> str:
            if not add_generation_prompt:
                return str(super().apply_chat_template(chat_history, add_generation_prompt))
            return complete(self.tokenizer, chat_history, self.form)

        def _loglikelihood_tokens(self, requests: Any, disable_tqdm: bool = True, **more: Any) -> Any:
            for texts, prompt, answer in requests:
                if texts is not None:
                    self.lengths[texts] = len(answer)
                    self._note(texts, len(prompt) + len(answer) - (self.max_length - 1))
            found = super()._loglikelihood_tokens(requests, disable_tqdm=True, **more)
            if any(value != value for value, _ in found):
                raise EvaluationError("vLLM gives NaN log-likelihoods")
            self.advance(len(found))
            return found

        def generate_until(self, requests: Any, disable_tqdm: bool = True) -> Any:
            for request in requests:
                room = self.max_length - int(request.args[1].get("max_gen_toks", self.max_gen_toks))
                self._note((request.args[0],), len(self.tok_encode(request.args[0])) - room)
            found = super().generate_until(requests, disable_tqdm=True)
            self.advance(len(found))
            return found

        def _note(self, texts: tuple[str, ...], tokens: int) -> None:
            if tokens > 0:
                self.cut[texts] = tokens

    return Noted(**arguments)
