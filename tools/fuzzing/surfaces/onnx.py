"""``.onnx``: a source, a file to inspect, a file to pack."""

from __future__ import annotations

import random
import zlib
from pathlib import Path

from edgekit import entropy
from edgekit.backends import tflite
from edgekit.core import targets
from edgekit.graph import io, passes
from edgekit.load import load, parse
from edgekit.types import OnnxModel
from fuzzing import commands, seeds
from fuzzing.mutators import onnx_models
from fuzzing.surfaces import Plain

_OPTIMIZED = 4
"""One of so many accepted models is rewritten and checked for lowering, too: native code that takes its time."""


class Surface(Plain):
    def seeds(self, folder: Path) -> dict[str, bytes]:
        del folder
        return {"dense.onnx": seeds.dense(), "image.onnx": seeds.image(), "branches.onnx": seeds.branches()}

    def mutate(self, rng: random.Random, name: str, data: bytes) -> bytes:
        del name
        return onnx_models.mutate(rng, data)

    def consume(self, name: str, data: bytes, box: Path) -> None:
        path = box / name
        commands.each(
            lambda: commands.run("inspect", str(path), "--json"),
            lambda: commands.run("inspect", str(path), "--layers"),
            lambda: entropy.pack(path, box / "out" / "packed.ekz", coder="huffman"),
            lambda: self._source(path, data, box),
        )

    def _source(self, path: Path, data: bytes, box: Path) -> None:
        model = load(parse(str(path)))
        io.session(path)
        if zlib.crc32(data) % _OPTIMIZED == 0:
            assert isinstance(model, OnnxModel)
            optimized = passes.optimize(model, box / "out" / "optimized.onnx")
            if all(spec.is_static for spec in optimized.inputs):
                tflite.check(optimized, targets.known()["tflite-fp32"], {})

    def command(self, name: str, data: bytes, box: Path) -> list[str]:
        target = ("ort-fp32", "openvino-fp32", "tflite-fp32", "ort-int8")[zlib.crc32(data) % 4]
        calibration = ["--calib", "random"] if target == "ort-int8" else []
        return [
            "build",
            str(box / name),
            "--target",
            target,
            "--out",
            str(box / "out" / "built"),
            *calibration,
        ]
