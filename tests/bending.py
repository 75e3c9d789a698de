"""Valid files, bent: JSON with something in it become something else, safetensors, GGUF, and bytes of any file.

A valid file is taken, and something in it becomes another: a value anywhere in its JSON, a key, the header around
it, single bytes; and some inputs never were such a file.
"""

from __future__ import annotations

import copy
import functools
import json
import struct
from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st

ODD = (
    *(None, True, False, 0, 1, -1, 2, 3, 4, 31, 32, 33, 2**31, 2**63, 2**64, 10**400, -(10**18), 0.5, 1e308, 1e-320),
    *(float("nan"), float("inf"), float("-inf"), "", " ", ".", "..", "../x", "../../etc/passwd", "/etc/passwd", "~"),
    *("~nobody/x", "a/b", "a/b/c", "a\\b", "C:\\x", "a\0b", "\x1b[2J", "\ud800", "‮x", "é" * 90, "x" * 300, "nan"),
    *("1", "-1", "inf", "layers.0.positive", "model.safetensors", "config.json", "F32", "BF16", "F4", "LORA", "insert"),
    *("affine", "sea", "heads", "block", "sum", "layers.0.A", "layers.0.B", "layers.0.scale", "layers.0.gate"),
    *([], {}, [[]], [{}], {"": {}}, [1, 2], [0] * 500, {"a": [None]}, ["../x"], {"../x": "../y"}, "[" * 1200),
)  # fmt: skip
GRAMMAR = st.recursive(
    st.sampled_from(ODD) | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=5,
)


def grammar() -> st.SearchStrategy[Any]:
    """Any JSON value; a copy, so that who changes it further does not change what is drawn next."""
    return GRAMMAR.map(copy.deepcopy)


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths to every value inside a JSON value, but for long lists' tails, which are all alike."""
    items = value.items() if isinstance(value, dict) else enumerate(value[:3]) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*at, key)
        yield from places(inner, (*at, key))


@st.composite
def changed(draw: Any, valid: Any, most: int = 2) -> Any:
    """The JSON value with one or a few places in it replaced, removed, renamed, doubled or swapped."""
    value = copy.deepcopy(valid)
    for _ in range(draw(st.integers(1, most))):
        found = list(places(value))
        if not found:
            return draw(grammar())
        *way, key = draw(st.sampled_from(found))
        parent = functools.reduce(lambda v, k: v[k], way, value)
        act = draw(st.sampled_from(("put", "put", "put", "grammar", "remove", "rename", "swap", "text")))
        if act == "put":
            parent[key] = copy.deepcopy(draw(st.sampled_from(ODD)))
        elif act == "grammar":
            parent[key] = draw(grammar())
        elif act == "remove":
            del parent[key]
        elif act == "swap":
            *other, last = draw(st.sampled_from(found))
            parent[key] = copy.deepcopy(functools.reduce(lambda v, k: v[k], [*other, last], value))
        elif act == "text":
            parent[key] = json.dumps(parent[key])
        elif isinstance(parent, dict):
            parent[str(draw(st.sampled_from(ODD)))] = parent.pop(key)
        else:
            parent.append(parent[key])
    return value


@st.composite
def bent(draw: Any, valid: bytes) -> bytes:
    """The bytes with a few of them changed, or cut off, or more behind them."""
    data = bytearray(valid)
    for where, byte in draw(st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(0, 255)), max_size=4)):
        data[where % len(data)] = byte
    cut = draw(st.integers(-8, len(data)))
    return bytes(data[:cut] if cut > 0 and draw(st.booleans()) else data) + draw(st.binary(max_size=4))


def as_json(values: st.SearchStrategy[Any]) -> st.SearchStrategy[bytes]:
    return values.map(lambda value: json.dumps(value).encode())


def json_files(valid: Any) -> st.SearchStrategy[bytes]:
    """A JSON file: changed in its values, in its bytes, doubled keys, or other JSON altogether."""
    text = json.dumps(valid).encode()
    doubled = as_json(changed(valid, 1)).map(lambda other: text[:-1] + b", " + other[1:])
    return st.one_of(
        as_json(changed(valid)),
        as_json(changed(valid, 5)),
        bent(text),
        doubled,
        as_json(grammar()),
        st.binary(max_size=40),
    )


def packed(header: Any, body: bytes, length: int | None = None) -> bytes:
    """A safetensors file of this header; ``length`` is what its first eight bytes say instead of the truth."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length % (1 << 64)) + text + body


def safetensors_files(valid: bytes) -> st.SearchStrategy[bytes]:
    """A safetensors file: changed in our own header inside, in its table of contents, in its bytes."""
    size = struct.unpack("<Q", valid[:8])[0]
    table, body = json.loads(valid[8 : 8 + size]), valid[8 + size :]
    lengths = st.sampled_from((0, 1, size - 1, size + 1, len(valid), 10**8, 10**9, 2**63, 2**64 - 1))
    kinds = [
        changed(table).map(lambda t: packed(t, body)),
        as_json(changed(table, 1)).map(lambda t: packed(json.dumps(table).encode()[:-1] + b", " + t[1:], body)),
        lengths.map(lambda length: packed(table, body, length)),
        bent(valid),
        st.binary(max_size=80).map(lambda junk: packed(junk, b"")),
    ]
    if "sea_bake" in table.get("__metadata__", {}):
        ours = json.loads(table["__metadata__"]["sea_bake"])

        def around(text: str) -> bytes:
            return packed(table | {"__metadata__": {"sea_bake": text}}, body)

        inside = json_files(ours).map(lambda data: around(data.decode("utf-8", "replace")))
        kinds += [inside, changed(ours).map(lambda o: around(json.dumps(o))), inside, inside]
    return st.one_of(*kinds)


def number_fields(valid: bytes) -> list[tuple[int, str]]:
    """Where the header of a GGUF has a number, as ``struct`` reads it: versions, counts, lengths, types, values."""
    found: list[tuple[int, str]] = []

    def number(at: int, code: str) -> tuple[int, int]:
        found.append((at, code))
        return struct.unpack_from(f"<{code}", valid, at)[0], at + struct.calcsize(code)

    def string(at: int) -> int:
        length, at = number(at, "Q")
        return at + length

    sizes = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
    codes = {1: "B", 2: "H", 4: "I", 8: "Q"}
    _, at = number(4, "I")
    tensors, at = number(at, "Q")
    keys, at = number(at, "Q")
    for _ in range(keys):
        kind, at = number(string(at), "I")
        if kind == 8:
            at = string(at)
        elif kind == 9:
            item, at = number(at, "I")
            count, at = number(at, "Q")
            for _ in range(count if item == 8 else 0):
                at += 8 + struct.unpack_from("<Q", valid, at)[0]
            at += 0 if item == 8 else count * sizes[item]
        else:
            _, at = number(at, codes[sizes[kind]])
    for _ in range(tensors):
        dims, at = number(string(at), "I")
        for _ in range(dims):
            _, at = number(at, "Q")
        _, at = number(at, "I")
        _, at = number(at, "Q")
    return found


@st.composite
def gguf_files(draw: Any, valid: bytes) -> bytes:
    """A GGUF with a few numbers of its header changed, or its bytes; or cut off there."""
    fields = number_fields(valid)
    end = fields[-1][0] + 8
    if draw(st.integers(0, 3)) == 0:
        return draw(bent(valid[:end])) + valid[end:]
    data = bytearray(valid)
    for _ in range(draw(st.integers(1, 3))):
        at, code = draw(st.sampled_from(fields))
        top = 1 << (8 * struct.calcsize(code))
        size = len(valid)
        odd = (0, 1, 2, 3, 7, 8, 9, 12, 31, 33, 4095, 4097, size, size - at, top // 2, top - 1, -size % top, 1 << 30)
        was = struct.unpack_from(f"<{code}", valid, at)[0]
        value = draw(
            st.sampled_from(odd) | st.sampled_from((was - 1, was + 1, 2 * was, was ^ 1 << 40)) | st.integers(0)
        )
        struct.pack_into(f"<{code}", data, at, value % top)
    cut = draw(st.integers(0, 9))
    return bytes(data[: draw(st.integers(1, end))] if cut == 0 else data)
