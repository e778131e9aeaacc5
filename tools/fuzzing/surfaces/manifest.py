"""``manifest.json`` of an artifact that came from somebody: shown, verified, packaged, compared with its source."""

from __future__ import annotations

import json
import random
from pathlib import Path

import torch  # noqa: F401 - that looks for libraries with a program of the system's, which is not what is tried here

import edgekit
from fuzzing import commands, seeds
from fuzzing.mutators import documents, raw
from fuzzing.replays import replayed
from fuzzing.surfaces import Plain


class Surface(Plain):
    def seeds(self, folder: Path) -> dict[str, bytes]:
        made = seeds.artifact(folder / "artifact")
        self._beside = {p.name: p.read_bytes() for p in made.iterdir() if p.name != "manifest.json"}
        return {"manifest.json": (made / "manifest.json").read_bytes()}

    def mutate(self, rng: random.Random, name: str, data: bytes) -> bytes:
        del name
        if rng.random() < 0.1:
            return raw.mutate(rng, data)
        return documents.dump(rng, documents.mutate(rng, json.loads(data)))

    def place(self, name: str, data: bytes, box: Path) -> None:
        super().place(name, data, box)
        for file, content in self._beside.items():
            (box / file).write_bytes(content)

    def consume(self, name: str, data: bytes, box: Path) -> None:
        del name, data
        spec = edgekit.PackageSpec(format="bundle", name="com.example.x", version="1.0.0")
        commands.each(
            lambda: commands.run("inspect", str(box), "--json"),
            lambda: commands.run("inspect", str(box)),
            lambda: _verify(box),
            lambda: _package(box, spec),
            lambda: commands.run("diff", str(box)),
        )

    def command(self, name: str, data: bytes, box: Path) -> list[str]:
        del name
        return ["diff", str(box)] if len(data) % 3 == 0 else ["verify", str(box)]


def _verify(box: Path) -> None:
    with replayed():
        edgekit.open(box).verify()


def _package(box: Path, spec: edgekit.PackageSpec) -> None:
    with replayed():
        edgekit.open(box).package(spec, box / "out" / "package")
