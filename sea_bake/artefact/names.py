"""The files of an artefact that are ours, and the formats in them: named here and nowhere else."""

from __future__ import annotations

RECORD = "sea/bake.json"  # what a bake did
EXPORT = "sea/export.json"  # what an export did
EDIT = "sea/edit-{}.safetensors"  # the edits themselves, numbered; in a folder, where no weight loader looks
VERIFICATION = "sea_verification.json"
EVALUATION = "sea/evaluation.json"
PAGE = "sea/report.html"
PAGE_NUMBERS = "sea/report.json"  # the numbers behind the page, its SHA-256, and what it was written of
ORIGINALS = "sea/base"  # the base's own copies of what an insert patches, for ``unbake``
RECIPE = "sea_bake.yaml"
EVAL_RESULTS = ".eval_results/sea_bake-{}.yaml"  # a data set's, on the Hub alone
CARD = "README.md"

CODE = "modeling_sea.py"  # the only code, of an insert alone
SHARD = "model-sea.safetensors"  # an insert's SEA tensors
GRAPHS = "onnx"  # the folder of an export's graphs, where transformers.js looks
GRAPH_FILES = {"fp32": "model.onnx", "fp16": "model_fp16.onnx", "int8": "model_quantized.onnx", "int4": "model_q4.onnx"}

MARKS = (RECORD, EXPORT, PAGE_NUMBERS)  # a folder with one of these is ours to replace when that is asked for
LATER = (VERIFICATION, EVALUATION, PAGE_NUMBERS, RECIPE)  # written after a verification: not under its seal
