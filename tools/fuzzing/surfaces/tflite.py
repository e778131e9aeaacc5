"""``.tflite``: a file to inspect, to pack, to compare, and the model of an artifact."""

from __future__ import annotations

import random
from pathlib import Path

from edgekit import entropy
from edgekit.diff.tflite_form import TfliteForm
from edgekit.package import tflite_metadata, tflite_schema
from fuzzing import commands, seeds
from fuzzing.mutators import tflite_models
from fuzzing.surfaces import Plain


class Surface(Plain):
    def seeds(self, folder: Path) -> dict[str, bytes]:
        del folder
        return {"image.tflite": seeds.tflite(seeds.image()), "dense.tflite": seeds.tflite(seeds.dense())}

    def mutate(self, rng: random.Random, name: str, data: bytes) -> bytes:
        del name
        return tflite_models.mutate(rng, data)

    def consume(self, name: str, data: bytes, box: Path) -> None:
        path = box / name
        info = tflite_schema.ModelInfo(
            name="x", version="1.0.0", description="", license="", inputs=(), outputs=()
        )
        commands.each(
            lambda: commands.run("inspect", str(path), "--layers"),
            lambda: entropy.pack(path, box / "out" / "packed.ekz", coder="huffman"),
            lambda: TfliteForm(name, path).layers,
            lambda: tflite_metadata.with_metadata(data, info),
        )

    def command(self, name: str, data: bytes, box: Path) -> list[str]:
        del data
        return ["inspect", str(box / name), "--json"]
