"""Models inside step directories: how the cache keeps what passes between the stages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec

from edgekit.core.store import canonical_json
from edgekit.core.structure import structure
from edgekit.types import OnnxModel

MODEL_RECORD = "model.json"


@dataclass(frozen=True, kw_only=True)
class ModelRecord:
    """An ONNX model in a step directory, with what is known about it beyond the file."""

    model: OnnxModel
    task: str = ""
    labels: tuple[str, ...] = ()
    preprocessing: Mapping[str, Any] = field(default_factory=dict)
    postprocessing: Mapping[str, Any] = field(default_factory=dict)
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
