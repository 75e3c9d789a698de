"""What a model answers to given token ids. Torch and transformers only: run as a script it is a process without us.

    python -I answers.py request.json

loads an artefact the way any user would, ``AutoModelForCausalLM.from_pretrained(...)`` or its like (and
``PeftModel.from_pretrained`` where it is an adapter), and writes its answers; sea_bake itself cannot be imported there.
The same ``answer`` is called on the hook-edited base.
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file


@torch.inference_mode()
def answer(model, request, output):
    """Write one safetensors file of answers.

    Args:
        model: a language model in evaluation mode.
        request: "teacher" (id lists for logits), "prompts" (id lists to continue), "max_new_tokens", "pad",
            "positions" (how many last positions of the logits are kept), "decoder_start" (None; in an encoder-decoder
            the first token of its decoder: there "teacher" is what the decoder says to the "prompts").
        output: file to write: ``logits.i`` [positions, vocabulary] float32, ``greedy.i`` ids continued one by one,
            ``padded.i`` ids continued in one padded batch (on the left; for an encoder on the right),
            ``padded_logits`` [prompts, vocabulary].
    """
    align(model)
    take_ids_alone(model)
    device = model.get_input_embeddings().weight.device
    prompts, start, pad = request["prompts"], request["decoder_start"], request["pad"]

    def ids_of(*rows):
        return torch.tensor(rows, device=device)

    found = {}
    for i, ids in enumerate(request["teacher"]):
        inputs = {"input_ids": ids_of(ids)}
        if start is not None:
            inputs = {"input_ids": ids_of(prompts[i]), "decoder_input_ids": ids_of(ids)}
        logits = model(**inputs, use_cache=False).logits
        found[f"logits.{i}"] = logits[0, -request["positions"] :].float().cpu().contiguous()
    options = {
        "max_new_tokens": request["max_new_tokens"],
        "min_new_tokens": request["max_new_tokens"],  # an early end of sequence would hide what comes behind it
        "do_sample": False,
        "num_beams": 1,
        "pad_token_id": pad,
        "use_cache": True,
    }

    def continued(ids, mask):
        out = model.generate(input_ids=ids, attention_mask=mask, **options)
        return out[:, ids.shape[1] if start is None else 1 :].cpu()

    for i, ids in enumerate(prompts):
        batch = ids_of(ids)
        found[f"greedy.{i}"] = continued(batch, torch.ones_like(batch))[0].clone()
    width = max(map(len, prompts))
    rows = [([pad] * (width - len(ids)), ids) for ids in prompts]
    batch = ids_of(*(fill + ids if start is None else ids + fill for fill, ids in rows))
    mask = ids_of(*([0] * len(f) + [1] * len(p) if start is None else [1] * len(p) + [0] * len(f) for f, p in rows))
    for i, row in enumerate(continued(batch, mask)):
        found[f"padded.{i}"] = row.clone()
    inputs = {"position_ids": (mask.cumsum(-1) - 1).clamp_min(0)}
    if start is not None:
        inputs = {"decoder_input_ids": ids_of(*[[start]] * len(prompts))}
    logits = model(input_ids=batch, attention_mask=mask, **inputs, use_cache=False).logits
    found["padded_logits"] = logits[:, -1].float().cpu().contiguous()
    save_file(found, output)


def take_ids_alone(model):
    """Of a checkpoint's generation_config nothing but token ids: its penalties, beams, stop strings and forms of output
    are no part of the proof, and some of them need what is not there.
    """
    from transformers import GenerationConfig

    names = ("eos_token_id", "bos_token_id", "decoder_start_token_id", "suppress_tokens", "begin_suppress_tokens")
    theirs = {name: getattr(model.generation_config, name, None) for name in names}
    model.generation_config = GenerationConfig(**{name: ids for name, ids in theirs.items() if ids is not None})


def align(model):
    """Move weights that safetensors mapped to odd addresses: MKL rounds by where a matrix lies (on AMD's processors),
    and the inverse of a feature function, over twenty layers, makes of one rounding what it likes.
    """
    for weight in model.parameters():
        if weight.device.type == "cpu" and weight.is_floating_point() and weight.data_ptr() % 64:
            weight.data = weight.data.clone()


def attach(model, adapter):
    """Put a PEFT adapter's layers into a model; its tensors that found no place, as transformers reports them."""
    import peft

    theirs = load_file(Path(adapter) / "adapter_model.safetensors").keys()
    ours = peft.get_peft_model_state_dict(peft.PeftModel.from_pretrained(model, adapter)).keys()
    return {"missing_keys": ours - theirs, "unexpected_keys": theirs - ours, "mismatched_keys": ()}


def main(path):
    sys.modules["sea_bake"] = None  # any import of it now fails: the artefact has to stand on its own
    import transformers

    request = json.loads(Path(path).read_text("utf-8"))
    dtype = request["dtype"]
    options = {"device_map": request["device"]} if request["device"] != "cpu" else {}
    model, loading = getattr(transformers, request["auto_class"]).from_pretrained(
        request["model"],
        trust_remote_code=request["trust_remote_code"],
        use_safetensors=request["use_safetensors"],
        dtype=dtype if dtype == "auto" else getattr(torch, dtype),
        output_loading_info=True,
        **options,
    )
    if request["adapter"]:
        loading = attach(model, request["adapter"])
    model.eval()
    answer(model, request, request["output"])
    facts = {
        "class": type(model).__name__,
        "dtype": str(model.dtype).removeprefix("torch."),
        "missing_keys": sorted(loading["missing_keys"]),
        "unexpected_keys": sorted(loading["unexpected_keys"]),
        "mismatched_keys": sorted(str(key) for key in loading["mismatched_keys"]),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    Path(request["facts"]).write_text(json.dumps(facts), "utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
