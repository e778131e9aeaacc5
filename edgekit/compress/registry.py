"""Steps by name: those that plug-ins register, and how the command line spells them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import cast

from edgekit.compress.step import Scalar, Step, options
from edgekit.core import plugins
from edgekit.core.structure import structure
from edgekit.errors import ConfigError, PluginError, UnknownNameError


def registry() -> dict[str, type[Step]]:
    """Every installed step by name, edgekit's own first. No step's dataclass imports PyTorch."""
    return {name: _kind(name) for name in plugins.table("steps")}


def _kind(name: str) -> type[Step]:
    module = plugins.module("steps", name)
    kind = getattr(module, "STEP", None)
    if not isinstance(kind, type) or not dataclasses.is_dataclass(kind) or getattr(kind, "NAME", "") != name:
        raise PluginError(
            f"{module.__name__} has no step {name!r}",
            hint=f"STEP has to be a frozen dataclass, a subclass of edgekit.compress.step.Step with NAME = {name!r}",
        )
    return cast("type[Step]", kind)


def default_options(name: str, *, where: str = "") -> dict[str, Scalar]:
    """The options of the step ``name`` with their defaults. Raises ``UnknownNameError``."""
    kinds = registry()
    if name not in kinds:
        raise UnknownNameError("step", name, kinds, where=where)
    return options(kinds[name]())


def parse(text: str) -> Step:
    """The step that ``name(option=value;option=value)`` spells. Raises ``ConfigError`` and ``UnknownNameError``."""
    name, paren, rest = text.strip().partition("(")
    if paren and not rest.endswith(")"):
        raise ConfigError(
            f"{text!r} lacks its closing parenthesis", hint="write name(option=value;option=value)"
        )
    defaults = default_options(name)
    return from_options(name, parse_options(name, rest.removesuffix(")").split(";"), defaults))


def parse_options(name: str, items: list[str], defaults: Mapping[str, Scalar]) -> dict[str, Scalar]:
    """``option=value`` texts, each value in the type of its default."""
    values: dict[str, Scalar] = {}
    for item in filter(None, items):
        key, equals, value = item.partition("=")
        key = key.strip()
        if not equals:
            raise ConfigError(f"{item!r} is no option of {name}", hint="write option=value")
        if key not in defaults:
            raise UnknownNameError(f"option of {name}", key, defaults)
        if key in values:
            raise ConfigError(f"{name} has {key} twice", hint="write it once")
        values[key] = _scalar(name, key, value.strip(), defaults[key])
    return values


def from_options(name: str, values: Mapping[str, Scalar]) -> Step:
    """A step from flat options, as :func:`edgekit.compress.step.options` gives them."""
    nested: dict[str, object] = {}
    tables: dict[str, dict[str, Scalar]] = {}
    for key, value in (default_options(name) | dict(values)).items():
        table, dot, option = key.partition(".")
        if dot:
            nested[table] = tables.setdefault(table, {})
            tables[table][option] = value
        else:
            nested[key] = value
    return structure(registry()[name], nested, where=name)


def _scalar(step: str, key: str, text: str, like: Scalar) -> Scalar:
    try:
        if isinstance(like, bool):
            return {"true": True, "false": False}[text.lower()]
        if isinstance(like, int | float):
            value = type(like)(text)
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(text)
            return value
    except (KeyError, ValueError) as error:
        raise ConfigError(
            f"{key}={text} of {step} is not a {type(like).__name__}", hint=f"the default is {key}={like}"
        ) from error
    return text
