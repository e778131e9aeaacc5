"""Calibration and evaluation data: anything a user has, to samples that fit the model's inputs.

What a data callable may yield, ``inputs`` being one array or tensor, a tuple in input order, or a dict by
name: ``inputs`` or ``(inputs, label)``. A tuple of two is ``(inputs, label)`` if the model has one input
or if its first element is itself a tuple, list or dict; else it is the model's two inputs.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit.core.files import temporary
from edgekit.errors import DataError, UnknownNameError, near_names
from edgekit.load import usercode
from edgekit.load.array_files import read_npy, read_npz
from edgekit.load.classes import Classes
from edgekit.load.images import image_items
from edgekit.load.shapes import SampleForm
from edgekit.types import Sample, TensorSpec

if TYPE_CHECKING:
    from edgekit.types import Array

_IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".ppm", ".pgm", ".webp", ".tif", ".tiff", ".gif")
_ARRAYS = (".npz", ".npy")
_LABEL_KEYS = ("label", "labels", "target", "y")


def open_samples(
    text: str,
    inputs: tuple[TensorSpec, ...],
    *,
    preprocessing: Mapping[str, object] | None = None,
    limit: int | None = None,
    classes: Classes | None = None,
    form: SampleForm | None = None,
) -> DataSamples:
    """Open DATA: ``file.py:callable``, a directory of ``.npz``/``.npy`` files, or one of images.

    ``inputs`` are the model's; samples have their dtypes and shapes, and are brought to ``form``. ``limit`` takes the
    first so many; ``classes`` are what folders of images are named by.
    Raises :class:`DataError` naming sample and tensor, already here for the first sample, and
    :class:`~edgekit.errors.SourceError` or :class:`~edgekit.errors.FactoryError` for the user's code.
    """
    if usercode.split(text) is not None:
        return DataSamples(lambda: usercode.iterate(text), inputs, name=text, limit=limit, form=form)
    path, arrays = Path(text), _array_files(text)
    images = _files_in(path, _IMAGES)
    if arrays and images:
        raise DataError(
            f"{text} holds pictures and arrays ({images[0].relative_to(path)}, {arrays[0].relative_to(path)}): which "
            "of them are the samples is not known",
            hint="keep one kind in the folder, and move the other out of it",
        )
    if arrays:
        return DataSamples(_Arrays(arrays), inputs, name=text, limit=limit, form=form)
    if path.suffix == ".py":
        raise DataError(f"{text} names a file but no callable in it", hint=f"write {text}:NAME")
    if not path.is_dir():
        near = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise DataError(f"there is no data at {text}", hint=near_names(path.name, near))
    if images:
        source = image_items(path, images, inputs, preprocessing or {}, classes or Classes())
        return DataSamples(source, inputs, name=text, limit=limit, form=form)
    raise DataError(
        f"{text} holds neither .npz/.npy files nor images", hint="see edgekit build --help for DATA"
    )


def refuse_missing(text: str) -> None:
    """Raise what :func:`open_samples` raises for a file or folder that is not there; nothing is read, no code runs."""
    parts = usercode.split(text)
    if parts is not None:
        usercode.refuse_missing(parts[0])
        return
    path = Path(text)
    if not path.exists():
        near = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise DataError(f"there is no data at {text}", hint=near_names(path.name, near))


def raw_items(text: str) -> Iterable[object]:
    """What DATA gives before anything is known of the model: what a callable yields, or files of arrays hold."""
    return usercode.iterate(text) if usercode.split(text) is not None else _Arrays(_array_files(text))()


def _array_files(text: str) -> tuple[Path, ...]:
    path = Path(text)
    if path.is_file():
        return (path,) if path.suffix.lower() in _ARRAYS else ()
    return _files_in(path, _ARRAYS)


def _files_in(path: Path, suffixes: Sequence[str]) -> tuple[Path, ...]:
    return tuple(sorted(p for p in path.rglob("*") if p.suffix.lower() in suffixes and p.is_file()))


def from_iterable(
    iterable: Iterable[object] | Callable[[], Iterable[object]],
    inputs: tuple[TensorSpec, ...],
    *,
    limit: int | None = None,
    name: str = "the samples",
    form: SampleForm | None = None,
) -> DataSamples:
    """Samples from Python: a list, a data loader, a generator, or a function that gives one of them.

    What can be iterated only once is written to a temporary directory first, so memory stays flat.
    """
    if isinstance(iterable, Iterator):
        once = DataSamples(lambda: iterable, inputs, name=name, limit=limit, probe=False, form=form)
        return DataSamples(_Spooled(once), inputs, name=name, form=form)
    return DataSamples(lambda: usercode.replayed(iterable, name), inputs, name=name, limit=limit, form=form)


class DataSamples:
    """A re-iterable set of validated samples (see :class:`edgekit.types.Samples`)."""

    def __init__(
        self,
        source: _Source,
        inputs: tuple[TensorSpec, ...],
        *,
        name: str,
        limit: int | None = None,
        probe: bool = True,
        form: SampleForm | None = None,
    ) -> None:
        self._form = form or SampleForm()
        self._source, self._inputs, self._name, self._limit = source, inputs, name, limit
        self._summary: _Summary | None = None
        if probe and next(iter(self), None) is None:
            raise DataError(
                f"{name} gives no sample", hint="give at least one; 100 to 500 are usual for calibration"
            )

    def __iter__(self) -> Iterator[Sample]:
        return itertools.islice(self._all(), self._limit)

    def __len__(self) -> int:
        return self._summarize().count

    @property
    def fingerprint(self) -> str:
        """sha256 over the contents, in order."""
        return self._summarize().fingerprint

    @property
    def labelled(self) -> bool:
        """Whether any sample carries a label."""
        return self._summarize().labelled

    @property
    def first(self) -> tuple[str, ...]:
        """sha256 of each of the first :data:`FIRST` samples."""
        return self._summarize().first

    @property
    def cut(self) -> bool:
        """Whether there are more samples than the limit lets through."""
        return self._summarize().cut

    def _all(self) -> Iterator[Sample]:
        index = 0
        for item in self._source():
            raw, label = _split(item, self._inputs)
            arrays = _by_name(raw, self._inputs, self._name, index)
            where = f"{self._name}: sample {index}"
            for sample in _normalized(arrays, label, self._inputs, self._form, where):
                yield self._form.padded(sample)
                index += 1

    def _summarize(self) -> _Summary:
        if self._summary is None:
            count, labelled, hasher = 0, False, hashlib.sha256()
            first: list[str] = []
            samples = self._all()
            for sample in itertools.islice(samples, self._limit):
                count += 1
                labelled |= sample.label is not None
                _feed(hasher, sample)
                if count <= FIRST:
                    first.append(digest(sample))
            cut = self._limit is not None and count == self._limit and next(samples, None) is not None
            self._summary = _Summary(
                count=count,
                fingerprint=hasher.hexdigest(),
                labelled=labelled,
                first=tuple(first),
                cut=cut,
            )
        return self._summary


@dataclass(frozen=True, kw_only=True)
class _Summary:
    """What one pass over all samples told."""

    count: int
    fingerprint: str
    labelled: bool
    first: tuple[str, ...]
    cut: bool


FIRST = 32
"""How many samples are known each by its own sha256: those that change from pass to pass are seen to."""


def digest(sample: Sample) -> str:
    """sha256 of one sample, without a label that is an object of the user's: that may be written with its address."""
    plain = isinstance(sample.label, np.ndarray | bool | int | float | str)
    hasher = hashlib.sha256()
    _feed(hasher, sample if plain else Sample(inputs=sample.inputs))
    return hasher.hexdigest()


def _feed(hasher: hashlib._Hash, sample: Sample) -> None:
    for name, array in sample.inputs.items():
        hasher.update(f"{name}:{array.dtype}:{array.shape};".encode())
        hasher.update(array.tobytes())
    if isinstance(sample.label, np.ndarray):
        hasher.update(f"label:{sample.label.dtype}:{sample.label.shape};".encode())
        hasher.update(sample.label.tobytes())
    else:
        hasher.update(f"label:{sample.label!r};".encode())


# --- sources: callables that give a fresh iterator each time ------------------------------------------

_Source = Callable[[], Iterable[object]]


class _Spooled:
    """Samples that came once only, kept in a temporary directory that goes with the process."""

    def __init__(self, samples: Iterable[Sample]) -> None:
        self._temporary = temporary("samples")
        self._names: tuple[str, ...] = ()
        self._labels: list[object] = []
        for sample in samples:
            self._names = tuple(sample.inputs)
            # An array may be large; any other label (a dict of boxes, say) numpy would pickle: it stays in memory.
            on_disk = [sample.label] if isinstance(sample.label, np.ndarray) else []
            np.savez(self._path(len(self._labels)), *sample.inputs.values(), *on_disk)
            self._labels.append(None if on_disk else sample.label)

    def _path(self, index: int) -> Path:
        return Path(self._temporary.name) / f"{index:08d}.npz"

    def __call__(self) -> Iterator[object]:
        for index, label in enumerate(self._labels):
            arrays = list(read_npz(self._path(index)).values())
            inputs = dict(zip(self._names, arrays, strict=False))
            yield inputs, label if len(arrays) == len(self._names) else arrays[-1]


class _Arrays:
    """Files of arrays: ``.npz`` by input name (or ``arr_0`` … in order), with ``label``; ``.npy`` for one input."""

    def __init__(self, paths: tuple[Path, ...]) -> None:
        self._paths = paths

    def __call__(self) -> Iterator[object]:
        for path in self._paths:
            if path.suffix.lower() == ".npy":
                yield read_npy(path)
                continue
            arrays = read_npz(path, mapped=True)
            if not arrays:
                raise DataError(f"{path} holds no array", hint="remove the file, or save it again")
            label = next((arrays.pop(k) for k in _LABEL_KEYS if k in arrays and len(arrays) > 1), None)
            plain = tuple(arrays.values()) if all(k.startswith("arr_") for k in arrays) else arrays
            yield plain if label is None else (plain, label)


# --- one item to samples ------------------------------------------------------------------------------


def _split(item: object, inputs: tuple[TensorSpec, ...]) -> tuple[object, object]:
    """Inputs and label of one yielded item, by the rule at the top of this file."""
    if isinstance(item, Sample):
        return dict(item.inputs), item.label
    if isinstance(item, Mapping):
        names = {s.name for s in inputs}
        key = next((k for k in _LABEL_KEYS if k in item and k not in names), None)
        return ({k: v for k, v in item.items() if k != key}, item[key]) if key else (item, None)
    if not isinstance(item, list | tuple) or _is_numbers(item):
        return item, None
    if len(item) == 2 and (len(inputs) == 1 or isinstance(item[0], Mapping | list | tuple)):
        return item[0], item[1]
    if len(item) == len(inputs) + 1:
        return tuple(item[:-1]), item[-1]
    return tuple(item), None


def _is_numbers(item: object) -> bool:
    """Whether nested lists spell an array out: numbers only, and all of one depth."""
    if isinstance(item, list | tuple):
        nested = {isinstance(i, list | tuple) for i in item}
        return len(nested) == 1 and all(_is_numbers(i) for i in item)
    return isinstance(item, bool | int | float)


def _by_name(raw: object, inputs: tuple[TensorSpec, ...], name: str, index: int) -> dict[str, Array]:
    where = f"{name}: sample {index}"
    if isinstance(raw, Mapping):
        for spec in inputs:
            if spec.name not in raw:
                hint = UnknownNameError("input", spec.name, map(str, raw)).hint
                raise DataError(f"{where} lacks the input {spec.name!r}", hint=hint)
        return {s.name: _array(raw[s.name], where, s) for s in inputs}
    values = raw if isinstance(raw, list | tuple) and not (len(inputs) == 1 and _is_numbers(raw)) else (raw,)
    if len(values) != len(inputs):
        raise DataError(
            f"{where} has {len(values)} arrays, the model {len(inputs)} inputs: {', '.join(map(str, inputs))}",
            hint="yield a tuple in that order, or a dict by name; with a label: (inputs, label)",
        )
    return {s.name: _array(v, where, s) for s, v in zip(inputs, values, strict=True)}


def _array(value: object, where: str, spec: TensorSpec) -> Array:
    if hasattr(value, "detach"):
        tensor = value.detach().cpu()
        # numpy has no bfloat16
        return np.asarray((tensor.float() if str(tensor.dtype) == "torch.bfloat16" else tensor).numpy())
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise DataError(f"{where}: {spec.name!r} is ragged: {error}", hint=f"yield {spec}") from error
    if array.dtype == object or array.dtype.kind in "USV":
        what = f"an array of {array.dtype}" if isinstance(value, np.ndarray) else f"a {type(value).__name__}"
        raise DataError(f"{where}: {spec.name!r} is {what}, not of numbers", hint=f"yield {spec}")
    if array.dtype == np.float64 and isinstance(value, list | tuple | float):
        array = array.astype(np.float32)
    return array


def _normalized(
    arrays: dict[str, Array], label: object, inputs: tuple[TensorSpec, ...], form: SampleForm, where: str
) -> Iterator[Sample]:
    checked = {s.name: _converted(_batched(arrays[s.name], s), s, where) for s in inputs}
    label = _label(label, where)
    units = {s.name: _unit(checked[s.name], s, form) for s in inputs}
    parts = _parts(checked, inputs, units)
    if parts == 1:
        _check_shapes(checked, inputs, where)
        yield Sample(inputs={name: _aligned(array) for name, array in checked.items()}, label=label)
        return
    labels = _labels(label, parts, where)
    for part in range(parts):
        pieces = {s.name: _piece(checked[s.name], units[s.name], part, parts) for s in inputs}
        _check_shapes(pieces, inputs, where)
        yield Sample(inputs=pieces, label=labels[part])


def _batched(array: Array, spec: TensorSpec) -> Array:
    """Data sets give single items: put the batch axis of 1 in front where just that is missing."""
    missing = array.ndim == len(spec.shape) - 1 and (spec.shape[0] == 1 or isinstance(spec.shape[0], str))
    return array[None] if missing and _matches(array.shape, spec.shape[1:]) else array


def _matches(shape: tuple[int, ...], declared: tuple[int | str, ...]) -> bool:
    return len(shape) == len(declared) and all(
        size == d for size, d in zip(shape, declared, strict=True) if isinstance(d, int)
    )


def _unit(array: Array, spec: TensorSpec, form: SampleForm) -> int:
    """The batch size of one sample, the example's where the data's can be cut into it; 0 without a batch axis."""
    batch = form.batch(spec)
    dynamic = bool(spec.shape) and isinstance(spec.shape[0], str)
    return 1 if batch and dynamic and array.ndim and array.shape[0] % batch else batch


def _parts(arrays: Mapping[str, Array], inputs: tuple[TensorSpec, ...], units: Mapping[str, int]) -> int:
    """How many samples a batch holds; 1 also for what does not fit, which the shape check then names."""
    counts = {1}
    for spec in inputs:
        array, unit = arrays[spec.name], units[spec.name]
        if unit and array.ndim == len(spec.shape) and _matches(array.shape[1:], spec.shape[1:]):
            counts.add(array.shape[0] // unit if array.shape[0] % unit == 0 else 1)
    several = counts - {0, 1}
    return several.pop() if len(several) == 1 else 1


def _piece(array: Array, unit: int, part: int, parts: int) -> Array:
    if not unit or array.shape[0] != unit * parts:
        return _aligned(array)  # shared by all samples of the batch
    return _aligned(array[part * unit : (part + 1) * unit])


def _aligned(array: Array) -> Array:
    """In C order, at an address that compiled code takes: what is mapped from an archive may lie anywhere."""
    return np.require(array, requirements=("C", "A"))


def _labels(label: object, parts: int, where: str) -> list[object]:
    if label is None:
        return [None] * parts
    if isinstance(label, np.ndarray) and label.ndim and label.shape[0] % parts == 0:
        size = label.shape[0] // parts
        return [
            _label(label[i] if size == 1 else label[i * size : (i + 1) * size], where) for i in range(parts)
        ]
    if isinstance(label, list | tuple) and len(label) == parts:
        return list(label)
    raise DataError(
        f"{where} is a batch of {parts} with a label that is not", hint=f"give {parts} labels, one each"
    )


def _label(label: object, where: str) -> object:
    if hasattr(label, "detach"):
        label = label.detach().cpu().numpy()
    if isinstance(label, list | tuple) and _is_numbers(label):
        with contextlib.suppress(ValueError):  # rows of different lengths are a label too, as they are
            label = np.asarray(label)
    if (
        isinstance(label, np.ndarray | np.generic)
        and label.dtype.kind == "f"
        and not np.isfinite(label).all()
    ):
        raise DataError(f"{where}: the label is not finite", hint="remove the sample or mend its label")
    if isinstance(label, np.generic) or (isinstance(label, np.ndarray) and label.ndim == 0):
        return label.item()
    return label


def _converted(array: Array, spec: TensorSpec, where: str) -> Array:
    """The array in the input's dtype; only conversions that keep the values."""
    dtype = np.dtype(spec.dtype)
    if array.dtype != dtype:
        allowed = {"f": "f", "i": "iub", "u": "iub", "b": "iub"}.get(dtype.kind, dtype.kind)
        if array.dtype.kind not in allowed:
            raise DataError(
                f"{where}: {spec.name!r} is {array.dtype}, the model takes {dtype}",
                hint=_dtype_hint(array, dtype),
            )
        with np.errstate(over="ignore"):  # what is beyond the type is refused below, in words
            converted = array.astype(dtype)
        if dtype.kind in "iub" and not np.array_equal(converted, array):
            raise DataError(
                f"{where}: {spec.name!r} has values outside {dtype}",
                hint="clip or convert them first",
            )
        array = converted
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        bad = "NaN" if np.isnan(array).any() else "infinite"
        raise DataError(
            f"{where}: {spec.name!r} holds {bad} values",
            hint="remove the sample, or mend what makes it; for masks use a large finite number",
        )
    return _apart(np.asarray(array, order="C"))  # not ascontiguousarray: that would give a scalar an axis


def _apart(array: Array) -> Array:
    """The array without the larger one that it is a part of: a row of a data set would hold all of it in memory."""
    root: Any = array
    while isinstance(root.base, np.ndarray):
        root = root.base
    storage = getattr(root.base, "untyped_storage", None)  # a tensor's
    whole = root.nbytes if storage is None else storage().nbytes()
    return array.copy() if whole > 2 * array.nbytes else array


def _dtype_hint(array: Array, dtype: np.dtype[np.generic]) -> str:
    if array.dtype == np.uint8 and dtype.kind == "f":
        return "convert as in training, usually array.astype('float32') / 255 and then mean and std"
    return f"yield array.astype('{dtype}') if that is what training did"


def _check_shapes(arrays: Mapping[str, Array], inputs: tuple[TensorSpec, ...], where: str) -> None:
    sizes: dict[str, int] = {}
    for spec in inputs:
        shape = arrays[spec.name].shape
        fits = _matches(shape, spec.shape)
        for size, declared in zip(shape, spec.shape, strict=False):
            # Dynamic dimensions of one name have one size in all inputs.
            fits &= not isinstance(declared, str) or sizes.setdefault(declared, size) == size
        if not fits:
            raise DataError(
                f"{where}: {spec.name!r} has the shape {shape}, the model takes ({', '.join(map(str, spec.shape))})",
                hint="yield inputs as the model was trained on, the batch axis first",
            )
        if 0 in shape:
            raise DataError(f"{where}: {spec.name!r} is empty: shape {shape}", hint="remove the sample")
