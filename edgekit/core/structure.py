"""Typed values from untyped mappings (TOML, JSON): unknown keys are errors that name the nearest field."""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any, TypeVar, cast

import msgspec

from edgekit.errors import ConfigError, UnknownNameError

T = TypeVar("T")


def structure(cls: type[T], value: object, *, where: str) -> T:
    """Build the frozen dataclass ``cls`` from a mapping.

    Raises :class:`UnknownNameError` for a key that is no field (nested ones too) and
    :class:`ConfigError` for a value of the wrong type; both name ``where`` the mapping came from.
    """
    _refuse_unknown_keys(cls, value, where)
    try:
        return msgspec.convert(value, cls, dec_hook=_decode)
    except msgspec.ValidationError as e:
        raise ConfigError(
            f"{where}: {e}", hint=f"see the fields of {cls.__name__} in the documentation"
        ) from e


def convert(value: object, kind: object) -> object:
    """``value`` as the type ``kind`` (any annotation), strictly. Raises :class:`msgspec.ValidationError`."""
    return msgspec.convert(value, cast(type[object], kind), dec_hook=_decode)


def to_builtins(value: object) -> Any:
    """The same value as dicts, lists, strings and numbers."""
    return msgspec.to_builtins(value, enc_hook=_encode)


def _encode(value: object) -> str | dict[object, object]:
    if isinstance(value, PurePath):
        return value.as_posix()
    if isinstance(value, Mapping):  # msgspec knows dict alone
        return dict(value)
    raise TypeError(f"{type(value).__qualname__} has no plain form")


def _decode(kind: type, value: object) -> object:
    if kind is object:
        return value
    if issubclass(kind, Path) and isinstance(value, str):
        return Path(value)
    raise TypeError(f"{kind.__qualname__} cannot be made from {type(value).__qualname__}")


def _refuse_unknown_keys(cls: object, value: object, where: str) -> None:
    if typing.get_origin(cls) in (types.UnionType, typing.Union):
        for option in typing.get_args(cls):
            if dataclasses.is_dataclass(option):
                cls = option
    if typing.get_origin(cls) is tuple and isinstance(value, list | tuple):
        for i, item in enumerate(value):
            _refuse_unknown_keys(typing.get_args(cls)[0], item, f"{where}[{i}]")
    if not dataclasses.is_dataclass(cls) or not isinstance(value, Mapping):
        return
    hints = _hints(cast(type, cls))
    for key, item in value.items():
        if key not in hints:
            raise UnknownNameError("key", str(key), hints, where=where)
        _refuse_unknown_keys(hints[key], item, f"{where}: {key}")


@functools.cache
def _hints(cls: type) -> dict[str, object]:
    return typing.get_type_hints(cls)
