"""What makes a killed run go on to the same bytes: finished steps and training checkpoints, kept by content.

One folder holds both. A finished step is kept under its cache key (options, input weights, task, seed), a
training run under the key of the step that it is part of and its number within it. Nothing is pickled: all
files are safetensors with JSON in their header, written under a temporary name and renamed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from edgekit.compress.step import Size

_FACTS = "edgekit"


@dataclass(frozen=True, kw_only=True)
class Finished:
    """A step that ended: all weights of the model after it, what it recorded, the size that was measured."""

    weights: Mapping[str, torch.Tensor]
    tensors: Mapping[str, torch.Tensor]
    size: Size


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


def is_first_process() -> bool:
    """Whether this process writes files: the only one, or the first of several that ``torchrun`` started."""
    return os.environ.get("RANK", "0") == "0"


@contextlib.contextmanager
def resumable(work: Path | None, key: str) -> Iterator[None]:
    """Let training inside the block keep checkpoints for the step ``key``; without a folder, none are kept."""
    if work is None:
        token = _running.set(None)
        try:
            yield
        finally:
            _running.reset(token)
        return
    folder = work / f"running-{key[:32]}"
    token = _running.set(Running(folder=folder))
    try:
        yield
    finally:
        _running.reset(token)


def running() -> Running | None:
    """The step around the caller, if its training can be resumed."""
    return _running.get()


def finished(work: Path | None, key: str) -> Finished | None:
    """What :func:`keep` kept for ``key``."""
    from edgekit.compress.step import Size

    if work is None or not (path := _path(work, key)).is_file():
        return None
    tensors, facts = read(path)
    parts: dict[str, dict[str, torch.Tensor]] = {"weights": {}, "tensors": {}}
    for name, tensor in tensors.items():
        part, _, rest = name.partition("/")
        parts[part][rest] = tensor
    return Finished(weights=parts["weights"], tensors=parts["tensors"], size=Size(**facts["size"]))


def keep(work: Path | None, key: str, result: Finished) -> None:
    """Keep a finished step; its training's checkpoints are no longer needed."""
    if work is None or not is_first_process():
        return
    named = {f"weights/{k}": v for k, v in result.weights.items()}
    named |= {f"tensors/{k}": v for k, v in result.tensors.items()}
    write(_path(work, key), named, {"size": dataclasses.asdict(result.size)})
    shutil.rmtree(work / f"running-{key[:32]}", ignore_errors=True)


def write(path: Path, tensors: Mapping[str, torch.Tensor], facts: Mapping[str, Any]) -> None:
    """Tensors and a JSON document in one file that is either there as a whole or not at all."""
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    plain = {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}
    try:
        save_file(plain, temporary, metadata={_FACTS: json.dumps(facts)})
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def read(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """What :func:`write` wrote."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        facts: dict[str, Any] = json.loads((file.metadata() or {}).get(_FACTS, "{}"))
    return tensors, facts


def _path(work: Path, key: str) -> Path:
    return work / f"step-{key[:32]}.safetensors"
