"""Models and samples inside step directories: how the cache keeps what passes between the stages."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from edgekit.store import canonical_json
from edgekit.structure import structure
from edgekit.types import OnnxModel

if TYPE_CHECKING:
    from edgekit.types import Array

MODEL_RECORD = "model.json"


@dataclass(frozen=True, kw_only=True)
class ModelRecord:
    """An ONNX model in a step directory, with what is known about it beyond the file."""

    model: OnnxModel
    task: str = ""
    labels: tuple[str, ...] = ()
    preprocessing: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)


def write_model(record: ModelRecord, directory: Path) -> None:
    """Keep the record; the model's path becomes relative to ``directory``."""
    relative = replace(record.model, path=record.model.path.relative_to(directory))
    (directory / MODEL_RECORD).write_bytes(canonical_json(replace(record, model=relative)))


def read_model(directory: Path) -> ModelRecord:
    """The record with the model's path made absolute again."""
    document = msgspec.json.decode((directory / MODEL_RECORD).read_bytes())
    record = structure(ModelRecord, document, where=str(directory / MODEL_RECORD))
    return replace(record, model=replace(record.model, path=directory / record.model.path))


def write_json(value: object, path: Path) -> None:
    """Canonical JSON."""
    path.write_bytes(canonical_json(value))


def read_json(path: Path) -> Any:
    """Builtins from JSON."""
    return msgspec.json.decode(path.read_bytes())


def write_arrays(path: Path, rows: Iterable[Mapping[str, Array]]) -> int:
    """Arrays of each row as members ``<row>/<name>.npy`` of an uncompressed zip; returns the number of rows.

    One row is in memory at a time. Member times are fixed, so equal arrays give equal bytes.
    """
    import numpy as np

    count = 0
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for count, row in enumerate(rows, 1):
            for name, array in row.items():
                info = zipfile.ZipInfo(f"{count - 1}/{name}.npy")
                with archive.open(info, "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, np.asanyarray(array, order="C"), allow_pickle=False)
    return count


def read_arrays(path: Path) -> Iterator[dict[str, Array]]:
    """The rows of :func:`write_arrays`, one in memory at a time."""
    import numpy as np

    with zipfile.ZipFile(path) as archive:
        rows: dict[int, list[str]] = {}
        for member in archive.namelist():
            rows.setdefault(int(member.partition("/")[0]), []).append(member)
        for _, members in sorted(rows.items()):
            row = {}
            for member in members:
                with archive.open(member) as f:
                    row[member.partition("/")[2].removesuffix(".npy")] = np.lib.format.read_array(
                        f, allow_pickle=False
                    )
            yield row
