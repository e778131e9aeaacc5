"""What ``manifest.json`` holds, schema 1: the form on disk, apart from the types that edgekit computes with.

A change here is a change of the file format: a new optional key is one that older readers ignore; anything else needs a
new schema number and a reader of the old one. docs/manifest.schema.json is generated from these types.
"""

from __future__ import annotations

import json
from typing import Any

import msgspec

from edgekit.errors import SourceError
from edgekit.types import Json, Option

SCHEMA = 1


class Tensor(msgspec.Struct, kw_only=True):
    """One input or output. ``real = scale * (stored - zero_point)``; a dimension is a size or a name."""

    name: str
    dtype: str
    shape: list[int | str]
    layout: str = ""
    scale: float | None = None
    zero_point: int | None = None


class Scheme(msgspec.Struct, kw_only=True):
    """How the graph was quantized: storage types, symmetry, granularity, the table of placement rules."""

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


class Tolerance(msgspec.Struct, kw_only=True):
    """The limits of the gates. ``null``: the gate does not apply."""

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


class Adaptation(msgspec.Struct, kw_only=True):
    """What the scheme becomes on processors of ``arch`` with all of ``has`` and none of ``lacks``."""

    why: str
    arch: str
    has: list[str] = []
    lacks: list[str] = []
    activation: str = ""
    activation_symmetric: bool | None = None
    weight_bits: int = 0


class TargetOption(msgspec.Struct, kw_only=True):
    """One ``--set`` option that the target understands; ``null``: a number without such a bound, or none."""

    name: str
    default: Option
    help: str
    choices: list[Option] = []
    minimum: int | float | None = None
    maximum: int | float | None = None


class Target(msgspec.Struct, kw_only=True):
    """The row of the catalogue that the artifact was built for."""

    name: str
    backend: str
    precision: str
    runs_on: str
    file: str
    extra: str = ""
    fixed_shapes: bool = False
    io_dtype: str = "float32"
    scheme: Scheme | None = None
    tolerance: Tolerance = msgspec.field(default_factory=Tolerance)
    options: list[TargetOption] = []
    runtime: dict[str, Option] = {}
    platforms: list[str] = []
    ships_to: list[str] = []
    on: list[Adaptation] = []
    why: str = ""
    owner: str = "edgekit"
    task: str = ""


class Source(msgspec.Struct, kw_only=True):
    """Where the model came from; ``sha256`` is over everything that was read to load it. ``bound``: inputs of it that
    are constants here, each a number, or a file and its sha256."""

    text: str
    kind: str
    sha256: str
    bound: dict[str, Json] = {}


class Step(msgspec.Struct, kw_only=True):
    """One stage of the build as it ran."""

    name: str
    options: dict[str, Json] = {}
    input_sha256: str = ""
    output_sha256: str = ""
    versions: dict[str, str] = {}
    seconds: float = 0.0
    notes: list[str] = []


class File(msgspec.Struct, kw_only=True):
    """One file of the artifact, by name relative to the manifest; the first is the one that the runtime loads."""

    name: str
    size: int
    sha256: str


class Calibration(msgspec.Struct, kw_only=True):
    """What the activation ranges come from. ``calibrated`` is false for random data."""

    fingerprint: str
    samples: int
    method: str
    calibrated: bool = True
    findings: list[str] = []


class Rounding(msgspec.Struct, kw_only=True):
    """How far the source in float32 is from itself in float64; the worst output's figures."""

    snr_db: float
    sample_snr_db: float
    relative_error: float


class Parity(msgspec.Struct, kw_only=True):
    """How far the outputs are from the source's, over ``samples`` inputs; each figure is the worst output's."""

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
    per_output: dict[str, dict[str, float]] = {}


class Golden(msgspec.Struct, kw_only=True):
    """Inputs and reference outputs stored beside the artifact, and the parity measured on them."""

    file: str
    samples: int
    sha256: str = ""
    parity: Parity | None = None


class Fallback(msgspec.Struct, kw_only=True):
    """Work that does not run as asked: an operator, how often, its share of the MACs, and why."""

    op: str
    count: int
    reason: str
    share: float = 0.0
    nodes: list[str] = []


class Placement(msgspec.Struct, kw_only=True):
    """What the runtime executes; ``share`` of the multiply-accumulates run as asked (``null``: it does not tell)."""

    precision: str
    share: float | None
    operators: int
    partitions: int | None = None
    kernels: dict[str, int] = {}
    fallbacks: list[Fallback] = []
    notes: list[str] = []


class Gate(msgspec.Struct, kw_only=True):
    """One check with a limit; ``verdict`` is pass, fail, unproven, not-run or shown (not judged)."""

    name: str
    verdict: str
    limit: float | None = None
    value: float | None = None
    message: str = ""
    enough: int | None = None


class Measurement(msgspec.Struct, kw_only=True):
    """Latency in milliseconds and memory in bytes on one device."""

    device: str
    threads: int
    samples: list[list[float]]
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
    reasons: list[str] = []
    facts: dict[str, Json] = {}


class ComparedLayer(msgspec.Struct, kw_only=True):
    """One layer of a comparison with the source; figures in dB."""

    node: str
    tensor: str = ""
    module: str = ""
    local_db: float
    beyond_db: float | None = None


class Comparison(msgspec.Struct, kw_only=True):
    """What edgekit diff found last when it held the artifact against its source."""

    edgekit: str
    samples: int
    reference: str = ""
    layers: list[ComparedLayer] = []


class Manifest(msgspec.Struct, kw_only=True):
    """The record of one artifact; ``status`` is passed, unproven, failed or not-run."""

    schema: int = SCHEMA
    edgekit: str
    status: str
    target: Target
    source: Source
    settings: dict[str, Option] = {}
    steps: list[Step] = []
    files: list[File] = []
    inputs: list[Tensor] = []
    outputs: list[Tensor] = []
    channels_moved: list[str] = []
    task: str = ""
    labels: list[str] = []
    preprocessing: dict[str, Json] = {}
    postprocessing: dict[str, Json] = {}
    calibration: Calibration | None = None
    golden: Golden | None = None
    parity: Parity | None = None
    placement: Placement | None = None
    gates: list[Gate] = []
    measurements: list[Measurement] = []
    compared: Comparison | None = None
    runtime: dict[str, Option] = {}
    runtime_versions: dict[str, str] = {}
    minimum_runtime: str = ""
    notes: list[str] = []
    details: dict[str, Json] = {}
    machine: dict[str, Json] = {}


_DIGITS = 20


class _Header(msgspec.Struct):
    schema: int
    edgekit: str = "unknown"


def encode(manifest: object) -> bytes:
    """The bytes of a manifest, given as builtins with exactly the keys above."""
    document = msgspec.json.encode(msgspec.convert(manifest, Manifest), order="deterministic")
    return msgspec.json.format(document, indent=2) + b"\n"


def plain(manifest: object) -> dict[str, Any]:
    """The same builtins with values of the types above: what :func:`decode` gives of :func:`encode`'s bytes."""
    builtins: dict[str, Any] = msgspec.to_builtins(msgspec.convert(manifest, Manifest))
    return builtins


def _once(members: list[tuple[str, Json]]) -> None:
    """Of two members of one name readers take the first, the last, or none."""
    names = [name for name, _ in members]
    if len(set(names)) < len(names):
        raise ValueError(f"it has {next(n for n in names if names.count(n) > 1)!r} twice")


def _whole(text: str) -> int:
    """Numbers of any length are Python's: no reader of another language has them."""
    if len(text) > _DIGITS or not -(2**63) <= (number := int(text)) < 2**63:
        raise ValueError(f"it has the number {text[:20]}… of {len(text)} digits")
    return number


def decode(data: bytes, where: str) -> Json:
    """The manifest as builtins, without the keys that this edgekit does not know: a later one may write more.

    Raises :class:`SourceError` when it is none, or has a schema that is not read here.
    """
    try:
        json.loads(data, object_pairs_hook=_once, parse_int=_whole)
        header = msgspec.json.decode(data, type=_Header)
        if header.schema > SCHEMA:
            raise SourceError(
                f"{where} was written by a newer edgekit ({header.edgekit}; schema {header.schema}, this one reads "
                f"up to {SCHEMA})",
                hint="upgrade edgekit, or build the artifact again with this one",
            )
        document = msgspec.json.decode(data, type=Manifest)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise SourceError(f"{where} is not a manifest: {error}", hint="build the artifact again") from error
    if header.schema < 1:
        raise SourceError(
            f"{where} has the schema {header.schema}: there is none", hint="build the artifact again"
        )
    plain: Json = msgspec.to_builtins(document)
    return plain
