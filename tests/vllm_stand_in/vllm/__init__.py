"""What lm-evaluation-harness uses of vLLM, by transformers: for tests where vLLM, which is gigabytes, is not."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


class SamplingParams(SimpleNamespace):
    """Its arguments."""


def TokensPrompt(*, prompt_token_ids: list[int]) -> list[int]:  # noqa: N802 - vLLM's own name
    return prompt_token_ids


class LLM:
    """Loads what vLLM would be given; an adapter comes with each request, as there."""

    given: ClassVar[list[dict[str, Any]]] = []  # of every one that was made

    def __init__(self, **arguments: Any) -> None:
        LLM.given.append(arguments)
        self.plain = AutoModelForCausalLM.from_pretrained(arguments["model"]).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(arguments["tokenizer"])
        longest = self.plain.config.max_position_embeddings
        self.llm_engine = SimpleNamespace(model_config=SimpleNamespace(max_model_len=longest))

    def generate(self, prompts: list[list[int]], sampling_params: Any, lora_request: Any = None, **_: Any) -> list[Any]:
        model = self.plain
        if lora_request is not None:
            from peft import PeftModel

            model = PeftModel.from_pretrained(self.plain, lora_request.lora_path).eval()
        with torch.inference_mode():
            found = [self._answered(model, ids, how) for ids, how in zip(prompts, sampling_params, strict=True)]
        if lora_request is not None:
            model.unload()
        return found

    def _answered(self, model: Any, ids: list[int], how: SamplingParams) -> Any:
        if getattr(how, "prompt_logprobs", None) is None:
            out = model.generate(torch.tensor([ids]), max_new_tokens=how.max_tokens, do_sample=False)
            text = self.tokenizer.decode(out[0, len(ids) :], skip_special_tokens=True)
            cut = min([text.find(stop) for stop in how.stop or () if stop in text], default=len(text))
            return SimpleNamespace(outputs=[SimpleNamespace(text=text[:cut])])
        logs = model(torch.tensor([ids])).logits[0].float().log_softmax(-1)
        rows: list[Any] = [None]
        for i, token in enumerate(ids[1:]):
            best = int(logs[i].argmax())
            rows.append({one: SimpleNamespace(logprob=float(logs[i, one])) for one in (token, best)})
        return SimpleNamespace(prompt_logprobs=rows)
