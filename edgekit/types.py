"""The types that pass between the stages. Frozen, keyword-only, validated on construction.

Nothing here imports torch, onnx or numpy at run time: the command line stays quick to start.
"""

from __future__ import annotations

import enum
import errno
import hashlib
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, runtime_checkable

from edgekit.errors import ConfigError

if TYPE_CHECKING:
    import numpy.typing as npt
    import torch

    Array: TypeAlias = npt.NDArray[Any]
    Json: TypeAlias = bool | int | float | str | Sequence["Json"] | Mapping[str, "Json"] | None
    """What a JSON document holds."""
else:
    Json = Any  # msgspec, which reads these types at run time, knows no recursive alias

Dim: TypeAlias = int | str
"""One dimension: a size, or the name of a dynamic axis (``"batch"``)."""

Option: TypeAlias = bool | int | float | str
"""The value of one target or runtime option."""


class Precision(enum.StrEnum):
    """What a target promises to compute in."""

    FP32 = "fp32"
    FP16 = "fp16"
    BF16 = "bf16"
    FP8 = "fp8"
    INT8 = "int8"
    INT16X8 = "int16x8"
    INT8_DYNAMIC = "int8-dynamic"
    INT8_WEIGHTS = "int8-weights"
    INT4_WEIGHTS = "int4-weights"

    @property
    def needs_calibration(self) -> bool:
        """Whether activations are quantized with ranges that only data can give."""
        return self in (Precision.INT8, Precision.INT16X8, Precision.FP8)


class Verdict(enum.StrEnum):
    """The outcome of one gate; docs/gates.md says when which is given.

    ``UNPROVEN``: within the limit as measured, and a loss of twice the limit could have gone unseen. ``SHOWN``:
    measured on inputs that say nothing about data, so that it is not judged.
    """

    PASS = "pass"
    FAIL = "fail"
    UNPROVEN = "unproven"
    NOT_RUN = "not-run"
    SHOWN = "shown"

    @classmethod
    def _missing_(cls, value: object) -> Verdict | None:
        return (
            cls.FAIL if value == "inconclusive" else None
        )  # beyond the limit: what older manifests call so was refused


@dataclass(frozen=True, kw_only=True)
class TensorSpec:
    """One input or output: numpy dtype name, shape, and for integer tensors the affine mapping.

    ``real = scale * (stored - zero_point)``. ``layout`` names the axes where it matters (``"NCHW"``).
    """

    name: str
    dtype: str
    shape: tuple[Dim, ...]
    layout: str = ""
    scale: float | None = None
    zero_point: int | None = None

    def __post_init__(self) -> None:
        if not self.name:
            raise ValueError("a tensor needs a name")
        if any(isinstance(d, int) and d < 0 for d in self.shape):
            raise ValueError(f"{self.name}: negative dimension in {self.shape}")

    @property
    def is_static(self) -> bool:
        """Whether every dimension is a number."""
        return all(isinstance(d, int) for d in self.shape)

    @property
    def size(self) -> int:
        """Number of elements, dynamic axes counted as 1."""
        return math.prod(d for d in self.shape if isinstance(d, int))

    def __str__(self) -> str:
        return f"{self.name}: {self.dtype}[{', '.join(map(str, self.shape))}]"


@dataclass(frozen=True, kw_only=True)
class SourceSpec:
    """Where the user's model is. ``kind`` is one of the loaders in :mod:`edgekit.load`."""

    text: str
    kind: str
    path: Path | None = None
    attribute: str = ""


@dataclass(frozen=True, kw_only=True)
class SourceRecord:
    """Where the model came from; ``sha256`` is over everything that was read to load it. ``bound``: inputs of it that
    are constants here, each a number, or ``{"file": …, "sha256": …}``."""

    text: str
    kind: str
    sha256: str
    bound: Mapping[str, Json] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Permit:
    """What loading a source may do, and where example inputs come from when the source has none.

    ``trust``: execute code that the source's files carry; ``network``: download; ``example``: gives the inputs of
    one call, usually the first calibration sample.
    """

    trust: bool = False
    network: bool = False
    example: Callable[[], object] | None = None


@dataclass(frozen=True, kw_only=True)
class TorchModel:
    """A module in evaluation mode with one set of example inputs.

    A factory may return this instead of a bare module. ``dynamic_axes`` maps an input's name to
    ``{axis: name}``; ``labels`` are the class names in output order; ``preprocessing`` is the contract
    that an app has to keep, ``postprocessing`` the one that makes probabilities or boxes of the outputs
    (both: docs/packages.md); ``notes`` are for the manifest.
    """

    module: torch.nn.Module
    example_inputs: Mapping[str, torch.Tensor]
    task: str = ""
    dynamic_axes: Mapping[str, Mapping[int, str]] = field(default_factory=dict)
    labels: tuple[str, ...] = ()
    preprocessing: Mapping[str, Json] = field(default_factory=dict)
    postprocessing: Mapping[str, Json] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class OnnxModel:
    """An ONNX file by path and content. Weights may be in external data files in the same folder."""

    path: Path
    sha256: str
    opset: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    @property
    def input_names(self) -> tuple[str, ...]:
        """Names of the graph inputs in order."""
        return tuple(i.name for i in self.inputs)


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One calibration or evaluation item: arrays by input name, batch axis included, and its label."""

    inputs: Mapping[str, Array]
    label: object = None


class Samples(Protocol):
    """A re-iterable set of samples. ``fingerprint`` is a sha256 over the contents, in order."""

    @property
    def fingerprint(self) -> str:
        """sha256 over the contents, in order."""
        ...

    @property
    def labelled(self) -> bool:
        """Whether any sample carries a label."""
        ...

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Sample]: ...


FLOAT8 = "float8_e4m3fn"
"""1 sign, 4 exponent and 3 mantissa bits, no infinity (Micikevicius et al., "FP8 Formats for Deep Learning", 2022)."""


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """How a target wants its graph quantized.

    ``activation`` and ``weight`` are storage dtypes (``"uint8"``, ``"int8"``, ``"int16"``, ``"int4"``,
    ``"float16"``, ``"float32"``, ``"float8_e4m3fn"``); ``bias`` is ``"int32"`` or ``"float32"``. ``rules`` names the
    placement table in :mod:`edgekit.quantize`; ``quantizer`` is ``"qdq"``, ``"dynamic"`` or ``"weights"``.
    ``weight_bits`` 7 halves the range of INT8 weights, so that sums of UINT8 x INT8 products fit 16 bits.
    """

    activation: str = "float32"
    activation_symmetric: bool = False
    weight: str = "float32"
    weight_symmetric: bool = True
    per_channel: bool = True
    bias: str = "float32"
    rules: str = ""
    quantizer: str = "qdq"
    weight_bits: int = 8
    why: str = ""

    def __post_init__(self) -> None:
        if self.quantizer not in ("qdq", "dynamic", "weights"):
            raise ConfigError(
                f"unknown quantizer {self.quantizer!r} in a scheme", hint="use qdq, dynamic or weights"
            )

    @property
    def needs_calibration(self) -> bool:
        """Whether activations are stored as integers with ranges from data."""
        return self.quantizer == "qdq" and self.activation not in ("float32", "float16")


SLICE_MARGIN_DB = 6.0
"""What one slice, or one sample, may lose beyond the whole: noise is not spread evenly."""


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """The default limits of a target's gates. ``None``: the gate does not apply."""

    snr_db: float | None = None
    relative_error: float | None = None
    top1_agreement: float | None = None
    metric_drop: float | None = None
    placement: float | None = None
    integer_weights: float | None = None
    coverage: float | None = None
    explained: float | None = None
    sample_snr_db: float | None = None
    integer_agreement: float = 0.99
    boxes: float | None = None
    masks: float | None = None
    rollout: float | None = None
    decisions: float = 0.99
    perplexity: float | None = None
    token_agreement: float | None = None
    greedy: float | None = None

    @property
    def slice_limit(self) -> float | None:
        """The least explained variance of a slice. Unless it is set, it follows from ``snr_db``: 6 dB less of the
        slice's variance than of the output's energy (12 dB: 0.75)."""
        if self.explained is not None or self.snr_db is None:
            return self.explained
        return 1.0 - math.pow(10.0, -(self.snr_db - SLICE_MARGIN_DB) / 10.0)

    @property
    def rollout_limit(self) -> float | None:
        """The least explained variance of a slice over many steps with the artifact's own states; else a slice's."""
        return self.slice_limit if self.rollout is None else self.rollout

    @property
    def box_limit(self) -> float:
        """The least share of a detector's boxes that agree; else as of class scores, or of integers in a float row."""
        if self.boxes is not None:
            return self.boxes
        return self.integer_agreement if self.top1_agreement is None else self.top1_agreement

    @property
    def mask_limit(self) -> float:
        """The least share of masks that agree; else as of boxes."""
        return self.box_limit if self.masks is None else self.masks

    @property
    def sample_limit(self) -> float | None:
        """The least SNR of a sample, in dB, a low quantile of which is held against it; else 6 dB below ``snr_db``."""
        if self.sample_snr_db is not None or self.snr_db is None:
            return self.sample_snr_db
        return self.snr_db - SLICE_MARGIN_DB


@dataclass(frozen=True, kw_only=True)
class Adaptation:
    """What a scheme becomes on processors of one kind: of ``arch``, with all of ``has`` and none of ``lacks``.

    The names of instruction sets are those of ``devices/agent/state.py``. Empty fields leave the scheme as it is.
    """

    why: str
    arch: str
    has: tuple[str, ...] = ()
    lacks: tuple[str, ...] = ()
    activation: str = ""
    activation_symmetric: bool | None = None
    weight_bits: int = 0

    def fits(self, arch: str, isa: Collection[str]) -> bool:
        """Whether this is for a processor of ``arch`` with the instruction sets ``isa``."""
        return arch == self.arch and set(self.has) <= set(isa) and not set(self.lacks) & set(isa)


@dataclass(frozen=True, kw_only=True)
class OptionSpec:
    """One ``--set`` option that a target understands; of a number, the least and the most that it may be."""

    name: str
    default: Option
    help: str
    choices: tuple[Option, ...] = ()
    minimum: int | float | None = None
    maximum: int | float | None = None

    def __post_init__(self) -> None:
        if not self.takes(self.default):
            raise ConfigError(
                f"the option {self.name} is {self.default} by default, and {self.allowed} is allowed",
                hint="correct its default, choices, minimum or maximum",
            )

    def takes(self, value: Option) -> bool:
        """Whether ``value`` is one for this option: of the default's type, one of the choices, within the bounds."""
        kinds = (int, float) if type(self.default) is float else (type(self.default),)
        if type(value) not in kinds or (self.choices and value not in self.choices):
            return False
        if isinstance(value, bool | str):
            return True
        least, most = self.minimum, self.maximum
        return value == value and (least is None or value >= least) and (most is None or value <= most)

    @property
    def allowed(self) -> str:
        """What it may be, in words."""
        if self.choices:
            return ", ".join(map(str, self.choices))
        if isinstance(self.default, bool | str):
            return "true or false" if isinstance(self.default, bool) else "a text"
        kind = "a whole number" if isinstance(self.default, int) else "a number"
        least, most = self.minimum, self.maximum
        if least is not None and most is not None:
            return f"{kind} from {least:,} to {most:,}"
        if least is not None:
            return f"{kind} of {least:,} or more"
        return kind if most is None else f"{kind} of {most:,} or less"


@dataclass(frozen=True, kw_only=True)
class Target:
    """One row of the catalogue: ``<backend>-<precision>``.

    ``ships_to`` are the kinds of processors that its apps run on, where these are usually not the one that builds it:
    how fast it is elsewhere says little. ``task``: what alone it is for (``"text-generation"``); empty for any model.
    """

    name: str
    backend: str
    precision: Precision
    runs_on: str
    file: str
    extra: str = ""
    fixed_shapes: bool = False
    io_dtype: str = "float32"
    scheme: Scheme | None = None
    tolerance: Tolerance = field(default_factory=Tolerance)
    options: tuple[OptionSpec, ...] = ()
    runtime: Mapping[str, Option] = field(default_factory=dict)
    platforms: tuple[str, ...] = ()
    ships_to: tuple[str, ...] = ()
    on: tuple[Adaptation, ...] = ()
    why: str = ""
    owner: str = "edgekit"
    task: str = ""

    def __post_init__(self) -> None:
        if self.precision.needs_calibration and self.scheme is None:
            raise ConfigError(
                f"target {self.name} is {self.precision} but has no scheme",
                hint="add a [target.scheme] table to the row",
            )

    @property
    def needs_calibration(self) -> bool:
        """Whether building this target needs ``--calib``."""
        return self.scheme is not None and self.scheme.needs_calibration

    @property
    def uses_calibration(self) -> bool:
        """Whether ``--calib`` makes this target's artifact better: INT4 weights are rounded with regard to inputs."""
        scheme = self.scheme
        four_bits = scheme is not None and scheme.quantizer == "weights" and scheme.weight == "int4"
        return self.needs_calibration or four_bits


@dataclass(frozen=True, kw_only=True)
class Device:
    """Where an artifact runs. ``address`` is empty for this machine."""

    name: str
    transport: str = "local"
    address: str = ""
    arch: str = ""
    os: str = ""
    options: Mapping[str, Option] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Availability:
    """Whether a backend is installed and usable here, found out without importing it."""

    installed: bool
    usable: bool
    version: str = ""
    why_not: str = ""
    hint: str = ""


@dataclass(frozen=True, kw_only=True)
class Lowered:
    """What a backend's ``lower`` wrote: file names relative to the artifact's directory, main file first.

    ``inputs`` and ``outputs`` are what the runtime sees; ``channels_moved`` names those whose channels (axis 1
    in the source) are last here; ``notes`` are for the manifest (one fact each);
    ``details`` is JSON-able backend information (fusions, partitions, operators left in float).
    ``integer_weights`` is the share of the weights (0 to 1) that the files store as integers of eight bits or fewer;
    ``None`` where the backend does not say, or there are no weights.
    """

    files: tuple[str, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    channels_moved: tuple[str, ...] = ()
    runtime: Mapping[str, Option] = field(default_factory=dict)
    minimum_runtime: str = ""
    notes: tuple[str, ...] = ()
    details: Mapping[str, Json] = field(default_factory=dict)
    integer_weights: float | None = None


TEXT_GENERATION = "text-generation"
"""The task of language models: sources of this task are built with a cache, and gated on text."""
HALF_LARGEST = 65504.0
"""The largest finite float16."""
ASKED = "asked"
"""Of an artifact's ``details``: the share of the MACs (0 to 1) that its files ask for in the target's precision. What
runs them may do less, and no more."""

CHECKED = "checked"
"""The member of a lowered model's details that says by what it was checked where it cannot be run."""
KEEP_FLOAT32 = "keep_float32"
"""The option of ``lower`` that names the nodes, one a line, that a float16 target leaves in float32."""


@dataclass(frozen=True, kw_only=True)
class HalfRange:
    """The largest absolute activations of a model over ``samples`` inputs: of all (``tensor``), and of those that
    are ``left`` in float16 once the nodes ``kept`` stay in float32."""

    samples: int
    largest: float
    tensor: str
    left: float
    left_tensor: str
    kept: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """One activation on evaluation samples against what calibration saw of it, ``low`` to ``high``.

    ``outside`` is the share of its values beyond that, ``uncovered`` how much of its variance that costs (0 to 1; see
    ``quantize/calibrate/coverage.py``), ``seen_low`` and ``seen_high`` what the samples reach.
    """

    tensor: str
    samples: int
    outside: float
    uncovered: float
    low: float
    high: float
    seen_low: float
    seen_high: float


class Severity(enum.StrEnum):
    """``error``: quantizing with these samples would be wrong. ``warning``: look at it."""

    ERROR = "error"
    WARNING = "warning"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that is wrong with calibration samples. ``evidence`` are the figures that say so."""

    code: str
    severity: Severity
    tensor: str
    message: str
    hint: str
    evidence: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Rounding:
    """How far the source in float32 is from itself in float64: the worst output's SNR in dB, its worst sample's, and
    max |f32 - f64| / max |f64|."""

    snr_db: float
    sample_snr_db: float
    relative_error: float


@dataclass(frozen=True, kw_only=True)
class Parity:
    """How far the artifact's outputs are from the reference, over ``samples`` inputs.

    ``relative_error`` is max |a - r| / max |r|; ``snr_db`` is 10 log10(sum r² / sum (a - r)²), between -200
    and 200; ``cosine`` is the mean over rows; ``top1_agreement`` is set for outputs that look like class
    scores, ``integer_agreement`` for outputs that are integers or booleans, ``boxes`` for outputs that look like a
    detector's boxes, ``masks`` for maps that are masks: the share that overlaps with the source's (see
    ``artifact/boxes.py``, ``artifact/masks.py``). ``explained`` is the share
    of variance that the worst slice of a float output keeps (see ``artifact/slices.py``), ``explained_at`` says which;
    ``sample_snr_db`` is the SNR that 95 % of the samples exceed. Each is the worst output's. ``rows`` counts batch
    elements, ``nonfinite`` the values that are NaN or infinite where the reference is not (or the other way round).
    ``metric_drop`` is how much worse the artifact is than the source, with a 90 % interval by ``drop_method``;
    ``recipe_metric`` is what a recipe left of the source's metric before anything was lowered. ``rounding`` is the
    reference's own, where it was measured; ``noise`` says that the inputs were noise.

    ``data`` is what the samples are (``"evaluation"``, ``"calibration"``, ``"random"`` or ``"golden"``), ``labelled``
    how many of them have labels. ``agreement_rows``, ``integer_rows``, ``box_rows``, ``mask_rows`` and ``metric_rows``
    count what is independent behind each figure: rows of a batch, not pixels or tokens; ``row_loss`` is how much of the
    metric one of these can lose, ``changed_rows`` how many of them are scored otherwise, ``higher_is_better`` the
    metric's direction.
    ``guess`` is the accuracy of naming the most frequent label always; ``None`` where the metric is another one.
    """

    samples: int
    max_abs: float
    relative_error: float
    snr_db: float
    cosine: float
    top1_agreement: float | None = None
    integer_agreement: float | None = None
    explained: float | None = None
    explained_at: str = ""
    sample_snr_db: float | None = None
    boxes: float | None = None
    masks: float | None = None
    metric_name: str = ""
    metric: float | None = None
    reference_metric: float | None = None
    recipe_metric: float | None = None
    metric_drop: float | None = None
    drop_interval: tuple[float, float] | None = None
    drop_method: str = ""
    rows: int = 0
    nonfinite: int = 0
    rounding: Rounding | None = None
    noise: bool = False
    data: str = ""
    labelled: int = 0
    agreement_rows: int = 0
    integer_rows: int = 0
    box_rows: int = 0
    mask_rows: int = 0
    metric_rows: int = 0
    row_loss: float = 1.0
    changed_rows: int | None = None
    guess: float | None = None
    higher_is_better: bool = True
    per_output: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Fallback:
    """Work that does not run as asked: an operator, how often, its share of the MACs, and why."""

    op: str
    count: int
    reason: str
    share: float = 0.0
    nodes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Placement:
    """What the runtime really executes. ``share`` is the part of all multiply-accumulates (0 to 1) that
    runs in the asked-for precision on the asked-for unit; ``None`` where the runtime does not tell."""

    precision: str
    share: float | None
    operators: int
    partitions: int | None = None
    kernels: Mapping[str, int] = field(default_factory=dict)
    fallbacks: tuple[Fallback, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Gate:
    """One check with a limit. ``value`` is ``None`` when it could not be measured; ``enough`` is about how many rows
    would decide what is unproven."""

    name: str
    verdict: Verdict
    limit: float | None = None
    value: float | None = None
    message: str = ""
    enough: int | None = None


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """Latency and memory of one artifact on one device. Times in milliseconds, memory in bytes.

    ``samples`` holds the raw steady-state latencies, one list a process.
    """

    device: str
    threads: int
    samples: tuple[tuple[float, ...], ...]
    import_ms: float
    load_ms: float
    first_ms: float
    p50_ms: float
    p90_ms: float
    p99_ms: float | None
    mad_ms: float
    peak_memory: int | None = None
    model_memory: int | None = None
    validity: str = "VALID"
    reasons: tuple[str, ...] = ()
    facts: Mapping[str, Json] = field(default_factory=dict)


def sha256_bytes(data: bytes | memoryview) -> str:
    """Hex sha256 of a buffer."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """Hex sha256 of a file's contents, streamed. Raises ``OSError`` for what is none: a pipe or a device has no end."""
    if not path.is_file():
        raise FileNotFoundError(errno.ENOENT, "no such file", str(path))
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


class Loader(Protocol):
    """The function ``load`` of a module that loads one kind of source."""

    def __call__(self, spec: SourceSpec, permit: Permit) -> TorchModel | OnnxModel:
        """Load ``spec``. Raises :class:`~edgekit.errors.SourceError` and its kinds."""
        ...


class Backend(Protocol):
    """What a module in ``edgekit.backends`` (or a plug-in's) offers. A plain module fits it."""

    NAME: str

    def available(self) -> Availability:
        """Cheap: may look at installed distributions, must not import the runtime."""
        ...

    def lower(self, model: OnnxModel, target: Target, options: Mapping[str, Option], out: Path) -> Lowered:
        """Write the artifact's files into ``out``. ``model`` is quantized (Q/DQ) if the target has a scheme.

        Raises :class:`~edgekit.errors.UnsupportedOperatorsError` with every unsupported node at once.
        """
        ...

    def placement(
        self, model: OnnxModel, target: Target, lowered: Lowered, raw: Mapping[str, Json]
    ) -> Placement:
        """Interpret what the runner reported (``raw``, see ``targets/<backend>/runner.py``)."""
        ...


@runtime_checkable
class Checks(Protocol):
    """What a :class:`Backend` may offer besides: to say early what it cannot express."""

    def check(self, model: OnnxModel, target: Target, options: Mapping[str, Option]) -> None:
        """Raise what ``lower`` would raise for the operators of ``model``, which is not quantized yet. Fast:
        it is asked before minutes are spent on calibration."""
        ...


@runtime_checkable
class ChecksOptions(Protocol):
    """What a :class:`Backend` may offer besides: to say of a target's options what no table of bounds can."""

    def check_options(self, target: Target, options: Mapping[str, Option]) -> None:
        """Raise what ``lower`` would raise for ``options`` whatever the model is. Nothing heavy is imported: it is
        asked before anything is done, and by ``--dry-run``."""
        ...


@runtime_checkable
class WithExtents(Protocol):
    """What a :class:`Backend` may offer besides: to say for which sizes of dynamic axes its artifacts are built."""

    def extents(
        self, inputs: Sequence[TensorSpec], options: Mapping[str, Option]
    ) -> Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]:
        """The smallest and largest shape of each input with dynamic axes. A sample outside cannot be run."""
        ...


def names(specs: Sequence[TensorSpec]) -> tuple[str, ...]:
    """The names of a sequence of tensors, in order."""
    return tuple(s.name for s in specs)
