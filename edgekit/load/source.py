"""The user's model, loaded at most once and only when a stage has to run."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import msgspec

from edgekit.core import versions
from edgekit.core.store import Store, canonical_json
from edgekit.errors import SourceError
from edgekit.load import Dependency, Recorder, environment_fingerprint, load, unchanged
from edgekit.types import OnnxModel, SourceRecord, SourceSpec, TorchModel

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
    ) -> None:
        self.spec, self._store = spec, store
        self._trust, self._network = trust, network
        self._model: TorchModel | OnnxModel | None = loaded
        self._sha256 = ""
        self.example: Callable[[], object] | None = None

    @property
    def sha256(self) -> str:
        """The identity. Loads the model when a file it was made from changed, or on first sight."""
        if not self._sha256:
            known = self._store.recall("source", self._key())
            if known and unchanged(_dependencies(known["dependencies"])):
                self._sha256 = known["sha256"]
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
        return SourceRecord(text=self.spec.text, kind=self.spec.kind, sha256=self.sha256)

    def load(self) -> TorchModel | OnnxModel:
        """The model itself."""
        if self._model is None:
            with Recorder() as recorder:
                self._model = load(
                    self.spec, trust=self._trust, network=self._network, needs_example=self.example
                )
            self._sha256 = identity(self.spec, recorder.dependencies)
            note = {"sha256": self._sha256, "dependencies": [asdict(d) for d in recorder.dependencies]}
            self._store.remember("source", self._key(), note)
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
            "path": str(self.spec.path.resolve() if self.spec.path else Path.cwd()),
            "environment": environment_fingerprint(),
            "trust": self._trust,
            "network": self._network,
            "edgekit": versions.code(),
        }


def identity(spec: SourceSpec, dependencies: Sequence[Dependency]) -> str:
    """sha256 over which factory it is, the names and contents of the files, and what is installed."""
    files = sorted((Path(d.path).name, d.sha256) for d in dependencies)
    what = [spec.kind, spec.path.name if spec.path else spec.text, spec.attribute]
    return hashlib.sha256(canonical_json([what, files, environment_fingerprint()])).hexdigest()


def _dependencies(rows: list[dict[str, object]]) -> tuple[Dependency, ...]:
    return tuple(msgspec.convert(row, Dependency) for row in rows)
