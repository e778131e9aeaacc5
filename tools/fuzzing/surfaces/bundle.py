"""Bundles: a zip archive with a descriptor, a model, test vectors and the checksums of all of them."""

from __future__ import annotations

import json
import random
from pathlib import Path, PurePosixPath

from edgekit.package import bundle, verify_bundle, writing
from edgekit.types import sha256_bytes
from fuzzing import commands, seeds
from fuzzing.mutators import archives, documents, onnx_models, raw
from fuzzing.replays import replayed
from fuzzing.surfaces import Plain


class Surface(Plain):
    def seeds(self, folder: Path) -> dict[str, bytes]:
        files = seeds.bundle(folder)
        return {"bundle.zip": writing.zip_bytes(files)}

    def mutate(self, rng: random.Random, name: str, data: bytes) -> bytes:
        del name
        if rng.random() < 0.1:
            return raw.mutate(rng, data)
        return archives.mutate(rng, data, _member, _mend)

    def consume(self, name: str, data: bytes, box: Path) -> None:
        del data
        path = box / name
        commands.each(lambda: _open(path), lambda: _verify(path))

    def command(self, name: str, data: bytes, box: Path) -> list[str]:
        del data
        return ["verify", str(box / name)]


def _open(path: Path) -> None:
    with bundle.opened(path):
        pass


def _verify(path: Path) -> None:
    with replayed():
        verify_bundle(path)


def _member(rng: random.Random, name: str, data: bytes) -> bytes:
    if name.endswith(".json"):
        return documents.dump(rng, documents.mutate(rng, json.loads(data)))
    if name.endswith(".onnx") and rng.random() < 0.7:
        return onnx_models.mutate(rng, data)
    return raw.mutate(rng, data)


def _mend(entries: list[archives.Entry]) -> None:
    """The list of checksums of what is in the archive now."""
    rows = {
        e.name: sha256_bytes(e.data)
        for e in entries
        if PurePosixPath(e.name).name != writing.SUMS and not e.name.endswith("/")
    }
    for entry in entries:
        if entry.name == writing.SUMS:
            entry.data = "".join(f"{sha}  {name}\n" for name, sha in rows.items()).encode("utf-8", "replace")
