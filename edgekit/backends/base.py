"""What a backend may bring besides :class:`edgekit.types.Backend`: the vendor's own benchmark tool.

The whole contract: :class:`edgekit.types.Backend` is what a backend's module must have, and
:class:`edgekit.types.Checks` a function that it may have; its ``INFO`` (:class:`edgekit.plugins.BackendInfo`) names the
runtime and the modules of the rest. Placement rules and package formats are the plug-in's
(:class:`edgekit.plugins.Plugin`), as rows and users ask for them by name.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar, runtime_checkable

import msgspec

from edgekit.errors import BackendError, DeviceError
from edgekit.types import KEEP_FLOAT32, Json, Option, Target

T = TypeVar("T")

NUMBER = r"([-+\d.eE]+)"
"""A group that matches a number."""


def kept_float32(options: Mapping[str, Option]) -> tuple[str, ...]:
    """The ONNX nodes that a float16 target leaves in float32: their activations leave float16's range."""
    return tuple(filter(None, str(options.get(KEEP_FLOAT32, "")).split("\n")))


def beyond_float16(nodes: Collection[str]) -> Iterator[str]:
    """The manifest's note on them."""
    if nodes:
        named = ", ".join(sorted(nodes)[:5]) + (", …" if len(nodes) > 5 else "")
        yield f"{len(nodes)} nodes stay in float32, as their activations come near or leave float16's range: {named}"


def reported(raw: Mapping[str, Json], name: str, kind: type[T]) -> T | None:
    """What a runner's report has under ``name``, as ``kind``, or ``None``. Raises :class:`DeviceError` for anything
    else."""
    value = raw.get(name)
    try:
        return None if value is None else msgspec.convert(value, kind)
    except (msgspec.ValidationError, RecursionError) as error:
        raise DeviceError(
            f"the device reports what it executed in a form that cannot be read: {name}: {str(error)[:200]}",
            hint="run it again; if it stays so, do not trust the device",
        ) from error


@dataclass(frozen=True, kw_only=True)
class Timing:
    """How one process times a model.

    Attributes:
        seconds: of steady state, at least; and as many ``iterations``, at most ``max_iterations``.
        warmup_s: seconds of warm-up, at most.
        threads: 0 for what the model's options say.
        cpus: the processors to run on, by number; none: all.
    """

    seconds: float = 0.5
    iterations: int = 10
    max_iterations: int = 20_000
    warmup_s: float = 2.0
    threads: int = 0
    cpus: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What one process printed, in milliseconds and bytes; ``None``: it does not say.

    ``samples_ms`` are the single inferences where it gives them. ``model_memory`` is what the model added,
    ``peak_memory`` the process's peak.
    """

    median_ms: float | None = None
    mean_ms: float | None = None
    p90_ms: float | None = None
    p99_ms: float | None = None
    samples_ms: tuple[float, ...] = ()
    load_ms: float | None = None
    first_ms: float | None = None
    peak_memory: int | None = None
    model_memory: int | None = None

    @property
    def steady_ms(self) -> tuple[float, ...]:
        """The samples, else the one figure that stands for them."""
        one = self.median_ms if self.median_ms is not None else self.mean_ms
        return self.samples_ms or (() if one is None else (one,))

    def missing(self) -> tuple[str, ...]:
        """What it did not say, in words."""
        figures = {
            "single inferences": self.samples_ms or None,
            "a median (the mean stands for it)": self.samples_ms or self.median_ms,
            "the time to load": self.load_ms,
            "the first inference": self.first_ms,
            "memory": self.peak_memory if self.peak_memory is not None else self.model_memory,
        }
        return tuple(name for name, value in figures.items() if value is None)


@dataclass(frozen=True, kw_only=True)
class EngineHost:
    """What engines are built for and by on a device; ``compute_capability`` as ``"8.7"``."""

    gpu: str
    compute_capability: str
    version: str
    driver: str
    via: tuple[str, ...] = ()
    dla_cores: int = 0


@dataclass(frozen=True, kw_only=True)
class EngineOrder:
    """What a device is to build: from which file, how (``spec`` goes to the runner's ``build``), under which ``key``
    the engine is kept, the backend's own ``record`` of it, what is to be noted, and how long it may take."""

    onnx: Path
    spec: Mapping[str, Json]
    key: str
    record: object
    notes: tuple[str, ...] = ()
    seconds: float = 3600.0


@runtime_checkable
class EngineBuilder(Protocol):
    """How a runtime's engines are built on the device that runs them, and which may be loaded. A plain module fits."""

    GRAPH: str
    """The name of the ONNX graph among an artifact's files that engines are made of: ONNX Runtime is asked what it
    computes where no engine can be run."""

    def needs_engine(self, main: Path) -> bool:
        """Whether an engine has to be built of an artifact's main file."""
        ...

    def is_engine(self, main: Path) -> bool:
        """Whether the main file is an engine."""
        ...

    def order(self, main: Path, host: EngineHost, out: Path) -> EngineOrder:
        """What to build there."""
        ...

    def write_record(self, folder_engine: Path, order: EngineOrder) -> None:
        """Put beside a new engine what it was built from and for."""
        ...

    def check(self, engine: Path, runtime: str, host: EngineHost, *, where: str) -> None:
        """Raise :class:`~edgekit.errors.EngineMismatchError` for an engine that is not for ``host``, or not of the
        graph beside it."""
        ...

    def contradictions(self, engine: Path, runtime: str, details: Mapping[str, Json]) -> tuple[str, ...]:
        """What of an engine and its record cannot be, in words, as far as can be told without its device. ``details``
        are the manifest's, empty for an engine that lies alone."""
        ...

    def recipe_contradictions(
        self, main: Path, target: Target, details: Mapping[str, Json]
    ) -> tuple[str, ...]:
        """What of the recipe of engines beside an artifact's main file is not its target's, or not what its manifest's
        ``details`` say, in words; nothing where there is no recipe."""
        ...

    def files_read(self, main: Path) -> tuple[str, ...]:
        """The names of the files beside an engine that are sent with it."""
        ...


@runtime_checkable
class VendorTool(Protocol):
    """A runtime's own program that times a model, for devices on which no Python runs. A plain module fits it."""

    TOOL: str
    """The program's name."""

    NOTES: tuple[str, ...]
    """What to say of every measurement that it made."""

    def argv(self, model: str, options: Mapping[str, Option], timing: Timing, file: str) -> list[str]:
        """What follows the program's path. ``options`` are the artifact's; ``file`` is one that it may write."""
        ...

    def read(self, text: str, file: str = "") -> Reading:
        """Read what it printed, and the text of the file. Raises :class:`BackendError` where no times are in it."""
        ...


def last(pattern: str, text: str) -> str | None:
    """The last match of the pattern's group among the lines of ``text``."""
    matches = re.findall(pattern, text, re.MULTILINE)
    return matches[-1] if matches else None


def unread(tool: str, text: str) -> BackendError:
    """The error for an output without times."""
    return BackendError(
        f"{tool} printed no times:\n{text.strip()[-1500:]}",
        hint="run it by hand on the device with the same arguments; report the output if it should have been read",
    )
