"""What an artefact is known to consist of: the names of the formats' own files, and of ours."""

from __future__ import annotations

import re
from fnmatch import fnmatchcase

from sea_bake.artefact import Artefact
from sea_bake.artefact.names import (
    CARD,
    CODE,
    EVALUATION,
    EXPORT,
    GRAPHS,
    ORIGINALS,
    PAGE,
    PAGE_NUMBERS,
    RECIPE,
    RECORD,
    VERIFICATION,
)
from sea_bake.artefact.opened import ONNX
from sea_bake.model.checkpoint.reader import INDEX
from sea_bake.model.source import ADAPTER_CONFIG

# What transformers' own tokenizers call their vocabularies (``vocab_files_names``): any string may be in one.
_VOCABULARIES = """
tokenizer.json tokenizer.model vocab.json vocab.txt merges.txt spiece.model spm.model spm_char.model sentencepiece.model
sentencepiece.bpe.model bpe.codes prophetnet.tokenizer byte_maps.json dict.txt emoji.json entity_vocab.json
normalizer.json word_shape.json word_pronunciation.json vocab-src.json vocab-tgt.json target_vocab.json source.spm
target.spm tekken.json
"""
_SETTINGS_FILES = """
config.json generation_config.json tokenizer_config.json special_tokens_map.json added_tokens.json chat_template.jinja
chat_template.json processor_config.json preprocessor_config.json image_processor_config.json
video_preprocessor_config.json feature_extractor_config.json
"""
VOCABULARIES, _SETTINGS = frozenset(_VOCABULARIES.split()), frozenset(_SETTINGS_FILES.split())
_PATTERNS = ("*.tiktoken", "additional_chat_templates/*.jinja", "chat_templates/*.jinja")
_PAPERS = re.compile(
    r"(README|LICEN[SC]E|NOTICE|COPYING|COPYRIGHT|USE_POLICY)([-_. ][\w-]+)*(\.md|\.txt)?", re.IGNORECASE
)
_OURS = frozenset({RECORD, EXPORT, VERIFICATION, EVALUATION, PAGE, PAGE_NUMBERS, RECIPE, CARD})


def known(artefact: Artefact, name: str, weights: set[str]) -> bool:
    """Whether a path inside an artefact is a part of it, as its record and the formats of its files name them.

    Args:
        weights: paths of its safetensors files.
    """
    if name in _OURS or name in weights or name in _SETTINGS or name in VOCABULARIES or name == INDEX:
        return True
    if name.startswith(f"{ORIGINALS}/"):
        return name.removeprefix(f"{ORIGINALS}/") in _SETTINGS | {INDEX}
    if any(fnmatchcase(name, pattern) for pattern in _PATTERNS) or _PAPERS.fullmatch(name):
        return True
    if artefact.kind == "adapter":
        return name == ADAPTER_CONFIG
    if artefact.kind == ONNX:
        return name == "genai_config.json" or bool(re.fullmatch(rf"{GRAPHS}/[\w-]+\.onnx([._]data(_\d+)?)?", name))
    return name == CODE and artefact.kind == "insert"
