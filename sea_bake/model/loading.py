"""A source becomes a living model and its tokenizer, with every error told before or instead of a traceback."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sea_bake.errors import CheckpointError, SettingError, need
from sea_bake.io.files import read_json
from sea_bake.io.hub import commit_of
from sea_bake.model.checkpoint.leftovers import claimed, remark, without_claim
from sea_bake.model.checkpoint.reader import Checkpoint, no_weights, weights_file
from sea_bake.model.gguf_header import header_read_once
from sea_bake.model.kernels import check_kernels
from sea_bake.model.placing import Placement
from sea_bake.model.processes import processes
from sea_bake.model.source import ModelSource

if TYPE_CHECKING:
    import torch

DTYPES = ("float32", "bfloat16", "float16", "float64")


def parse_dtype(dtype: str | torch.dtype | None) -> torch.dtype | str:
    """``"bfloat16"`` -> torch.bfloat16; ``None`` or ``"auto"`` -> ``"auto"``, the checkpoint's own dtype.

    Raises:
        SettingError: any other name.
    """
    import torch

    if dtype is None or dtype == "auto":
        return "auto"
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype not in DTYPES:
        raise SettingError(f"unknown dtype {dtype!r}: use auto, {', '.join(DTYPES)}")
    found: torch.dtype = getattr(torch, dtype)
    return found


def default_device() -> str:
    """cuda when there is one (each process of a distributed run its own), else cpu."""
    import torch

    return str(processes().device) if torch.cuda.is_available() else "cpu"


def _arguments(source: ModelSource, trust_remote_code: bool) -> tuple[str, dict[str, Any]]:
    options: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    if source.is_gguf:
        need("gguf", "Reading a GGUF model", "gguf")
        assert source.path is not None
        return str(source.path.parent), {**options, "gguf_file": source.path.name}
    if source.path is not None:
        return str(source.path), options
    return source.name, {**options, "revision": source.revision or "main"}


def language_models(model_type: str) -> dict[str, str]:
    """Auto class -> class name, of what answers text in a family of transformers; most have one, some several."""
    from transformers.models.auto import modeling_auto as auto

    names = {
        "AutoModelForCausalLM": auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        "AutoModelForSeq2SeqLM": auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
        "AutoModelForImageTextToText": auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    }
    return {name: mapping[model_type] for name, mapping in names.items() if model_type in mapping}


def architecture(config: dict[str, Any]) -> str | None:
    """The class that a config.json names first."""
    named = config.get("architectures")
    return str(named[0]) if isinstance(named, list) and named else None


def auto_class(config: dict[str, Any]) -> str:
    """The Auto class that loads a checkpoint, by its config.json: that of its custom code, or of its architecture."""
    own, named = config.get("auto_map"), architecture(config)
    heads = language_models(str(config.get("model_type"))) | (own if isinstance(own, dict) else {})
    for auto, reference in heads.items():
        if auto.startswith("AutoModelFor") and (named is None or str(reference).split(".")[-1] == named):
            return auto
    return "AutoModelForCausalLM"


def load_model(
    model: str | Path | ModelSource,
    *,
    revision: str | None = None,
    dtype: str | torch.dtype | None = "auto",
    device: str | None = None,
    trust_remote_code: bool = False,
) -> Any:
    """A language model in evaluation mode: causal, encoder-decoder, or one that reads images too.

    Args:
        model: folder, .gguf file or Hub id; or a PEFT adapter, which is then merged into the base that it names.
        revision: branch, tag or commit of a Hub model.
        dtype: "auto" (that of the checkpoint's tensors; float32 for a GGUF), "float32", "bfloat16" or "float16".
        device: "cpu", "cuda", "cuda:1", or "auto": over all GPUs, then memory, and the rest read from disk as it runs
            ("auto:0=20GB,cpu=8GB" names the room). Default: cuda where there is one.
        trust_remote_code: passed on to transformers; never switched on by us.

    Raises:
        CheckpointError: it cannot be loaded; the message carries transformers' own reason.
    """
    return load_reported(model, revision=revision, dtype=dtype, device=device, trust_remote_code=trust_remote_code)[0]


def load_reported(
    model: str | Path | ModelSource,
    *,
    revision: str | None = None,
    dtype: str | torch.dtype | None = "auto",
    device: str | None = None,
    trust_remote_code: bool = False,
) -> tuple[Any, list[str]]:
    """:func:`load_model`, and the names of the checkpoint's tensors that the model has no use for."""
    import transformers

    source = _located(ModelSource.parse(model, revision))
    if source.is_adapter:
        return _with_adapter(source, parse_dtype(dtype), device, trust_remote_code)
    name, options = _arguments(source, trust_remote_code)
    wanted = parse_dtype(dtype)
    if source.path is not None and not source.is_gguf:
        found = weights_file(source.path, read_json(source.path / "config.json"))
        if found is None:
            raise no_weights(source.path)
    options["dtype"] = own_dtype(source) if wanted == "auto" else wanted
    options |= {} if source.is_gguf else {"use_safetensors": True}  # pickles are never loaded
    place = Placement(device or default_device())
    options |= place.options
    try:
        config = {} if source.is_gguf else _config_json(name, options)
        check_kernels(config)
        auto = auto_class(config)
        options |= _plain(source, config, name, options) | {"ignore_mismatched_sizes": True}  # said below
        with header_read_once(source):
            loaded, found = getattr(transformers, auto).from_pretrained(name, output_loading_info=True, **options)
    except Exception as error:
        place.drop()
        raise _unloadable("the model", source, error, place) from error
    place.of(loaded)
    refuse_mismatched(f"'{source.name}'", found["mismatched_keys"])
    if found["missing_keys"]:  # transformers fills them with random numbers, and goes on
        lost = sorted(found["missing_keys"])
        raise CheckpointError(f"'{source.name}' is incomplete: it lacks {lost[0]} (and {len(lost) - 1} other tensors)")
    if source.path is None:
        loaded.config._commit_hash = source.revision  # for the fingerprint: transformers no longer says it
    return loaded.eval(), sorted(found["unexpected_keys"])


def refuse_mismatched(what: object, keys: Iterable[tuple[str, Any, Any]]) -> None:
    """Raise CheckpointError for tensors of other shapes than expected, as transformers' loading info names them."""
    odd = sorted(f"{name} is {tuple(there)} and should be {tuple(expected)}" for name, there, expected in keys)
    if odd:
        raise CheckpointError(
            f"{what} has tensors of other shapes than its config.json says: {odd[0]} (and {len(odd) - 1} more). Give "
            "the configuration that belongs to these weights."
        )


def own_dtype(source: ModelSource) -> torch.dtype | str:
    """The dtype of a source's tensors, whatever its configuration says; "auto" where transformers has to decide.

    Raises:
        CheckpointError: files that disagree, as :meth:`Checkpoint.open` says them.
    """
    if source.is_gguf:
        return parse_dtype("float32")
    checkpoint = _checkpoint(source)
    return "auto" if checkpoint is None else checkpoint.dtype() or "auto"


def is_mixed(source: ModelSource) -> bool:
    """Whether a source's matrices are in several float dtypes: in one of them, some are rounded."""
    checkpoint = _checkpoint(source)
    return checkpoint is not None and len(checkpoint.dtypes()) > 1


def _checkpoint(source: ModelSource) -> Checkpoint | None:
    """The files of a folder, or of an adapter's base; None of a GGUF, or where nothing is on disk."""
    source = source.base() if source.is_adapter else source
    return None if source.path is None or source.is_gguf else Checkpoint.open(source.path)


def _plain(source: ModelSource, config: dict[str, Any], name: str, options: dict[str, Any]) -> dict[str, Any]:
    """A configuration without the quantisation that config.json names and no tensor shows; else nothing."""
    method = claimed(config)
    checkpoint = None if method is None else _checkpoint(source.on_disk())
    if checkpoint is None or checkpoint.left_over is None or method is None:
        return {}
    from transformers import AutoConfig

    logging.getLogger("sea_bake").warning("'%s': %s.", source.name, remark(method))
    known = {key: options[key] for key in ("trust_remote_code", "revision") if key in options}
    return {"config": without_claim(AutoConfig.from_pretrained(name, **known))}


def _located(source: ModelSource) -> ModelSource:
    """An adapter on the Hub becomes one on disk, so that it is known as an adapter; another model there is taken at the
    commit that its revision means now.
    """
    from transformers.utils import find_adapter_config_file

    try:
        found = source.path is None and find_adapter_config_file(source.name, revision=source.revision)
    except Exception:  # loading tells it better
        found = None
    if found or source.path is not None:
        return source.on_disk()
    return replace(source, revision=commit_of(source.name, source.revision) or source.revision)


def _with_adapter(
    source: ModelSource, dtype: torch.dtype | str, device: str | None, trust_remote_code: bool
) -> tuple[Any, list[str]]:
    """Merged in the base's own dtype, as on disk; cast only then, so that the merged checkpoint would be the same."""
    import torch

    from sea_bake.model.lora import merge_into

    model, unused = load_reported(source.base(), device=device, trust_remote_code=trust_remote_code)
    merge_into(model, source)
    for parameter in model.parameters():
        if isinstance(dtype, torch.dtype) and parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)
    model.config._commit_hash = source.revision  # the fingerprint's, and not the bare base's
    return model, unused


def _config_json(name: str, options: dict[str, Any]) -> dict[str, Any]:
    from transformers import PreTrainedConfig

    return PreTrainedConfig.get_config_dict(name, **{k: v for k, v in options.items() if k == "revision"})[0]


def load_tokenizer(
    model: str | Path | ModelSource, *, revision: str | None = None, trust_remote_code: bool = False
) -> Any:
    """The tokenizer of a source.

    Raises:
        CheckpointError: it cannot be loaded; the message carries transformers' own reason.
    """
    from transformers import AutoTokenizer

    source = _located(ModelSource.parse(model, revision))
    if source.is_adapter and not (source.folder() / "tokenizer_config.json").is_file():
        source = source.base()
    name, options = _arguments(source, trust_remote_code)
    try:
        with header_read_once(source):
            tokenizer = AutoTokenizer.from_pretrained(name, **options)
    except Exception as error:
        raise _unloadable("the tokenizer", source, error) from error
    if not source.is_gguf and not getattr(tokenizer, "chat_template", None):
        tokenizer.chat_template = _of_processor(name, options.get("revision"))
    return tokenizer


def _of_processor(name: str, revision: str | None) -> str | None:
    """The chat template that lies beside a tokenizer that has none: where processors of images keep it."""
    from transformers.utils import cached_file

    for file in ("chat_template.json", "processor_config.json"):
        try:
            path = cached_file(name, file, revision=revision, _raise_exceptions_for_missing_entries=False)
        except OSError:  # no network, and not in the cache
            path = None
        found = read_json(Path(path)).get("chat_template") if path else None
        if isinstance(found, str):
            return found
    return None


def _unloadable(what: str, source: ModelSource, error: Exception, place: Placement | None = None) -> CheckpointError:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    hint = "" if place is None else place.cure(error)
    if "trust_remote_code" in str(error):
        hint = " The command line runs no code of a checkpoint: use a base that transformers supports natively."
    return CheckpointError(f"{what} of '{source.name}' cannot be loaded: {' '.join(lines[:3])}{hint}")
