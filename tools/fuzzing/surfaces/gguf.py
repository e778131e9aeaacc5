"""GGUF: packed like any file, and refused by name where a model is expected."""

from __future__ import annotations

import random
import struct
from pathlib import Path

from edgekit import entropy
from edgekit.load import load, parse
from fuzzing import commands
from fuzzing.mutators import containers
from fuzzing.surfaces import Plain


class Surface(Plain):
    def seeds(self, folder: Path) -> dict[str, bytes]:
        del folder
        text = lambda t: struct.pack("<Q", len(t)) + t.encode()  # noqa: E731
        pairs = text("general.architecture") + struct.pack("<I", 8) + text("llama")
        pairs += text("llama.block_count") + struct.pack("<II", 4, 2)
        pairs += (
            text("tokenizer.ggml.tokens") + struct.pack("<IIQ", 9, 8, 3) + text("a") + text("b") + text("c")
        )
        tensor = text("token_embd.weight") + struct.pack("<IQQIQ", 2, 32, 3, 0, 0)
        head = b"GGUF" + struct.pack("<IQQ", 3, 1, 3) + pairs + tensor
        return {"model.gguf": head + b"\0" * (-len(head) % 32) + struct.pack("<96f", *range(96))}

    def mutate(self, rng: random.Random, name: str, data: bytes) -> bytes:
        del name
        return containers.gguf(rng, data)

    def consume(self, name: str, data: bytes, box: Path) -> None:
        del data
        path = box / name
        commands.each(
            lambda: entropy.pack(path, box / "out" / "packed.ekz", coder="huffman"),
            lambda: commands.run("inspect", str(path)),
            lambda: load(parse(str(path))),
        )

    def command(self, name: str, data: bytes, box: Path) -> list[str]:
        return (
            ["inspect", str(box / name)]
            if len(data) % 2
            else ["build", str(box / name), "--target", "ort-fp32"]
        )
