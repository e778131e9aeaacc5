"""One declaration of an option: a dataclass field whose metadata say how every surface spells and explains it.

Command line, TOML, environment, Python, help pages and docs/options.md are made from it. A value that comes as text
(a flag, a variable) or from a TOML file is converted here, strictly: what is not clearly meant is refused.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar, cast

import msgspec

from edgekit.core.structure import convert
from edgekit.errors import ConfigError, UnknownOptionError
from edgekit.types import Option

T = TypeVar("T")

_TRUE, _FALSE = ("true", "1", "yes", "on"), ("false", "0", "no", "off")
_METADATA = "option"
_MOST = 1 << 63
"""Whole numbers beyond it are in no manifest, and in no other language's JSON."""
_RANGE = re.compile(r"[^=]+=\d+:\d+:\d+")
"""An axis with its smallest, usual and largest size."""


@dataclass(frozen=True, kw_only=True)
class Declared:
    """What is said about an option beside its name, type and default.

    ``flags`` are its spellings on the command line (default: ``--name``); an option without ``commands`` is none of
    the command line's. ``help_for`` replaces the help where a command uses the option in a narrower sense.
    ``fraction``: a number from 0 to 1 that may be written as ``1%``. ``split``: a text of several names with commas.
    ``personal``: only the user may switch it on, never a project or the environment.
    """

    help: str
    group: str
    commands: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()
    metavar: str = ""
    help_for: Mapping[str, str] = dataclasses.field(default_factory=dict)
    choices: tuple[str, ...] = ()
    minimum: int | None = None
    fraction: bool = False
    split: bool = False
    personal: bool = False


def option(default: T, declared: Declared) -> T:
    """A dataclass field with its declaration; a mapping as ``default`` is made anew for every instance."""
    metadata = {_METADATA: declared}
    if isinstance(default, dict):
        return cast(T, dataclasses.field(default_factory=dict, metadata=metadata))
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class OptionField:
    """One option of an options class: name, type, default and declaration."""

    name: str
    kind: object
    default: object
    declared: Declared

    @property
    def is_switch(self) -> bool:
        """Whether it is on or off."""
        return self.kind is bool

    @property
    def is_list(self) -> bool:
        """Whether it holds several texts."""
        return typing.get_origin(self.kind) is tuple

    @property
    def is_mapping(self) -> bool:
        """Whether it holds values by name."""
        return typing.get_origin(self.kind) is Mapping

    @property
    def flags(self) -> tuple[str, ...]:
        """Its spellings on the command line; of a switch, the one that turns it off comes last."""
        spelled = self.declared.flags or (f"--{self.name.replace('_', '-')}",)
        return (*spelled, f"--no-{spelled[0][2:]}") if self.is_switch else spelled

    @property
    def variable(self) -> str:
        """Its environment variable."""
        return f"EDGEKIT_{self.name.upper()}"

    @property
    def in_words(self) -> str:
        """What a value is, for messages and the reference page."""
        if self.declared.fraction:
            return "a fraction"
        if self.is_list:
            return "a list of texts"
        if self.is_mapping:
            return "a table"
        words = {bool: "true or false", int: "a whole number", Path: "a path"}
        return words.get(cast(type, self.kind), "a text")

    def from_text(self, text: str, *, where: str) -> object:
        """The value that a flag or variable spells. Raises :class:`ConfigError`."""
        if self.is_switch:
            return self._switch(text, where)
        if self.declared.fraction:
            return parse_fraction(text, what=where)
        if self.is_list:
            return split(text)
        if self.is_mapping:
            return parse_settings(pairs(text), where=where)
        value: object = text
        if self.kind is int:
            try:
                value = msgspec.convert(text.strip(), int, strict=False)
            except msgspec.ValidationError:
                raise self._wrong(text, where) from None
        return self.checked(value, where=where)

    def from_toml(self, value: object, *, where: str) -> object:
        """The value that a TOML file has. Raises :class:`ConfigError`."""
        if self.declared.fraction:
            if isinstance(value, str):
                return parse_fraction(value, what=f"{where}: {self.name}")
            if isinstance(value, float) and 1 <= value <= 100:
                raise ambiguous(f"{value:g}", what=f"{where}: {self.name}")
        return self.checked(value, where=f"{where}: {self.name}")

    def checked(self, value: object, *, where: str) -> object:
        """The value in its own type (a list as a tuple, a text as a path). Raises :class:`ConfigError`."""
        if isinstance(value, str | Path) and "\0" in str(value):
            raise self._wrong(value, where)
        if self.declared.split and isinstance(value, str):
            return split(value)
        if self.declared.fraction and value is not None:
            return self._fraction(value, where)
        if self.kind is Path and isinstance(value, Path):
            return value
        try:
            typed = convert(dict(value) if isinstance(value, Mapping) else value, self.kind)
        except msgspec.ValidationError:
            raise self._wrong(value, where) from None
        if self.is_mapping:
            self._refuse_endless(cast(Mapping[str, object], typed), where)
        choices, minimum = self.declared.choices, self.declared.minimum
        if choices and typed not in choices:
            raise UnknownOptionError(f"value of {where}", str(typed), choices)
        if minimum is not None and isinstance(typed, int) and typed < minimum:
            raise ConfigError(f"{where} is {typed}", hint=f"{self.name} is {minimum} or more")
        if self.kind is Path and not str(value):
            raise self._wrong(value, where)
        return typed

    def _refuse_endless(self, table: Mapping[str, object], where: str) -> None:
        """TOML and Python have numbers that a manifest cannot keep."""
        for name, value in table.items():
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if number and not -_MOST <= cast(float, value) < _MOST:  # a NaN is neither
                raise ConfigError(f"{where} {name} is {str(value)[:40]}", hint=f"numbers are below {_MOST:,}")

    def _switch(self, text: str, where: str) -> bool:
        word = text.strip().lower()
        if word not in (*_TRUE, *_FALSE):
            raise ConfigError(
                f"{where}: {text!r} is neither true nor false",
                hint=f"one of: {', '.join(_TRUE)} or {', '.join(_FALSE)}",
            )
        return word in _TRUE

    def _fraction(self, value: object, where: str) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self._wrong(value, where)
        if isinstance(value, int) and 1 <= value <= 100:
            raise ambiguous(str(value), what=where)
        if not 0 <= value <= 1:
            raise ConfigError(f"{where}: {value:g} is not between 0 and 1", hint="0.01 is one percent")
        return float(value)

    def _wrong(self, value: object, where: str) -> ConfigError:
        examples = {"a fraction": "0.01", "a list of texts": "['first', 'second']", "a table": "{key: value}"}
        like = examples.get(self.in_words, str(self.default).lower() if self.is_switch else str(self.default))
        return ConfigError(
            f"{where}: {value!r} is not {self.in_words}", hint=f"{self.name} is {self.in_words}, like {like}"
        )


@functools.cache
def declared_options(cls: type) -> Mapping[str, OptionField]:
    """The options of an options class by name, in the order of their declaration."""
    hints = typing.get_type_hints(cls)
    table: dict[str, OptionField] = {}
    for field in dataclasses.fields(cls):
        made = field.default_factory() if callable(field.default_factory) else field.default
        kind = hints[field.name]
        if typing.get_origin(kind) in (types.UnionType, typing.Union):  # "not given" is None
            (kind,) = (k for k in typing.get_args(kind) if k is not types.NoneType)
        table[field.name] = OptionField(
            name=field.name, kind=kind, default=made, declared=field.metadata[_METADATA]
        )
    return types.MappingProxyType(table)


def strict(cls: type[T]) -> type[T]:
    """Class decorator: a name that is no option of ``cls`` is an :class:`UnknownOptionError`, no ``TypeError``."""
    made = cls.__init__

    @functools.wraps(made)
    def init(self: T, *values: object, **named: object) -> None:
        if values:
            raise ConfigError("options are given by name", hint=f"like {cls.__name__}(samples=100)")
        for name in named:
            find(cls, name, where=cls.__name__)
        made(self, **named)

    cls.__init__ = init  # type: ignore[assignment]  # the signature that a reader sees stays the dataclass's
    return cls


def find(cls: type, name: str, *, where: str) -> OptionField:
    """The option called ``name``. Raises :class:`UnknownOptionError` with the nearest."""
    table = declared_options(cls)
    if name not in table:
        raise UnknownOptionError("option", name, table, where=where)
    return table[name]


def split(text: str) -> tuple[str, ...]:
    """``"a, b"`` as ``("a", "b")``."""
    return tuple(filter(None, (part.strip() for part in text.split(","))))


_EXAMPLES = {
    "--set": "for example --set io_layout=nhwc",
    "--shape": "a name and sizes joined by x, for example --shape image=1x3x224x224; one --shape for each input",
    "--state": "for example --state h0=hn; one --state for each input",
    "--bind": "for example --bind sr=16000; one --bind for each input",
    "--limit": "for example --limit snr=30dB",
}


def pairs(text: str) -> tuple[str, ...]:
    """``key=value`` parts between commas; what is none, or a range of a shape's axis, belongs to the value before it:
    ``compute_capabilities=SM86,SM89``, ``axes=batch=1:2:4,time=1:8:32``."""
    found: list[str] = []
    for part in split(text):
        if found and ("=" not in part or _RANGE.fullmatch(part)):
            found[-1] += f",{part}"
        else:
            found.append(part)
    return tuple(found)


def parse_settings(items: typing.Iterable[str], *, where: str = "--set") -> dict[str, Option]:
    """``("io_layout=nhwc", "threads=2")`` as a mapping with typed values."""
    settings: dict[str, Option] = {}
    for item in items:
        key, sign, value = item.partition("=")
        if not sign or not key:
            raise ConfigError(
                f"{where} {item!r} is not key=value", hint=_EXAMPLES.get(where, _EXAMPLES["--set"])
            )
        settings[key.strip()] = parse_value(value.strip())
    return settings


def parse_value(text: str) -> Option:
    """``true``/``false``, an integer, a float, else the text itself: numbers that no file keeps are text."""
    if text in ("true", "false"):
        return text == "true"
    for kind in (int, float):
        try:
            value = kind(text)
        except ValueError:
            continue
        if math.isfinite(value) and (kind is float or abs(value) < _MOST):
            return value
    return text


def parse_fraction(text: str, *, what: str) -> float:
    """``"1%"``, ``"1pt"`` and ``"0.01"`` are all 0.01. Raises :class:`ConfigError`, for ``"1"`` too."""
    body, scale = text.strip(), 1.0
    for suffix in ("%", "points", "point", "pts", "pt"):
        if body.endswith(suffix):
            body, scale = body[: -len(suffix)].strip(), 0.01
            break
    try:
        value = float(body) * scale
    except ValueError as e:
        raise ConfigError(f"{what}: {text!r} is not a fraction", hint="write 1% or 0.01") from e
    if scale == 1.0 and 1 <= value <= 100:
        raise ambiguous(body, what=what)
    if not 0 <= value <= 1:
        raise ConfigError(f"{what}: {text} is not between 0 and 100%", hint="write 1% or 0.01")
    return value


def ambiguous(text: str, *, what: str) -> ConfigError:
    """The error for a bare number of 1 or more: as a fraction it would accept any loss."""
    percent = float(text)
    meant = f"{percent:g}% or {percent / 100:g}"
    return ConfigError(f"{what}: does {text} mean {meant}?", hint=f"write {meant}")
