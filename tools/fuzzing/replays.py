"""A runtime's run without a runtime: right names, any values. What reads an artifact is fuzzed before and behind it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from unittest import mock

import numpy as np

from edgekit.devices.execute import Ports
from edgekit.devices.runnable import Runnable
from edgekit.devices.wire import Port

_USERS = (
    "edgekit.artifact.golden",
    "edgekit.package.golden",
    "edgekit.package.verifying",
    "edgekit.artifact.run",
)


@dataclass
class _Run:
    outputs: list[dict[str, np.ndarray]]
    ports: Ports
    versions: Mapping[str, str] = field(default_factory=lambda: {"onnxruntime": "1"})

    def __enter__(self) -> _Run:
        return self

    def __exit__(self, *exc: object) -> None:
        return None


def _run(runnable: Runnable, inputs: Iterable[Mapping[str, np.ndarray]], **settings: object) -> _Run:
    del settings
    bound = [runnable.bind(sample) for sample in inputs]
    outputs = [{name: np.zeros((1, 4), np.float32) for name in runnable.outputs} for _ in bound]
    return _Run(outputs, Ports(inputs=_ports(bound), outputs=_ports(outputs)))


def _ports(samples: list[dict[str, np.ndarray]]) -> dict[str, Port]:
    first = samples[0] if samples else {}
    return {n: Port(names=(n,), dtype=a.dtype.name, shape=(None,) * a.ndim) for n, a in first.items()}


@contextlib.contextmanager
def replayed() -> Iterator[None]:
    """Artifacts and bundles are replayed without a process each; the command line's are real."""
    with contextlib.ExitStack() as stack:
        for module in _USERS:
            stack.enter_context(mock.patch(f"{module}.run_artifact", _run))
        yield
