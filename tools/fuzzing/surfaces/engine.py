"""Engines: only their first bytes and the record beside them are read, and neither is believed."""

from __future__ import annotations

import json
import random
import struct
from pathlib import Path

from edgekit.backends.nvidia.engine import RECORD, EngineKey, write_record
from fuzzing import commands
from fuzzing.mutators import documents, raw
from fuzzing.surfaces import Plain

_SIZE = 4096


class Surface(Plain):
    def seeds(self, folder: Path) -> dict[str, bytes]:
        del folder
        head = struct.pack("<4s3IQ4BI", b"vtrt", 0, 2, 0, _SIZE, 1, 7, 1, 116, 0)
        return {
            "rtx.engine": head + bytes(_SIZE - len(head)),
            "trt.engine": b"ftrt" + head[4:] + bytes(_SIZE - len(head)),
        }

    def mutate(self, rng: random.Random, name: str, data: bytes) -> bytes:
        del name
        head = raw.mutate(rng, data[:32]) if rng.random() < 0.8 else data[:32]
        return head + data[32 : 32 + rng.choice((0, 100, _SIZE))]

    def place(self, name: str, data: bytes, box: Path) -> None:
        super().place(name, data, box)
        rng = random.Random(data)
        key = EngineKey(graph_sha256="0" * 64, runtime="tensorrt_rtx", version="1.7.1.116")
        path = write_record(box / name, key)
        if rng.random() < 0.5:
            document = documents.mutate(rng, json.loads(path.read_bytes()))
            path.write_bytes(documents.dump(rng, document))
        if rng.random() < 0.2:
            (box / RECORD).unlink()

    def consume(self, name: str, data: bytes, box: Path) -> None:
        del data
        commands.run("inspect", str(box / name))

    def command(self, name: str, data: bytes, box: Path) -> list[str]:
        del data
        return ["inspect", str(box / name), "--json"]
