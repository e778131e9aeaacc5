"""What a runtime can run: the one description that verification, benchmarks and profiles take."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from edgekit.devices.arrays import channels_first
from edgekit.devices.wire import Fed
from edgekit.errors import SourceError
from edgekit.types import Lowered, Option, TensorSpec, names

if TYPE_CHECKING:
    from edgekit.types import Array

MOST_THREADS = 256
"""Of one inference. No device here has more processors, and to start some thousands takes minutes."""


def sizes(outputs: Iterable[TensorSpec]) -> dict[str, int]:
    """Elements of the tensors that have no dynamic axis, by name."""
    return {
        spec.name: math.prod(d for d in spec.shape if isinstance(d, int))
        for spec in outputs
        if all(isinstance(d, int) for d in spec.shape)
    }


@dataclass(frozen=True, kw_only=True)
class Runnable:
    """One model's files on one runtime, and how the source's inputs become the runtime's.

    ``main`` is the file that the runtime loads; ``companions`` must lie beside it (``.bin`` of an ``.xml``,
    external data). ``options`` are the runtime's. ``outputs`` names what to keep of a run, in order (none: all, by
    the runtime's names). ``channels_moved`` names inputs and outputs whose channels, axis 1 in the source, are last
    here. ``quantize``: floats go into integer inputs, and come out of integer outputs, by their scale and
    zero-point. ``sizes``: elements of the outputs whose shapes are known, by name. ``inputs`` is one sample in the
    source's layout: what benchmarks and profiles run. ``preprocess`` makes the artifact's inputs of the source's, where
    the graph begins with preprocessing of its own. ``trusted``: an engine among the files is loaded whoever made it.

    Raises :class:`SourceError` for more threads than any machine has: manifests and bundles come from anybody.
    """

    backend: str
    main: Path
    companions: tuple[Path, ...] = ()
    options: Mapping[str, Option] = field(default_factory=dict)
    outputs: tuple[str, ...] = ()
    channels_moved: tuple[str, ...] = ()
    quantize: bool = False
    sizes: Mapping[str, int] = field(default_factory=dict)
    inputs: Mapping[str, Array] = field(default_factory=dict)
    preprocess: Callable[[Mapping[str, Array]], Mapping[str, Array]] | None = None
    trusted: bool = False

    def __post_init__(self) -> None:
        threads = self.options.get("threads", 0)
        if isinstance(threads, bool) or not isinstance(threads, int) or not 0 <= threads <= MOST_THREADS:
            raise SourceError(
                f"{self.main.name} is to be run with threads={threads!r}",
                hint=f"a runtime takes 0 (one for each processor) to {MOST_THREADS}: do not trust who wrote this",
            )

    @classmethod
    def of(cls, lowered: Lowered, directory: Path, backend: str) -> Runnable:
        """What ``backend`` lowered into ``directory``."""
        main, *companions = (directory / name for name in lowered.files)
        return cls(
            backend=backend,
            main=main,
            companions=tuple(companions),
            options=lowered.runtime,
            outputs=names(lowered.outputs),
            channels_moved=lowered.channels_moved,
            quantize=True,
            sizes=sizes(lowered.outputs),
            trusted=True,
        )

    def bind(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """The source's inputs as the runtime takes them."""
        import numpy as np

        ready = inputs if self.preprocess is None else self.preprocess(inputs)
        return {
            name: np.ascontiguousarray(np.moveaxis(array, 1, -1)) if name in self.channels_moved else array
            for name, array in ready.items()
        }

    def feeding(self, states: Mapping[str, str]) -> tuple[Fed, ...]:
        """How the agent feeds outputs back, by input; each has to be among those that are kept."""

        def channels(name: str, output: str) -> Literal["", "first", "last"]:
            here, there = name in self.channels_moved, output in self.channels_moved
            return "" if here == there else "last" if here else "first"

        return tuple(Fed(input=n, output=o, channels=channels(n, o)) for n, o in states.items())

    def restore(self, outputs: Mapping[str, Array]) -> dict[str, Array]:
        """The runtime's outputs in the source's layout."""
        return channels_first(outputs, self.channels_moved)
