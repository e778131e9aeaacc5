"""Inputs that are constants of the model that is built: ``--bind sr=16000``.

A number fills the input, a ``.npy`` file gives it element by element. The input is gone from then on: from the example,
from samples, and from every artifact. The values are in the keys of the cache, and in the manifest's source.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgekit.errors import DataError, SourceError, UnknownNameError, UsageError, first_line
from edgekit.load.array_files import read_npy
from edgekit.types import Json, OnnxModel, Option, TensorSpec, TorchModel, sha256_file

if TYPE_CHECKING:
    import onnx_ir as ir

    from edgekit.types import Array

_FILE = ".npy"
_KINDS = {"b": "true or false", "i": "a whole number", "u": "a whole number", "f": "a number"}


@dataclass(frozen=True, kw_only=True)
class Bindings:
    """What ``--bind`` says: a number, a truth value or a file by input; and each file's sha256."""

    values: Mapping[str, Option] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, values: Mapping[str, Option]) -> Bindings:
        """Those of a build's options. Raises :class:`UsageError` for what is neither a number nor such a file."""
        return cls(
            values=dict(values),
            files={n: _digest(n, v) for n, v in values.items() if isinstance(v, str)},
        )

    @classmethod
    def recorded(cls, record: Mapping[str, Json]) -> Bindings:
        """Those that a manifest names. Raises :class:`UsageError` for files that are not here."""
        values: dict[str, Option] = {}
        files: dict[str, str] = {}
        for name, value in record.items():
            if isinstance(value, Mapping):
                values[name], files[name] = str(value.get("file", "")), str(value.get("sha256", ""))
                if _digest(name, str(values[name])) != files[name]:
                    raise UsageError(
                        f"{values[name]} is not the file that the input {name!r} was bound to",
                        hint="restore it: its sha256 is in the manifest's source",
                    )
            elif isinstance(value, bool | int | float):
                values[name] = value
        return cls(values=values, files=files)

    def record(self) -> dict[str, Json]:
        """What the manifest says of them."""
        return {
            name: {"file": value, "sha256": self.files[name]} if isinstance(value, str) else value
            for name, value in self.values.items()
        }

    def __bool__(self) -> bool:
        return bool(self.values)

    # --- what is left -----------------------------------------------------------------------------

    def rest(self, inputs: Sequence[TensorSpec], what: str) -> tuple[TensorSpec, ...]:
        """The inputs that are not bound. Raises :class:`UsageError` for names that are none, and where none is left."""
        names = [spec.name for spec in inputs]
        self._refuse_unknown(names, what)
        return tuple(spec for spec in inputs if spec.name not in self.values)

    def _refuse_unknown(self, names: Sequence[str], what: str) -> None:
        for name in self.values:
            if name not in names:
                raise UnknownNameError("input", name, names, where=f"--bind (inputs of {what})")
        if self and set(names) == set(self.values):
            raise UsageError(
                f"--bind leaves {what} without an input: its outputs would be constants",
                hint="bind all inputs but those that the app gives",
            )

    def completed(self, example: object) -> object:
        """Example inputs by name with those bound, where the data does without them."""
        if not isinstance(example, Mapping):
            return example
        return {**example, **{n: self._plain(n) for n in self.values if n not in example}}

    def _plain(self, name: str) -> Array:
        value = self.values[name]
        if isinstance(value, str):
            return self._loaded(name)
        return np.asarray(value, np.float32 if isinstance(value, float) else None)

    # --- PyTorch ----------------------------------------------------------------------------------

    def applied(self, model: TorchModel, what: str) -> TorchModel:
        """``model`` without the bound inputs."""
        if not self:
            return model
        from edgekit.graph.nested import attempt
        from edgekit.load.bound import Bound

        self._refuse_unknown(list(model.example_inputs), what)
        constants = {}
        for name in self.values:
            tensor = model.example_inputs[name]
            free = model.dynamic_axes.get(name, {})
            dims = tuple(free.get(i, n) for i, n in enumerate(tensor.shape))
            spec = TensorSpec(name=name, dtype=str(tensor.dtype).removeprefix("torch."), shape=dims)
            constants[name] = self._array(spec, what)
        rest = {n: t for n, t in model.example_inputs.items() if n not in constants}
        module = Bound(model.module, tuple(model.example_inputs), constants)
        outputs = attempt(module, rest)
        if isinstance(outputs, Exception):
            said = ", ".join(f"{n}={v}" for n, v in self.values.items())
            raise UsageError(
                f"the model does not take what --bind gives it ({said}): {first_line(outputs)}",
                hint="give values that forward takes",
            ) from outputs
        axes = {n: a for n, a in model.dynamic_axes.items() if n in rest}
        return replace(model, module=module, example_inputs=rest, dynamic_axes=axes)

    # --- ONNX -------------------------------------------------------------------------------------

    def into(self, graph: ir.Model, model: OnnxModel, what: str) -> None:
        """Make the bound inputs initializers of ``graph``, in place; ``model`` describes it."""
        if not self:
            return
        import onnx_ir

        self.rest(model.inputs, what)
        specs = {spec.name: spec for spec in model.inputs}
        for value in list(graph.graph.inputs):
            name = value.name or ""
            if name in self.values:
                graph.graph.inputs.remove(value)
                array = self._array(specs[name], what)
                value.const_value, value.shape = onnx_ir.tensor(array, name=name), onnx_ir.Shape(array.shape)
                graph.graph.register_initializer(value)

    # --- values -----------------------------------------------------------------------------------

    def _array(self, spec: TensorSpec, what: str) -> Array:
        """The constant for ``spec``. Raises :class:`UsageError` for one of another type or shape."""
        value, dtype = self.values[spec.name], np.dtype(spec.dtype)
        if isinstance(value, str):
            return _fitting(self._loaded(spec.name), spec, f"--bind {spec.name}={value}", what)
        where = f"--bind {spec.name}={str(value).lower() if isinstance(value, bool) else value}"
        if isinstance(value, bool) != (dtype.kind == "b") or dtype.kind not in _KINDS:
            raise _wrong_type(where, spec, what)
        _refuse_inexact(np.asarray(value), dtype, where, spec, what)
        if not spec.is_static:
            raise UsageError(
                f"{where}: the input has axes without a size ({spec})",
                hint=f"give a {_FILE} file in its shape",
            )
        return np.full([int(d) for d in spec.shape], value, dtype)

    def _loaded(self, name: str) -> Array:
        path = Path(str(self.values[name]))
        if _digest(name, str(path)) != self.files[name]:
            raise SourceError(f"{path} changed while it was read", hint="run it again")
        try:
            return np.array(read_npy(path))
        except DataError as error:
            raise UsageError(f"--bind {name}: {error.message}", hint="save it with numpy.save") from error


def _digest(name: str, text: str) -> str:
    path = Path(text)
    if path.suffix != _FILE:
        raise UsageError(
            f"--bind {name}={text} is neither a number, nor true or false, nor a {_FILE} file",
            hint=f"like --bind {name}=16000, or --bind {name}=value{_FILE}",
        )
    if not path.is_file():
        raise UsageError(f"--bind {name}={text}: there is no such file", hint="check the path")
    return sha256_file(path)


def _fitting(array: Array, spec: TensorSpec, where: str, what: str) -> Array:
    dtype = np.dtype(spec.dtype)
    if not _same_shape(array.shape, spec.shape):
        raise UsageError(
            f"{where} has the shape [{', '.join(map(str, array.shape))}]; the input is {spec} in {what}",
            hint="give an array of the input's shape",
        )
    if array.dtype.kind not in _KINDS or _KINDS[array.dtype.kind] != _KINDS.get(dtype.kind):
        raise _wrong_type(f"{where} ({array.dtype})", spec, what)
    if dtype.kind != "f":
        _refuse_inexact(array, dtype, where, spec, what)
    return array.astype(dtype)


def _same_shape(shape: Iterable[int], dims: tuple[int | str, ...]) -> bool:
    sizes = tuple(shape)
    return len(sizes) == len(dims) and all(
        isinstance(d, str) or d == n for n, d in zip(sizes, dims, strict=True)
    )


def _refuse_inexact(array: Array, dtype: np.dtype, where: str, spec: TensorSpec, what: str) -> None:
    """Whole numbers alone for integers, and those that they hold."""
    if dtype.kind not in "iu":
        return
    limits = np.iinfo(dtype)
    whole = array.dtype.kind in "iu" and (
        array.size == 0 or (int(array.min()) >= limits.min and int(array.max()) <= limits.max)
    )
    if not whole:
        raise _wrong_type(where, spec, what)


def _wrong_type(where: str, spec: TensorSpec, what: str) -> UsageError:
    kind = _KINDS.get(np.dtype(spec.dtype).kind, "no number")
    return UsageError(
        f"{where} is of another type than the input {spec.name!r} of {what}, which is {spec.dtype}",
        hint=f"give {kind} that {spec.dtype} holds",
    )
