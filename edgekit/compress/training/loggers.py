"""Where a training run's curves go: TensorBoard, MLflow, Weights & Biases. Each is an extra of its own."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType
from typing import TypeAlias

from edgekit.compress.training.settings import Loop, is_first_process
from edgekit.errors import MissingExtraError

Write: TypeAlias = Callable[[Mapping[str, float], int], None]
"""Takes named numbers after so many updates."""


@contextlib.contextmanager
def opened(loop: Loop) -> Iterator[Write]:
    """The loop's loggers as one, each with a run of its own; only the first process writes.

    Raises ``MissingExtraError``.
    """
    with ExitStack() as closing:
        logs = [_OPEN[name](loop, closing) for name in loop.loggers if is_first_process()]

        def write(values: Mapping[str, float], step: int) -> None:
            for log in logs:
                log(values, step)

        yield write


def _tensorboard(loop: Loop, closing: ExitStack) -> Write:
    writer = _module("torch.utils.tensorboard", "tensorboard").SummaryWriter(_folder(loop))
    closing.callback(writer.close)

    def write(values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            writer.add_scalar(name, value, step)

    return write


def _mlflow(_: Loop, closing: ExitStack) -> Write:
    """A run in the tracking store that ``MLFLOW_TRACKING_URI`` names."""
    mlflow = _module("mlflow", "mlflow")
    mlflow.start_run(nested=True)
    closing.callback(mlflow.end_run)
    return lambda values, step: mlflow.log_metrics(dict(values), step=step)


def _wandb(loop: Loop, closing: ExitStack) -> Write:
    """A run of its own; ``WANDB_MODE=offline`` keeps it on this machine."""
    run = _module("wandb", "wandb").init(project="edgekit", dir=_folder(loop), reinit=True)
    closing.callback(run.finish)
    return lambda values, step: run.log(dict(values), step=step)


_OPEN: Mapping[str, Callable[[Loop, ExitStack], Write]] = {
    "tensorboard": _tensorboard,
    "mlflow": _mlflow,
    "wandb": _wandb,
}


def _module(name: str, extra: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingExtraError(extra, extra) from error


def _folder(loop: Loop) -> str:
    taken = [int(p.name[4:]) for p in loop.logs.glob("run-*") if p.name[4:].isdigit()]
    folder: Path = loop.logs / f"run-{max(taken, default=0) + 1}"
    folder.mkdir(parents=True)
    return str(folder)
