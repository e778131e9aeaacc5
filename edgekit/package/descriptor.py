"""``edgekit.json``: what an app has to know about a model, in one document that every wrapper reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from edgekit.artifact.manifest import refuse_unknown_types
from edgekit.core import files
from edgekit.core.structure import structure
from edgekit.errors import SourceError, UnknownNameError, UsageError
from edgekit.package import coordinates, postprocess
from edgekit.preprocess.contract import Preprocessing
from edgekit.preprocess.postprocessing import Postprocessing
from edgekit.types import Gate, Option, Precision, TensorSpec

SCHEMA_VERSION = 2
_READ = (1, SCHEMA_VERSION)
FILE_NAME = "edgekit.json"

TOLERANCES: Mapping[str, Mapping[str, float]] = {
    # The same float32 arithmetic in another order of summation; accelerators compute in float16.
    "float32": {"cpu": 1e-4, "gpu": 2e-2, "npu": 2e-2},
    "float16": {"cpu": 1e-2, "gpu": 2e-2, "npu": 2e-2},
    # Integer kernels of two CPUs differ by a step where they requantize; accelerators dequantize to float16.
    "integer": {"cpu": 4e-2, "gpu": 1e-1, "npu": 1e-1},
}
"""Largest allowed ``max|a - e| / max|e|`` of one output, by the arithmetic inside and the accelerator."""

_MOST_BYTES = 64 << 20


@dataclass(frozen=True, kw_only=True)
class PackageSpec:
    """What ``edgekit package`` was asked for.

    ``name`` is a dotted identifier valid on every platform (``com.example.digits``), ``version`` a
    semantic version, ``license`` an SPDX expression for the model, ``sign_key`` a PEM file with an
    Ed25519 private key, ``labels`` a file with one class name a line that replaces the artifact's.
    ``compress`` is the bundle's archive, ``"zip"`` or ``"ekz"`` (see docs/ekz.md). ``postprocess`` is what is done with
    the outputs: a kind of :data:`~edgekit.preprocess.postprocessing.KINDS`, a TOML file, or the contract itself;
    ``"auto"`` takes the artifact's own, or what follows from the source's answers. ``native`` are Android archives or
    folders whose libraries are looked at in place of those of Maven's and Gradle's caches.
    ``tokenizer`` is the Hugging Face folder whose configuration and tokenizer transformers.js reads.
    ``golden = False`` leaves the test vectors out of an app package, for the build that is released.
    """

    format: str
    name: str
    version: str
    license: str = ""
    license_file: Path | None = None
    labels: Path | None = None
    sign_key: Path | None = None
    allow_failed: bool = False
    compress: str = "zip"
    postprocess: str | Postprocessing = postprocess.AUTO
    native: tuple[Path, ...] = ()
    golden: bool = True
    tokenizer: Path | None = None

    def __post_init__(self) -> None:
        if self.compress not in ("zip", "ekz"):
            raise UnknownNameError("compression", self.compress, ("zip", "ekz"))
        if self.compress != "zip" and self.format != "bundle":
            raise UsageError(
                f"{self.format} has no archive that could be {self.compress}: phones and browsers read its files",
                hint="--compress ekz is for the bundle format: only edgekit decodes it (edgekit unpack)",
            )
        coordinates.check_name(self.name)
        coordinates.check_version(self.version)
        coordinates.check_license(self.license)

    @property
    def short_name(self) -> str:
        """The last part of the id."""
        return self.name.rsplit(".", 1)[1]


@dataclass(frozen=True, kw_only=True)
class RuntimeNeed:
    """Which runtime the numbers were got with, the oldest that will do, and the options they need."""

    name: str
    minimum: str = ""
    verified_with: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, Option] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class LabelsRecord:
    """Class names, one a line in output order. ``output`` is the output that they name."""

    file: str
    count: int
    sha256: str
    output: str


@dataclass(frozen=True, kw_only=True)
class TensorFile:
    """One tensor as raw little-endian values in C order."""

    name: str
    file: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class ImageFile:
    """A raw image: RGB, 8 bits a channel, row by row."""

    file: str
    height: int
    width: int


@dataclass(frozen=True, kw_only=True)
class GoldenCase:
    """One input and what the runtime made of it when the package was written.

    ``image``, where there is one, is what the preprocessing contract turns into ``inputs`` bit for bit.
    ``label`` is the expected class name, ``result`` what the post-processing contract makes of ``outputs``, ``placed``
    the same with a detector's corners in pixels of ``image``.
    """

    name: str
    inputs: tuple[TensorFile, ...]
    outputs: tuple[TensorFile, ...]
    image: ImageFile | None = None
    label: str = ""
    result: TensorFile | None = None
    placed: TensorFile | None = None


@dataclass(frozen=True, kw_only=True)
class Golden:
    """Test vectors. An output passes if ``max|a - e| <= tolerance[accelerator] * max|e|``."""

    cases: tuple[GoldenCase, ...]
    tolerance: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Descriptor:
    """Everything in ``edgekit.json``. ``files`` are the model's, the main one first; ``stated`` is what the model's
    author says about its inputs where they are no images (the tokenizer, the sampling rate)."""

    schema: int = SCHEMA_VERSION
    name: str
    version: str
    license: str = ""
    target: str
    backend: str
    precision: Precision
    status: str
    runtime: RuntimeNeed
    files: tuple[str, ...]
    model_sha256: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    preprocessing: Preprocessing | None = None
    postprocessing: Postprocessing | None = None
    stated: Mapping[str, Any] = field(default_factory=dict)
    labels: LabelsRecord | None = None
    golden: Golden
    gates: tuple[Gate, ...] = ()
    source_sha256: str = ""
    manifest_digest: str = ""
    converters: Mapping[str, str] = field(default_factory=dict)
    edgekit: str

    @property
    def image_method(self) -> str:
        """What the wrappers call for an image, the most that they can make of it."""
        if self.postprocessing is None:
            return "predict"
        return "detect" if self.postprocessing.is_boxes else "classify"

    @property
    def image_input(self) -> TensorSpec | None:
        """The input that takes an image by the preprocessing contract."""
        if self.preprocessing is None:
            return None
        return next((i for i in self.inputs if i.name == self.preprocessing.input), None)


def tensors(case: GoldenCase) -> tuple[TensorFile, ...]:
    """Every tensor that is stored for a case."""
    after = (file for file in (case.result, case.placed) if file is not None)
    return (*case.inputs, *case.outputs, *after)


def arithmetic(precision: Precision) -> str:
    """The row of :data:`TOLERANCES` for what a target computes in."""
    if precision in (Precision.FP32, Precision.INT8_WEIGHTS, Precision.INT4_WEIGHTS):
        return "float32"
    return "float16" if precision in (Precision.FP16, Precision.BF16) else "integer"


def encode(descriptor: Descriptor) -> bytes:
    """Indented JSON, the same bytes for the same descriptor."""
    return msgspec.json.format(msgspec.json.encode(descriptor, order="deterministic"), indent=2) + b"\n"


def read(path: Path) -> Descriptor:
    """The descriptor at ``path``. Raises :class:`SourceError` where it is none or of a newer schema."""
    try:
        document = msgspec.json.decode(files.read(path, most=_MOST_BYTES))
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as e:
        raise SourceError(
            f"{path} cannot be read: {e}", hint="this is no bundle; edgekit package writes one"
        ) from e
    # Before the rest: a newer document may have fields that mean something else.
    schema = document.get("schema") if isinstance(document, dict) else None
    if schema not in _READ:
        raise SourceError(
            f"{path} has schema {schema!r}, this edgekit reads {' and '.join(map(str, _READ))}",
            hint="upgrade edgekit, or write the package again",
        )
    described = structure(Descriptor, document, where=str(path))
    cases = described.golden.cases
    stored = [t for case in cases for t in tensors(case)]
    images = [c.image for c in cases if c.image is not None]
    impossible = [t.file for t in stored if any(size < 0 for size in t.shape)]
    impossible += [image.file for image in images if image.height < 1 or image.width < 1]
    if impossible:
        raise SourceError(
            f"{path} gives {impossible[0]} a size that nothing has", hint="do not trust who wrote this bundle"
        )
    as_specs = (TensorSpec(name=t.name or "?", dtype=t.dtype, shape=t.shape) for t in stored)
    refuse_unknown_types((*described.inputs, *described.outputs, *as_specs), str(path))
    return described
