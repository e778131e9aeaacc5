"""What is known of a source, samples or a task from an earlier run, while nothing that it was made from changed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import msgspec

from edgekit.core import versions
from edgekit.core.dependency import Dependency, refreshed, used
from edgekit.core.store import Store
from edgekit.load.record import Recorder


def recall(store: Store, name: str, parts: Mapping[str, object]) -> dict[str, object] | None:
    """What :func:`remember` kept for ``parts``; ``None`` when something that was read is no longer as it was."""
    note = store.recall(name, _key(parts))
    if not isinstance(note, dict):
        return None
    dependencies = tuple(msgspec.convert(d, Dependency) for d in note.pop("dependencies"))
    current = refreshed(dependencies)
    if current is None:
        return None
    used.update((d.name, d) for d in current)
    if current != dependencies:  # only touched: another time it need not be read again
        store.remember(name, _key(parts), note | {"dependencies": [asdict(d) for d in current]})
    return note


def remember(
    store: Store, name: str, parts: Mapping[str, object], facts: Mapping[str, object], recorder: Recorder
) -> None:
    """Keep ``facts``, which were found while ``recorder`` looked; nothing where it cannot know what they rest on."""
    used.update((d.name, d) for d in recorder.dependencies)
    if not recorder.doubts:
        dependencies = [asdict(d) for d in recorder.dependencies]
        store.remember(name, _key(parts), {**facts, "dependencies": dependencies})


def _key(parts: Mapping[str, object]) -> dict[str, object]:
    return {
        **parts,
        "folder": str(Path.cwd()),
        "environment": versions.environment(),
        "edgekit": versions.code(),
    }
