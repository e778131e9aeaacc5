"""Arrays in and out of files, and into the dtype that a model's input wants.

A stream file is a run of ``.npy`` records, one after the other: sample by sample, and within a sample
in the order of the job's names. It is read and written record by record, so that memory stays flat.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, BinaryIO, Dict, Iterator, Optional, Sequence

import numpy as np

from .channel import Message
from .failure import JobError

if TYPE_CHECKING:
    Array = np.ndarray[Any, np.dtype[Any]]


def read_stream(file: BinaryIO, names: Sequence[str], count: int) -> Iterator[Dict[str, Array]]:
    """The samples of a stream file, one dictionary of arrays each."""
    for _ in range(count):
        yield {name: np.lib.format.read_array(file, allow_pickle=False) for name in names}


def write_sample(file: BinaryIO, names: Sequence[str], arrays: Dict[str, Array]) -> None:
    """Append one sample to a stream file."""
    for name in names:
        np.lib.format.write_array(file, np.asarray(arrays[name], order="C"), allow_pickle=False)


def resolve(specs: Sequence[Message], names: Sequence[str], what: str) -> Dict[str, Message]:
    """Which tensor of the model each name means: by name, by alias, or because there is only one."""
    specs_by_name: Dict[str, Message] = {}
    for name in names:
        spec = _find(specs, name)
        if spec is None and len(specs) == len(names) == 1:
            spec = specs[0]
        if spec is None:
            have = ", ".join(s["name"] for s in specs)
            raise JobError("input", "the model has no %s %r; it has: %s" % (what, name, have))
        specs_by_name[name] = spec
    return specs_by_name


def _find(specs: Sequence[Message], name: str) -> Optional[Message]:
    for key in ("name", "aliases"):
        for spec in specs:
            if name == spec.get(key) or (key == "aliases" and name in spec.get(key, ())):
                return spec
    return None


def port(spec: Message) -> Message:
    """What the host is told of a tensor of the model's."""
    return {
        "names": [spec["name"], *spec.get("aliases", ())],
        "dtype": spec["dtype"],
        "shape": [d if isinstance(d, int) and d >= 0 else None for d in spec["shape"]],
        "scale": spec["scale"],
        "zero_point": spec["zero_point"],
    }


def fit(array: Array, spec: Message, quantize: bool) -> Array:
    """``array`` in the input's dtype.

    Floats convert among each other and integers where every value fits; a float becomes an integer only
    by the input's own scale and zero-point, and only if ``quantize`` asks for it.
    """
    want: np.dtype[Any] = np.dtype(spec["dtype"])
    if array.dtype == want:  # asarray, not ascontiguousarray: that would give a scalar an axis
        return np.asarray(array, order="C")
    name = spec["name"]
    if array.dtype.kind == "f" and want.kind in "iu":
        if not quantize:
            raise JobError("input", "input %r takes %s, got %s" % (name, want, array.dtype))
        return _quantize(array, spec, want)
    if array.dtype.kind == "f" and want.kind == "f":
        return np.asarray(array, dtype=want, order="C")
    if array.dtype.kind in "iub" and want.kind in "iu":
        limits = np.iinfo(want)
        if array.size and (int(array.min()) < limits.min or int(array.max()) > limits.max):
            raise JobError(
                "input", "input %r takes %s and a value of %s does not fit" % (name, want, array.dtype)
            )
        return np.asarray(array, dtype=want, order="C")
    raise JobError("input", "input %r takes %s, got %s" % (name, want, array.dtype))


def _quantize(array: Array, spec: Message, want: np.dtype[Any]) -> Array:
    if spec.get("scale") is None:
        raise JobError(
            "input", "input %r is %s and has no scale: it cannot take floats" % (spec["name"], want)
        )
    limits = np.iinfo(want)
    steps = np.rint(array.astype(np.float64) / spec["scale"]) + (spec.get("zero_point") or 0)
    return np.asarray(np.clip(steps, limits.min, limits.max), dtype=want)


def next_state(fed: Message, outputs: Dict[str, Array]) -> Array:
    """What an input takes of the step before (``wire.Fed`` on the host), its channels where the input has them."""
    array = outputs[fed["output"]]
    if not fed.get("channels"):
        return array
    return np.moveaxis(array, -1, 1) if fed["channels"] == "first" else np.moveaxis(array, 1, -1)


def dequantize(array: Array, spec: Message) -> Array:
    """``scale * (stored - zero_point)`` as float32, for an integer output that has a scale."""
    if array.dtype.kind not in "iu" or spec.get("scale") is None:
        return array
    real = (array.astype(np.float64) - (spec.get("zero_point") or 0)) * spec["scale"]
    return np.asarray(real, dtype=np.float32)
