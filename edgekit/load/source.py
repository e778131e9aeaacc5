"""The user's model, loaded at most once and only when a stage has to run."""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.core import files, versions
from edgekit.core.dependency import Dependency, Kind, digest
from edgekit.core.store import Store, canonical_json
from edgekit.errors import SourceError
from edgekit.load import Recorder, known, load
from edgekit.load.data import Example
from edgekit.load.shapes import Shapes
from edgekit.types import OnnxModel, SourceRecord, SourceSpec, TorchModel

if TYPE_CHECKING:
    from edgekit.types import Array

PLAN, _PLAN, _MOST_BYTES = "plan", "plan.json", 64 << 20
MODULE = "module"
"""The kind of a source that is an object in this process, not text."""


class Source:
    """A source and its identity: one sha256 over every file that was read to load it.

    The identity of an unchanged source is known from an earlier run without loading it again.
    """

    def __init__(
        self,
        spec: SourceSpec,
        store: Store,
        *,
        trust: bool = False,
        network: bool = False,
        loaded: TorchModel | None = None,
        example: Example | None = None,
        shapes: Shapes | None = None,
    ) -> None:
        self.spec, self._store = spec, store
        self._trust, self._network = trust, network
        self.shapes = shapes or Shapes()
        self._model: TorchModel | OnnxModel | None = (
            None if loaded is None else self.shapes.applied(loaded, spec.text)
        )
        self._sha256 = ""
        self._example = example or Example(None)
        self.first_sample: Mapping[str, Array] | None = None
        """What a graph, which has no example inputs of its own, is given for an example."""
        self.original: TorchModel | None = loaded
        """The module as it was loaded, before ``shapes`` changed it."""
        self.read: tuple[str, ...] = ()
        """The files that were read to load it in this process."""

    @property
    def sha256(self) -> str:
        """The identity. Loads the model when a file it was made from changed, or on first sight."""
        if not self._sha256:
            note = known.recall(self._store, "source", self._key())
            if note is not None and note["example"] in ("", self._example.fingerprint):
                self._sha256 = str(note["sha256"])
            else:
                self.load()
        return self._sha256

    @property
    def in_memory(self) -> bool:
        """Whether this is a module that was given as an object: only its export tells what it is."""
        return self.spec.kind == MODULE

    def identify(self, sha256: str) -> None:
        """Set the identity of a module in memory, known from its export."""
        self._sha256 = sha256

    @property
    def record(self) -> SourceRecord:
        """What the manifest says of it."""
        bound = self.shapes.bound.record()
        return SourceRecord(text=self.spec.text, kind=self.spec.kind, sha256=self.sha256, bound=bound)

    def load(self) -> TorchModel | OnnxModel:
        """The model itself."""
        if self._model is None:
            used: list[str] = []

            def example() -> object:
                used.append(self._example.fingerprint)
                return self.shapes.bound.completed(self._example.raw())

            with Recorder() as recorder:
                model = load(self.spec, trust=self._trust, network=self._network, needs_example=example)
                if isinstance(model, TorchModel):
                    self.original = model
                    model = self.shapes.applied(model, self.spec.text)
                elif self._example.given:
                    used.append(self._example.fingerprint)
                    rest = self.shapes.bound.rest(model.inputs, self.spec.text)
                    self.first_sample = self._example.inputs(rest)
            self._model = model
            self.read = tuple(d.name for d in recorder.dependencies if d.kind is Kind.FILE)
            self._sha256 = identity(self.spec, recorder, "".join(used[:1]), self.shapes)
            facts = {"sha256": self._sha256, "example": "".join(used[:1])}
            known.remember(self._store, "source", self._key(), facts, recorder)
        return self._model

    def torch(self) -> TorchModel:
        """The model, which must be a PyTorch module."""
        model = self.load()
        if not isinstance(model, TorchModel):
            raise SourceError(
                f"{self.spec.text} is not a PyTorch module", hint="give a factory, .pt2 or hf:DIR for this"
            )
        return model

    def _key(self) -> dict[str, object]:
        return {
            "text": self.spec.text,
            "kind": self.spec.kind,
            "path": str(self.spec.path.resolve() if self.spec.path else ""),
            "trust": self._trust,
            "network": self._network,
            "shapes": self.shapes,
        }


def identity(spec: SourceSpec, recorder: Recorder, example: str = "", shapes: Shapes | None = None) -> str:
    """sha256 over which factory it is, all that was read, the example where it was taken from data, the shapes that
    it was given, and what is installed. Of its own each time where what was read cannot be known."""
    name = "" if spec.kind == PLAN else spec.path.name if spec.path else spec.text
    what = [spec.kind, name, spec.attribute, example]
    doubt = secrets.token_hex(8) if recorder.doubts else ""
    read = [_without_place(spec, d) for d in recorder.dependencies]
    parts = [what, digest(read), versions.environment(), doubt, shapes or Shapes()]
    return hashlib.sha256(canonical_json(parts)).hexdigest()


def _without_place(spec: SourceSpec, read: Dependency) -> Dependency:
    """A plan names the place of its source, whose code is among what was read: the same plan beside the same code,
    elsewhere, is the same source."""
    if spec.kind != PLAN or Path(read.name).name != _PLAN:
        return read
    try:
        data = files.read(Path(read.name), most=_MOST_BYTES)
        document = json.loads(data)
        if hashlib.sha256(data).hexdigest() != read.sha256 or not isinstance(document["source"], dict):
            return read
        document["source"].pop("path", None)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return read
    return replace(read, sha256=hashlib.sha256(canonical_json(document)).hexdigest())
