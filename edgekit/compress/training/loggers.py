"""Where a training run's curves go: TensorBoard, MLflow, Weights & Biases. Each is an extra of its own."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from edgekit.compress.training.settings import Loop, is_first_process
from edgekit.errors import MissingExtraError


class Log(Protocol):
    """Takes named numbers of one training step."""

    def write(self, values: Mapping[str, float], step: int) -> None:
        """``values`` after ``step`` updates."""
        ...

    def close(self) -> None:
        """Nothing more follows."""
        ...


class _Several:
    def __init__(self, logs: list[Log]) -> None:
        self._logs = logs

    def write(self, values: Mapping[str, float], step: int) -> None:
        for log in self._logs:
            log.write(values, step)

    def close(self) -> None:
        for log in self._logs:
            log.close()


class _TensorBoard:
    def __init__(self, folder: str) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise MissingExtraError("tensorboard", "tensorboard") from error
        self._writer: Any = SummaryWriter(folder)

    def write(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class _MLflow:
    """A run in the tracking store that ``MLFLOW_TRACKING_URI`` names."""

    def __init__(self) -> None:
        try:
            import mlflow
        except ImportError as error:
            raise MissingExtraError("mlflow", "mlflow") from error
        self._mlflow: Any = mlflow
        mlflow.start_run(nested=True)

    def write(self, values: Mapping[str, float], step: int) -> None:
        self._mlflow.log_metrics(dict(values), step=step)

    def close(self) -> None:
        self._mlflow.end_run()


class _Wandb:
    """A run of its own; ``WANDB_MODE=offline`` keeps it on this machine."""

    def __init__(self, folder: str) -> None:
        try:
            import wandb
        except ImportError as error:
            raise MissingExtraError("wandb", "wandb") from error
        self._run: Any = wandb.init(project="edgekit", dir=folder, reinit=True)

    def write(self, values: Mapping[str, float], step: int) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()


@contextlib.contextmanager
def opened(loop: Loop) -> Iterator[Log]:
    """The loop's loggers, each with a run of its own. Raises ``MissingExtraError``."""
    logs = _Several([_open(name, loop) for name in loop.loggers] if is_first_process() else [])
    try:
        yield logs
    finally:
        logs.close()


def _open(name: str, loop: Loop) -> Log:
    if name == "mlflow":
        return _MLflow()
    taken = [int(p.name[4:]) for p in loop.logs.glob("run-*") if p.name[4:].isdigit()]
    folder = loop.logs / f"run-{max(taken, default=0) + 1}"
    folder.mkdir(parents=True)
    return _TensorBoard(str(folder)) if name == "tensorboard" else _Wandb(str(folder))
