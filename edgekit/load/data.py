"""Which samples a stage works on: the user's, recognised without reading them again, or seeded random ones."""

from __future__ import annotations

import functools
import hashlib
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, TypeAlias

import msgspec
import numpy as np

from edgekit.core import versions
from edgekit.core.store import Store, canonical_json
from edgekit.errors import DataError, SourceError
from edgekit.load import Recorder, known, usercode
from edgekit.load.classes import Classes
from edgekit.load.shapes import SampleForm
from edgekit.types import Sample, TensorSpec

DataSpec: TypeAlias = str | Iterable[object]
"""DATA as the user gives it: text on the command line, any iterable of inputs in Python."""

if TYPE_CHECKING:
    from edgekit.load.samples import DataSamples
    from edgekit.types import Array

RANDOM = "random"
"""``--calib random``: the user asks for random data by name; the manifest then says ``uncalibrated``."""

EXAMPLE = "example"
"""The source's own example inputs."""

_SEED = 20240229
_PYTHON = "(Python)"


@dataclass(frozen=True, kw_only=True)
class SampleSet:
    """Samples whose identity is known before they are opened. ``origin`` says what they are, ``labelled`` whether any
    of them has a label. ``endless``: the data did not end, these are the first of them."""

    origin: str
    text: str
    fingerprint: str
    count: int
    labelled: bool
    open: Callable[[], Iterable[Sample]]
    endless: bool = False

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Sample]:
        return iter(self.open())

    def spread(self, count: int) -> SampleSet:
        """``count`` samples, evenly spaced over all of them: data is often sorted by class."""
        if count >= self.count:
            return self
        return SampleSet(
            origin=self.origin,
            text=self.text,
            fingerprint=versions.digest(self.fingerprint, f"spread {count}"),
            count=count,
            labelled=self.labelled,
            endless=self.endless,
            open=lambda: _spread(self.open(), self.count, count),
        )

    def first(self, count: int) -> SampleSet:
        """The first ``count`` samples."""
        return replace(
            self,
            fingerprint=versions.digest(self.fingerprint, f"first {count}"),
            count=min(count, self.count),
            open=lambda: itertools.islice(iter(self.open()), count),
        )

    @property
    def noise(self) -> bool:
        """Whether the inputs are noise: drawn at random by edgekit, or white in each place (see :func:`_white`)."""
        return self.origin == RANDOM or _white(list(self.first(_LOOKED_AT)))


_LOOKED_AT = 16
_PLACES = 1024
_PLACES_OF_AN_AXIS = 4
_DEVIATIONS = 4.0


def _white(samples: Sequence[Sample]) -> bool:
    """Whether each float input with places (pixels, steps of time) is uncorrelated from one place to the next.

    The lag-1 autocorrelation of n independent values deviates by 1/sqrt(n); what a camera, a microphone or a sensor
    gives is far beyond that. Inputs without places, integers, and too few values are not judged: no noise.
    """
    names = samples[0].inputs if samples else {}
    return bool(names) and all(_white_input([s.inputs[n] for s in samples if n in s.inputs]) for n in names)


def _white_input(arrays: Sequence[Array]) -> bool:
    if any(a.dtype.kind != "f" or a.ndim != arrays[0].ndim or a.ndim < 3 for a in arrays):
        return False
    if sum(a.size for a in arrays) < _PLACES or any(a.min() == a.max() for a in arrays):
        return False
    first = arrays[0]
    axes = [k for k in range(1, first.ndim) if first.shape[k] >= _PLACES_OF_AN_AXIS]
    return bool(axes) and all(_uncorrelated(arrays, axis) for axis in axes)


def _uncorrelated(arrays: Sequence[Array], axis: int) -> bool:
    """Whether neighbours along ``axis`` have nothing in common; never where all values are equal."""
    product = energy = 0.0
    pairs = count = 0
    for array in arrays:
        centred, length = array.astype(np.float64) - array.mean(), array.shape[axis]
        before, after = np.take(centred, range(length - 1), axis), np.take(centred, range(1, length), axis)
        product, energy = product + float((before * after).sum()), energy + float(np.square(centred).sum())
        pairs, count = pairs + before.size, count + array.size
    limit = _DEVIATIONS * energy / count * pairs**0.5
    # Removing each array's own mean makes neighbours a little unlike: by the energy of one value in each array.
    return 0 < energy < np.inf and abs(product) <= limit + energy * len(arrays) / count


@dataclass(frozen=True, kw_only=True)
class Endless:
    """What is done with data that do not end: after ``bound`` samples, the first ``kept`` are all."""

    bound: int
    kept: int

    @classmethod
    def calibration(cls, samples: int) -> Endless:
        """Of a calibration with so many samples: enough to space them out."""
        return cls(bound=max(20_000, 100 * samples), kept=10 * samples)


ENDLESS = Endless(bound=50_000, kept=4_096)
"""Of any other data; ImageNet's validation set has so many."""


def user_samples(
    store: Store,
    data: DataSpec,
    inputs: tuple[TensorSpec, ...],
    *,
    origin: str,
    preprocessing: Mapping[str, object],
    classes: Classes | None = None,
    form: SampleForm | None = None,
    endless: Endless = ENDLESS,
) -> SampleSet:
    """The samples that ``--calib`` or ``--eval`` (or the API) names, brought to ``form``; folders of images are named
    by ``classes``.

    Their fingerprint and number are remembered for as long as every file that was read to make them is
    unchanged; only then are they not read again.
    """
    if not isinstance(data, str):
        from edgekit.load.samples import from_iterable

        def iterable(limit: int | None) -> DataSamples:
            return from_iterable(data, inputs, name=f"the {origin} samples", form=form, limit=limit)

        if isinstance(data, Iterator):  # read once, and kept in files
            samples = iterable(endless.bound)
            facts = _facts(samples, None, origin)
            return _sampled(lambda: samples, facts, origin=origin, text=_PYTHON)
        bounded = None if isinstance(data, Sized) else endless
        return _bounded(iterable, bounded, origin=origin, text=_PYTHON)[0]
    classes = classes or Classes()
    key = {
        "text": data,
        "inputs": inputs,
        "preprocessing": dict(preprocessing),
        "classes": [classes.names, classes.required],
        "form": form,
        "endless": endless,
    }

    def opened(limit: int | None) -> DataSamples:
        from edgekit.load.samples import open_samples

        return open_samples(
            data, inputs, preprocessing=preprocessing, classes=classes, form=form, limit=limit
        )

    recalled = known.recall(store, "samples", key)
    if recalled is not None:
        kept = msgspec.convert(recalled, _Facts)
        return _sampled(lambda: opened(kept.limit), kept, origin=origin, text=data)
    with Recorder() as recorder:
        described, found = _bounded(
            opened, endless if usercode.split(data) else None, origin=origin, text=data
        )
    known.remember(store, "samples", key, asdict(found), recorder)
    return described


@dataclass(frozen=True, kw_only=True)
class _Facts:
    """What is known of a set without reading it. ``limit``: only so many of them are used, the data did not end."""

    fingerprint: str
    count: int
    labelled: bool
    first: tuple[str, ...]
    limit: int | None = None


def _bounded(
    opened: Callable[[int | None], DataSamples], endless: Endless | None, *, origin: str, text: str
) -> tuple[SampleSet, _Facts]:
    """All samples, or the first ones of data that do not end."""
    limit = None
    samples = opened(None if endless is None else endless.bound + 1)
    if endless is not None and samples.cut:
        limit = endless.kept
        samples = opened(limit)
    facts = _facts(samples, limit, text)
    return _sampled(lambda: samples, facts, origin=origin, text=text), facts


class Peekable(Iterator[object]):
    """An iterator that tells its first item without losing it."""

    def __init__(self, items: Iterator[object]) -> None:
        self._items, self._peeked = items, list(itertools.islice(items, 0))

    def __next__(self) -> object:
        return self._peeked.pop() if self._peeked else next(self._items)

    def first(self) -> object:
        """The first item; ``None`` when there is none."""
        if not self._peeked:
            self._peeked = list(itertools.islice(self._items, 1))
        return self._peeked[0] if self._peeked else None


def peekable(data: DataSpec | None) -> DataSpec | None:
    """DATA that is an iterator, so that an example can be taken from it; any other as it is."""
    return Peekable(iter(data)) if isinstance(data, Iterator) else data


@dataclass(frozen=True)
class Example:
    """The first inputs of DATA, for a model that brings none of its own."""

    data: DataSpec | None
    preprocessing: Mapping[str, object] = field(default_factory=dict)

    @property
    def given(self) -> bool:
        """Whether there is data to take an example from."""
        return self.data not in (None, "", RANDOM) if isinstance(self.data, str) else self.data is not None

    @functools.cached_property
    def fingerprint(self) -> str:
        """Which example it is: the text, whose files a recorder sees, or the content of what Python gave."""
        if isinstance(self.data, str) or not self.given:
            return str(self.data or "")
        return hashlib.sha256(b"".join(_contents(self._first()))).hexdigest()

    def raw(self) -> object:
        """The first inputs as they come, without their label.

        Raises :class:`DataError` when there is no data to take them from.
        """
        item = self._first() if self.given else None
        if item is None:
            raise DataError(
                "the module brings no example inputs, and there is no data to take them from",
                hint="return (module, example_inputs) from the factory, or pass --calib file.py:callable",
            )
        if isinstance(item, tuple) and len(item) == 2 and _is_label(item[1]):
            return item[0]
        return item

    def inputs(self, specs: tuple[TensorSpec, ...]) -> Mapping[str, Array]:
        """The first sample by input name, as :func:`user_samples` gives it."""
        from edgekit.load.samples import from_iterable, open_samples

        if isinstance(self.data, str):
            samples = open_samples(self.data, specs, preprocessing=self.preprocessing, limit=1)
        else:
            samples = from_iterable([self._first()], specs, name="the first sample")
        return dict(next(iter(samples)).inputs)

    def _first(self) -> object:
        from edgekit.load.samples import raw_items

        if isinstance(self.data, Peekable):
            return self.data.first()
        data = raw_items(self.data) if isinstance(self.data, str) else self.data
        return next(iter(data() if callable(data) else data or ()), None)


def _contents(value: object) -> Iterator[bytes]:
    """What tells one item from another: its arrays, and how they are nested."""
    import numpy as np

    if isinstance(value, Mapping):
        for key, item in value.items():
            yield f"{key}:".encode()
            yield from _contents(item)
    elif isinstance(value, list | tuple):
        yield f"[{len(value)}]".encode()
        for item in value:
            yield from _contents(item)
    elif isinstance(value, Sample):
        yield from _contents((dict(value.inputs), value.label))
    elif value is not None and not isinstance(value, str):
        array = np.asarray(value.detach().cpu().float() if hasattr(value, "detach") else value)
        yield f"{getattr(value, 'dtype', array.dtype)}{array.shape}".encode()
        yield array.tobytes()
    else:
        yield repr(value).encode()


def _is_label(value: object) -> bool:
    return isinstance(value, int | float | str) or getattr(value, "ndim", 1) == 0


def own_example(example: Mapping[str, Array]) -> SampleSet:
    """The source's example inputs as a set of one sample."""
    sample = Sample(inputs=dict(example))
    return SampleSet(
        origin=EXAMPLE,
        text=EXAMPLE,
        fingerprint=hashlib.sha256(b"".join(_contents(sample))).hexdigest(),
        count=1,
        labelled=False,
        open=lambda: [sample],
    )


def random_samples(example: Mapping[str, Array], count: int) -> SampleSet:
    """The example itself, then ``count - 1`` seeded variations of it.

    Floats are drawn from a normal distribution with the example's mean and deviation, integers from the
    range of values that the example shows, booleans by a coin.
    """
    fingerprint = hashlib.sha256(canonical_json({"seed": _SEED, "count": count}))
    for name, array in sorted(example.items()):
        fingerprint.update(f"{name} {array.dtype} {array.shape}".encode() + array.tobytes())

    def opened() -> Iterator[Sample]:
        yield Sample(inputs=dict(example))
        generator = np.random.default_rng(_SEED)
        for _ in range(count - 1):
            yield Sample(inputs={name: _like(array, generator) for name, array in example.items()})

    return SampleSet(
        origin=RANDOM,
        text=RANDOM,
        fingerprint=fingerprint.hexdigest(),
        count=count,
        labelled=False,
        open=opened,
    )


_MOST_VALUES = 1 << 40


def unit_example(
    inputs: tuple[TensorSpec, ...], shapes: Mapping[str, Sequence[int]] | None = None
) -> dict[str, Array]:
    """Seeded inputs for an ONNX file that comes without data, of ``shapes`` where they are given; else dynamic axes
    are 1. Floats are normal, integers 0 or 1.

    Raises :class:`SourceError` for an input that no machine holds."""
    generator = np.random.default_rng(_SEED)
    example: dict[str, Array] = {}
    for spec in inputs:
        shape = (shapes or {}).get(spec.name) or [d if isinstance(d, int) else 1 for d in spec.shape]
        dtype = np.dtype(spec.dtype)
        if math.prod(shape) > _MOST_VALUES:
            raise SourceError(
                f"the input {spec.name!r} has {' x '.join(map(str, shape))} values", hint="export it again"
            )
        drawn = generator.integers(0, 2, shape) if dtype.kind in "iub" else generator.standard_normal(shape)
        example[spec.name] = np.asarray(drawn).astype(dtype)
    return example


def fits(shapes: Mapping[str, Sequence[int]], sample: Sample) -> bool:
    """Whether a sample has exactly these shapes (what a target with fixed shapes takes)."""
    return all(tuple(sample.inputs[name].shape) == tuple(shape) for name, shape in shapes.items())


def _facts(samples: DataSamples, limit: int | None, text: str) -> _Facts:
    if len(samples) == 0:
        raise DataError(f"{text} gave no samples", hint="yield at least one set of inputs")
    return _Facts(
        fingerprint=samples.fingerprint,
        count=len(samples),
        labelled=samples.labelled,
        first=samples.first,
        limit=limit,
    )


def _sampled(opened: Callable[[], DataSamples], facts: _Facts, *, origin: str, text: str) -> SampleSet:
    return SampleSet(
        origin=origin,
        text=text,
        fingerprint=facts.fingerprint,
        count=facts.count,
        labelled=facts.labelled,
        endless=facts.limit is not None,
        open=lambda: _unchanged(opened(), facts, text),
    )


def _unchanged(samples: Iterable[Sample], facts: _Facts, text: str) -> Iterator[Sample]:
    """The samples as they were when their fingerprint was taken. Raises :class:`DataError` for others: what is
    calibrated, answered and run would be three different things."""
    from edgekit.load.samples import digest

    name = text if text != _PYTHON else "the data"
    count = 0
    for count, sample in enumerate(samples, start=1):
        if count <= len(facts.first) and digest(sample) != facts.first[count - 1]:
            raise _changed(name, f"sample {count - 1} is another than before")
        yield sample
    if count != facts.count:
        raise _changed(name, f"it gave {facts.count} samples before, and {count} now")


def _changed(name: str, what: str) -> DataError:
    return DataError(
        f"{name} gives other samples each time it is read: {what}",
        hint="let each pass begin anew: make iterators in the callable, and seed what is random there "
        "(numpy.random.default_rng(0), torch.Generator().manual_seed(0))",
    )


def _spread(samples: Iterable[Sample], total: int, count: int) -> Iterator[Sample]:
    taken = 0
    for index, sample in enumerate(samples):
        if index == taken * total // count:
            yield sample
            taken += 1
        if taken == count:
            return


def _like(array: Array, generator: np.random.Generator) -> Array:
    if array.dtype == np.bool_:
        return np.asarray(generator.integers(0, 2, array.shape, dtype=np.int8)).astype(np.bool_)
    if np.issubdtype(array.dtype, np.integer):
        low, high = (int(array.min()), int(array.max())) if array.size else (0, 1)
        return np.asarray(generator.integers(low, high + 1, array.shape)).astype(array.dtype)
    mean, deviation = (float(array.mean()), float(array.std())) if array.size else (0.0, 1.0)
    return np.asarray(generator.normal(mean, deviation or 1.0, array.shape)).astype(array.dtype)
