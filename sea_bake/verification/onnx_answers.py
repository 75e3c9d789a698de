"""What an ONNX decoder answers to given token ids. ONNX Runtime and NumPy only: run as a script, a process without us.

    python -I onnx_answers.py request.json

opens an exported graph as bare as a runtime can hold it, feeds it token ids, mask, positions and the cache it gave
before, and writes the same file of answers as ``answers.py``. There is neither torch nor sea_bake in that process.
"""

import json
import os
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from safetensors.numpy import save_file

STRENGTH = "sea_strength"


class Decoder:
    """A graph with its cache: ids [batch, new] and mask [batch, past + new] -> logits [batch, new, vocabulary], cache.

    Args:
        request: "graph" (file); and where they are needed "device" ("cpu"), "weights" (the folder of its external data
            when that is not its own), "mapped" (weights stay where they lie on disk, instead of a copy in the order
            that the kernels like best), "plain" (nothing is fused).
        strength: of the edit, where the graph has an input for it; None leaves an optional one alone.
    """

    def __init__(self, request, strength=None):
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = int(os.environ.get("OMP_NUM_THREADS") or 0)  # what torch keeps to as well
        if request.get("mapped"):
            options.add_session_config_entry("session.disable_prepacking", "1")
        if request.get("plain"):
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        graph = request["graph"]
        if request.get("weights"):
            options.add_session_config_entry("session.model_external_initializers_file_folder_path", request["weights"])
            graph = Path(graph).read_bytes()
        known = onnxruntime.get_available_providers()
        wanted = ["CUDAExecutionProvider"] if request.get("device", "cpu").startswith("cuda") else []
        self.session = onnxruntime.InferenceSession(
            graph, options, providers=[p for p in (*wanted, "CPUExecutionProvider") if p in known]
        )
        inputs = {i.name: i for i in self.session.get_inputs()}
        self.positions = "position_ids" in inputs
        self.outputs = [o.name for o in self.session.get_outputs()]
        self.cache = {
            name: (i.shape[1], i.shape[3], np.float16 if i.type == "tensor(float16)" else np.float32)
            for name, i in inputs.items()
            if name.startswith("past_key_values.")
        }
        self.has_strength = STRENGTH in {*inputs, *(i.name for i in self.session.get_overridable_initializers())}
        if strength is None and STRENGTH in inputs:
            strength = 1.0
        self.extra = {} if strength is None else {STRENGTH: np.array([strength], dtype=np.float32)}

    def __call__(self, ids, mask, cache=None):
        ids, mask = np.asarray(ids, dtype=np.int64), np.asarray(mask, dtype=np.int64)
        if cache is None:
            cache = {n: np.zeros((len(ids), heads, 0, size), kind) for n, (heads, size, kind) in self.cache.items()}
        feeds = {"input_ids": ids, "attention_mask": mask, **cache, **self.extra}
        if self.positions:
            feeds["position_ids"] = np.maximum(mask.cumsum(-1) - 1, 0)[:, -ids.shape[1] :]
        found = dict(zip(self.outputs, self.session.run(self.outputs, feeds)))
        logits = found.pop("logits").astype(np.float32)
        return logits, {name.replace("present", "past_key_values", 1): value for name, value in found.items()}


def forced(decoder, ids, positions):
    """Logits at the last ``positions`` of a given text, in one pass on an empty cache."""
    return decoder([ids], np.ones((1, len(ids))))[0][0, -positions:]


def cached(decoder, ids, positions):
    """The same through the cache: the first half at once, the next quarter as one piece, then token by token."""
    half, three = len(ids) // 2, 3 * len(ids) // 4
    pieces, cache, start = [], None, 0
    for end in sorted({half, three, *range(three + 1, len(ids) + 1)} - {0}):
        logits, cache = decoder([ids[start:end]], np.ones((1, end)), cache)
        pieces.append(logits[0])
        start = end
    return np.concatenate(pieces)[-positions:]


def continued(decoder, ids, mask, count):
    """The most likely tokens, one by one through the cache, whatever they are; and the first logits they came from."""
    ids, mask = np.asarray(ids), np.asarray(mask)
    logits, cache = decoder(ids, mask)
    first, told = logits[:, -1], []
    for step in range(count):
        told.append(logits[:, -1].argmax(-1))
        if step + 1 < count:
            mask = np.concatenate([mask, np.ones((len(mask), 1), mask.dtype)], axis=1)
            logits, cache = decoder(told[-1][:, None], mask, cache)
    return np.stack(told, axis=1), first


def continues(decoder, ids, text):
    """Whether a text is what would be continued behind ids, one most likely token after the other: in one pass."""
    logits = forced(decoder, [*ids, *text[:-1]], len(text))
    return logits.argmax(-1).tolist() == list(text)


def answer(decoder, request, output):
    """Write one safetensors file of answers: those of ``answers.answer``, and ``cached.i`` beside ``logits.i``."""
    positions, count, pad = request["positions"], request["max_new_tokens"], request["pad"]
    found = {}
    for i, ids in enumerate(request["teacher"]):
        found[f"logits.{i}"] = forced(decoder, ids, positions)
        found[f"cached.{i}"] = cached(decoder, ids, positions)
    prompts = request["prompts"]
    fill = [max(map(len, prompts)) - len(ids) for ids in prompts]
    batch = [[pad] * n + ids for n, ids in zip(fill, prompts)]
    told, logits = continued(decoder, batch, [[0] * n + [1] * len(p) for n, p in zip(fill, prompts)], count)
    found |= {f"padded.{i}": row for i, row in enumerate(told)} | {"padded_logits": logits}
    for i, ids in enumerate(prompts):  # as in ``answers.answer``: the first one by itself, as others where they part
        text = told[i]
        if i == 0 or not continues(decoder, ids, text.tolist()):
            text = continued(decoder, [ids], np.ones((1, len(ids)), int), count)[0][0]
        found[f"greedy.{i}"] = text
    save_file({name: np.ascontiguousarray(value) for name, value in found.items()}, output)


def main(path):
    sys.modules["sea_bake"] = None  # any import of it now fails: the export has to stand on its own
    request = json.loads(Path(path).read_text("utf-8"))
    decoder = Decoder(request)
    facts = {
        "dtype": "float16" if any(kind is np.float16 for _, _, kind in decoder.cache.values()) else "float32",
        "onnxruntime": onnxruntime.__version__,
        "providers": decoder.session.get_providers(),
        "has_strength": decoder.has_strength,
    }
    answer(decoder, request, request["output"])
    del decoder
    if request["unedited"] is not None:  # the same weights without the edit: a graph of its own, or the strength 0
        bare = Decoder(request | request["unedited"], 0.0 if facts["has_strength"] else None)
        texts = enumerate(request["teacher"])
        found = {f"logits.{i}": np.ascontiguousarray(forced(bare, ids, request["positions"])) for i, ids in texts}
        save_file(found, request["unedited_output"])
    Path(request["facts"]).write_text(json.dumps(facts), "utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
