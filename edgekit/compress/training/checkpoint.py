"""What makes a killed training go on to the same bytes: checkpoints, kept by the step that trains.

A training run is kept under the key of the step that it is part of and its number within it. Nothing is pickled:
all files are safetensors with JSON in their header, written under a temporary name and renamed.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from edgekit.core.files import system_errors, whole

_FACTS = "edgekit"


@dataclass
class Running:
    """The step that runs now: where its training runs keep their checkpoints, and how many there were."""

    folder: Path
    runs: int = 0

    def next(self) -> Path:
        """The checkpoint file of the next training run."""
        self.runs += 1
        return self.folder / f"training-{self.runs}.safetensors"


_running: ContextVar[Running | None] = ContextVar("running", default=None)


@contextlib.contextmanager
def resumable(folder: Path | None) -> Iterator[None]:
    """Let training inside the block keep checkpoints in ``folder``; without one, none are kept."""
    token = _running.set(None if folder is None else Running(folder=folder))
    try:
        yield
    finally:
        _running.reset(token)


def running() -> Running | None:
    """The step around the caller, if its training can be resumed."""
    return _running.get()


def write(path: Path, tensors: Mapping[str, torch.Tensor], facts: Mapping[str, object]) -> None:
    """Tensors and a JSON document in one file that is either there as a whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    plain = {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}
    with whole(path) as temporary, system_errors():
        save_file(plain, temporary, metadata={_FACTS: json.dumps(facts)})


def read(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """What :func:`write` wrote."""
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        facts: dict[str, Any] = json.loads((file.metadata() or {}).get(_FACTS, "{}"))
    return tensors, facts


def parts(tensors: Mapping[str, torch.Tensor], *names: str) -> list[dict[str, torch.Tensor]]:
    """Tensors called ``part/name`` by their part, in the order of ``names``."""
    split: dict[str, dict[str, torch.Tensor]] = {name: {} for name in names}
    for key, tensor in tensors.items():
        part, _, name = key.partition("/")
        split[part][name] = tensor
    return list(split.values())
