"""A package whose tensors of int64 are int32, for interfaces that have no wider ones: token ids in a browser."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast, runtime_checkable

import numpy as np

from edgekit.core import plugins
from edgekit.core.files import temporary
from edgekit.devices.execute import run_artifact
from edgekit.devices.runnable import Runnable
from edgekit.errors import GateFailedError, UnsupportedError
from edgekit.package.contents import Content, Contents
from edgekit.package.descriptor import Descriptor, GoldenCase, TensorFile, encode
from edgekit.package.golden import relative_error
from edgekit.types import TensorSpec, sha256_bytes

if TYPE_CHECKING:
    from edgekit.types import Array

_WIDE, _NARROW = "int64", "int32"


@runtime_checkable
class Narrow(Protocol):
    """A module of a backend whose models can have another interface."""

    def int32_interface(self, model: bytes) -> bytes:
        """The model with inputs and outputs of int32 in place of int64."""
        ...


def fitted(contents: Contents, takes: frozenset[str]) -> Contents:
    """``contents`` with int32 in place of int64 in model, description and golden vectors, replayed on the runtime; as
    they are where ``takes``, the types of an interface, has int64 or the backend cannot do it.

    Raises:
        UnsupportedError: a golden vector has a number that 32 bits do not hold.
        GateFailedError: the rewritten model does not give the golden outputs.
    """
    described = contents.descriptor
    wide = any(s.dtype == _WIDE for s in (*described.inputs, *described.outputs))
    narrow = plugins.member(described.backend, "narrow", Narrow) if wide else None
    if narrow is None or _WIDE in takes or _NARROW not in takes:
        return contents
    (name,) = described.files
    model = cast("Narrow", narrow).int32_interface(contents.model.read_bytes())
    files: dict[str, Content] = {**contents.files, name: model}
    cases = tuple(_case(case, files) for case in described.golden.cases)
    changed = replace(
        described,
        model_sha256=sha256_bytes(model),
        inputs=_specs(described.inputs),
        outputs=_specs(described.outputs),
        golden=replace(described.golden, cases=cases),
    )
    _check(contents, changed, model)
    files["edgekit.json"] = encode(changed)
    return replace(contents, descriptor=changed, files=files)


def _check(contents: Contents, changed: Descriptor, model: bytes) -> None:
    """Run the cases in memory: they are there, too, where a package is written without golden vectors."""
    fed = [_arrays(case.inputs) for case in contents.cases]
    with temporary("narrowed") as work:
        main = Path(work) / Path(changed.files[0]).name
        main.write_bytes(model)
        runnable = Runnable(
            backend=changed.backend,
            main=main,
            options=changed.runtime.options,
            outputs=tuple(o.name for o in changed.outputs),
        )
        with run_artifact(runnable, fed) as result:
            pairs = [
                (found[name], wanted)
                for found, case in zip(result.outputs, contents.cases, strict=True)
                for name, wanted in _arrays(case.outputs).items()
            ]
            error = max(relative_error(found, wanted) for found, wanted in pairs)
    # Written so that a NaN fails.
    if not error <= changed.golden.tolerance["cpu"]:
        raise GateFailedError(
            f"the model with int32 in place of int64 is off by {error:.3g} of an output's largest value",
            hint="report this with the artifact",
            gates=("golden",),
        )


def _arrays(arrays: Mapping[str, Array]) -> dict[str, Array]:
    return {name: _narrowed(name, a) if a.dtype.name == _WIDE else a for name, a in arrays.items()}


def _narrowed(name: str, wide: Array) -> Array:
    limits = np.iinfo(np.int32)
    if wide.size and not (limits.min <= wide.min() and wide.max() <= limits.max):
        raise UnsupportedError(
            f"{name} has numbers that 32 bits do not hold",
            hint="use a format that takes int64 (android-aar), or a target of another runtime",
        )
    return wide.astype("<i4")


def _specs(specs: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
    return tuple(replace(s, dtype=_NARROW) if s.dtype == _WIDE else s for s in specs)


def _case(case: GoldenCase, files: dict[str, Content]) -> GoldenCase:
    return replace(case, inputs=_stored(case.inputs, files), outputs=_stored(case.outputs, files))


def _stored(tensors: tuple[TensorFile, ...], files: dict[str, Content]) -> tuple[TensorFile, ...]:
    for tensor in tensors:
        if tensor.dtype == _WIDE:
            data = files[tensor.file]
            assert isinstance(data, bytes)
            files[tensor.file] = _narrowed(tensor.name, np.frombuffer(data, "<i8")).tobytes()
    return tuple(replace(t, dtype=_NARROW) if t.dtype == _WIDE else t for t in tensors)
