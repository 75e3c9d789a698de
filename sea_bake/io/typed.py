"""A dataclass out of plain JSON data, each field held against its annotation: the way back from every ``to_json``."""

from __future__ import annotations

import dataclasses
import functools
import math
import types
from collections.abc import Mapping
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")
_LARGEST = (1 << 63) - 1  # bytes of a file, and whatever is counted


def build(cls: type[T], data: Any, where: str = "") -> T:
    """An instance of a dataclass. Keys that it has no field for are left alone; a field with a default may be absent.

    Fields may be str, int, float, bool, None, Any, dataclasses, and lists, tuples, dictionaries and unions of these.
    A float may be infinite, and never NaN; an int has at most 64 bits.

    Args:
        where: what to call the data in an error: "equality".

    Raises:
        ValueError: a field is missing or of another type; the message names it.
    """
    if not isinstance(data, Mapping):
        raise ValueError(f"{where or 'it'} is {_kind(data)} and no object")
    kind: Any = cls
    values = {}
    for field in dataclasses.fields(kind):
        name = f"{where}.{field.name}" if where else field.name
        if field.name in data:
            values[field.name] = _value(_hints(kind)[field.name], data[field.name], name)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise ValueError(f"{name} is missing")
    return cls(**values)


@functools.lru_cache
def _hints(cls: Any) -> dict[str, Any]:
    return get_type_hints(cls)


def _value(hint: Any, value: Any, where: str) -> Any:
    origin, inner = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if origin in (Union, types.UnionType):
        if value is None and type(None) in inner:
            return None
        kinds = [one for one in inner if one is not type(None)]
        for kind in kinds[:-1]:
            try:
                return _value(kind, value, where)
            except ValueError:
                pass
        return _value(kinds[-1], value, where)
    if dataclasses.is_dataclass(hint):
        return build(hint, value, where)  # type: ignore[arg-type]
    if origin is list and isinstance(value, list):
        return [_value(inner[0], item, f"{where}[{i}]") for i, item in enumerate(value)]
    if origin is tuple and isinstance(value, list | tuple):
        if inner[-1] is Ellipsis:
            return tuple(_value(inner[0], item, f"{where}[{i}]") for i, item in enumerate(value))
        if len(value) == len(inner):
            return tuple(_value(kind, item, f"{where}[{i}]") for i, (kind, item) in enumerate(zip(inner, value)))
    if origin is dict and isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {key: _value(inner[1], item, f"{where}.{key}") for key, item in value.items()}
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        number = _float(value, where)
        if not math.isnan(number):
            return number
    if hint in (str, bool) and isinstance(value, hint):
        return value
    if hint is int and isinstance(value, int) and not isinstance(value, bool):
        if abs(value) > _LARGEST:
            raise ValueError(f"{where} is too large a number")
        return value
    raise ValueError(f"{where} is {_kind(value)}, not {getattr(origin or hint, '__name__', hint)}")


def _float(value: Any, where: str) -> float:
    try:
        return float(value)
    except OverflowError:
        raise ValueError(f"{where} is too large a number") from None


def _kind(value: Any) -> str:
    return "null" if value is None else f"{type(value).__name__} {value!r:.40}"
