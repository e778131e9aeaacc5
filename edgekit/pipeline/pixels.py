"""Artifacts whose graph begins with the preprocessing contract: what they are fed, and what the source is fed.

With ``--set fold_preprocessing=true`` an artifact takes RGB pixels from 0 to 255, channels last; its source
still takes the tensors that the contract makes of them. Here one becomes the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from edgekit.artifact.manifest import Manifest
from edgekit.core import config, versions
from edgekit.core.store import canonical_json
from edgekit.core.structure import structure
from edgekit.errors import ConfigError, SourceError
from edgekit.graph.records import ModelRecord
from edgekit.load.data import SampleSet
from edgekit.preprocess.contract import Preprocessing, bound
from edgekit.preprocess.declared import completed, fitting
from edgekit.types import Lowered, Option, Sample, TensorSpec

if TYPE_CHECKING:
    from edgekit.types import Array

DETAIL = "folded_preprocessing"
"""Where a manifest's details hold the contract that is in the graph."""


@dataclass(frozen=True, kw_only=True)
class Pixels:
    """The contract that is in the graph, bound to the source's input, and the type of the artifact's.

    Float pixels are taken as they are, between two whole numbers too. Those of a ``uint8`` artifact are
    rounded and cut off at 0 and 255, greys are rounded inside; the source is then compared on what the contract
    makes of *these*: what an artifact cannot be given must not count as its error.
    """

    contract: Preprocessing
    dtype: str = "float32"

    @property
    def left(self) -> Preprocessing:
        """What remains for the app to do: resize and crop."""
        return self.contract.folded(self.contract.input, self.dtype)

    def declared(self, lowered: Lowered) -> Lowered:
        """``lowered`` with the layout of the input that takes pixels."""
        name = self.contract.input
        inputs = (replace(s, layout="NHWC") if s.name == name else s for s in lowered.inputs)
        return replace(lowered, inputs=tuple(inputs))

    def source_inputs(self, inputs: Sequence[TensorSpec]) -> tuple[TensorSpec, ...]:
        """The artifact's inputs as the source declares them."""
        c = self.contract
        layout = "" if c.layout == "NCHW" else c.layout
        return tuple(
            replace(s, shape=(s.shape[0], *c.shape[1:]), dtype="float32", layout=layout)
            if s.name == c.input
            else s
            for s in inputs
        )

    def fed(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """The artifact's inputs for the source's."""
        name = self.contract.input
        return {**inputs, name: self._pixels(inputs[name])}

    def asked(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """The source's inputs that belong to :meth:`fed`."""
        if self._exact:
            return dict(inputs)
        return self.restored(self.fed(inputs))

    def restored(self, fed: Mapping[str, Array]) -> dict[str, Array]:
        """The source's inputs for the artifact's: the inverse of :meth:`fed`."""
        name = self.contract.input
        pixels = fed[name]
        if np.array_equal(pixels, np.rint(pixels).clip(0, 255)):
            pixels = pixels.astype(np.uint8)
        return {**fed, name: self.contract.feed(pixels)}

    def samples_fed(self, samples: SampleSet) -> SampleSet:
        """:meth:`fed` of every sample."""
        return self._each(samples, self.fed, "fed")

    def samples_asked(self, samples: SampleSet) -> SampleSet:
        """:meth:`asked` of every sample."""
        return samples if self._exact else self._each(samples, self.asked, "asked")

    @property
    def _exact(self) -> bool:
        """Whether the artifact computes with whatever it is fed, without rounding."""
        return self.dtype != "uint8" and self.contract.color != "gray"

    def _pixels(self, fed: Array) -> Array:
        pixels = self.contract.unapply(fed)
        return np.rint(pixels).clip(0, 255).astype(np.uint8) if self.dtype == "uint8" else pixels

    def _each(
        self, samples: SampleSet, change: Callable[[Mapping[str, Array]], dict[str, Array]], what: str
    ) -> SampleSet:
        def opened() -> Iterator[Sample]:
            return (replace(s, inputs=change(s.inputs)) for s in samples.open())

        contract = canonical_json(self.contract).decode()
        fingerprint = versions.digest(samples.fingerprint, what, self.dtype, contract)
        return replace(samples, fingerprint=fingerprint, open=opened)


def asked_for(
    settings: Mapping[str, Option], record: ModelRecord, table: Mapping[str, object]
) -> Pixels | None:
    """What ``--set fold_preprocessing=true`` asks for, for the exported model; ``None`` where it is not set.

    ``table`` is the build's ``[preprocessing]``, which goes before the source's own.

    Raises :class:`ConfigError` for a contract that is none, for a table that gives what the model does not take, and,
    where it is to be folded, when there is no contract or the source's own gives what the model does not take.
    """
    chosen = config.build_settings(settings)
    inputs = record.model.inputs
    contract = fitting(table, inputs) if table else completed(record.preprocessing, inputs)
    if not chosen["fold_preprocessing"]:
        return None
    if contract is None:
        raise ConfigError(
            "fold_preprocessing: there is no preprocessing contract of an image to fold",
            hint="write a [preprocessing] table into edgekit.toml, or return TorchModel(preprocessing=…)",
        )
    contract = bound(contract, inputs)
    if contract.dtype != "float32":
        raise ConfigError(
            f"fold_preprocessing: {contract.input} takes {contract.dtype}, not normalised floats",
            hint="the model takes pixels already: leave the setting out",
        )
    return Pixels(contract=contract, dtype=str(chosen["pixels"]))


def doubt(record: ModelRecord) -> str:
    """What the source says of its images where its model takes something else: packages will refuse it."""
    try:
        fitting(record.preprocessing, record.model.inputs)
    except ConfigError as error:
        return error.message
    return ""


def recorded(manifest: Manifest) -> Pixels | None:
    """What an artifact was built with; ``None`` where its source takes the same inputs."""
    stored = manifest.details.get(DETAIL)
    if not isinstance(stored, Mapping) or not stored:
        return None
    # Whole, as it was written: a manifest of anybody's must not name files to read here.
    contract = structure(Preprocessing, stored, where=DETAIL)
    spec = next((s for s in manifest.inputs if s.name == contract.input), None)
    if spec is None:
        raise SourceError(
            f"the manifest's {DETAIL} is for {contract.input!r}, which is no input", hint="build it again"
        )
    return Pixels(contract=contract, dtype=spec.dtype)
