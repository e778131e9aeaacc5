"""OpenVINO's IR: a file to inspect and to pack; no runtime reads it."""

from __future__ import annotations

import random
import re
from pathlib import Path

from edgekit import entropy
from edgekit.backends.openvino import lower
from edgekit.core import targets
from edgekit.graph import io
from fuzzing import commands, seeds, values
from fuzzing.mutators import raw
from fuzzing.surfaces import Plain

_VALUE = re.compile(rb'="([^"<>]{0,40})"|<dim>([^<]*)</dim>')
_ELEMENT = re.compile(rb"<(layer|edge|port|data|body|dim)\b[^>]*>")
_ODD = (
    b"-1",
    b"0",
    b"?",
    b"1..8",
    b"1e9",
    b"99999999999999999999999",
    b"",
    b"\xff",
    b"&#27;[2J",
    b"Const",
    b"f8",
    b"&lol;",
)
_DOCTYPE = b'<!DOCTYPE x [<!ENTITY lol "lol"><!ENTITY f SYSTEM "file:///etc/passwd">]>'


class Surface(Plain):
    def seeds(self, folder: Path) -> dict[str, bytes]:
        made = {}
        for name, data in (
            ("dense", seeds.dense()),
            ("image", seeds.image()),
            ("branches", seeds.branches()),
        ):
            (folder / f"{name}.onnx").write_bytes(data)
            out = folder / name
            out.mkdir()
            lower(io.describe(folder / f"{name}.onnx"), targets.find("openvino-fp32"), {}, out)
            made[f"{name}.xml"] = (out / "model.xml").read_bytes()
            self._weights[f"{name}.xml"] = (out / "model.bin").read_bytes()
        return made

    def __init__(self) -> None:
        self._weights: dict[str, bytes] = {}

    def mutate(self, rng: random.Random, name: str, data: bytes) -> bytes:
        del name
        if rng.random() < 0.2:
            return raw.mutate(rng, data)
        for _ in range(rng.randint(1, 4)):
            data = _change(rng, data)
        return data

    def place(self, name: str, data: bytes, box: Path) -> None:
        super().place(name, data, box)
        seed = next((known for known in self._weights if name.endswith(known)), "")
        if len(data) % 4:
            (box / name).with_suffix(".bin").write_bytes(self._weights.get(seed, bytes(4096)))

    def consume(self, name: str, data: bytes, box: Path) -> None:
        del data
        path = box / name
        commands.each(
            lambda: commands.run("inspect", str(path), "--layers"),
            lambda: commands.run("inspect", str(path), "--json"),
            lambda: entropy.pack(path, box / "out" / "packed.ekz", coder="huffman"),
        )

    def command(self, name: str, data: bytes, box: Path) -> list[str]:
        del data
        return ["inspect", str(box / name)]


def _change(rng: random.Random, data: bytes) -> bytes:
    match rng.randrange(8):
        case 0:
            return data.replace(b"?>", b"?>" + _DOCTYPE, 1)
        case 1 | 2 | 3:
            found = list(_VALUE.finditer(data))
            if not found:
                return data
            chosen = rng.choice(found)
            group = 1 if chosen[1] is not None else 2
            value = rng.choice((*_ODD, str(rng.choice(values.NUMBERS)).encode()))
            return data[: chosen.start(group)] + value + data[chosen.end(group) :]
        case 4:
            found = list(_ELEMENT.finditer(data))
            chosen = rng.choice(found) if found else None
            return data[: chosen.start()] + data[chosen.end() :] if chosen else data
        case 5:
            return data.replace(b"<layers>", b"<body><layers>" * rng.choice((1, 3000)), 1)
        case 6:
            return data[: rng.randrange(len(data) + 1)]
        case _:
            layer = rng.choice(
                (b"<layer id='9' type='If'/>", b"<layer/>", b"<layer id='0' type='Result'>" * 20)
            )
            return data.replace(b"</layers>", layer + b"</layers>", 1)
