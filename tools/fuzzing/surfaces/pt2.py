"""``.pt2`` and ``.pt``: archives that hold programs and pickles; nothing of them is executed without ``--trust``."""

from __future__ import annotations

import io
import json
import os
import pickle
import random
from pathlib import Path

import torch

from edgekit.load import load, parse
from fuzzing import commands
from fuzzing.mutators import archives, documents, raw
from fuzzing.surfaces import Plain


class _Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.layer(x)).reshape(-1, 3)


class _Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (os.environ["FUZZ_ROOT"] + "/executed",)


class Surface(Plain):
    def seeds(self, folder: Path) -> dict[str, bytes]:
        torch.manual_seed(0)
        made = {}
        example = (torch.zeros(2, 4),)
        for name, shapes in (("static.pt2", None), ("dynamic.pt2", {"x": {0: torch.export.Dim("batch")}})):
            program = torch.export.export(_Net().eval(), example, dynamic_shapes=shapes)
            torch.export.save(program, folder / name)
            made[name] = (folder / name).read_bytes()
        state = io.BytesIO()
        torch.save(_Net().state_dict(), state)
        return made | {"state.pt": state.getvalue(), "evil.pt": pickle.dumps(_Evil())}

    def mutate(self, rng: random.Random, name: str, data: bytes) -> bytes:
        if name == "evil.pt" or rng.random() < 0.1:
            return raw.mutate(rng, data, most=2)
        return archives.mutate(rng, data, _member)

    def consume(self, name: str, data: bytes, box: Path) -> None:
        del data
        path = box / name
        calls = [lambda: load(parse(str(path)))]
        if path.suffix == ".pt2":
            calls = [
                lambda: commands.run("inspect", str(path)),
                lambda: commands.run("inspect", str(path), "--json"),
                *calls,
            ]
        commands.each(*calls)

    def command(self, name: str, data: bytes, box: Path) -> list[str]:
        del data
        return ["build", str(box / name), "--target", "ort-fp32", "--out", str(box / "out" / "built")]


def _member(rng: random.Random, name: str, data: bytes) -> bytes:
    if rng.random() < 0.1:
        return pickle.dumps(_Evil(), protocol=rng.choice((0, 2, 4)))
    if name.endswith(".json"):
        return documents.dump(rng, documents.mutate(rng, json.loads(data)))
    if data.startswith(b"PK"):
        return archives.mutate(rng, data, lambda chance, _name, inner: raw.mutate(chance, inner))
    return raw.mutate(rng, data)
