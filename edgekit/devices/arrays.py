"""Streams of samples in files: ``.npy`` records one after the other (see ``agent/arrays.py``)."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.devices.protocol import plain
from edgekit.errors import DataError, DeviceError

if TYPE_CHECKING:
    from edgekit.types import Array


@dataclass(frozen=True, kw_only=True)
class ArrayFile:
    """``count`` samples of arrays by name. Iterating reads the file again, one sample in memory at a time.

    Arrays of the names in ``channels_moved`` have their channels last in the file, and as axis 1 when read.
    """

    path: Path
    names: tuple[str, ...]
    count: int
    channels_moved: tuple[str, ...] = ()

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[dict[str, Array]]:
        from edgekit.load.array_files import read_record

        size = self.path.stat().st_size
        with self.path.open("rb") as file:
            try:
                for _ in range(self.count):
                    sample = {name: read_record(file, size) for name in self.names}
                    if others := [a.dtype for a in sample.values() if a.dtype.kind not in "biufc"]:
                        raise ValueError(f"a record of {others[0]}, which are no numbers")
                    yield channels_first(sample, self.channels_moved)
                if left := size - file.tell():
                    raise ValueError(f"{left} bytes follow the last record")
            except ValueError as error:
                raise DeviceError(
                    f"{self.path.name} is cut short or damaged: {plain(str(error))[:300]}",
                    hint="run it again",
                ) from error


def channels_first(arrays: Mapping[str, Array], moved: Collection[str]) -> dict[str, Array]:
    """Arrays by name; those of ``moved`` with their last axis as axis 1."""
    import numpy as np

    return {name: np.moveaxis(array, -1, 1) if name in moved else array for name, array in arrays.items()}


def write_arrays(
    path: Path, samples: Iterable[Mapping[str, Array]], names: Sequence[str] = (), *, least: int = 1
) -> ArrayFile:
    """Write samples, at least so many, to ``path``; every one must have the same names (default: the first one's)."""
    import numpy as np

    order, count = tuple(names), 0
    with path.open("wb") as file:
        for sample in samples:
            order = order or tuple(sample)
            if set(sample) != set(order):
                raise DataError(
                    f"sample {count} has the inputs {', '.join(sample)}; expected {', '.join(order)}",
                    hint="every sample must carry the same inputs",
                )
            for name in order:
                array = np.asarray(sample[name], order="C")
                if array.dtype.hasobject:
                    raise DataError(f"sample {count}: input {name!r} is an object array", hint="pass numbers")
                np.lib.format.write_array(file, array, allow_pickle=False)
            count += 1
    if count < least:
        raise DataError("there is no sample to run", hint="pass at least one set of inputs")
    return ArrayFile(path=path, names=order, count=count)
