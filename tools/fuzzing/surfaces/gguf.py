"""GGUF: packed like any file, read as a decoder, and refused by name where a model is expected."""

from __future__ import annotations

import math
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
        return {
            "model.gguf": head + b"\0" * (-len(head) % 32) + struct.pack("<96f", *range(96)),
            "decoder.gguf": _decoder(),
        }

    def mutate(self, rng: random.Random, name: str, data: bytes) -> bytes:
        del name
        return containers.gguf(rng, data)

    def consume(self, name: str, data: bytes, box: Path) -> None:
        del data
        path = box / name
        commands.each(
            lambda: entropy.pack(path, box / "out" / "packed.ekz", coder="huffman"),
            lambda: commands.run("inspect", str(path), "--layers"),
            lambda: commands.run("inspect", str(path), "--json"),
            lambda: load(parse(str(path))),
        )

    def command(self, name: str, data: bytes, box: Path) -> list[str]:
        return (
            ["inspect", str(box / name)]
            if len(data) % 2
            else ["build", str(box / name), "--target", "ort-fp32"]
        )


def _decoder() -> bytes:
    """A Llama of one layer that transformers reads."""
    width, inner, words, heads = 32, 64, 64, 4
    sizes = {"block_count": 1, "context_length": 64, "embedding_length": width, "feed_forward_length": inner}
    sizes |= {"attention.head_count": heads, "attention.head_count_kv": heads, "vocab_size": words}
    text = lambda t: struct.pack("<Q", len(t)) + t.encode()  # noqa: E731
    pairs = text("general.architecture") + struct.pack("<I", 8) + text("llama")
    pairs += text("llama.attention.layer_norm_rms_epsilon") + struct.pack("<If", 6, 1e-5)
    pairs += b"".join(text(f"llama.{name}") + struct.pack("<II", 4, n) for name, n in sizes.items())
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (words, width),
        "output_norm.weight": (width,),
        "output.weight": (words, width),
        "blk.0.attn_norm.weight": (width,),
        "blk.0.ffn_norm.weight": (width,),
        **{f"blk.0.attn_{n}.weight": (width, width) for n in ("q", "k", "v", "output")},
        **{f"blk.0.ffn_{n}.weight": (inner, width) for n in ("gate", "up")},
        "blk.0.ffn_down.weight": (width, inner),
    }
    tensors, data = b"", b""
    for name, shape in shapes.items():
        tensors += text(name) + struct.pack("<I", len(shape))
        tensors += struct.pack(f"<{len(shape)}Q", *reversed(shape)) + struct.pack("<IQ", 0, len(data))
        values = math.prod(shape)
        data += struct.pack(f"<{values}f", *((i % 7 - 3) / 8 for i in range(values)))
    head = b"GGUF" + struct.pack("<IQQ", 3, len(shapes), 2 + len(sizes)) + pairs + tensors
    return head + b"\0" * (-len(head) % 32) + data
