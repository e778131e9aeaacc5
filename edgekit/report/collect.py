"""What a report is made of: manifests and raw times, read from folders that anybody may have made."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from edgekit.artifact import history
from edgekit.artifact import manifest as manifests
from edgekit.artifact.manifest import Artifact
from edgekit.artifact.measure import PARTIAL, RAW
from edgekit.core import files
from edgekit.errors import EdgekitError, SourceError

_MOST_BYTES = 64 << 20
_MOST_TIMES = 200_000
"""Of one process: half a second with a call of 2.5 µs."""
_MOST_PROCESSES = 100
LONGEST_MS = 1e9
"""Eleven days: more is no time of a call."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One artifact. ``times`` has the steady-state times of each process in ms, by device; ``changed`` says why the
    files are not what the manifest describes (empty: they are)."""

    artifact: Artifact
    times: Mapping[str, tuple[tuple[float, ...], ...]] = field(default_factory=dict)
    changed: str = ""
    label: str = ""

    @property
    def name(self) -> str:
        """The target; a folder of another name says so. The ``label`` where there is one."""
        if self.label:
            return self.label
        target, folder = self.artifact.target, self.artifact.directory.name
        return target if folder.removesuffix(".failed") == target else f"{folder} ({target})"


@dataclass(frozen=True, kw_only=True)
class Skipped:
    """A folder that looks like an artifact and cannot be read."""

    directory: Path
    why: str


def collect(folders: Sequence[Path]) -> tuple[tuple[Entry, ...], tuple[Skipped, ...]]:
    """The artifacts in ``folders``, each once, in their order; and those that cannot be read.

    Raises :class:`SourceError` where a folder has none.
    """
    entries: dict[Path, Entry] = {}
    skipped: dict[Path, Skipped] = {}
    for folder in folders:
        found = list(_artifacts(folder))
        if not found:
            raise SourceError(
                f"{folder} holds no artifact",
                hint="name what edgekit build wrote: a target's folder, or that of --out",
            )
        for directory in found:
            try:
                entries.setdefault(directory.resolve(), _entry(directory))
            except EdgekitError as error:
                skipped[directory.resolve()] = Skipped(directory=directory, why=error.message)
    return tuple(entries.values()), tuple(skipped.values())


def remembered(number: int) -> Entry:
    """One run of the history, as it was. Raises :class:`UnknownNameError` where there is none of that number."""
    artifact, times = history.artifact_of(number)
    rows = {device: found for device, processes in times.items() if (found := _rows(processes))}
    return Entry(artifact=artifact, times=rows)


def _artifacts(folder: Path) -> Iterator[Path]:
    if (folder / manifests.FILE_NAME).is_file():
        yield folder
    elif folder.is_dir():
        yield from (p.parent for p in sorted(folder.glob(f"*/{manifests.FILE_NAME}")) if p.is_file())


def _entry(directory: Path) -> Entry:
    artifact = manifests.read(directory)
    try:
        manifests.check_files(artifact)
        changed = ""
    except SourceError as error:
        changed = error.message
    return Entry(artifact=artifact, times=_times(directory / RAW), changed=changed)


def _times(path: Path) -> dict[str, tuple[tuple[float, ...], ...]]:
    """The raw times by device; none where the file is missing or is not one of edgekit's."""
    try:
        document = json.loads(files.read(path, most=_MOST_BYTES))
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(document, dict):
        return {}
    return {str(k): rows for k, v in document.items() if k != PARTIAL and (rows := _rows(v))}


def _rows(value: object) -> tuple[tuple[float, ...], ...]:
    rows = []
    for row in value[:_MOST_PROCESSES] if isinstance(value, list) else ():
        times = tuple(float(t) for t in row if _is_time(t)) if isinstance(row, list) else ()
        if times:
            rows.append(times[:_MOST_TIMES])
    return tuple(rows)


def _is_time(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < LONGEST_MS
