"""What stands in under ``--smoke`` for runtimes that have environments of their own: it answers, and measures nothing.

vLLM         an HTTP server with the two endpoints that are asked, answered by transformers (this file, run as a script)
optimum      a greedy loop around ONNX Runtime
repeng       random vectors in a file as it writes it, added by layers that are wrapped as its own
quantisers   bitsandbytes in the place of all that write checkpoints, gguf-py in llama.cpp's
TRL          a training loop of a few lines
"""

from __future__ import annotations

import argparse
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

# -------------------------------------------------------------------------------------------------------------- repeng


def repeng(task: dict[str, Any], answers: Any) -> dict[str, Any]:
    """Vectors of its form, written by the tests, and a model whose layers are wrapped; see scripts/check_repeng."""
    import smoke

    smoke.tests()
    import foreign
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(task["model"], dtype=torch.float32).eval()
    layers = range(1, model.config.num_hidden_layers)
    rows = foreign.vectors(model, len(layers))
    foreign.control_vector(Path(task["vector"]), dict(zip(layers, rows)))
    for layer, v in zip(layers, rows):
        model.model.layers[layer] = foreign.Wrapped(model.model.layers[layer], task["strength"] * v)
    return {"tokens": answers(model, task), "layers": len(layers), "versions": {"repeng": "(a stand-in)"}}


# ---------------------------------------------------------------------------------------------------------- quantisers


def quantised(source: Path, target: Path, bits: int, inserted: bool) -> None:
    """A copy of a checkpoint in 8 or 4 bits."""
    import smoke
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

    if target.suffix == ".gguf":
        smoke.gguf(source, target, f"Q{bits}_0")
        return
    options: dict[str, Any] = {"trust_remote_code": True} if inserted else {}
    config = BitsAndBytesConfig(**{f"load_in_{bits}bit": True})
    model = AutoModelForCausalLM.from_pretrained(source, device_map="cpu", quantization_config=config, **options)
    model.save_pretrained(target)
    AutoTokenizer.from_pretrained(source).save_pretrained(target)


# ----------------------------------------------------------------------------------------------------------------- TRL


def fine_tuned(
    model: Any, tokenizer: Any, chats: list[list[dict[str, str]]], config: Any, folder: Path, steps: int
) -> tuple[Any, list[float]]:
    """A LoRA, trained on one chat; see scripts/check_trl."""
    import torch
    from peft import get_peft_model

    told = tokenizer.apply_chat_template(chats[0], tokenize=True, return_dict=True, return_tensors="pt")
    made, losses = get_peft_model(model, config).train(), []
    optimiser = torch.optim.AdamW([p for p in made.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(steps):
        loss = made(**told, labels=told["input_ids"]).loss
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        losses.append(float(loss.detach()))
    made.save_pretrained(folder)
    return made, losses


# ------------------------------------------------------------------------------------------------------------- optimum


class OnnxModel:
    """An exported folder behind the one method of ORTModelForCausalLM that is called."""

    def __init__(self, folder: Path) -> None:
        import numpy as np
        import onnxruntime

        self.session = onnxruntime.InferenceSession(str(folder / "onnx" / "model.onnx"))
        self.outputs = [output.name for output in self.session.get_outputs()]
        self.inputs = {value.name: value for value in self.session.get_inputs()}
        self.empty = {
            name: (value.shape[1], 0, value.shape[3]) for name, value in self.inputs.items() if "past" in name
        }
        self.eos = json.loads((folder / "config.json").read_text("utf-8"))["eos_token_id"]
        self.np = np

    def generate(self, input_ids: Any, attention_mask: Any, *, max_new_tokens: int, **_: Any) -> Any:
        """Greedy; never the end of the text, since as many tokens are asked for at least."""
        import torch

        np = self.np
        ids, mask = input_ids.numpy(), attention_mask.numpy()
        whole, cache = ids, {n: np.zeros((len(ids), *shape), np.float32) for n, shape in self.empty.items()}
        for _step in range(max_new_tokens):
            positions = (mask.cumsum(1) - 1).clip(0)[:, -ids.shape[1] :]
            feeds = {"input_ids": ids, "attention_mask": mask, "position_ids": positions} | cache
            made = dict(zip(self.outputs, self.session.run(None, {n: feeds[n] for n in self.inputs})))
            logits = made.pop("logits")[:, -1]
            logits[:, self.eos] = -np.inf
            cache = {name.replace("present", "past_key_values", 1): value for name, value in made.items()}
            ids = logits.argmax(-1)[:, None]
            whole, mask = np.concatenate([whole, ids], 1), np.concatenate([mask, np.ones_like(ids)], 1)
        return torch.from_numpy(whole)


# ---------------------------------------------------------------------------------------------------------------- vLLM


def load(args: argparse.Namespace) -> dict[str, Any]:
    """Name in requests -> model."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    options = {"dtype": args.dtype, "trust_remote_code": args.trust_remote_code}
    models = {args.served_model_name: AutoModelForCausalLM.from_pretrained(args.model, **options).eval()}
    for given in args.lora_modules:
        if not args.enable_lora:
            raise SystemExit("--lora-modules needs --enable-lora")
        name, _, folder = given.partition("=")
        base = AutoModelForCausalLM.from_pretrained(args.model, **options)
        models[name] = PeftModel.from_pretrained(base, folder).eval()
    return models


def answer(model: Any, ids: list[int], request: dict[str, Any]) -> tuple[list[int], list[float]]:
    """Greedy tokens and their log-probabilities."""
    import torch

    with torch.inference_mode():
        prompt = torch.tensor([ids])
        limits = {"min_new_tokens": request["min_tokens"], "max_new_tokens": request["max_tokens"]}
        whole = model.generate(
            input_ids=prompt, attention_mask=torch.ones_like(prompt), do_sample=False, **limits
        )  # fmt: skip
        new = whole[0, len(ids) :]
        rows = model(input_ids=whole).logits[0, len(ids) - 1 : -1].log_softmax(-1)
    return new.tolist(), rows.gather(-1, new[:, None])[:, 0].tolist()


def serve() -> None:
    """An OpenAI endpoint with vLLM's flags, as far as check_vllm uses them."""
    parser = argparse.ArgumentParser(description=serve.__doc__)
    for flag in ("--model", "--served-model-name", "--host", "--dtype"):
        parser.add_argument(flag, required=True)
    for flag in ("--port", "--max-model-len", "--max-num-seqs", "--max-lora-rank"):
        parser.add_argument(flag, type=int)
    for flag in ("--trust-remote-code", "--enable-lora", "--enforce-eager", "--disable-log-stats"):
        parser.add_argument(flag, action="store_true")
    parser.add_argument("--lora-modules", nargs="*", default=[])
    args = parser.parse_args()
    models, lock = load(args), threading.Lock()
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(args.model)

    class Door(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.reply(200 if self.path == "/health" else 404, {})

        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            ids = request.get("prompt")
            if self.path == "/v1/chat/completions":
                ids = tokenizer.apply_chat_template(
                    request["messages"], add_generation_prompt=True, tokenize=True, return_dict=True
                )["input_ids"]
            with lock:
                tokens, logprobs = answer(models[request["model"]], ids, request)
            text = tokenizer.decode(tokens, skip_special_tokens=True)
            choice = {"token_ids": tokens, "logprobs": {"token_logprobs": logprobs}, "message": {"content": text}}
            self.reply(200, {"choices": [choice]})

        def reply(self, code: int, content: dict[str, Any]) -> None:
            body = json.dumps(content).encode()
            self.send_response(code)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    ThreadingHTTPServer((args.host, args.port), Door).serve_forever()


if __name__ == "__main__":
    serve()
