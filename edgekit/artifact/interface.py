"""Whether a file takes and gives what its manifest says: an app is written, and code generated, by the manifest."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from edgekit.devices.execute import Ports
from edgekit.devices.wire import Port
from edgekit.types import TensorSpec

if TYPE_CHECKING:
    from edgekit.types import Array


_INTEGERS = {
    f"{'int' if signed else 'uint'}{bits}": (-(1 << bits - 1), (1 << bits - 1) - 1)
    if signed
    else (0, (1 << bits) - 1)
    for bits in (4, 8, 16, 32)
    for signed in (True, False)
}
_SMALLEST_SCALE = 1e-38
"""Of float32's normal numbers."""


@dataclass(frozen=True, kw_only=True)
class Vector:
    """A sample and its outputs, by name."""

    inputs: Mapping[str, Array]
    outputs: Mapping[str, Array]


def differences(
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    moved: Collection[str],
    ports: Ports,
    vector: Vector,
) -> Iterator[str]:
    """In words, what of the declared ``inputs`` and ``outputs`` is not what the runtime tells of the loaded file.

    ``vector`` is a sample with its outputs in the source's layout: where the runtime leaves a dimension open, its size
    counts. ``moved`` names the tensors whose channels are last in the file.
    """
    for kind, specs, found, arrays in (
        ("input", inputs, ports.inputs, vector.inputs),
        ("output", outputs, ports.outputs, vector.outputs),
    ):
        for spec in specs:
            if spec.name in found and spec.name in arrays:
                shape = _as_in_the_file(arrays[spec.name].shape, spec.name in moved)
                for problem in _differences(spec, found[spec.name], shape):
                    yield f"the {kind} {spec.name!r} is {problem}"


def as_found(
    outputs: Sequence[TensorSpec], moved: Collection[str], ports: Ports, vector: Vector
) -> tuple[TensorSpec, ...]:
    """``outputs`` with the sizes that the file is sure of and ``vector`` has, too, where the source left them open, and
    with another rank where the source's answers have another one than it declares.

    Exporters name axes of outputs whose size they did not work out (``LSTMhn_dim_1``); runtimes do when they load the
    graph, each to its own extent. Inputs stay as they are: an app may give what the source takes.
    """
    return tuple(
        _as_found(spec, ports.outputs[spec.name], _as_in_the_file(array.shape, spec.name in moved))
        if spec.name in ports.outputs and (array := vector.outputs.get(spec.name)) is not None
        else spec
        for spec in outputs
    )


def _as_found(spec: TensorSpec, port: Port, seen: tuple[int, ...]) -> TensorSpec:
    if len(port.shape) != len(seen):
        return spec
    said: Sequence[int | str] = spec.shape
    if len(said) != len(seen):  # a declaration that runtimes pass over
        said = [f"{spec.name}_axis{i}" for i in range(len(seen))]
    shape = tuple(
        size if isinstance(d, str) and fixed == size else d
        for d, fixed, size in zip(said, port.shape, seen, strict=True)
    )
    return spec if shape == spec.shape else replace(spec, shape=shape)


def _as_in_the_file(shape: tuple[int, ...], moved: bool) -> tuple[int, ...]:
    return (shape[0], *shape[2:], shape[1]) if moved and len(shape) > 1 else shape


def _differences(spec: TensorSpec, port: Port, seen: tuple[int, ...]) -> Iterator[str]:
    if port.names and spec.name not in port.names:
        yield f"called so; the file calls it {port.names[0]!r}"
    if spec.dtype != port.dtype:
        yield f"{spec.dtype}; the file has {port.dtype}"
    if not _fits(spec, port, seen):
        sizes = ", ".join("?" if d is None else str(d) for d in port.shape)
        yield f"[{', '.join(map(str, spec.shape))}]; the file has [{sizes}], the golden vectors {list(seen)}"
    if (problem := _no_mapping(spec)) != "":
        yield problem
    elif port.scale is not None and not _same_mapping(spec, port):
        yield (
            f"stored with scale {spec.scale} and zero point {spec.zero_point}; the file has {port.scale:g} and "
            f"{port.zero_point}"
        )


def _fits(spec: TensorSpec, port: Port, seen: tuple[int, ...]) -> bool:
    """Sizes agree; one that the manifest leaves open is open in the file, and one that the file leaves open may be
    narrower in the manifest."""
    if len(port.shape) != len(spec.shape):
        return not port.shape and tuple(spec.shape) == seen  # a runtime that does not tell the rank
    if len(seen) != len(spec.shape):
        return False
    return all(
        said == (size if fixed is None else fixed) if isinstance(said, int) else fixed is None
        for said, fixed, size in zip(spec.shape, port.shape, seen, strict=True)
    )


def _no_mapping(spec: TensorSpec) -> str:
    """What is wrong with a scale and zero point in themselves; empty where nothing is. Not every runtime tells of its
    own."""
    if spec.scale is None and spec.zero_point is None:
        return ""
    if spec.dtype not in _INTEGERS:
        return f"{spec.dtype}, and has a scale or a zero point, which integers have"
    low, high = _INTEGERS[spec.dtype]
    if spec.scale is None or not (math.isfinite(spec.scale) and spec.scale >= _SMALLEST_SCALE):
        return f"stored with the scale {spec.scale}"
    if spec.zero_point is None or not low <= spec.zero_point <= high:
        return f"stored with the zero point {spec.zero_point}, and {spec.dtype} has {low} to {high}"
    return ""


def _same_mapping(spec: TensorSpec, port: Port) -> bool:
    return (
        spec.scale is not None
        and port.scale is not None
        and math.isclose(spec.scale, port.scale, rel_tol=1e-5)
        and spec.zero_point == port.zero_point
    )
