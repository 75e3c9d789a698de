"""What ``--smoke`` needs: the check of a script's output against its page, tiny bases and data, and a tiny GGUF.

Standard library only at import time, as bench_common. The tiny models are those of the tests.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import filter as matching
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Page:
    """The table of a document that is made from a script's output, so that ``--smoke`` can hold one against the other.

    Attributes:
        document: from this folder on; "" where no document shows the table.
        columns: header on the page -> the columns of the script's tables that it is made from; "*" stands for a number.
        rows: first cell of a row on the page -> the script's rows that it is made from.
        blank: columns of the script that may be empty in some rows.
        prose: keys of the JSON result that the text beside the table is made from: "a.b" is b inside of a.
    """

    document: str
    columns: Mapping[str, tuple[str, ...]]
    rows: Mapping[str, tuple[str, ...]]
    blank: tuple[str, ...] = ()
    prose: tuple[str, ...] = ()


def shrink(args: argparse.Namespace, **sizes: Any) -> None:
    """Under --smoke: the script's own options at a tiny size."""
    if args.smoke:
        for name, value in sizes.items():
            if not hasattr(args, name):
                raise AttributeError(f"there is no option --{name.replace('_', '-')} to make small")
            setattr(args, name, value)


def problems(result: Any, tables: Sequence[Any], page: Page) -> list[str]:
    """What the output lacks of what the page's table needs; nothing when all is there."""
    found = [f"{place} is {value}" for place, value in _numbers(result, "result") if not math.isfinite(value)]
    for key in page.prose:
        value = result
        for part in key.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        if value is None:
            found.append(f"the result has no {key}")
    columns = {column for made in tables for column in made.columns}
    names = [row[0] for made in tables for row in made.rows]
    found += [f"no column {c!r}" for wanted in page.columns.values() for c in wanted if not matching(columns, c)]
    found += [f"no row {r!r}" for wanted in page.rows.values() for r in wanted if not matching(names, r)]
    for made in tables:
        if not made.rows:
            found.append(f"the table {made.title!r} has no rows")
        for row in made.rows:
            if len(row) != len(made.columns):
                found.append(f"row {row[0]!r} has {len(row)} cells for {len(made.columns)} columns")
            for column, cell in zip(made.columns, row):
                if re.search(r"\b(nan|inf)\b", cell, re.IGNORECASE):
                    found.append(f"{column!r} of {row[0]!r} is {cell!r}")
                elif not cell and column and column not in page.blank:
                    found.append(f"{column!r} of {row[0]!r} is empty")
    return found


def _numbers(value: Any, place: str) -> Iterator[tuple[str, float]]:
    if isinstance(value, float):
        yield place, value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _numbers(inner, f"{place}.{key}")
    elif isinstance(value, (list, tuple)):
        for i, inner in enumerate(value):
            yield from _numbers(inner, f"{place}[{i}]")


def hold(result: Any, tables: Sequence[Any], page: Page) -> None:
    """End a smoke run: with exit code 1 where the output lacks what the page's table needs."""
    lacking = problems(result, tables, page)
    if lacking:
        raise SystemExit("smoke: the output lacks what its table needs:\n  " + "\n  ".join(lacking))
    rows = sum(len(made.rows) for made in tables)
    print(
        f"smoke: {rows} rows hold what {page.document or 'the table'} shows; tiny models, so no measurement",
        file=sys.stderr,
    )


# ------------------------------------------------------------------------------------------------- tiny bases and data


def tests() -> None:
    """Let the tests' helpers be imported."""
    folder = str(Path(__file__).resolve().parent.parent / "tests")
    if folder not in sys.path:
        sys.path.append(folder)


def base(folder: Path, **changes: Any) -> Path:
    """A random Llama of 4 layers with a chat template: 512 tokens, 32 wide."""
    tests()
    import tiny

    return Path(tiny.write_llama(folder, chat=True, **changes))


def data(folder: Path) -> Path:
    """A folder as ``--data`` takes it: the tests' rows of every benchmark, and the built-in triples as HaluEval's."""
    tests()
    import benchmarks

    from sea_bake.demonstrations import builtin

    benchmarks.write(folder)
    (folder / "halueval").mkdir()
    rows = ({"prompt": d.prompt, "positive": d.positive, "negative": d.negative} for d in builtin())
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "halueval" / "qa_one-turn_500.jsonl").write_text(lines, "utf-8")
    return folder


def edit(source: Path, file: Path, **settings: Any) -> Path:
    """Fitted on a few built-in triples and so strong that every answer shows it."""
    tests()
    import tiny

    from sea_bake import fit

    fit(source, tiny.demonstrations(), layers="all", neutral="prompt", K=0.9, **tiny.PAPER | settings).save(file)
    return file


def gguf(folder: Path, target: Path, kind: str = "F32") -> Path:
    """A tiny Llama's folder as GGUF, with its vocabulary: what llama.cpp's converter does, for this one family.

    Args:
        kind: type of the matrices, a name of gguf-py's.
    """
    import gguf as library
    from safetensors.torch import load_file

    def read(name: str) -> dict[str, Any]:
        return dict(json.loads((folder / name).read_text("utf-8")))

    config, tokenizer = read("config.json"), read("tokenizer.json")
    writer = library.GGUFWriter(str(target), "llama")
    layers, heads, groups = (config[f"num_{key}"] for key in ("hidden_layers", "attention_heads", "key_value_heads"))
    writer.add_block_count(layers)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(groups)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_dimension_count(config["hidden_size"] // heads)
    rope = config.get("rope_parameters") or config
    writer.add_rope_freq_base(rope.get("rope_theta", 10000.0))
    writer.add_vocab_size(config["vocab_size"])
    words = sorted(tokenizer["model"]["vocab"], key=tokenizer["model"]["vocab"].get)
    special = {token["content"] for token in tokenizer["added_tokens"]}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(words)
    writer.add_token_types([library.TokenType.CONTROL if w in special else library.TokenType.NORMAL for w in words])
    merges = tokenizer["model"]["merges"]
    writer.add_token_merges([" ".join(pair) if isinstance(pair, list) else pair for pair in merges])
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_eos_token_id(config["eos_token_id"])
    if (folder / "chat_template.jinja").exists():
        writer.add_chat_template((folder / "chat_template.jinja").read_text("utf-8"))
    names = library.get_tensor_name_map(library.MODEL_ARCH.LLAMA, layers)
    for name, tensor in load_file(folder / "model.safetensors").items():
        data = tensor.float().numpy()
        for part, count in (("q_proj", heads), ("k_proj", groups)):
            if f"{part}.weight" in name:  # rotated in pairs that lie side by side, there
                data = data.reshape(count, 2, -1, data.shape[-1]).swapaxes(1, 2).reshape(data.shape)
        wanted = library.GGMLQuantizationType[kind if data.ndim > 1 and "norm" not in name else "F32"]
        raw = None if wanted == library.GGMLQuantizationType.F32 else wanted
        packed = data if raw is None else library.quants.quantize(data, wanted)
        writer.add_tensor(names.get_name(name, (".weight",)), packed, raw_dtype=raw)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


def converter(folder: Path) -> Path:
    """A program in the place of llama.cpp's convert_hf_to_gguf.py: :func:`gguf`, called as that one is."""
    script = folder / "convert_hf_to_gguf.py"
    script.write_text(
        f"""import argparse, sys
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).resolve().parent)!r})
import smoke
parser = argparse.ArgumentParser()
for name in ("folder", "--outtype", "--outfile"):
    parser.add_argument(name)
args = parser.parse_args()
smoke.gguf(Path(args.folder), Path(args.outfile), args.outtype.upper())
""",
        "utf-8",
    )
    return script
