"""TOML files, whoever wrote them."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from edgekit.core import files
from edgekit.errors import ConfigError, first_line

_DEPTH = 40
_MOST_BYTES = 16 << 20


def read(path: Path) -> dict[str, Any]:
    """The document in ``path``. Raises :class:`ConfigError`, for one that is nested without end or has numbers
    beyond all bounds, too."""
    try:
        document = tomllib.loads(files.read(path, most=_MOST_BYTES).decode("utf-8"))
        _refuse_depth(document)
    except OSError as error:
        why = error.strerror or first_line(error)
        raise ConfigError(f"{path} cannot be read: {why}", hint="check the path") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: {first_line(error)}", hint="correct the TOML") from error
    return document


def _refuse_depth(document: dict[str, Any]) -> None:
    level: list[Any] = [document]
    for _ in range(_DEPTH):
        nested = (v.values() if isinstance(v, dict) else v for v in level if isinstance(v, dict | list))
        level = [value for values in nested for value in values]
    if level:
        raise ValueError(f"it is nested more than {_DEPTH} deep")


def rows(document: dict[str, Any], key: str, path: Path) -> list[dict[str, Any]]:
    """The ``[[key]]`` tables of a document; none where there are none. Raises :class:`ConfigError`."""
    found = document.get(key, [])
    if not isinstance(found, list) or not all(isinstance(row, dict) for row in found):
        raise ConfigError(f"{path}: {key} is no list of tables", hint=f"write [[{key}]]")
    return found
