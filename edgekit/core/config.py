"""Options from ``edgekit.toml`` or ``[tool.edgekit]`` in pyproject.toml, the environment, and flags.

Later wins: file, then ``EDGEKIT_<OPTION>``, then the command line. An unknown key is an error that names
the nearest option.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from edgekit.core.structure import structure
from edgekit.errors import ConfigError, UnknownNameError
from edgekit.types import Option, OptionSpec, Target

BUILD_SETTINGS = (
    OptionSpec(
        name="fold_preprocessing",
        default=False,
        help="make colour order, scaling and layout of the preprocessing contract part of the model",
    ),
    OptionSpec(
        name="pixels",
        default="float32",
        choices=("float32", "uint8"),
        help="what a model with its preprocessing folded in takes: pixels from 0 to 255 in this type",
    ),
)
"""``--set`` options that every target understands."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """What ``edgekit build`` can be told. Fields are the command line's long options."""

    target: str = ""
    calib: str = ""
    eval: str = ""
    metric: str = ""
    max_drop: str = ""
    out: str = "build"
    device: str = ""
    method: str = "auto"
    exclude: tuple[str, ...] = ()
    int16: tuple[str, ...] = ()
    corrections: tuple[str, ...] = ("smooth", "bias", "gptq")
    speed_gate: bool = True
    samples: int = 512
    accept_data: bool = False
    trust: bool = False
    network: bool = False
    allow_not_run: bool = False
    recipe: str = ""
    task: str = ""
    train: str = ""
    accelerator: str = "auto"
    log: tuple[str, ...] = ()
    preprocessing: Mapping[str, Any] = field(default_factory=dict)
    set: Mapping[str, Option] = field(default_factory=dict)


def load(flags: Mapping[str, Any], *, project: Path | None = None) -> Options:
    """The options in force: file, environment, then ``flags`` (``None`` and empty values are not given, nor is
    ``False`` but for an option that is on unless it is switched off)."""
    options = structure(Options, _from_file(project or Path.cwd()), where="edgekit.toml")
    options = replace(options, **_from_environment())
    on = {option.name for option in fields(Options) if option.default is True}
    given: dict[str, Any] = {
        k: v for k, v in flags.items() if v not in (None, "", (), {}, False) or (v is False and k in on)
    }
    if "set" in given:
        given["set"] = {**options.set, **given["set"]}
    return replace(options, **given)


def parse_settings(items: Sequence[str]) -> dict[str, Option]:
    """``("io_layout=nhwc", "threads=2")`` as a mapping with typed values."""
    settings: dict[str, Option] = {}
    for item in items:
        key, sign, value = item.partition("=")
        if not sign or not key:
            raise ConfigError(f"--set {item!r} is not key=value", hint="for example --set io_layout=nhwc")
        settings[key.strip()] = parse_value(value.strip())
    return settings


def parse_value(text: str) -> Option:
    """``true``/``false``, an integer, a float, else the text itself."""
    if text in ("true", "false"):
        return text == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def parse_fraction(text: str, *, what: str) -> float:
    """``"1%"``, ``"1pt"`` and ``"0.01"`` are all 0.01."""
    body, scale = text.strip(), 1.0
    for suffix in ("%", "points", "point", "pts", "pt"):
        if body.endswith(suffix):
            body, scale = body[: -len(suffix)].strip(), 0.01
            break
    try:
        value = float(body) * scale
    except ValueError as e:
        raise ConfigError(f"{what}: {text!r} is no fraction", hint="write 1% or 0.01") from e
    if not 0 <= value <= 1:
        raise ConfigError(f"{what}: {text} is not between 0 and 100%", hint="write 1% or 0.01")
    return value


def target_options(target: Target, settings: Mapping[str, Option]) -> dict[str, Option]:
    """The target's own options: its defaults, overridden by the settings that it knows."""
    return _chosen(target.options, settings, where=target.name)


def build_settings(settings: Mapping[str, Option]) -> dict[str, Option]:
    """:data:`BUILD_SETTINGS`: their defaults, overridden by ``settings``."""
    chosen = _chosen(BUILD_SETTINGS, settings, where="build")
    if "pixels" in settings and not chosen["fold_preprocessing"]:
        raise ConfigError(
            f"pixels={settings['pixels']} is about models with their preprocessing folded in",
            hint="add --set fold_preprocessing=true, or leave pixels out",
        )
    return chosen


def _chosen(specs: Sequence[OptionSpec], settings: Mapping[str, Option], *, where: str) -> dict[str, Option]:
    chosen: dict[str, Option] = {}
    for spec in specs:
        value = settings.get(spec.name, spec.default)
        if isinstance(spec.default, str) and not isinstance(value, str):
            value = str(value)
        if spec.choices and value not in spec.choices:
            allowed = ", ".join(map(str, spec.choices))
            raise ConfigError(f"{where}: {spec.name}={value} is not possible", hint=f"one of: {allowed}")
        if isinstance(spec.default, bool) != isinstance(value, bool):
            raise ConfigError(
                f"{where}: {spec.name}={value} has the wrong type", hint=f"like {spec.name}={spec.default}"
            )
        chosen[spec.name] = value
    return chosen


def refuse_unknown_settings(targets: Sequence[Target], settings: Mapping[str, Option]) -> None:
    """Every setting must be the build's, or an option of at least one of the targets."""
    known = {spec.name for t in targets for spec in t.options} | {spec.name for spec in BUILD_SETTINGS}
    for key in settings:
        if key not in known:
            raise UnknownNameError("setting", key, known, where=", ".join(t.name for t in targets))


def _from_file(project: Path) -> dict[str, Any]:
    for path, table in ((project / "edgekit.toml", ()), (project / "pyproject.toml", ("tool", "edgekit"))):
        if not path.is_file():
            continue
        try:
            document: Any = tomllib.loads(path.read_text(encoding="utf-8"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
            raise ConfigError(f"{path}: {e}", hint="correct the TOML") from e
        for key in table:
            document = document.get(key, {})
        if document:
            return dict(document)
    return {}


def _from_environment() -> dict[str, Any]:
    found: dict[str, Any] = {}
    for option in fields(Options):
        text = os.environ.get(f"EDGEKIT_{option.name.upper()}")
        if text and option.name not in ("set", "preprocessing"):
            found[option.name] = _typed(text, str(option.type))
    return found


def _typed(text: str, kind: str) -> Any:
    if kind.startswith("tuple"):
        return tuple(filter(None, text.split(",")))
    return text if kind == "str" else parse_value(text)
