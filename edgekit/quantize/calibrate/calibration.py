"""The result of calibrating: statistics of every activation, as a frozen value and as one file."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit.core.files import system_errors, whole
from edgekit.core.parallel import Once
from edgekit.errors import DataError, UnknownNameError, UsageError
from edgekit.quantize.calibrate import ranges
from edgekit.quantize.calibrate.histogram import SIDE, Histogram
from edgekit.quantize.options import METHODS

VERSION = 2
_SCALARS = ("count", "low", "high", "average_low", "average_high", "channel_axis", "masked")
_ARRAYS = ("channel_low", "channel_high", "channel_mean", "half_low", "half_high")
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, eq=False)
class TensorStatistics:
    """What was seen of one activation over all samples.

    ``low`` and ``high`` are exact, over every element (but ``low`` is 0 for what a Relu or a Clip at zero writes
    in images). ``average_low`` and ``average_high`` are the means
    over samples of each sample's extremes. ``channel_*`` are exact, along ``channel_axis`` (counted from
    the end; 0 where the tensor was reduced as a whole). ``half_*`` are the extremes over the even and the
    odd samples: how stable the range is. ``histogram`` counts a fixed share of the elements, all of them
    in small tensors. ``masked``: the tensor holds -inf or values below -1e30, as attention masks do; these
    are outside ``low`` and the histogram.
    """

    count: int
    low: float
    high: float
    average_low: float
    average_high: float
    channel_axis: int
    channel_low: Floats
    channel_high: Floats
    channel_mean: Floats
    half_low: Floats
    half_high: Floats
    histogram: Histogram
    masked: bool = False
    _ranges: Once = field(default_factory=Once, init=False, repr=False)

    def range(self, method: str, *, bits: int, symmetric: bool, percentile: float) -> tuple[float, float]:
        """See :meth:`Calibration.range`. Each is searched once."""
        key = (method, bits, symmetric, percentile)
        return self._ranges.get(key, lambda: self._search(method, bits, symmetric, percentile))

    def _search(self, method: str, bits: int, symmetric: bool, percentile: float) -> tuple[float, float]:
        match method:
            case "minmax":
                return self.low, self.high
            case "moving-average":
                return self.average_low, self.average_high
            case "percentile":
                if not 50.0 < percentile <= 100.0:
                    raise UsageError(f"percentile {percentile} is not in (50, 100]", hint="99.99 is usual")
                low, high = ranges.percentile(self.histogram, percentile)
            case "entropy":
                low, high = ranges.entropy(
                    self.histogram, self.low, self.high, bits=bits, symmetric=symmetric
                )
            case "mse":
                low, high = ranges.mean_squared_error(
                    self.histogram, self.low, self.high, bits=bits, symmetric=symmetric
                )
            case _:
                raise UnknownNameError("calibration method", method, METHODS)
        if symmetric:
            return low, high
        return min(max(low, self.low), self.high), max(min(high, self.high), self.low)


@dataclass(frozen=True, kw_only=True, eq=False)
class Calibration:
    """Statistics by tensor name. ``aliases`` maps tensors whose values are all those of another to that one.

    ``fingerprint`` is a sha256 over the model, the samples and the version of this format.
    """

    tensors: Mapping[str, TensorStatistics]
    aliases: Mapping[str, str]
    samples: int
    fingerprint: str

    def __contains__(self, tensor: object) -> bool:
        return tensor in self.tensors or tensor in self.aliases

    def statistics(self, tensor: str) -> TensorStatistics:
        """The statistics of a tensor or of the one that it aliases. Raises :class:`DataError`."""
        seen: set[str] = set()
        name = tensor
        while name not in self.tensors:
            if name not in self.aliases or name in seen:
                raise DataError(
                    f"the calibration has no statistics of tensor {tensor!r}",
                    hint="calibrate the very model that is quantized: its optimized ONNX file",
                )
            seen.add(name)
            name = self.aliases[name]
        return self.tensors[name]

    def range(
        self,
        tensor: str,
        method: str = "minmax",
        *,
        bits: int = 8,
        symmetric: bool = False,
        percentile: float = 99.99,
    ) -> tuple[float, float]:
        """``(low, high)`` of a tensor by one of :data:`METHODS`, inside what was seen.

        ``bits`` and ``symmetric`` describe the integers that the range is for (entropy and mse weigh
        rounding against clipping). ``percentile`` is in percent, per tail.
        Raises :class:`UnknownNameError` for a method and :class:`DataError` for a tensor not calibrated.
        """
        return self.statistics(tensor).range(method, bits=bits, symmetric=symmetric, percentile=percentile)

    def save(self, path: Path) -> None:
        """Write one safetensors file under a temporary name, then rename. Equal values, equal bytes."""
        from safetensors.numpy import save_file

        names = sorted(self.tensors)
        head = {
            "version": VERSION,
            "samples": self.samples,
            "fingerprint": self.fingerprint,
            "aliases": dict(sorted(self.aliases.items())),
            "tensors": [[n, *(getattr(self.tensors[n], f) for f in _SCALARS)] for n in names],
        }
        arrays: dict[str, npt.NDArray[Any]] = {}
        for column in _ARRAYS:
            arrays |= _ragged(column, [getattr(self.tensors[n], column) for n in names], np.float32)
        spans = [_span(self.tensors[n].histogram) for n in names]
        arrays["histogram.place"] = np.array([[s[0], s[1]] for s in spans], np.int64).reshape(-1, 2)
        arrays |= _ragged("histogram", [s[2] for s in spans], np.int64)
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole(path) as temporary, system_errors():
            # One metadata key: safetensors does not keep an order among several.
            save_file(arrays, temporary, metadata={"edgekit": json.dumps(head, allow_nan=False)})

    @classmethod
    def load(cls, path: Path) -> Calibration:
        """Read what :meth:`save` wrote. Raises :class:`DataError` for anything else."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="numpy") as file:
                head = json.loads((file.metadata() or {})["edgekit"])
                arrays = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
            if head["version"] != VERSION:
                raise ValueError(f"version {head['version']}")
            return _assemble(head, arrays)
        except (
            SafetensorError,
            OSError,
            LookupError,
            ValueError,
            TypeError,
            AssertionError,
            AttributeError,  # of a type that this numpy does not have
            RecursionError,
        ) as error:
            raise DataError(
                f"{path} is not a calibration of this version: {error}", hint="calibrate again"
            ) from error


def _assemble(head: dict[str, Any], arrays: dict[str, npt.NDArray[Any]]) -> Calibration:
    columns = {field: _rows(field, arrays) for field in (*_ARRAYS, "histogram")}
    known = {f.name for f in dataclasses.fields(TensorStatistics) if f.init}
    assert known == {*_SCALARS, *_ARRAYS, "histogram"}
    tensors = {}
    for i, (name, *scalars) in enumerate(head["tensors"]):
        first, exponent = (int(v) for v in arrays["histogram.place"][i])
        span = columns["histogram"][i]
        if not 0 <= first <= first + span.size <= 2 * SIDE:
            raise ValueError(f"histogram of {name} out of bounds")
        histogram = Histogram(exponent=None if exponent == _NO_EXPONENT else exponent)
        histogram.counts[first : first + span.size] = span
        values = dict(zip(_SCALARS, scalars, strict=True)) | {f: columns[f][i] for f in _ARRAYS}
        tensors[name] = TensorStatistics(**values, histogram=histogram)
    return Calibration(
        tensors=tensors,
        aliases=head["aliases"],
        samples=head["samples"],
        fingerprint=head["fingerprint"],
    )


_NO_EXPONENT = 1 << 20


def _span(histogram: Histogram) -> tuple[int, int, npt.NDArray[np.int64]]:
    occupied = np.flatnonzero(histogram.counts)
    first, last = (int(occupied[0]), int(occupied[-1]) + 1) if occupied.size else (0, 0)
    exponent = _NO_EXPONENT if histogram.exponent is None else histogram.exponent
    return first, exponent, histogram.counts[first:last]


def _ragged(field: str, rows: list[npt.NDArray[Any]], dtype: type) -> dict[str, npt.NDArray[Any]]:
    """Rows of different lengths as one array and its lengths: few tensors in the file, whatever the model."""
    lengths = np.array([r.size for r in rows], np.int64)
    return {field: np.concatenate([*rows, np.zeros(0, dtype)]).astype(dtype), f"{field}.lengths": lengths}


def _rows(field: str, arrays: dict[str, npt.NDArray[Any]]) -> list[npt.NDArray[Any]]:
    return np.split(arrays[field], np.cumsum(arrays[f"{field}.lengths"])[:-1])
