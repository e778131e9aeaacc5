"""The shape of the example inputs, where the user says it; and samples in the form that this asks for.

What runtimes with fixed shapes are compiled for is the example's shape: ``--shape`` and ``--sequence-length`` set it.
A source whose preprocessing has a ``padding`` table (a tokenizer's) gets its samples padded to it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from edgekit.errors import DataError, UnknownNameError, UsageError, first_line
from edgekit.load.bindings import Bindings
from edgekit.types import OnnxModel, Sample, SourceRecord, TensorSpec, TorchModel

if TYPE_CHECKING:
    import torch

    from edgekit.core.config import Options
    from edgekit.types import Array

PADDING = "padding"
"""The table of a source's preprocessing that says how its inputs are padded: ``{"values": {input: value},
"side": "right"}``."""

IGNORED = -100
"""The label of a padded place: PyTorch's and transformers' own."""

_BATCH = re.compile(r"b|n|bs|.*batch.*", re.IGNORECASE)
_NAMELESS = re.compile(
    r"[su]\d+|unk_*\d+|\?|-1|none|unknown|.*_axis0|(p2o\.)?dynamic_?(dimension|axes)\w*\.?_?\d+|.+_dynamic_axes_\d+",
    re.IGNORECASE,
)
"""What exporters call an axis that nobody named: PyTorch, TensorFlow, PaddlePaddle, and edgekit itself."""


def is_batch(label: str) -> bool:
    """Whether a dynamic axis, the first of its input, is the batch by its name."""
    return _BATCH.fullmatch(label) is not None


@dataclass(frozen=True, kw_only=True)
class Shapes:
    """What ``--shape`` (sizes by input) and ``--sequence-length`` (0: not given) say, and ``--bind``: inputs that are
    none any more."""

    sizes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    sequence_length: int = 0
    bound: Bindings = field(default_factory=Bindings)

    @classmethod
    def of(cls, options: Options) -> Shapes:
        """Those of a build's options. Raises :class:`UsageError` for what is no shape, or can be bound to nothing."""
        sizes = {name: _parsed(name, str(text)) for name, text in options.shape.items()}
        bound = Bindings.of(options.bind)
        return cls(sizes=sizes, sequence_length=options.sequence_length or 0, bound=bound)

    @classmethod
    def again(cls, options: Options, record: SourceRecord) -> Shapes:
        """Those of the options, with what an artifact's source was bound to where they bind nothing."""
        shapes = cls.of(options)
        return shapes if shapes.bound else replace(shapes, bound=Bindings.recorded(record.bound))

    def __bool__(self) -> bool:
        return self.resizes or bool(self.bound)

    @property
    def resizes(self) -> bool:
        """Whether a shape is given."""
        return bool(self.sizes or self.sequence_length)

    def applied(self, model: TorchModel, what: str) -> TorchModel:
        """``model`` without what is bound, with example inputs of these shapes: padded where the source says how, else
        repeated or cut.

        Raises :class:`UsageError` for what the model does not take.
        """
        model = self.bound.applied(model, what)
        if not self.resizes:
            return model
        dims = {
            name: tuple(model.dynamic_axes.get(name, {}).get(i, n) for i, n in enumerate(tensor.shape))
            for name, tensor in model.example_inputs.items()
        }
        padding = Padding.of(model.preprocessing)
        sizes = self._resolved(dims, padding, what, fixed=False)
        example = {
            name: _resized(tensor, tuple(map(_known, sizes[name], tensor.shape)), padding, name)
            for name, tensor in model.example_inputs.items()
        }
        _try(model, example, sizes)
        return replace(model, example_inputs=example)

    def resolved(self, model: OnnxModel, what: str) -> dict[str, tuple[int, ...]]:
        """The inputs that have a shape now, of a graph. Raises :class:`UsageError` for what it does not take."""
        if self.sequence_length:
            raise _no_tokenizer(what)
        dims = {spec.name: spec.shape for spec in model.inputs}
        known = self._resolved(dims, None, what, fixed=True)
        return {n: tuple(map(int, s)) for n, s in known.items() if all(isinstance(d, int) for d in s)}

    def _resolved(
        self, dims: Mapping[str, Sequence[int | str]], padding: Padding | None, what: str, *, fixed: bool
    ) -> dict[str, list[int | str]]:
        """``dims`` with the sizes given: axes of one name have one size. ``fixed``: sizes of a graph cannot change."""
        wanted: dict[str, list[int | str]] = {name: [*shape] for name, shape in self.sizes.items()}
        labels: dict[str, int] = {}
        for name, shape in self.sizes.items():
            if name not in dims:
                raise UnknownNameError("input", name, dims, where=f"--shape (inputs of {what})")
            if len(shape) != len(dims[name]):
                raise UsageError(
                    f"--shape {name}={_text(shape)} has {len(shape)} axes, the input {len(dims[name])}",
                    hint=f"{name} is [{', '.join(map(str, dims[name]))}] in {what}",
                )
            for size, dim in zip(shape, dims[name], strict=True):
                _agree(name, size, dim, labels, fixed=fixed)
        if self.sequence_length:
            if padding is None:
                raise _no_tokenizer(what)
            for label in padding.axes(dims):
                labels.setdefault(label, self.sequence_length)
        return {
            name: wanted.get(name) or [labels.get(d, d) if isinstance(d, str) else d for d in shape]
            for name, shape in dims.items()
        }


def _known(size: int | str, example: int) -> int:
    """The size that was given, else the example's."""
    return size if isinstance(size, int) else example


def _agree(name: str, size: int, dim: int | str, labels: dict[str, int], *, fixed: bool) -> None:
    if isinstance(dim, int):
        if fixed and size != dim:
            raise UsageError(
                f"--shape: {name} has an axis of {dim} in the model, not of {size}",
                hint="only axes without a size can be given one; export the model again for others",
            )
    elif labels.setdefault(dim, size) != size:
        raise UsageError(
            f"--shape gives the axis {dim!r} the sizes {labels[dim]} and {size}",
            hint="axes of one name have one size in all inputs",
        )


def _no_tokenizer(what: str) -> UsageError:
    return UsageError(
        f"--sequence-length is for sources that say how their inputs are padded, and {what} does not",
        hint="give --shape NAME=1x128 and pad in the data callable; a factory may return "
        'TorchModel(preprocessing={"padding": {"values": {"ids": 0, "mask": 0}}})',
    )


@dataclass(frozen=True, kw_only=True)
class Padding:
    """How inputs of different lengths are brought to one: the value that each is filled with, and on which side."""

    values: Mapping[str, int | float]
    side: str = "right"

    @classmethod
    def of(cls, preprocessing: Mapping[str, object]) -> Padding | None:
        """The ``padding`` table of a source's preprocessing. Raises :class:`UsageError` for one that is none."""
        table = preprocessing.get(PADDING)
        if table is None:
            return None
        values = table.get("values") if isinstance(table, Mapping) else None
        side = table.get("side", "right") if isinstance(table, Mapping) else ""
        if not isinstance(values, Mapping) or not values or side not in ("left", "right"):
            raise UsageError(
                "preprocessing: padding says nothing that can be used",
                hint='write {"values": {"ids": 0, "mask": 0}, "side": "right"}',
            )
        return cls(values={str(k): v for k, v in values.items()}, side=str(side))

    def axes(self, dims: Mapping[str, Sequence[int | str]]) -> set[str]:
        """The names of the axes that padding makes longer: all of its inputs' but the batch."""
        return {d for name in self.values if name in dims for d in dims[name][1:] if isinstance(d, str)} - {
            shape[0] for shape in dims.values() if shape and isinstance(shape[0], str)
        }

    def fill(self, array: Array, shape: Sequence[int], name: str) -> Array:
        """``array`` at ``shape``; as it is where it is longer, or has other axes."""
        if name not in self.values or array.ndim != len(shape):
            return array
        grow = [max(0, want - has) for has, want in zip(array.shape, shape, strict=True)]
        grow[0] = 0
        if not any(grow):
            return array
        widths = [(n, 0) if self.side == "left" else (0, n) for n in grow]
        return np.pad(array, widths, constant_values=self.values[name])


@dataclass(frozen=True, kw_only=True)
class SampleForm:
    """What samples are brought to: pieces of the example's batch, and, with ``padding``, its lengths."""

    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    padding: Padding | None = None

    @classmethod
    def of(
        cls, example: Mapping[str, Array], preprocessing: Mapping[str, object], shapes: Shapes
    ) -> SampleForm:
        """The example's; samples are padded only where the user gave its shape."""
        return cls(
            shapes={name: tuple(array.shape) for name, array in example.items()},
            padding=Padding.of(preprocessing) if shapes.resizes else None,
        )

    def batch(self, spec: TensorSpec) -> int:
        """The batch of one sample; 0 where the first axis is no batch axis."""
        first = spec.shape[0] if spec.shape else 0
        if isinstance(first, int):
            return first
        if not is_batch(first):
            return 0
        shape = self.shapes.get(spec.name)
        return shape[0] if shape else 1

    def padded(self, sample: Sample) -> Sample:
        """The sample at the example's lengths; labels of every place are padded with :data:`IGNORED`."""
        if self.padding is None:
            return sample
        inputs = {
            name: self.padding.fill(array, self.shapes.get(name, ()), name)
            for name, array in sample.inputs.items()
        }
        label, changed = sample.label, [n for n in inputs if inputs[n].shape != sample.inputs[n].shape]
        if changed and isinstance(label, np.ndarray) and label.dtype.kind == "i" and label.ndim:
            before, after = sample.inputs[changed[0]].shape[-1], inputs[changed[0]].shape[-1]
            if label.shape[-1] == before:
                grow = (after - before, 0) if self.padding.side == "left" else (0, after - before)
                widths = [*[(0, 0)] * (label.ndim - 1), grow]
                label = np.pad(label, widths, constant_values=IGNORED)
        return replace(sample, inputs=inputs, label=label)


def refuse_open(inputs: Iterable[TensorSpec], what: str) -> None:
    """Raise :class:`DataError` for axes without a size that are no batch: a size of 1 would be no fair example."""
    specs = tuple(inputs)
    batches = {
        s.shape[0]
        for s in specs
        if s.shape
        and isinstance(s.shape[0], str)
        and (is_batch(s.shape[0]) or _NAMELESS.fullmatch(s.shape[0]))
    }
    open_inputs = [s for s in specs if any(isinstance(d, str) and d not in batches for d in s.shape)]
    if open_inputs:
        asked = " ".join(
            f"--shape {s.name}={'x'.join(_asked(d, batches) for d in s.shape)}" for s in open_inputs
        )
        raise DataError(
            f"{what} leaves the size of its inputs open ({', '.join(map(str, open_inputs))}), and there is no data "
            "to take it from",
            hint=f"say it: {asked} with a size for each N; or give --calib or --eval",
        )


def _asked(dim: int | str, batches: set[str]) -> str:
    return "1" if dim in batches else "N" if isinstance(dim, str) else str(dim)


def _resized(
    tensor: torch.Tensor, shape: tuple[int, ...], padding: Padding | None, name: str
) -> torch.Tensor:
    import torch

    if padding is not None and name in padding.values:
        tensor = torch.from_numpy(padding.fill(tensor.numpy(), shape, name))
    return torch.from_numpy(resized(tensor.detach().numpy(), shape))


def resized(array: Array, shape: Sequence[int]) -> Array:
    """Repeated or cut to ``shape`` along every axis, so that values stay of their kind."""
    for axis, size in enumerate(shape):
        if array.shape[axis] != size:
            array = np.take(array, np.arange(size) % max(1, array.shape[axis]), axis)
    return np.array(array, order="C")


def _try(
    model: TorchModel, example: Mapping[str, torch.Tensor], sizes: Mapping[str, Sequence[int | str]]
) -> None:
    from edgekit.graph.nested import attempt

    outputs = attempt(model.module, example)
    if isinstance(outputs, Exception):
        said = ", ".join(f"{name} {list(shape)}" for name, shape in sizes.items())
        raise UsageError(
            f"the model does not take inputs of the shapes given ({said}): {first_line(outputs)}",
            hint="give sizes that forward takes",
        ) from outputs


def _parsed(name: str, text: str) -> tuple[int, ...]:
    try:
        shape = tuple(int(part) for part in re.split(r"[xX,*]", text.strip().strip("[]")))
    except ValueError:
        shape = ()
    if not shape or min(shape) < 1:
        raise UsageError(f"--shape {name}={text} is no shape", hint=f"like --shape {name}=1x128")
    return shape


def _text(shape: Iterable[int]) -> str:
    return "x".join(map(str, shape))
