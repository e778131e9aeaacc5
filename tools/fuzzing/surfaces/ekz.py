"""``.ekz``: containers to unpack, to read tensors of, and to open as bundles."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
from safetensors.numpy import save

from edgekit import entropy
from edgekit.package import bundle
from fuzzing import commands, seeds
from fuzzing.mutators import containers
from fuzzing.surfaces import Plain

_MOST = 1 << 26


class Surface(Plain):
    def seeds(self, folder: Path) -> dict[str, bytes]:
        generator = np.random.default_rng(1)
        clustered = generator.choice(np.linspace(-1, 1, 9, dtype=np.float32), (20, 15))
        tensors = {
            "clustered": clustered,
            "copy": clustered.copy(),
            "half": generator.normal(size=(8, 16)).astype(np.float16),
            "whole": generator.integers(-20, 20, (10, 10), np.int8),
            "indices": generator.integers(0, 9, (16, 16)).astype(np.uint8),
        }
        (folder / "w.safetensors").write_bytes(save(tensors))
        (folder / "dense.onnx").write_bytes(seeds.dense())
        tree = folder / "bundle"
        for name, data in seeds.bundle(folder).items():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            (tree / name).write_bytes(data)
        made = {}
        for source, coder in (
            ("w.safetensors", "adaptive"),
            ("w.safetensors", "huffman"),
            ("dense.onnx", "zstd"),
            ("bundle", "huffman"),
        ):
            out = folder / f"{Path(source).stem}-{coder}.ekz"
            entropy.pack(folder / source, out, coder=coder)
            made[out.name] = out.read_bytes()
        return made

    def mutate(self, rng: random.Random, name: str, data: bytes) -> bytes:
        del name
        return containers.ekz(rng, data)

    def consume(self, name: str, data: bytes, box: Path) -> None:
        del data
        path = box / name
        commands.each(
            lambda: entropy.unpack(path, box / "out" / "unpacked", max_output=_MOST),
            lambda: _tensors(path),
            lambda: commands.run("unpack", str(path), "--list"),
            lambda: commands.run("inspect", str(path)),
            lambda: _bundle(path),
        )

    def command(self, name: str, data: bytes, box: Path) -> list[str]:
        if len(data) % 2:
            return ["verify", str(box / name)]
        return ["unpack", str(box / name), "--out", str(box / "out" / "unpacked"), "--max-bytes", str(_MOST)]


def _tensors(path: Path) -> None:
    with entropy.open(path) as container:
        for name in container.names[:20]:
            if container.index.total < _MOST:
                container[name]


def _bundle(path: Path) -> None:
    with bundle.opened(path):
        pass
