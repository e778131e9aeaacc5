"""``.npz`` and ``.npy``: samples, golden vectors, and the outputs that a device sends."""

from __future__ import annotations

import io
import random
from pathlib import Path

import numpy as np

from edgekit.artifact import golden
from edgekit.devices.arrays import ArrayFile
from edgekit.load.samples import open_samples
from edgekit.types import TensorSpec
from fuzzing import commands, seeds
from fuzzing.mutators import arrays
from fuzzing.surfaces import Plain

_X = TensorSpec(name="x", dtype="float32", shape=("batch", 3, 8, 8))


class Surface(Plain):
    def seeds(self, folder: Path) -> dict[str, bytes]:
        del folder
        row = np.random.default_rng(0).normal(size=(1, 3, 8, 8)).astype(np.float32)
        buffer = io.BytesIO()
        np.save(buffer, row)
        packed = io.BytesIO()
        np.savez_compressed(packed, x=row, label=np.array(3))
        return {
            "row.npz": seeds.saved(x=row, label=np.array(3)),
            "packed.npz": packed.getvalue(),
            "row.npy": buffer.getvalue(),
            "golden.npz": seeds.saved(**{"input/0/x": row, "output/0/y": row}),
            "outputs.stream.npy": buffer.getvalue(),
        }

    def mutate(self, rng: random.Random, name: str, data: bytes) -> bytes:
        return arrays.archive(rng, data) if name.endswith(".npz") else arrays.record(rng, data)

    def place(self, name: str, data: bytes, box: Path) -> None:
        super().place(name, data, box)
        (box / "dense.onnx").write_bytes(seeds.dense())

    def consume(self, name: str, data: bytes, box: Path) -> None:
        del data
        path = box / name
        if name.startswith("golden"):
            golden.read(path)
        elif name.startswith("outputs"):
            list(ArrayFile(path=path, names=("y",), count=1))
        else:
            commands.each(lambda: _samples(path, (_X,)), lambda: _samples(path, (_X, _X)))

    def command(self, name: str, data: bytes, box: Path) -> list[str]:
        del data
        if name.startswith(("golden", "outputs")):
            return []
        return [
            "build",
            str(box / "dense.onnx"),
            "--target",
            "ort-int8",
            "--calib",
            str(box / name),
            "--out",
            str(box / "out" / "b"),
        ]


def _samples(path: Path, inputs: tuple[TensorSpec, ...]) -> None:
    for sample in open_samples(str(path), inputs):
        assert sample.inputs
