"""Folders of images named by class, and which number of the model's scores each of them is."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgekit.errors import DataError, UnknownNameError

FILE = "labels.txt"
"""Beside the folders: one class a line, in the order of the scores, for a source that declares none."""


@dataclass(frozen=True, kw_only=True)
class Classes:
    """The names that the source declares, in the order of its scores; ``required``: labels are what is wanted, so that
    a folder that is no class is an error, not a sample without a label."""

    names: tuple[str, ...] = ()
    required: bool = False


def numbers(root: Path, folders: Sequence[str], classes: Classes) -> dict[str, int]:
    """The class of each folder below ``root``, by the folder's name.

    Names are matched with those that the source declares, else with ``labels.txt`` there: case, ``_`` and ``-`` do not
    count, nor which of several names (``"tench, Tinca tinca"``). Folders that are all numbers are those classes. They
    are never counted through: one that is missing would shift all that follow.

    Raises :class:`DataError` for a folder that is no class, where labels are ``required``; else nothing is given.
    """
    names = classes.names or _listed(root)
    try:
        return _matched(root, folders, names)
    except DataError:
        if classes.required:
            raise
        return {}


def _matched(root: Path, folders: Sequence[str], names: Sequence[str]) -> dict[str, int]:
    known = _known(names)
    numbered = bool(folders) and all(f.isdecimal() for f in folders)
    found: dict[str, int] = {}
    for folder in folders:
        number = known.get(_plain(folder))
        if number is None and numbered and (not names or int(folder) < len(names)):
            number = int(folder)
        if number is None:
            raise _unknown(root, folder, names)
        found[folder] = number
    return found


def _unknown(root: Path, folder: str, names: Sequence[str]) -> DataError:
    if not names:
        return DataError(
            f"{root} has a folder {folder!r} of images, and the source does not say which class that is",
            hint=f"declare the classes in the order of the scores (TorchModel(labels=…)), or write them into "
            f"{root / FILE}, one a line, or name the folders by number, from 0",
        )
    if folder.isdecimal():
        return DataError(
            f"{root} has a folder {folder!r}; the model has {len(names)} classes, 0 to {len(names) - 1}",
            hint="number the folders as the model's scores are, from 0, or name them as it names its classes",
        )
    return DataError(
        f"{root} has a folder {folder!r}, which is no class of the model",
        hint=UnknownNameError("class", folder, names).hint + "; other folders do not belong there",
    )


def _listed(root: Path) -> tuple[str, ...]:
    file = root / FILE
    if not file.is_file():
        return ()
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is not UTF-8 text", hint="write one class a line") from error
    return tuple(filter(None, map(str.strip, lines)))


def _known(names: Sequence[str]) -> dict[str, int]:
    """Every name of every class that belongs to that class alone."""
    whole = {_plain(name): i for i, name in enumerate(names)}
    parts: dict[str, set[int]] = {}
    for i, name in enumerate(names):
        for part in name.split(","):
            parts.setdefault(_plain(part), set()).add(i)
    return {part: i for part, owners in parts.items() if len(owners) == 1 for i in owners} | whole


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]+", " ", name).strip().casefold()
